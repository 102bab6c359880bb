"""What a form is: a value that applies to a recurrence or refuses with the reason, and lowers it to a Program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.lift import lift
from seqc.ir.program import BATCH, CHUNKS, GROUPS, HEADS, TOKENS, Program
from seqc.ir.recurrence import Recurrence
from seqc.source import Span

VALID = "@valid"  # 1 for a token, 0 for padding behind the last one
SHOWN = "@sizes"  # an input without entries: its axes show the sizes that no other input shows


@dataclass(frozen=True)
class Lowered:
    """A form's Program and the words for its parts. hints: names for nodes. fixed: axes whose size is compiled in.

    block: the tokens of a chunk, if the layer's text says how many; its chunks begin where blocks begin.
    """

    program: Program
    hints: dict[Expr, str]
    fixed: tuple[str, ...] = ()
    block: int | None = None


@dataclass(frozen=True)
class Applies:
    """The form computes this recurrence; `evidence` says from which facts."""

    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Refuses:
    """The form does not apply: why, the line that is the cause, and texts that would repair it."""

    reason: str
    span: Span | None = None
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """name; whether it applies; the Program that it lowers to; the lines that explain its kernels to a reader."""

    name: str
    applies: Callable[[Recurrence, Mapping[str, int]], Applies | Refuses]
    lower: Callable[[Recurrence, Mapping[str, int]], Lowered]
    axes: tuple[str, ...]  # the time axes of its inputs
    notes: tuple[str, ...]
    written: bool = False  # whether its kernels write out the states at every token


def leaf_axes(scope: str, time: tuple[str, ...]) -> tuple[str, ...]:
    """The leading axes of a value of this scope that is given at every token: what a Carry walks along first."""
    if scope == "sequence":
        return (BATCH, HEADS)
    return (*time[:1], *state_lead(scope), *time[1:])


def outer_leaves(rec: Recurrence, time: tuple[str, ...]) -> dict[str, Expr]:
    """The Program's inputs by name: inputs, params (`[h, ...]`), unseen sizes, initial states (`NAME_0`) and the tail mask."""
    leaves = {i.name: ops.var(i.name, (*leaf_axes(i.scope, time), *i.axes), i.dtype) for i in rec.inputs}
    leaves |= {p.name: ops.var(p.name, (*_param_axes(p.scope), *p.axes)) for p in rec.params}
    if hidden := unseen(rec):
        leaves[SHOWN] = ops.var(SHOWN, ("0", *hidden))
    leaves |= {initial(s.name): ops.var(initial(s.name), (*state_lead(s.scope), *s.axes), s.dtype) for s in rec.states}
    return leaves | {VALID: ops.var(VALID, leaf_axes("layer", time))}


def unseen(rec: Recurrence) -> tuple[str, ...]:
    """The sizes that the layer needs and that no input or param shows, in the order of the text; `depth` and `depths` behind them."""
    shown = _counted(*(i.axes for i in rec.inputs), *(p.axes for p in rec.params)) | {n for n, _ in rec.values} | {"heads", "groups"}
    wanted = _counted(*(s.axes for s in rec.states), *(o.axes for o in rec.outputs))
    for node in walk(*(s.next for s in rec.states), *(s.init for s in rec.states), *(o.value for o in rec.outputs)):
        if node.op.name == "size" or (node.op.name == "var" and node.name in ("depth", "depths")):
            wanted.add(ops.base(str(node.attr)) if node.op.name == "size" else node.name)
        elif node.op.name in ("iota", "eye", "broadcast", "place"):
            wanted |= _counted(node.axes)
    return tuple(n for n in (*(s.name for s in rec.sizes), "depth", "depths") if n in wanted - shown)


def _counted(*axes: tuple[str, ...]) -> set[str]:
    """The sizes that axes count: K for K', K and V for K*V."""
    return {n for some in axes for a in some for n in ops.base(a).split("*")}


def _param_axes(scope: str) -> tuple[str, ...]:
    return {"head": (HEADS,), "group": (GROUPS,), "layer": ()}[scope]


def state_lead(scope: str) -> tuple[str, ...]:
    """The leading axes of a state of this scope."""
    return {"head": (BATCH, HEADS), "group": (BATCH, GROUPS), "layer": (BATCH,)}[scope]


def initial(state: str) -> str:
    return f"{state}@0"


def final(state: str) -> str:
    return f"{state}@T"


def body_leaves(rec: Recurrence, outer: Mapping[str, Expr], drop: str | None) -> dict[Expr, Expr]:
    """Token-level leaves -> values inside a Carry along `drop` (or outside, for None), groups spread over their heads."""
    table: dict[Expr, Expr] = {}
    for name, scope, axes in (*((i.name, i.scope, i.axes) for i in rec.inputs), *((p.name, p.scope, p.axes) for p in rec.params)):
        full = outer[name]
        leaf = ops.var(name, (a for a in full.axes if a != drop), full.type.dtype)
        spread = ops.spread(leaf, GROUPS, HEADS) if scope == "group" and GROUPS in leaf.axes else leaf
        table[ops.var(name, axes, full.type.dtype)] = spread
    table[ops.var("head")] = ops.iota(HEADS)
    table[ops.var("heads")] = ops.size(HEADS)
    table[ops.var("depth")] = ops.size("depth")
    table[ops.var("depths")] = ops.size("depths")
    return table


def at_scope(scope: str, table: Mapping[Expr, Expr]) -> dict[Expr, Expr]:
    """The table as a state of this scope sees it: a group's values once, not for each of its heads."""
    return {k: v.args[0] if scope == "group" and v.op.name == "spread" else v for k, v in table.items()}


def per_head(scope: str, value: Expr) -> Expr:
    """A value of a state's scope, as heads read it."""
    return ops.spread(value, GROUPS, HEADS) if scope == "group" else value


def lifted(values: list[Expr], table: Mapping[Expr, Expr]) -> list[Expr]:
    return list(lift(values, table))


__all__ = [
    "BATCH", "CHUNKS", "GROUPS", "HEADS", "SHOWN", "TOKENS", "VALID", "Applies", "Form", "Lowered", "Refuses", "at_scope",
    "body_leaves", "final", "initial", "leaf_axes", "lifted", "outer_leaves", "per_head", "state_lead", "unseen",
]  # fmt: skip
