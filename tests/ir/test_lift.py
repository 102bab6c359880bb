"""Lifting adds axes: the lifted value at one entry is the value at that entry."""

from __future__ import annotations

import numpy as np
import pytest
from op_examples import EXAMPLES, SIZES, Array, Example, X, Y, meaning, values

from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.lift import lift
from seqc.ir.ops import var
from seqc.ir.program import BATCH

ENTRIES = 3
SKIPPED = {"var": "a leaf", "append": "a growing axis stays inside", "implicit": "solved by the evaluator, without further axes"}
LIFTED = [e for e in EXAMPLES if e.leaves and e.op not in SKIPPED]


def wider(leaf: Expr) -> Expr:
    return var(leaf.name, (BATCH, *leaf.axes), leaf.type.dtype)


def evaluated(root: Expr, leaves: dict[str, Array]) -> Array:
    from seqc.ir.interp import Reals, evaluate

    return np.asarray(evaluate(Reals({**SIZES, BATCH: ENTRIES}), (root,), leaves)[0])


@pytest.mark.parametrize("example", LIFTED, ids=[f"{e.op}-{i}" for i, e in enumerate(LIFTED)])
def test_every_leaf_lifted(example: Example) -> None:
    compare(example, {leaf.name for leaf in example.leaves})


@pytest.mark.parametrize("example", [e for e in LIFTED if len(e.leaves) > 1], ids=lambda e: e.op)
def test_each_leaf_lifted_alone(example: Example) -> None:
    for leaf in example.leaves:
        compare(example, {leaf.name})


def compare(example: Example, names: set[str]) -> None:
    entries = [values(example, seed) for seed in range(ENTRIES)]
    given = {n: np.stack([e[n] for e in entries]) if n in names else v for n, v in entries[0].items()}
    table = {leaf: wider(leaf) for leaf in example.leaves if leaf.name in names}
    (lifted,) = lift((example.node,), table)
    assert set(lifted.axes) == {BATCH, *example.node.axes}
    found = np.transpose(evaluated(lifted, given), [lifted.axes.index(a) for a in (BATCH, *example.node.axes)])
    for i in range(ENTRIES):
        want = meaning(example.node, {n: entries[i][n] if n in names else entries[0][n] for n in given})
        np.testing.assert_allclose(found[i], want, rtol=1e-12, atol=1e-12)


def test_a_node_is_replaced_as_a_whole() -> None:
    """What stands for a node is not looked into again."""
    inner = ops.exp(X)
    (lifted,) = lift((ops.mul(inner, Y),), {inner: X, X: Y})
    assert lifted is ops.mul(X, Y)


def test_nothing_new_is_the_same_object() -> None:
    e = ops.contract((ops.exp(X), Y), ("K",))
    assert lift((e,), {X: X})[0] is e
