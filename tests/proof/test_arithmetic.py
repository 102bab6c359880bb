"""What the field keeps of the reals: identities that hold exactly at every point, and derivatives that match the op table's."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_examples import EXAMPLES, SIZES, Example

from seqc.ir import ops
from seqc.ir.adjoint import adjoints
from seqc.ir.expr import Expr
from seqc.ir.interp import evaluate
from seqc.ir.rules import extent
from seqc.proof.arithmetic import Field
from seqc.proof.bench import dot
from seqc.proof.composed import NoFieldMeaning
from seqc.proof.dual import Dual, Duals
from seqc.proof.field import EXACT, MODULI, REAL, P, Residues, raised
from seqc.proof.number import LEVELS, Number
from seqc.proof.oracles import Oracles

POINTS = 16
seeds = st.integers(0, 2**32).map(str)
AB = tuple(ops.var(n) for n in "abc")
a, b, c = AB


def drawn(oracles: Oracles, name: str, axes: tuple[str, ...] = (), positive: bool = False) -> Number:
    shape = (POINTS, *(extent(SIZES, x) for x in axes))
    residues = [oracles.draw(f"{name} {k}", m, shape) for k, m in enumerate(MODULI)]
    if positive:
        residues[0] = raised(0, residues[0] % np.uint64(MODULI[1].value))
    return Field(oracles, SIZES).given(residues)


def values(seed: str, *roots: Expr, positive: str = "") -> list[Residues]:
    """The roots at random points of the leaves a, b, c."""
    oracles = Oracles(seed)
    leaves = {x.name: drawn(oracles, x.name, positive=x.name in positive) for x in AB}
    return [x.p for x in evaluate(Field(oracles, SIZES), roots, leaves)]


def number(value: int | Fraction) -> Expr:
    return ops.number(value)


def same(left: Expr, right: Expr, positive: str = "") -> tuple[Expr, Expr, str]:
    return left, right, positive


def absolute(x: Expr) -> Expr:
    return ops.unary("abs", x)


HALF = number(Fraction(1, 2))
HOLDS = {
    "exp of a sum": same(ops.exp(ops.add(a, b)), ops.mul(ops.exp(a), ops.exp(b))),
    "exp of a difference": same(ops.exp(ops.sub(a, b)), ops.div(ops.exp(a), ops.exp(b))),
    "exp of a half": same(ops.power(ops.exp(ops.mul(HALF, a)), number(2)), ops.exp(a)),
    "log": same(ops.exp(ops.log(a)), a),
    "log in a sum": same(ops.exp(ops.add(ops.log(a), ops.sub(b, ops.log(c)))), ops.mul(ops.div(a, c), ops.exp(b))),
    "log thrice": same(ops.exp(ops.mul(number(3), ops.log(a))), ops.power(a, number(3))),
    "log by a number": same(ops.exp(ops.mul(b, ops.log(a))), ops.power(a, b)),
    "log1p": same(ops.exp(ops.unary("log1p", ops.neg(a))), ops.sub(number(1), a)),
    "softplus": same(ops.exp(ops.neg(ops.unary("softplus", ops.neg(a)))), ops.unary("sigmoid", a)),
    "sigmoid": same(ops.unary("sigmoid", ops.neg(a)), ops.sub(number(1), ops.unary("sigmoid", a))),
    "tanh": same(ops.unary("tanh", a), ops.sub(ops.mul(number(2), ops.unary("sigmoid", ops.mul(number(2), a))), number(1))),
    "expm1": same(ops.unary("expm1", ops.add(a, b)), ops.sub(ops.mul(ops.exp(a), ops.exp(b)), number(1))),
    "nested exponentials": same(ops.exp(ops.mul(ops.exp(a), ops.mul(ops.exp(b), c))), ops.exp(ops.mul(c, ops.exp(ops.add(a, b))))),
    "nested sums": same(ops.exp(ops.add(ops.exp(a), ops.exp(b))), ops.mul(ops.exp(ops.exp(a)), ops.exp(ops.exp(b)))),
    "relu and its mirror": same(ops.sub(ops.unary("relu", a), ops.unary("relu", ops.neg(a))), a),
    "relu is homogeneous": same(ops.unary("relu", ops.mul(ops.exp(b), a)), ops.mul(ops.exp(b), ops.unary("relu", a))),
    "relu of the positive": same(ops.unary("relu", ops.exp(a)), ops.exp(a)),
    "relu of a positive input": same(ops.unary("relu", a), a, "a"),
    "maximum is symmetric": same(ops.maximum(a, b), ops.maximum(b, a)),
    "maximum shifts": same(ops.maximum(ops.add(a, c), ops.add(b, c)), ops.add(ops.maximum(a, b), c)),
    "maximum by relu": same(ops.maximum(a, b), ops.add(b, ops.unary("relu", ops.sub(a, b)))),
    "exp of a maximum": same(
        ops.exp(ops.sub(ops.maximum(a, b), b)), ops.where(ops.compare("ge", a, b), ops.exp(ops.sub(a, b)), number(1))
    ),
    "abs is even": same(absolute(ops.neg(a)), absolute(a)),
    "abs is homogeneous": same(absolute(ops.mul(ops.exp(b), a)), ops.mul(ops.exp(b), absolute(a))),
    "abs in an exponent": same(ops.exp(absolute(a)), ops.exp(ops.mul(ops.unary("sign", a), a))),
    "sqrt": same(ops.mul(ops.sqrt(a), ops.sqrt(a)), a, "a"),
    "sqrt of a product": same(ops.sqrt(ops.mul(a, b)), ops.mul(ops.sqrt(a), ops.sqrt(b)), "ab"),
    "sqrt is homogeneous": same(ops.sqrt(ops.mul(ops.exp(ops.mul(number(2), b)), a)), ops.mul(ops.exp(b), ops.sqrt(a))),
    "powers": same(ops.mul(ops.power(a, b), ops.power(a, c)), ops.power(a, ops.add(b, c))),
    "a root and a power": same(ops.mul(a, ops.power(a, HALF)), ops.power(a, number(Fraction(3, 2)))),
    "angles": same(
        ops.unary("cos", ops.add(a, b)),
        ops.sub(
            ops.mul(ops.unary("cos", a), ops.unary("cos", b)), ops.mul(ops.unary("sin", a), ops.unary("sin", b))
        ),
    ),
    "the circle": same(
        ops.add(ops.power(ops.unary("cos", a), number(2)), ops.power(ops.unary("sin", a), number(2))), number(1)
    ),
    "an oracle of equals": same(ops.unary("erf", ops.mul(a, ops.add(b, c))), ops.unary("erf", ops.add(ops.mul(a, b), ops.mul(a, c)))),
    "rounding a whole number": same(ops.unary("floor", number(7)), number(7)),
    "remainders": same(ops.modulo(number(17), number(5)), number(2)),
    "trailing zeros": same(ops.unary("trailing_zeros", number(24)), number(3)),
}  # fmt: skip
DIFFERS = {
    "exp is not additive": same(ops.exp(ops.add(a, b)), ops.add(ops.exp(a), ops.exp(b))),
    "exp of another multiple": same(ops.exp(ops.mul(number(2), a)), ops.mul(number(2), ops.exp(a))),
    "sqrt has a sign": same(ops.sqrt(ops.neg(a)), ops.sqrt(a)),
    "abs has a piece": same(absolute(a), a),
    "relu has a piece": same(ops.unary("relu", a), a),
    "oracles are told apart": same(ops.unary("erf", a), ops.unary("floor", a)),
    "sigmoid is not tanh": same(ops.unary("sigmoid", a), ops.unary("tanh", a)),
    "cos is not sin": same(ops.unary("cos", a), ops.unary("sin", a)),
    "one part in ten thousand": same(ops.mul(number(Fraction(10001, 10000)), a), a),
}


@pytest.mark.parametrize("name", HOLDS)
@given(seeds)
@settings(max_examples=5, deadline=None)
def test_holds(name: str, seed: str) -> None:
    left, right, positive = HOLDS[name]
    x, y = values(seed, left, right, positive=positive)
    assert (x == y).all()


@pytest.mark.parametrize("name", DIFFERS)
@given(seeds)
@settings(max_examples=5, deadline=None)
def test_differs(name: str, seed: str) -> None:
    left, right, positive = DIFFERS[name]
    x, y = values(seed, left, right, positive=positive)
    assert (x != y).any()


@given(seeds)
@settings(max_examples=5, deadline=None)
def test_sums_of_logarithms(seed: str) -> None:
    """A running sum, a shift and a mask of logarithms: products of what they are the logarithms of."""
    oracles = Oracles(seed)
    A = Field(oracles, SIZES)
    s = drawn(oracles, "s", ("V",))
    leaf, tests = ops.var("s", ("V",)), ops.var("m", ("V",))
    running = ops.exp(ops.shift(ops.cumsum(ops.mul(ops.log(leaf), tests), "V", False), "V", 1))
    (found,) = evaluate(A, (running,), {"s": s, "m": A.integers(np.array([1, 0, 1]))})
    first = s.p[:, :1]
    assert (found.p == np.concatenate([np.ones_like(first), first, first], 1)).all()
    total = ops.exp(ops.contract((tests, ops.log(leaf)), ()))
    (whole,) = evaluate(A, (total,), {"s": s, "m": A.integers(np.array([1, 2, -1]))})
    expected = P.mul(P.mul(s.p[:, 0], P.power(s.p[:, 1], 2)), P.inverse(s.p[:, 2]))
    assert (whole.p == expected).all()


@given(seeds)
@settings(max_examples=5, deadline=None)
def test_every_level_is_a_ring(seed: str) -> None:
    oracles = Oracles(seed)
    A = Field(oracles, SIZES)
    x, y, z = (drawn(oracles, n) for n in "xyz")
    left = A.combine("mul", x, A.combine("sub", y, z))
    right = A.combine("sub", A.combine("mul", x, y), A.combine("mul", z, x))
    for level in range(LEVELS):
        assert (left.residue(level) == right.residue(level)).all()


def test_a_long_chain_needs_no_recursion() -> None:
    oracles = Oracles("chain")
    A = Field(oracles, SIZES)
    x, step = drawn(oracles, "x"), drawn(oracles, "step")
    for _ in range(5000):
        x = A.combine("add", x, step)
    assert x.residue(1).shape == (POINTS,)


def test_draws_depend_on_seed_and_name_alone() -> None:
    one = Oracles("seed").draw("x", P, (4, 3))
    assert (Oracles("seed").draw("x", P, (4, 3)) == one).all()
    assert (Oracles("other").draw("x", P, (4, 3)) != one).any() and (Oracles("seed").draw("y", P, (4, 3)) != one).any()
    assert one.ravel()[0] == 643708386032053


def test_complex_numbers_are_a_gap() -> None:
    with pytest.raises(NoFieldMeaning, match="complex"):
        values("seed", ops.complex_(a, b))


PRIME = 10**9 + 7
THIRD = number(Fraction(1, 3))
LARGE = ops.mul(number(PRIME), ops.power(number(PRIME), number(2)))
KNOWN = {
    "a remainder of a large number": (ops.modulo(ops.power(number(PRIME), number(2)), number(10)), 9),
    "a remainder of a fraction": (ops.modulo(ops.mul(number(PRIME), THIRD), number(2)), Fraction(PRIME, 3) % 2),
    "a remainder after a large quotient": (ops.modulo(LARGE, number(Fraction(1, 10**9))), 0),
    "a large quotient, rounded": (ops.unary("floor", ops.mul(LARGE, THIRD)), PRIME**3 // 3),
    "a large quotient, rounded up": (ops.unary("ceil", ops.mul(LARGE, THIRD)), -(-(PRIME**3) // 3)),
    "a number just below a whole one": (ops.unary("floor", number(2 - Fraction(1, 10**30))), 1),
    "a number just above a whole one": (ops.unary("ceil", number(2 + Fraction(1, 10**30))), 3),
    "trailing zeros of a large number": (ops.unary("trailing_zeros", ops.mul(LARGE, number(2**20))), 20),
    "an order of neighbours": (ops.where(ops.compare("lt", LARGE, ops.add(LARGE, THIRD)), THIRD, number(2)), Fraction(1, 3)),
    "a number that is another's residue": (ops.where(ops.compare("eq", number(P.value), number(0)), THIRD, number(2)), 2),
    "division by zero": (ops.unary("floor", ops.div(THIRD, ops.sub(THIRD, THIRD))), 0),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.filterwarnings("error")
def test_known_numbers_are_exact(name: str) -> None:
    root, expected = KNOWN[name]
    (found,) = evaluate(Field(Oracles("seed"), SIZES), (root,), {})
    for level in range(LEVELS):
        assert (found.residue(level) == MODULI[level].residue(expected)).all()
    assert found.residue(REAL).item() == pytest.approx(float(expected), rel=1e-15) and found.residue(EXACT).item() == expected


def test_known_sums_are_exact() -> None:
    """Along axes, where the numbers themselves would not fit in 64 bits."""
    A = Field(Oracles("seed"), SIZES)
    x = A.whole(np.full((1, 3), 2**31 - 1))
    cube = A.contract((x, x, x), [("V",)] * 3, ())
    expected = 3 * (2**31 - 1) ** 3
    assert cube.whole is None and cube.residue(EXACT).item() == expected and cube.p.item() == expected % P.value
    for total in (A.sum(x, (1,)), A.structural(lambda v: v[:, 2], A.cumsum(x, 1, False))):
        assert total.whole is None and A.primitive("floor", A.combine("div", total, A.rational(Fraction(3)))).whole == 2**31 - 1


def test_what_is_too_large_is_a_random_function() -> None:
    """The same for equal numbers; never a rounded one. A number beside it is known still."""
    A = Field(Oracles("seed"), SIZES)
    n, share = A.whole(np.array([3, 10**9])), A.rational(Fraction(1, 7))
    x = A.combine("mul", A.power(n, A.rational(Fraction(64)), Fraction(64)), share)
    y = A.combine("mul", share, A.power(A.power(n, share, Fraction(8)), share, Fraction(8)))
    found, other = (A.primitive("floor", v) for v in (x, y))
    assert (found.p == other.p).all() and found.p[0] == 3**64 // 7 % P.value and found.p[1] != 10 ** (9 * 64) // 7 % P.value
    assert found.residue(EXACT).tolist() == [3**64 // 7, None] and A.compare("eq", found, other).whole.tolist() == [1, 1]
    wrapped = A.combine("modulo", found, A.rational(Fraction(10)))
    assert wrapped.p[0] == 3**64 // 7 % 10 and wrapped.p[1] > 10


def test_a_constant_may_be_larger_than_a_real_number() -> None:
    A = Field(Oracles("seed", ordered=True), SIZES)
    x, y = A.rational(Fraction(10**400)), A.rational(Fraction(-(10**400)))
    assert A.compare("gt", x, y).whole == 1 and A.compare("gt", y, A.rational(Fraction(1, 3))).whole == 0


# --- Derivatives -----------------------------------------------------------------------------------------------------

COMPLEX = "complex"
SMOOTH = [e for e in EXAMPLES if e.leaves and not e.once and e.node.type.dtype == "real" and e.op not in ("conj", "re", "im", "implicit")]
SMOOTH = [e for e in SMOOTH if all(leaf.type.dtype != COMPLEX for leaf in e.leaves)]


@pytest.mark.parametrize("example", SMOOTH, ids=[f"{e.op}-{i}" for i, e in enumerate(SMOOTH)])
def test_tangents_against_the_op_table(example: Example) -> None:
    """<u, J v> of forward mode, written op by op, against <J^T u, v> of the derivative rules."""
    oracles = Oracles(example.op)
    A = Field(oracles, SIZES)
    node, leaves = example.node, [x for x in example.leaves if x.type.dtype != "bool"]
    given = {x.name: drawn(oracles, x.name, x.axes, x.name in example.positive) for x in leaves}
    given |= {x.name: A.integers(np.arange(extent(SIZES, x.axes[0])) % 2) for x in example.leaves if x.type.dtype == "bool"}
    tangents = {x.name: oracles.draw(f"d{x.name}", P, given[x.name].p.shape) for x in leaves}
    seed = ops.var("seed", node.axes)
    given["seed"] = drawn(oracles, "seed", node.axes)
    duals = {n: Dual(v, tangents.get(n)) for n, v in given.items()}
    (found,) = evaluate(Duals(A), (node,), duals)
    gradients = evaluate(A, adjoints(((node, seed),), leaves), given)
    u = given["seed"].p
    forward = np.zeros(POINTS, np.uint64) if found.tangent is None else dot(np.broadcast_to(found.tangent, u.shape), u)
    backward = np.zeros(POINTS, np.uint64)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        share = np.broadcast_to(gradient.p, tangents[leaf.name].shape)
        if leaf.name not in example.fixed:
            backward = P.add(backward, dot(share, tangents[leaf.name]))
    assert (forward == backward).all()


FUNCTIONS = ("exp", "expm1", "sigmoid", "softplus", "tanh", "log", "log1p", "sqrt", "sin", "cos", "erf", "decay", "decayed")
# Of powers those that are not whole.
UNKNOWN = (*FUNCTIONS, "power", "solve", "strict_solve", "decayed_solve", "unit_lower_inverse", "apply_inverse")


@pytest.mark.parametrize("example", SMOOTH, ids=[f"{e.op}-{i}" for i, e in enumerate(SMOOTH)])
def test_fractions_are_those_of_the_residues(example: Example) -> None:
    """Through every op that a number stays known by."""
    A = Field(Oracles(example.op), SIZES)
    given = {}
    for leaf in example.leaves:
        shape = (2, *(extent(SIZES, x) for x in leaf.axes))
        counted = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        share = A.combine("mul", A.whole(counted * 1000003 + 7), A.rational(Fraction(1, 3)))
        given[leaf.name] = A.whole(counted % 2) if leaf.type.dtype == "bool" else share
    (found,) = evaluate(A, (example.node,), given)
    if not found.known:
        assert example.op in UNKNOWN
        return
    pairs = zip(found.residue(EXACT).flat, found.p.flat, strict=True)
    assert all(p == P.residue(x) for x, p in pairs if x is not None)


@pytest.mark.parametrize("power", (2, 3, -1))
def test_tangents_by_hand(power: int) -> None:
    oracles = Oracles(str(power))
    A = Field(oracles, SIZES)
    x, direction = drawn(oracles, "x"), oracles.draw("v", P, (POINTS,))
    n = A.rational(Fraction(power))
    found = Duals(A).power(Dual(x, direction), Dual(n), Fraction(power)).tangent
    expected = {
        2: P.mul(P.add(x.p, x.p), direction),
        3: P.mul(P.mul(P.power(x.p, 2), P.residue(3)[None]), direction),
        -1: P.neg(P.mul(P.power(x.p, -2), direction)),
    }
    assert np.array_equal(np.asarray(found), expected[power])
