"""Every row of the op table: its meaning, its derivative and the derivative of that, its claims, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from op_examples import (
    EXAMPLES,
    FOUND,
    LEFT,
    LOWER,
    PER_ROW,
    RULE,
    RULED,
    SIZES,
    SQUARE,
    STRICT,
    TEST,
    UP,
    Array,
    Example,
    X,
    Y,
    Z,
    meaning,
    values,
)

from seqc.diagnostics import InternalError
from seqc.ir import ops
from seqc.ir.adjoint import adjoints, gradient
from seqc.ir.expr import Attr, Expr, Mask, make
from seqc.ir.interp import Reals, evaluate
from seqc.ir.ops import TABLE, var
from seqc.ir.table import ROWS

STEP = 1e-5
NAMES = [f"{e.op}-{i}" for i, e in enumerate(EXAMPLES)]
SMOOTH = [e for e in EXAMPLES if not e.without and e.leaves]


def test_every_row_has_an_example() -> None:
    assert {e.op for e in EXAMPLES} == {row.name for row in ROWS} == set(TABLE)
    assert len(ROWS) == len(TABLE)


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_meaning(example: Example) -> None:
    leaves = values(example)
    given = {n: v for n, v in leaves.items() if n not in example.fixed or example.op != "implicit"}
    found = meaning(example.node, given)
    want = np.asarray(example.want(*leaves.values()))
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=1e-13, atol=1e-13)


# --- Derivatives ---------------------------------------------------------------------------------------------------


def functional(roots: Sequence[Expr], seeds: Mapping[str, Array], names: Sequence[str], leaves: Mapping[str, Array]) -> float:
    """The real part of the sum of conj(seed) . root."""
    found = evaluate(Reals(SIZES), roots, leaves)
    return float(sum(np.real(np.conj(seeds[n]) * v).sum() for n, v in zip(names, found, strict=True)))


def step(x: Array, rng: np.random.Generator) -> Array:
    direction = rng.standard_normal(x.shape)
    return direction + 1j * rng.standard_normal(x.shape) if np.iscomplexobj(x) else direction


def check(
    roots: Sequence[Expr], wrt: Sequence[Expr], leaves: dict[str, Array], rng: np.random.Generator, prefix: str
) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
    """Adjoints against central differences, leaf by leaf along a random direction.

    Returns the adjoints and their seeds; `leaves` gains the seeds.
    """
    seeds = tuple(var(f"{prefix}{i}", r.axes, r.type.dtype) for i, r in enumerate(roots))
    names = [s.name for s in seeds]
    drawn = {s.name: step(v, rng) for s, v in zip(seeds, evaluate(Reals(SIZES), roots, leaves), strict=True)}
    found = adjoints(zip(roots, seeds, strict=True), wrt)
    results = evaluate(Reals(SIZES), found, {**leaves, **drawn})
    for leaf, g, value in zip(wrt, found, results, strict=True):
        assert g.axes == leaf.axes and not (leaf.type.dtype == "real" and g.type.dtype == "complex")
        x = leaves[leaf.name]
        d = step(x, rng)
        up, down = (functional(roots, drawn, names, {**leaves, leaf.name: x + s * STEP * d}) for s in (1, -1))
        want, got = (up - down) / (2 * STEP), float(np.real(np.conj(np.broadcast_to(value, x.shape)) * d).sum())
        assert abs(want - got) <= 1e-6 * max(1.0, abs(want)), (leaf.name, want, got)
    leaves.update(drawn)
    return found, seeds


@pytest.mark.parametrize("seed", (0, 1))
@pytest.mark.parametrize("example", SMOOTH, ids=[f"{e.op}-{i}" for i, e in enumerate(SMOOTH)])
def test_derivative_and_its_derivative(example: Example, seed: int) -> None:
    leaves = values(example, seed)
    wrt = [v for v in example.leaves if v.type.dtype != "bool" and v.name not in example.fixed]
    rng = np.random.default_rng(seed + 100)
    first, seeds = check((example.node,), wrt, leaves, rng, "first")
    if not example.once:
        check(first, (*wrt, *seeds), leaves, rng, "second")


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.without and e.op != "implicit"], ids=lambda e: e.op)
def test_derivative_is_zero_where_there_is_none(example: Example) -> None:
    seed = ops.number(1) if example.node.type.dtype == "bool" else var("g", example.node.axes)
    for g in adjoints(((example.node, seed),), [v for v in example.leaves if v.type.dtype != "bool"]):
        assert ops.is_zero(g)


def test_an_implicit_value_is_not_differentiated_silently() -> None:
    example = next(e for e in EXAMPLES if e.op == "implicit")
    with pytest.raises(InternalError):
        adjoints(((example.node, var("g", ("V",))),), example.leaves)


def test_shared_parts_are_pulled_back_once() -> None:
    """x^(2^40) by squaring: a tree of 2^40 leaves if it were not a graph."""
    power = var("x")
    for _ in range(40):
        power = ops.mul(power, power)
    (g,) = gradient(power, (var("x"),))
    assert meaning(g, {"x": np.asarray(1.0)}) == 2.0**40


# --- Claims --------------------------------------------------------------------------------------------------------


def over_arguments(example: Example) -> tuple[Expr, list[Expr], list[Array]]:
    """The node over one fresh leaf per argument, and the arguments' values."""
    leaves = [var(f"arg{i}", a.axes, a.type.dtype) for i, a in enumerate(example.args)]
    return make(TABLE[example.op], tuple(leaves), example.attr), leaves, [meaning(a, values(example)) for a in example.args]


