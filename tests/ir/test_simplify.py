"""Building a node simplifies it without changing its value, and equal nodes are one object."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from op_examples import SIZES, Array

from seqc.ir import ops
from seqc.ir.expr import Attr, Expr, Mask, make, rebuild, substitute
from seqc.ir.interp import Reals, evaluate
from seqc.ir.meaning import arrange
from seqc.ir.ops import TABLE, number, var
from seqc.ir.rules import union
from seqc.ir.table import ROWS

Pair = tuple[Expr, Expr]  # a node of plain rows, and the same built with simplification
LEAVES = (var("a"), var("b", ("K",)), var("c", ("V",)), var("d", ("K", "V")), var("e", ("V", "K")))
NUMBERS = (0, 1, -1, 2, Fraction(1, 2))
MASK = Mask("K", "V", 1, 1, 1, 1)


def raw(name: str, args: tuple[Expr, ...], attr: Attr = ()) -> Expr:
    return make(TABLE[name], args, attr)


def both(name: str, args: tuple[Pair, ...], attr: Attr = ()) -> Pair:
    return raw(name, tuple(a for a, _ in args), attr), TABLE[name].build(tuple(b for _, b in args), attr)


def wide(pair: Pair, axes: tuple[str, ...]) -> Pair:
    return both("broadcast", (pair,), (*axes, *(a for a in pair[0].axes if a not in axes)))


def small(pair: Pair) -> Pair:
    """A value in (-1, 1), so that exponentials and powers of it stay small."""
    return both("tanh", (pair,))


def positive(pair: Pair) -> Pair:
    return both("exp", (small(pair),))


leaves = st.one_of(st.sampled_from(LEAVES).map(lambda e: (e, e)), st.sampled_from(NUMBERS).map(lambda n: (number(n), number(n))))


@st.composite
def grown(draw: st.DrawFn, inner: st.SearchStrategy[Pair]) -> Pair:
    """One op over smaller expressions."""
    x, y = draw(inner), draw(inner)
    kind = draw(st.sampled_from(sorted(GROW)))
    return GROW[kind](x, y)


def masked(x: Pair, y: Pair) -> Pair:
    once = both("masked", (wide(x, ("K", "V")),), MASK)
    return both("masked", (once,), MASK)


def contracted(x: Pair, y: Pair) -> Pair:
    axes = union((x[0].type, y[0].type))
    return both("contract", (x, y), axes[:1])


def summed(x: Pair, y: Pair) -> Pair:
    product = both("mul", (x, y))
    return both("contract", (product,), product[0].axes[1:])


def renamed(x: Pair, y: Pair) -> Pair:
    there = both("rename", (x,), tuple((a, a + "'") for a in x[0].axes))
    return both("rename", (there,), tuple((a, a[:-1]) for a in there[0].axes))


def picked(x: Pair, y: Pair) -> Pair:
    stacked = both("stack", (wide(x, ("K", "V")), wide(y, ("K", "V"))), ("2",))
    return both("select", (stacked,), ("2", -1))


def chosen(x: Pair, y: Pair) -> Pair:
    condition = both("compare", (x, y), "lt")
    return both("where", (condition, x, draw_same(x, y)))


def draw_same(x: Pair, y: Pair) -> Pair:
    return x if len(y[0].axes) == 1 else y


GROW: dict[str, Callable[[Pair, Pair], Pair]] = {
    "add": lambda x, y: both("add", (x, y)),
    "add neg": lambda x, y: both("add", (x, both("neg", (y,)))),
    "sub": lambda x, y: both("sub", (x, y)),
    "sub neg": lambda x, y: both("sub", (x, both("neg", (y,)))),
    "mul": lambda x, y: both("mul", (x, y)),
    "mul number": lambda x, y: both("mul", ((number(3), number(3)), both("mul", ((number(2), number(2)), x)))),
    "mul inverse": lambda x, y: both("mul", (both("div", ((number(1), number(1)), positive(x))), y)),
    "neg": lambda x, y: both("neg", (x,)),
    "div": lambda x, y: both("div", (x, positive(y))),
    "div one": lambda x, y: both("div", (x, (number(1), number(1)))),
    "power 0": lambda x, y: both("power", (x, (number(0), number(0)))),
    "power 1": lambda x, y: both("power", (x, (number(1), number(1)))),
    "power 3": lambda x, y: both("power", (small(x), (number(3), number(3)))),
    "exp": lambda x, y: positive(x),
    "exp zero": lambda x, y: both("exp", (both("mul", (x, (number(0), number(0)))),)),
    "stop": lambda x, y: both("stop_gradient", (x,)),
    "conj": lambda x, y: both("conj", (x,)),
    "re": lambda x, y: both("re", (x,)),
    "masked": masked,
    "contract": contracted,
    "contract neg": lambda x, y: contracted(both("neg", (x,)), y),
    "contract many": lambda x, y: both("contract", (x, y, (number(2), number(2)), both("neg", (x,))), ()),
    "sum": summed,
    "rename": renamed,
    "select": picked,
    "where": chosen,
    "broadcast": lambda x, y: wide(wide(x, ("P",)), ("V", "P")),
    "transpose": lambda x, y: both("broadcast", (x,), x[0].axes[::-1]),
    "cumsum": lambda x, y: both("cumsum", (wide(x, ("K",)),), ("K", True)),
    "shift": lambda x, y: both("shift", (wide(x, ("V",)),), ("V", 1)),
}

pairs = st.recursive(leaves, grown, max_leaves=8)


def value(e: Expr, axes: tuple[str, ...], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    given = {leaf.name: rng.standard_normal([SIZES[a] for a in leaf.axes]) for leaf in LEAVES}
    A = Reals(SIZES)
    return np.asarray(arrange(A, evaluate(A, (e,), given)[0], e.axes, axes))


def shape(e: Expr) -> list[int]:
    return [SIZES[a] for a in e.axes]


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(pair=pairs, seed=st.integers(0, 9))
def test_simplification_keeps_the_value(pair: Pair, seed: int) -> None:
    plain, built = pair
    assert set(plain.axes) == set(built.axes)
    want = value(plain, plain.axes, seed)
    assume(np.isfinite(want).all() and np.abs(want).max() < 1e12)
    found = np.broadcast_to(value(built, plain.axes, seed), shape(plain))
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(pair=pairs)
def test_building_again_changes_nothing(pair: Pair) -> None:
    """A built node, rebuilt from its leaves, is the same object: rewriting never depends on the history."""
    _, built = pair
    assert substitute((built,), {}) == (built,)
    assert rebuild((built,), lambda node, args: make(node.op, args, node.attr)) == (built,)


def test_every_simplifying_row_is_exercised() -> None:
    simplifying = {row.name for row in ROWS if row.simplify is not None}
    x, y = (var("x", ("K", "V")), var("x", ("K", "V"))), (var("y", ("V",)), var("y", ("V",)))
    used = {node.op.name for grow in GROW.values() for node in _below(grow(x, y)[0])}
    assert simplifying <= used, simplifying - used


def _below(e: Expr) -> list[Expr]:
    return [e, *(n for a in e.args for n in _below(a))]


# --- Interning -----------------------------------------------------------------------------------------------------


def test_equal_values_are_one_object() -> None:
    x, y = var("x", ("K",)), var("y", ("K",))
    assert ops.add(ops.mul(x, y), ops.exp(x)) is ops.add(ops.mul(x, y), ops.exp(x))
    assert var("x", ("K",)) is x and var("x", ("V",)) is not x and var("x", ("K",), "complex") is not x
    assert ops.add(x, y) is not ops.add(y, x)
    assert number(2) is number(Fraction(4, 2))


@pytest.mark.parametrize("op", ("select", "cumsum"))
def test_attributes_of_different_types_make_different_nodes(op: str) -> None:
    x = var("x", ("K",))
    made = [make(TABLE[op], (x,), ("K", attr)) for attr in (1, True, Fraction(1))]
    assert len({id(e) for e in made}) == 3
    assert [type(e.attr[1]) for e in made] == [int, bool, Fraction]  # type: ignore[index]


def test_top_level_attributes_of_different_types_make_different_nodes() -> None:
    made = [make(TABLE["const"], (), attr) for attr in (1, True, Fraction(1))]
    assert len({id(e) for e in made}) == 3


def test_a_dead_node_leaves_the_table() -> None:
    """Interning holds no node alive, and an id that is used again finds no wrong node."""
    x = var("x", ("K",))
    for i in range(2, 2000):
        e = ops.mul(number(i), ops.add(x, number(i)))
        assert e.args[0].attr == i and e.args[1].args[1].attr == i


def test_a_product_of_what_heads_share_is_formed_once_per_group() -> None:
    q, k, E = (var(n, axes) for n, axes in (("q", ("@g", "@t", "K")), ("k", ("@g", "@s", "K")), ("E", ("@h", "@t", "@s"))))
    of_head = [ops.spread(x, "@g", "@h") for x in (q, ops.rename(k, {"@s": "@r"}))]
    of_head[1] = ops.rename(of_head[1], {"@r": "@s"})
    product = ops.contract(of_head, ("@h", "@t", "@s"))
    assert product is ops.spread(ops.contract((q, k), ("@g", "@t", "@s")), "@g", "@h")
    sizes = {"@g": 2, "@h": 6, "@t": 3, "@s": 4, "@r": 4, "K": 5}
    rng = np.random.default_rng(0)
    given = {v: rng.standard_normal([sizes[a] for a in v.axes]) for v in (q, k, E)}
    plain = np.einsum("htk,hsk->hts", given[q].repeat(3, 0), given[k].repeat(3, 0))
    found = evaluate(Reals(sizes), (product,), {v.name: x for v, x in given.items()})[0]
    np.testing.assert_allclose(found, plain, rtol=1e-12)
    assert ops.contract((of_head[0], E), ("@h", "@s", "K")).op.name == "contract"  # E is a head's own
    assert ops.contract(of_head, ("@t", "@s")).op.name == "contract"  # a sum over heads
