"""A group of affine states by composing their transitions: the stages that a Series gets for it.

Chunks side by side from zero, then from chunk to chunk, then both together; `seqc.forms.scan` has the equations.
"""

from __future__ import annotations

from collections.abc import Mapping

from seqc.analysis.affine import Transition, applied
from seqc.analysis.components import Component, leaf
from seqc.forms.base import state_lead
from seqc.forms.series import Series
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.lift import lift
from seqc.ir.program import CHUNKS, TOKENS, Carried, Carry, Equation, inside


def scan(series: Series, c: Component, t: Transition) -> None:
    """The stages of one group of states; afterwards its leaves stand for their values before each token."""
    local = _inside_chunks(series, c, t)
    starts = _over_chunks(series, c, t)
    before = []
    for s in c.states:
        total = ops.add(local[s.name], applied(t, {ij: local[_key(ij)] for ij in t.leaves}, starts, s.name, ()))
        before.append(Equation(f"{s.name}@t", ops.broadcast(total, (CHUNKS, *state_lead(s.scope), TOKENS, *s.axes))))
    for s, value in zip(c.states, series.map(before), strict=True):
        series.table[leaf(s)] = value
    for s in c.states:
        full = (*state_lead(s.scope), *s.axes)
        series.finals[s.name] = series.at_end(series.up(s.next), full)


def _key(ij: tuple[str, str]) -> str:
    return f"{ij[0]}.of.{ij[1]}"


def _inside_chunks(series: Series, c: Component, t: Transition) -> dict[str, Expr]:
    """Token by token in all chunks at once: states from zero and the composed transitions; their values before each token."""
    table = series.inner(TOKENS)
    lead = {s.name: (CHUNKS, *state_lead(s.scope)) for s in c.states}
    own = {leaf(s): ops.var(s.name, (*lead[s.name], *s.axes)) for s in c.states}
    nexts = lift([s.next for s in c.states], {**table, **own})
    carried = [_carried(s.name, ops.number(0), n, own[leaf(s)].axes, "") for s, n in zip(c.states, nexts, strict=True)]
    values = {s.name: own[leaf(s)] for s in c.states}
    axes = grown(t, table)
    entries = {x: ops.var(x.name, axes[ij]) for ij, x in t.leaves.items()}
    composed = lift([t.next[ij] for ij in t.leaves], {**table, **entries})
    for (ij, x), value in zip(t.leaves.items(), composed, strict=True):
        carried.append(_carried(x.name, t.start[ij], value, entries[x].axes, ""))
        values[_key(ij)] = entries[x]
    equations = tuple(Equation(f"{v.name}@l", v) for v in values.values())
    series.stages.append(Carry(TOKENS, False, tuple(carried), equations))
    return {n: ops.var(f"{v.name}@l", (TOKENS, *v.axes)) for n, v in values.items()}


def grown(t: Transition, table: Mapping[Expr, Expr]) -> dict[tuple[str, str], tuple[str, ...]]:
    """The axes of the composed transitions inside a chunk: no more of time and place than the step's coefficients have."""
    axes = {ij: x.axes for ij, x in t.leaves.items()}
    while True:
        entries = {x: ops.var(x.name, axes[ij]) for ij, x in t.leaves.items()}
        new = lift([t.next[ij] for ij in t.leaves], {**table, **entries})
        wider = {ij: (*(a for a in e.axes if a not in axes[ij]), *axes[ij]) for ij, e in zip(t.leaves, new, strict=True)}
        if wider == axes:
            return axes
        axes = wider


def _carried(name: str, init: Expr, next_: Expr, axes: tuple[str, ...], tail: str) -> Carried:
    return Carried(name, ops.broadcast(init, axes), ops.broadcast(next_, axes), f"{name}@end{tail}")


def _over_chunks(series: Series, c: Component, t: Transition) -> dict[str, Expr]:
    """From chunk to chunk by the summaries: the states before each chunk."""
    (last,) = [s for s in series.stages[-1:] if isinstance(s, Carry)]
    ends = {k.name: ops.var(k.final, k.init.axes) for k in last.carried}
    own = {s.name: ops.var(f"{s.name}@c", (*state_lead(s.scope), *s.axes)) for s in c.states}
    entries = {ij: inside(ends[x.name], CHUNKS) for ij, x in t.leaves.items()}
    carried = []
    for s in c.states:
        axes = own[s.name].axes
        next_ = ops.add(inside(ends[s.name], CHUNKS), applied(t, entries, own, s.name, ()))
        carried.append(Carried(own[s.name].name, series.first(s), ops.broadcast(next_, axes), f"{s.name}@chunks"))
    equations = tuple(Equation(f"{s.name}@start", own[s.name]) for s in c.states)
    series.stages.append(Carry(CHUNKS, False, tuple(carried), equations))
    return {s.name: ops.var(f"{s.name}@start", (CHUNKS, *own[s.name].axes)) for s in c.states}
