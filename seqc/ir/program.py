"""Program: the whole sequence as a few stages over expressions with time axes. When things happen, not how.

Axes of time and place have names that no text can spell: `@b` sequences, `@h` heads, `@g` head groups, `@c` chunks, `@t`
tokens (of a chunk), `@n` sequences times heads, as a kernel may see them. Every value is named once; a stage reads what
earlier stages named. Stages are closed under differentiation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from seqc.ir import ops
from seqc.ir.expr import Expr

BATCH, HEADS, GROUPS, CHUNKS, TOKENS, ROWS = "@b", "@h", "@g", "@c", "@t", "@n"
LEAD = (CHUNKS, BATCH, HEADS, GROUPS, ROWS)  # batch axes: they come first in memory, what a loop walks along before all


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


Stage = Map | Carry


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
