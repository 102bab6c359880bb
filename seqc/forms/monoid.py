"""States folded by an associative operator: the stages that a Series gets for them.

With e_t the element of token t, joined by `.`, and states acted on from the left:

    inside all chunks at once   l_t = l_(t-1) . e_t, from the chunk's first element
    from chunk to chunk         h_next = h l_end
    at every token              h_t = h_start l_t

Nothing starts from the neutral element, which may be infinite. The stages are Maps and Carries, so that gradients come as for any
other: a Carry differentiates a monoid that is not affine. Blelloch 1990, Prefix sums and their applications.
"""

from __future__ import annotations

from seqc.analysis.components import leaf
from seqc.analysis.monoid import Monoid
from seqc.forms.base import state_lead
from seqc.forms.series import Series
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.lift import lift
from seqc.ir.program import CHUNKS, TOKENS, Carried, Carry, Equation, inside, outer_of
from seqc.ir.recurrence import State


def fold(series: Series, m: Monoid) -> None:
    """The stages; afterwards the states' leaves stand for their values before each token, their next values for those after it."""
    local = _inside_chunks(series, m)
    starts = _over_chunks(series, m)
    table = {**series.table, **{m.right[n]: outer_of(e, TOKENS) for n, e in local.items()}}
    table |= {leaf(s): starts[s.name] for s in m.states}
    whole = lift([m.acted[s.name] for s in m.states], table)
    after = series.map(Equation(f"{s.name}@new", _wide(s, v, (TOKENS,))) for s, v in zip(m.states, whole, strict=True))
    before = series.map(Equation(f"{s.name}@t", series.earlier(v, series.first(s))) for s, v in zip(m.states, after, strict=True))
    for s, value, last in zip(m.states, before, after, strict=True):
        series.table |= {leaf(s): value, s.next: last}
        series.finals[s.name] = ops.var(f"{s.name}@chunks", (*state_lead(s.scope), *s.axes))


def _wide(s: State, value: Expr, along: tuple[str, ...] = ()) -> Expr:
    return ops.broadcast(value, (CHUNKS, *state_lead(s.scope), *along, *s.axes))


def _inside_chunks(series: Series, m: Monoid) -> dict[str, Equation]:
    """Token by token in all chunks at once; padding joins nothing."""
    elements = [Equation(f"{n}@given", _wide(m.of[n], series.up(e), (TOKENS,))) for n, e in m.given.items()]
    tokens = ops.mul(series.valid, ops.where(ops.compare("gt", ops.iota(TOKENS), ops.number(0)), ops.number(1), ops.number(0)))
    *given, moves = series.map([*elements, Equation(f"{m.states[0].name}@moves", tokens)])
    own = {n: ops.var(f"{n}@in", _wide(s, ops.number(0)).axes) for n, s in m.of.items()}
    table = {**series.inner(TOKENS), **{m.left[n]: x for n, x in own.items()}}
    table |= {m.right[n]: inside(x, TOKENS) for n, x in zip(own, given, strict=True)}
    joined = lift([m.joined[n] for n in own], table)
    joins = ops.compare("gt", inside(moves, TOKENS), ops.number(0))
    carried = []
    for (n, x), first, value in zip(own.items(), given, joined, strict=True):
        next_ = ops.broadcast(ops.where(joins, ops.broadcast(value, x.axes), x), x.axes)
        carried.append(Carried(x.name, ops.select(first, TOKENS, 0), next_, f"{n}@end"))
    equations = {n: Equation(f"{n}@l", k.next) for n, k in zip(own, carried, strict=True)}
    series.stages.append(Carry(TOKENS, False, tuple(carried), tuple(equations.values())))
    return equations


def _over_chunks(series: Series, m: Monoid) -> dict[str, Expr]:
    """From chunk to chunk; a chunk of padding alone changes nothing. The states before each chunk."""
    own = {s.name: ops.var(f"{s.name}@c", (*state_lead(s.scope), *s.axes)) for s in m.states}
    ends = {n: ops.var(f"{n}@end", _wide(s, ops.number(0)).axes) for n, s in m.of.items()}
    table = {**series.inner(CHUNKS), **{leaf(s): own[s.name] for s in m.states}}
    table |= {m.right[n]: inside(x, CHUNKS) for n, x in ends.items()}
    acted = lift([m.acted[s.name] for s in m.states], table)
    is_used = ops.compare("gt", ops.select(inside(series.valid, CHUNKS), TOKENS, 0), ops.number(0))
    carried = []
    for s, value in zip(m.states, acted, strict=True):
        x = own[s.name]
        next_ = ops.broadcast(ops.where(is_used, ops.broadcast(value, x.axes), x), x.axes)
        carried.append(Carried(x.name, series.first(s), next_, f"{s.name}@chunks"))
    equations = [Equation(f"{s.name}@start", own[s.name]) for s in m.states]
    series.stages.append(Carry(CHUNKS, False, tuple(carried), tuple(equations)))
    return {s.name: outer_of(e, CHUNKS) for s, e in zip(m.states, equations, strict=True)}
