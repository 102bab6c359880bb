"""Program: the whole sequence as a few stages over expressions with time axes. When things happen, not how.

Axes of time and place have names that no text can spell: `@b` sequences, `@h` heads, `@g` head groups, `@c` chunks, `@t`
tokens (of a chunk). Every value is named once; a stage reads what earlier stages named. Stages are closed under
differentiation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union

from seqc.ir import ops
from seqc.ir.expr import Expr, variables
from seqc.ir.interp import evaluate
from seqc.ir.meaning import length


BATCH, HEADS, GROUPS, CHUNKS, TOKENS = "@b", "@h", "@g", "@c", "@t"
LEAD = (BATCH, HEADS, GROUPS, CHUNKS)  # axes over which nothing is ordered: they come first in memory


@dataclass(frozen=True)
class Equation:
    """A name for a value. `note` is what a reader should know: the line of the text, the formula."""

    name: str
    value: Expr
    note: str = ""


@dataclass(frozen=True)
class Carried:
    """What a Carry hands from step to step: `init` (outside), `next` (inside), and the name of its last value outside."""

    name: str
    init: Expr
    next: Expr
    final: str


@dataclass(frozen=True)
class Map:
    """Independent over chunks and tokens: equations over values of earlier stages."""

    equations: tuple[Equation, ...]


@dataclass(frozen=True)
class Carry:
    """Sequential along `axis`, last to first if `reverse`.

    Inside, a value named outside with the axis is seen without it. Equations are stacked along the axis outside.
    """

    axis: str
    reverse: bool
    carried: tuple[Carried, ...]
    equations: tuple[Equation, ...]


Stage = Union[Map, Carry]


@dataclass(frozen=True)
class Program:
    """inputs: `var` leaves. widths: sizes of axes of its own, as (axis, axis that is counted or "", factor)."""

    name: str
    inputs: tuple[Expr, ...]
    stages: tuple[Stage, ...]
    outputs: tuple[Equation, ...]
    widths: tuple[tuple[str, str, int], ...] = ()


def inside(outer: Expr, axis: str) -> Expr:
    """A value named outside, as a Carry along `axis` sees it."""
    return ops.var(outer.name, (a for a in outer.axes if a != axis), outer.type.dtype)


def outer_of(equation: Equation, axis: str) -> Expr:
    """The leaf that names a Carry's stacked equation."""
    return ops.var(equation.name, (axis, *equation.value.axes), equation.value.type.dtype)


def defined(stage: Stage) -> tuple[Expr, ...]:
    """The leaves that a stage names."""
    if isinstance(stage, Map):
        return tuple(ops.var(e.name, e.value.axes, e.value.type.dtype) for e in stage.equations)
    finals = tuple(ops.var(k.final, k.init.axes, k.next.type.dtype) for k in stage.carried)
    return (*finals, *(outer_of(e, stage.axis) for e in stage.equations))


def scope(program: Program) -> dict[str, Expr]:
    """Every name outside of Carries, as its leaf."""
    leaves = [*program.inputs, *(leaf for stage in program.stages for leaf in defined(stage))]
    return {leaf.name: leaf for leaf in leaves}


def body_roots(stage: Carry) -> tuple[Expr, ...]:
    """The expressions inside a Carry."""
    return (*(k.next for k in stage.carried), *(e.value for e in stage.equations))


def all_sizes(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes with those of the row axes."""
    known = dict(sizes)
    for axis, counted, factor in program.widths:
        known[axis] = known[counted] * factor if counted else factor
    return known


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
    import numpy as np

    return np.stack(np.broadcast_arrays(*arrays), axis=axis)


def _empty(shape: list[int]) -> Any:
    import numpy as np

    return np.zeros(shape, dtype=np.int64)
