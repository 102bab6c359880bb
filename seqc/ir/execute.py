"""What a Program means: its outputs in an arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.interp import evaluate
from seqc.ir.meaning import length, remembered
from seqc.ir.program import CHUNKS, TOKENS, Carry, Map, Program, Solve, Stage, all_sizes, body_roots, iterate, scope, within


def execute(program: Program, arithmetic: type[Any], inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The program's outputs in an arithmetic: what a Program means."""
    A = arithmetic(all_sizes(program, sizes))
    values = {leaf.name: inputs[leaf.name] for leaf in program.inputs}
    leaves = scope(program)
    for stage in program.stages:
        values.update(_execute_stage(A, stage, values, leaves))
    results = evaluate(A, (e.value for e in program.outputs), values)
    return {e.name: v for e, v in zip(program.outputs, results, strict=True)}


def _execute_stage(A: Any, stage: Stage, values: Mapping[str, Any], leaves: Mapping[str, Expr]) -> dict[str, Any]:
    """What a stage names."""
    if isinstance(stage, Map):
        results = evaluate(A, (e.value for e in stage.equations), values)
        return {e.name: v for e, v in zip(stage.equations, results, strict=True)}
    if isinstance(stage, Carry):
        return _execute_carry(A, stage, values, leaves)
    return _execute_solve(A, stage, values, {**leaves, **within(stage)})


def _execute_solve(A: Any, stage: Solve, values: Mapping[str, Any], leaves: Mapping[str, Expr]) -> dict[str, Any]:
    """As many iterations as there are tokens."""
    unknowns = stage.unknowns
    found = dict(zip((u.name for u in unknowns), evaluate(A, (u.guess for u in unknowns), values), strict=True))
    for _ in range(length(A, CHUNKS) * length(A, TOKENS)):
        seen = {**values, **found}
        for s in stage.stages:
            seen.update(_execute_stage(A, s, seen, leaves))
        new = evaluate(A, (ops.add(iterate(u), u.step) for u in unknowns), seen)
        found = dict(zip((u.name for u in unknowns), new, strict=True))
    return found


def _execute_carry(A: Any, stage: Carry, values: Mapping[str, Any], leaves: Mapping[str, Expr]) -> dict[str, Any]:
    roots = body_roots(stage)
    order = tuple(walk(*roots))
    names = {node.name for node in order if node.op.name == "var"} - {k.name for k in stage.carried}
    sliced = {n: leaves[n].axes.index(stage.axis) - len(leaves[n].axes) for n in names if stage.axis in leaves[n].axes}
    fixed = {n: values[n] for n in names if n not in sliced}
    state = dict(zip((k.name for k in stage.carried), evaluate(A, (k.init for k in stage.carried), values), strict=True))
    steps = range(length(A, stage.axis))
    stacks: list[list[Any]] = [[] for _ in stage.equations]
    for i in reversed(steps) if stage.reverse else steps:
        at = {n: _taken(A, values[n], d, i) for n, d in sliced.items()}
        results = evaluate(A, roots, {**fixed, **at, **state}, order)
        state = {k.name: v for k, v in zip(stage.carried, results, strict=False)}
        for items, v in zip(stacks, results[len(stage.carried) :], strict=True):
            items.append(v)
    out = {k.final: state[k.name] for k in stage.carried}
    for e, items in zip(stage.equations, stacks, strict=True):
        at_front = -1 - len(e.value.axes)
        ordered = items[::-1] if stage.reverse else items
        if ordered:
            out[e.name] = _stacked(A, tuple(ordered), at_front)
        else:
            shape = [0, *(length(A, a) for a in e.value.axes)]
            out[e.name] = A.integers(_empty(shape))
    return out


def _taken(A: Any, value: Any, axis: int, i: int) -> Any:
    return remembered(A, ("taken", axis, i), (value,), lambda: A.structural(lambda x: x.take(i, axis=axis), value))


def _stacked(A: Any, values: tuple[Any, ...], axis: int) -> Any:
    def stack(*arrays: Any) -> Any:
        return np.stack(np.broadcast_arrays(*arrays), axis=axis)

    return remembered(A, ("stacked", axis), values, lambda: A.structural(stack, *values))


def _empty(shape: list[int]) -> Any:
    return np.zeros(shape, dtype=np.int64)
