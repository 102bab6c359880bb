"""Contractions of many tensors become contractions of two, with the same value."""

from __future__ import annotations

import numpy as np
import pytest
from op_examples import SIZES, meaning

from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.ops import var
from seqc.ir.program import BATCH
from seqc.passes.binary import binary

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
