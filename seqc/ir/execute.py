"""What a Program means: its outputs in an arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from seqc.ir.expr import Expr, variables
from seqc.ir.interp import evaluate
from seqc.ir.meaning import length
from seqc.ir.program import Carry, Map, Program, all_sizes, body_roots, scope


def execute(program: Program, arithmetic: type[Any], inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The program's outputs in an arithmetic: what a Program means."""
    A = arithmetic(all_sizes(program, sizes))
    values = {leaf.name: inputs[leaf.name] for leaf in program.inputs}
    leaves = scope(program)
    for stage in program.stages:
        if isinstance(stage, Map):
            results = evaluate(A, (e.value for e in stage.equations), values)
            values.update({e.name: v for e, v in zip(stage.equations, results, strict=True)})
        else:
            values.update(_execute_carry(A, stage, values, leaves))
    results = evaluate(A, (e.value for e in program.outputs), values)
    return {e.name: v for e, v in zip(program.outputs, results, strict=True)}


def _execute_carry(A: Any, stage: Carry, values: Mapping[str, Any], leaves: Mapping[str, Expr]) -> dict[str, Any]:
    roots = body_roots(stage)
    names = {v.name for v in variables(*roots)} - {k.name for k in stage.carried}
    sliced = {n: leaves[n].axes.index(stage.axis) - len(leaves[n].axes) for n in names if stage.axis in leaves[n].axes}
    fixed = {n: values[n] for n in names if n not in sliced}
    state = dict(zip((k.name for k in stage.carried), evaluate(A, (k.init for k in stage.carried), values), strict=True))
    steps = range(length(A, stage.axis))
    stacks: list[list[Any]] = [[] for _ in stage.equations]
    for i in reversed(steps) if stage.reverse else steps:
        at = {n: A.structural(lambda x, d=d, i=i: x.take(i, axis=d), values[n]) for n, d in sliced.items()}
        results = evaluate(A, roots, {**fixed, **at, **state})
        state = {k.name: v for k, v in zip(stage.carried, results, strict=False)}
        for items, v in zip(stacks, results[len(stage.carried) :], strict=True):
            items.append(v)
    out = {k.final: state[k.name] for k in stage.carried}
    for e, items in zip(stage.equations, stacks, strict=True):
        at_front = -1 - len(e.value.axes)
        ordered = items[::-1] if stage.reverse else items
        if ordered:
            out[e.name] = A.structural(lambda *xs, d=at_front: _stack(xs, d), *ordered)
        else:
            shape = [0, *(length(A, a) for a in e.value.axes)]
            out[e.name] = A.integers(_empty(shape))
    return out


def _stack(arrays: Any, axis: int) -> Any:
    return np.stack(np.broadcast_arrays(*arrays), axis=axis)


def _empty(shape: list[int]) -> Any:
    return np.zeros(shape, dtype=np.int64)