CLAIMED = [e for e in EXAMPLES if TABLE[e.op].linear and e.args]


@pytest.mark.parametrize("example", CLAIMED, ids=[f"{e.op}-{i}" for i, e in enumerate(CLAIMED)])
def test_linear_in_each_argument_that_claims_it(example: Example) -> None:
    node, leaves, first = over_arguments(example)
    rng = np.random.default_rng(7)
    for i in (i for i in TABLE[example.op].linear if i < len(leaves)):
        second = step(first[i], rng)

        def at(x: Array, i: int = i) -> Array:
            return meaning(node, {leaf.name: x if j == i else v for j, (leaf, v) in enumerate(zip(leaves, first, strict=True))})

        offset = at(0 * second) if TABLE[example.op].joint else 0.0
        left = at(2 * first[i] - 3 * second) - offset
        np.testing.assert_allclose(left, 2 * (at(first[i]) - offset) - 3 * (at(second) - offset), atol=1e-11)


@pytest.mark.parametrize("example", CLAIMED, ids=[f"{e.op}-{i}" for i, e in enumerate(CLAIMED)])
def test_joint_means_a_sum_and_otherwise_a_product(example: Example) -> None:
    node, leaves, first = over_arguments(example)
    linear = [i for i in TABLE[example.op].linear if i < len(leaves)]
    scaled = {leaf.name: 2 * v if i in linear else v for i, (leaf, v) in enumerate(zip(leaves, first, strict=True))}
    plain = {leaf.name: v for leaf, v in zip(leaves, first, strict=True)}
    degree = 1 if TABLE[example.op].joint else len(linear)
    np.testing.assert_allclose(meaning(node, scaled), 2**degree * meaning(node, plain), atol=1e-11)


# --- Refusals ------------------------------------------------------------------------------------------------------

NONSENSE: tuple[tuple[str, tuple[Expr, ...], Attr], ...] = (
    ("where", (X, X, Y), ()),
    ("max_over", (X,), ("P",)),
    ("contract", (X, Y), ("P",)),
    ("broadcast", (X,), ("K",)),
    ("rename", (X,), (("K", "V"),)),
    ("cumsum", (X,), ("P", False)),
    ("shift", (X,), ("P", 1)),
    ("select", (X,), ("P", 0)),
    ("place", (X,), ("K", 0)),
    ("stack", (X, Y), ("2",)),
    ("flatten", (X,), (("K", "P"), "K*P")),
    ("unflatten", (X,), (("K", "V"), "K*V")),
    ("concat", (X, var("x", ("P", "J"))), ("J", ("K", "P"))),
    ("piece", (X,), ("J", ("K", "V"), 0)),
    ("append", (X, Y), ("past",)),
    ("drop_last", (X,), ("past",)),
    ("spread", (X,), ("@g", "@h")),
    ("collect", (X,), ("@g", "@h")),
    ("solve", (X, Y), ("K", "P")),
    ("masked", (X,), Mask("K", "P")),
    ("unit_lower_inverse", (X,), ("K", "P")),
    ("apply_inverse", (X, X, Y), ("K", "P")),
    ("decay", (UP, UP), STRICT),
    ("decayed", (X, Y, UP, UP), (("@t", "@s"), STRICT)),
    ("decayed_solve", (X, Y, UP, UP), (STRICT, False)),
    ("strict_solve", (ops.masked(SQUARE, STRICT), Y), (STRICT, False, RULE, RULED)),
    ("strict_solve", (ops.masked(SQUARE, STRICT), LEFT), (STRICT, False, FOUND, (FOUND, PER_ROW))),
    ("add", (TEST, X), ()),
    ("neg", (TEST,), ()),
    ("compare", (Z, Z), "lt"),
)


@pytest.mark.parametrize(("name", "args", "attr"), NONSENSE, ids=[n for n, _, _ in NONSENSE])
def test_nonsense_is_refused(name: str, args: tuple[Expr, ...], attr: Attr) -> None:
    with pytest.raises(InternalError):
        make(TABLE[name], args, attr)


def test_a_leaf_without_a_value_is_refused() -> None:
    with pytest.raises(InternalError, match="`x` has no value"):
        meaning(LOWER, {})
