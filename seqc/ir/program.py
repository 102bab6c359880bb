"""Program: the whole sequence as a few stages over expressions with time axes. When things happen, not how.

Axes of time and place have names that no text can spell: `@b` sequences, `@h` heads, `@g` head groups, `@c` chunks, `@t`
tokens (of a chunk), `@n` sequences times heads, as a kernel may see them. Every value is named once; a stage reads what
earlier stages named. Stages are closed under differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from seqc.ir import ops
from seqc.ir.expr import Expr, make, rebuild

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


@dataclass(frozen=True)
class Unknown:
    """What a Solve finds. `guess` (outside) is where it begins; inside, `name` is the current iterate, outside the solution.

    residual: the name of what is left, zero at the solution, among the Solve's `residuals`. step: what is added to the iterate, over
    the names of its `steps`.
    """

    name: str
    guess: Expr
    residual: str
    step: Expr


@dataclass(frozen=True)
class Solve:
    """The values at all tokens at which every residual is zero, by Newton's method; each token's residual reads earlier tokens only.

    residuals: Maps from the iterates to what is left. steps: stages that are linear in the residuals and solve the linearised
    equations for what is to be added. Nothing that they name is seen outside. Once a token's predecessors are right, so is the
    token in the next iterate, hence as many iterations as there are tokens are exact: that is the stage's meaning. A printed
    one stops when it has come close enough.
    """

    unknowns: tuple[Unknown, ...]
    residuals: tuple[Map, ...]
    steps: tuple[Stage, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One iteration."""
        return (*self.residuals, *self.steps)


Stage = Map | Carry | Solve


@dataclass(frozen=True)
class Program:
    """inputs: `var` leaves. widths: sizes of axes of its own, as (axis, axis that is counted or "", factor). fixed: sizes of axes of the
    text that are compiled in."""

    name: str
    inputs: tuple[Expr, ...]
    stages: tuple[Stage, ...]
    outputs: tuple[Equation, ...]
    widths: tuple[tuple[str, str, int], ...] = ()
    fixed: tuple[tuple[str, int], ...] = ()


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
    if isinstance(stage, Solve):
        return tuple(iterate(u) for u in stage.unknowns)
    finals = tuple(ops.var(k.final, k.init.axes, k.next.type.dtype) for k in stage.carried)
    return (*finals, *(outer_of(e, stage.axis) for e in stage.equations))


def iterate(unknown: Unknown) -> Expr:
    """The leaf that names an unknown: outside its solution, inside the current iterate."""
    return ops.var(unknown.name, unknown.guess.axes)


def scope(program: Program) -> dict[str, Expr]:
    """Every name outside of Carries and Solves, as its leaf."""
    leaves = [*program.inputs, *(leaf for stage in program.stages for leaf in defined(stage))]
    return {leaf.name: leaf for leaf in leaves}


def within(stage: Solve) -> dict[str, Expr]:
    """The names that one iteration sees besides those of outside, as leaves."""
    return {leaf.name: leaf for s in (stage, *stage.stages) for leaf in defined(s)}


def names(program: Program) -> list[str]:
    """Every name, inside and outside, each once; those that something outside may read come first."""
    inner: dict[str, None] = {}
    for stage in program.stages:
        _collect(stage, inner)
    return list(dict.fromkeys((*scope(program), *inner, *(e.name for e in program.outputs))))


def carried_by(stage: Stage) -> tuple[Carried, ...]:
    """What a stage hands from step to step."""
    return stage.carried if isinstance(stage, Carry) else ()


def _collect(stage: Stage, found: dict[str, None]) -> None:
    found.update(dict.fromkeys(k.name for k in carried_by(stage)))
    if isinstance(stage, Solve):
        for s in stage.stages:
            found.update(dict.fromkeys(leaf.name for leaf in defined(s)))
            _collect(s, found)


def flat(stages: Iterable[Stage]) -> list[Map | Carry]:
    """The Maps and Carries, with those of a Solve's iteration in its place."""
    return [x for s in stages for x in (flat(s.stages) if isinstance(s, Solve) else [s])]


def roots(stage: Stage) -> tuple[Expr, ...]:
    """All expressions of a stage, inside and outside."""
    if isinstance(stage, Map):
        return tuple(e.value for e in stage.equations)
    if isinstance(stage, Carry):
        return (*(k.init for k in stage.carried), *body_roots(stage))
    inner = (e for s in stage.stages for e in roots(s))
    return (*(u.guess for u in stage.unknowns), *inner, *(u.step for u in stage.unknowns))


Change = Callable[[Iterable[Expr]], tuple[Expr, ...]]


def changed(stage: Stage, change: Change, name: Callable[[str], str] = str) -> Stage:
    """The stage with its expressions changed, and its names."""
    if isinstance(stage, Map):
        return Map(changed_equations(stage.equations, change, name))
    if isinstance(stage, Solve):
        guesses, steps = change(u.guess for u in stage.unknowns), change(u.step for u in stage.unknowns)
        pairs = zip(stage.unknowns, guesses, steps, strict=True)
        unknowns = tuple(Unknown(name(u.name), guess, name(u.residual), step) for u, guess, step in pairs)
        residuals = tuple(Map(changed_equations(m.equations, change, name)) for m in stage.residuals)
        return Solve(unknowns, residuals, tuple(changed(s, change, name) for s in stage.steps))
    inits, nexts = change(k.init for k in stage.carried), change(k.next for k in stage.carried)
    carried = tuple(Carried(name(k.name), i, n, name(k.final)) for k, i, n in zip(stage.carried, inits, nexts, strict=True))
    return replace(stage, carried=carried, equations=changed_equations(stage.equations, change, name))


def changed_equations(equations: tuple[Equation, ...], change: Change, name: Callable[[str], str] = str) -> tuple[Equation, ...]:
    values = change(e.value for e in equations)
    return tuple(Equation(name(e.name), v, e.note) for e, v in zip(equations, values, strict=True))


def change_leaves(table: Mapping[str, str]) -> Change:
    """The change of expressions that gives leaves other names."""

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op.name == "var":
            return ops.var(table.get(node.name, node.name), node.axes, node.type.dtype)
        return node if args == node.args else make(node.op, args, node.attr)

    return lambda values: rebuild(values, rule)


def body_roots(stage: Carry) -> tuple[Expr, ...]:
    """The expressions inside a Carry."""
    return (*(k.next for k in stage.carried), *(e.value for e in stage.equations))


def all_sizes(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes with those of the row axes."""
    known = dict(sizes)
    for axis, counted, factor in program.widths:
        known[axis] = known[counted] * factor if counted else factor
    return known
