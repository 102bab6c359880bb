"""Recurrence -> Program for states whose next value is a nonlinear function of themselves: all tokens at once, by Newton's method.

The values h_t at all tokens solve h_t = f(h_(t-1), x_t). With J_t the derivative of f at the current iterate, what is added to it solves

    d_t = J_t d_(t-1) + r_t        r_t = f(h_(t-1), x_t) - h_t,   d = 0 before the first token

which is an affine recurrence, and is computed by composing transitions (`seqc.forms.transitions`). J is derived from the step; it is
elementwise, couples several states, or mixes a small axis, which shows in its expression. d is the first-order error of the iterate
that it is added to, rounding included: a small r alone bounds nothing where the step expands. So the iteration ends when the last d
and r are both small, with a result that is better than the iterate they belong to. The guess is the step from the first state, f(h_0, x_t).
States before and behind go by the ways of the scan form.

Lim et al. 2024, Parallelizing non-linear sequential models over the sequence length, arXiv:2309.12252.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from seqc.analysis.affine import MIXED, Transition, fitting, linear_parts, mixed_axes
from seqc.analysis.chain import Refusal
from seqc.analysis.components import Component, leaf
from seqc.analysis.cost import ITERATIONS
from seqc.analysis.monoid import Monoid, Part, monoid, parts
from seqc.analysis.structure import span_of
from seqc.forms import recurrent
from seqc.forms.base import Applies, Form, Lowered, Refuses, state_lead
from seqc.forms.groups import add, words
from seqc.forms.series import Series
from seqc.forms.transitions import scan
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.lift import lift
from seqc.ir.program import CHUNKS, TOKENS, Equation, Map, Program, Solve, Unknown
from seqc.ir.recurrence import Recurrence, State
from seqc.passes.jacobian import tangents

ENTRIES = MIXED * MIXED  # the most numbers per token and head that a transition may have


def applies(rec: Recurrence, sizes: Mapping[str, int]) -> Applies | Refuses:
    """A group of states that is not affine in itself, with a derivative that is elementwise or mixes a small axis."""
    verdict = recurrent.regrouped(rec, sizes)
    if isinstance(verdict, Refuses):
        return verdict
    block = next((s for s in rec.states if s.clock.every is not None), None)
    if block is not None:  # a call may begin inside a block, where this form's chunks do not
        return Refuses(f"`{block.name}` changes only every {block.clock.every} tokens", block.span)
    every = parts(rec, sizes)
    if not any(_is_nonlinear(rec, c, sizes) for c in every):
        return Refuses("no state is a nonlinear function of itself: there is nothing to iterate, other forms are exact", rec.span)
    try:
        evidence = [_words(rec, c, sizes) for c in every]
        lower(rec, sizes)
    except Refusal as r:
        return Refuses(r.reason, span_of(rec, r.cause, rec.span), r.helps)
    return Applies(tuple(evidence))


def _is_nonlinear(rec: Recurrence, c: Part, sizes: Mapping[str, int]) -> bool:
    if isinstance(c, Monoid) or c.kind != "coupled" or monoid(rec, c, sizes) is not None:
        return False
    try:
        linear_parts((s.next for s in c.states), {leaf(s): leaf(s) for s in c.states})
    except Refusal:
        return True
    return False


def _words(rec: Recurrence, c: Part, sizes: Mapping[str, int]) -> str:
    if isinstance(c, Monoid) or not _is_nonlinear(rec, c, sizes):
        return words(rec, c, sizes)
    names = " and ".join(f"`{n}`" for n in c.names)
    mixed = tuple(dict.fromkeys(a for axes in linearised(c, sizes).transition.mixed.values() for a in axes))
    how = f"mixes {', '.join(mixed)}" if mixed else "is elementwise" if len(c.names) == 1 else "couples them elementwise"
    return f"{names}: nonlinear, the derivative {how}; Newton's method, {ITERATIONS} iterations in estimates of its time"


# --- The linearised step -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linearised:
    """The recurrence of what is added to an iterate.

    entries: leaves for the parts of J, with their values over the token's leaves. residual: the leaf of each state's r. steps: the
    states d, in the order of the component's.
    """

    entries: dict[Expr, Expr]
    residual: dict[str, Expr]
    steps: Component
    transition: Transition


def linearised(c: Component, sizes: Mapping[str, int]) -> Linearised:
    """Of a group of states. Raises Refusal where J is too large, or a state has no derivative of its own."""
    for s in c.states:
        if s.scope != "head" or s.integer:
            raise Refusal(f"`{s.name}` is {'a whole number' if s.integer else 'shared by heads'}", s.next)
        if s.role == "stabiliser" or s.stabiliser is not None:
            raise Refusal(f"`{s.name}` is kept in units that depend on its own values", s.next)
    own = {s.name: ops.var(f"{s.name}@step", s.axes) for s in c.states}
    whole = tangents([ops.broadcast(s.next, s.axes) for s in c.states], [leaf(s) for s in c.states], tuple(own.values()))
    touched = mixed_axes(whole, own.values())
    entries: dict[Expr, Expr] = {}
    residual = {s.name: ops.var(f"{s.name}@residual", s.axes) for s in c.states}
    total: dict[str, Expr] = dict(residual)
    for j, x in own.items():
        there = {a: f"{a}~'" for a in x.axes if a in touched}
        seed = ops.contract([ops.eye(a, b) for a, b in there.items()], (*there, *there.values())) if there else ops.number(1)
        for i, part in zip(own, linear_parts(whole, {y: seed if y is x else None for y in own.values()}), strict=True):
            if part is None or ops.is_zero(part):
                continue
            entry = part if ops.is_number(part) else ops.var(f"{i}.by.{j}", part.axes)
            if entry is not part:
                entries[entry] = part
            start = ops.rename(x, there)
            kept = dict.fromkeys(a for a in (*own[i].axes, *entry.axes, *start.axes) if a not in there.values())
            have = {*entry.axes, *start.axes}
            total[i] = ops.add(total[i], ops.contract((entry, start), tuple(a for a in kept if a in have)))
    states = tuple(
        replace(s, name=own[s.name].name, init=ops.number(0), next=ops.broadcast(total[s.name], s.axes), role="hidden") for s in c.states
    )
    steps = Component("coupled", states)
    try:
        found = fitting(steps, sizes)
    except Refusal as r:
        raise Refusal(r.reason.replace("@step", "").replace("the update mixes", "the update's derivative mixes"), c.states[0].next) from r
    _check_size(c, found, sizes)
    return Linearised(entries, residual, steps, found)


def _check_size(c: Component, t: Transition, sizes: Mapping[str, int]) -> None:
    """An axis without a known size is not mixed, and counts as one."""
    for x in t.leaves.values():
        if ops.numel(x.axes, {ops.base(a): sizes.get(ops.base(a), 1) for a in x.axes}) > ENTRIES:
            names = " and ".join(f"`{n}`" for n in c.names)
            raise Refusal(f"the derivative of the update of {names} has more than {ENTRIES:,} entries at every token", c.states[0].next)


# --- The Program ---------------------------------------------------------------------------------------------------


def lower(rec: Recurrence, sizes: Mapping[str, int]) -> Lowered:
    """Every group of states in turn."""
    series = Series(rec, sizes)
    for c in parts(rec, sizes):
        if isinstance(c, Component) and _is_nonlinear(rec, c, sizes):
            solve(series, c, linearised(c, sizes))
        else:
            add(series, c)
    outputs = series.outputs()
    return Lowered(Program("newton", series.inputs, tuple(series.stages), outputs), {})


def solve(series: Series, c: Component, found: Linearised) -> None:
    """The stage; afterwards the states' leaves stand for their values before each token, their next values for those after it."""
    values = {s.name: ops.var(f"{s.name}@new", _full(s)) for s in c.states}
    firsts = {leaf(s): series.first(s) for s in c.states}
    first_steps = lift([s.next for s in c.states], {**series.table, **firsts})
    guesses = [ops.broadcast(g, _full(s)) for s, g in zip(c.states, first_steps, strict=True)]
    is_token = ops.compare("gt", series.valid, ops.number(0))

    def masked(value: Expr, s: State) -> Expr:
        """Behind a sequence's end the guess stays."""
        return ops.broadcast(ops.where(is_token, ops.broadcast(value, _full(s)), ops.number(0)), _full(s))

    inner = series.beside(found.steps.names)
    earlier = [Equation(f"{s.name}@from", inner.earlier(values[s.name], series.first(s))) for s in c.states]
    inner.table |= dict(zip(map(leaf, c.states), inner.map(earlier), strict=True))
    left = [Equation(found.residual[s.name].name, masked(ops.sub(inner.up(s.next), values[s.name]), s)) for s in c.states]
    left += [Equation(e.name, inner.up(value)) for e, value in found.entries.items()]
    inner.table |= dict(zip((*found.residual.values(), *found.entries), inner.map(left), strict=True))
    residuals, inner.stages = tuple(m for m in inner.stages if isinstance(m, Map)), []
    scan(inner, found.steps, found.transition)
    added = [masked(inner.up(d.next), s) for s, d in zip(c.states, found.steps.states, strict=True)]
    unknowns = tuple(
        Unknown(values[s.name].name, guess, found.residual[s.name].name, step)
        for s, guess, step in zip(c.states, guesses, added, strict=True)
    )
    series.stages.append(Solve(unknowns, residuals, tuple(inner.stages)))
    before = series.map(Equation(f"{s.name}@t", series.earlier(values[s.name], series.first(s))) for s in c.states)
    for s, value in zip(c.states, before, strict=True):
        series.table |= {leaf(s): value, s.next: values[s.name]}
        series.finals[s.name] = series.at_end(values[s.name], (*state_lead(s.scope), *s.axes))


def _full(s: State) -> tuple[str, ...]:
    return (CHUNKS, *state_lead(s.scope), TOKENS, *s.axes)


NOTES = (
    "The newton form: the values at all tokens solve h_t = f(h_(t-1), x_t). With J_t the derivative of f at the current iterate,",
    "d_t = J_t d_(t-1) + r_t is added to it, r_t being what is left, f(h_(t-1), x_t) - h_t; d comes by composed transitions.",
    "Values lie as [tokens, chunks, B, H, ...]. Where the iteration does not come close enough, the recurrent form is taken.",
)

NEWTON = Form("newton", applies, lower, (CHUNKS, TOKENS), NOTES, written=True)
