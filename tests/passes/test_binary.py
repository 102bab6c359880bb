"""Contractions of many tensors become contractions of two, with the same value."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from op_examples import SIZES, meaning

from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.ops import var
from seqc.ir.program import BATCH, Equation, Map, Program
from seqc.passes.binary import binary, binary_program, one_system_at_a_time

AXES = ("K", "V", "P", "J")


def drawn(rng: np.random.Generator, count: int) -> tuple[tuple[Expr, ...], tuple[str, ...]]:
    """Leaves over random axes, and random axes that stay."""
    leaves = [var(f"x{i}", tuple(rng.permutation(AXES)[: rng.integers(0, 4)])) for i in range(count)]
    have = tuple(dict.fromkeys(a for x in leaves for a in x.axes))
    kept = tuple(a for a in rng.permutation(have) if rng.integers(2)) if have else ()
    return tuple(leaves), tuple(map(str, kept))


@pytest.mark.parametrize("seed", range(60))
def test_pairs_compute_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaves, kept = drawn(rng, int(rng.integers(1, 6)))
    whole = ops.contract(leaves, kept)
    (pairs,) = binary((whole,))
    assert all(len(n.args) <= 2 for n in walk(pairs) if n.op.name == "contract")
    assert pairs.axes == whole.axes
    given = {x.name: rng.standard_normal([SIZES[a] for a in x.axes]) for x in leaves}
    np.testing.assert_allclose(meaning(pairs, given), meaning(whole, given), rtol=1e-11, atol=1e-11)


def test_the_smallest_result_comes_first() -> None:
    """A matrix chain that ends in a vector starts there; batch axes do not count."""
    A, B, v = var("A", (BATCH, "K", "V")), var("B", (BATCH, "V", "P")), var("v", (BATCH, "P"))
    (pairs,) = binary((ops.contract((A, B, v), (BATCH, "K")),))
    inner = next(a for a in pairs.args if a.op.name == "contract")
    assert set(inner.args) == {B, v} and inner.axes == (BATCH, "V")


def test_two_stay_as_they_are() -> None:
    e = ops.contract((var("x", ("K", "V")), var("y", ("V",))), ("K",))
    assert binary((e,)) == (e,)


FOUR = ("K", "J", "@t", "@s")  # three of one length


def tree(rng: np.random.Generator, depth: int, given: dict[str, np.ndarray]) -> Expr:
    """A value over some of four axes, of sums, outer products and sums over axes, whose names clash."""
    if depth == 0:
        axes = tuple(map(str, rng.permutation(FOUR)[: rng.integers(1, 3)]))
        leaf = var(f"x{len(given)}", axes)
        given[leaf.name] = rng.standard_normal([SIZES[a] for a in axes])
        return leaf
    x, kind = tree(rng, depth - 1, given), rng.integers(6)
    if kind == 0:
        return ops.neg(x)
    if kind == 1 and (free := [a for a in FOUR if a not in x.axes and SIZES[a] == SIZES[x.axes[0]]]):
        return ops.rename(x, {x.axes[0]: free[0]})
    y = tree(rng, depth - 1, given)
    if kind in (2, 3):
        return ops.add(x, y) if kind == 2 else ops.sub(x, y)
    every = tuple(dict.fromkeys((*x.axes, *y.axes)))
    return ops.mul(x, y) if kind == 4 else ops.contract((x, y), [a for a in every if rng.integers(3)] or every[:1])


@pytest.mark.parametrize("seed", range(200))
def test_sums_of_products_compute_the_same(seed: int) -> None:
    rng, given = np.random.default_rng(seed), dict[str, np.ndarray]()
    x, y = tree(rng, 3, given), tree(rng, 1, given)
    every = tuple(dict.fromkeys((*x.axes, *y.axes)))
    whole = ops.contract((x, y), every[: rng.integers(len(every) + 1)])
    (pairs,) = binary((whole,))
    assert pairs.axes == whole.axes
    np.testing.assert_allclose(meaning(pairs, given), meaning(whole, given), rtol=1e-11, atol=1e-10)


def test_an_outer_product_is_not_made() -> None:
    """Neither in a sum, nor inside another one, nor under other names: no value has three axes."""
    w, x, y, z = var("w", ("J", "P")), var("x", ("P", "K")), var("y", ("P", "V")), var("z", ("J", "V"))
    inner = ops.neg(ops.contract((w, ops.mul(x, y)), ("J", "K", "V")))
    for e in (
        ops.contract((inner, z), ("J", "K")),
        ops.contract((ops.add(inner, ops.mul(var("u", ("J", "K")), z)), z), ("J", "K")),
        ops.contract((ops.neg(ops.mul(x, y)),), ("K", "V")),
        ops.contract((ops.rename(inner, {"J": "P"}), y), ("P", "K")),  # P is an axis of the sum inside, too
    ):
        assert max(len(n.axes) for n in walk(e)) > 2
        assert max(len(n.axes) for n in walk(*binary((e,)))) == 2


def test_values_that_many_need_are_looked_at_once() -> None:
    """Each step needs the one before twice: paths are 2 ** 400, steps more than Python has calls for."""
    x, given = ops.mul(var("x", ("K", "V")), var("y", ("P",))), {"x": np.ones((2, 3)), "y": np.ones(4), "z": np.full(2, -0.5)}
    for _ in range(400):
        x = ops.add(ops.mul(x, var("z", ("K",))), x)
    whole = ops.contract((x, x), ("K",))
    np.testing.assert_allclose(meaning(binary((whole,))[0], given), meaning(whole, given), rtol=1e-9)


@pytest.mark.parametrize("count", (2, 3, 6))
def test_few_terms_are_multiplied_out(count: int) -> None:
    """Arguments of two terms each: at most four products, however many arguments there are."""
    sums = [ops.add(ops.mul(var(f"x{i}", ("K", "V")), var(f"y{i}", ("P",))), ops.mul(var(f"z{i}", ("K", "V")), var(f"w{i}", ("P",))))
            for i in range(count)]  # fmt: skip
    (found,) = binary((ops.contract(sums, ("K",)),))
    assert found.axes == ("K",) and sum(n.op.name == "contract" and "P" not in n.axes for n in walk(found)) <= 12
    assert sum(n.op.name == "contract" for n in walk(found)) <= 4 * 2 * count


@pytest.mark.parametrize("order", tuple(permutations(range(3))))
def test_a_system_s_matrix_stays_in_pairs_for_one_system(order: tuple[int, ...]) -> None:
    """In whatever order its factors stand: with one token seen at a time, no value has both axes of the matrix and those of the sum."""
    factors = (var("d", (BATCH, "@t", "@s")), var("k", (BATCH, "@s", "K")), ops.rename(var("k", (BATCH, "@s", "K")), {"K": "K~"}))
    matrix = ops.contract([factors[i] for i in order], (BATCH, "@t", "K", "K~"))
    solved = Equation("x", ops.solve(matrix, var("q", (BATCH, "@t", "K")), "K", "K~"))
    program = Program("p", (*factors[:2], var("q", (BATCH, "@t", "K"))), (Map((solved,)),), (Equation("o", var("x", solved.value.axes)),))
    made = binary_program(one_system_at_a_time(program)).stages[0]
    assert not any({"@s", "K", "K~"} <= {*n.axes} for n in walk(*(e.value for e in made.equations)))
