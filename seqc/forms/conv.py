"""Recurrence -> Program as a causal convolution: a layer that is linear in its inputs and states and the same at every token.

An input's impulse, read out t tokens later, is the layer's kernel. Inside a chunk the outputs are convolutions of inputs and kernels;
between chunks the states are handed on:

    G_t = A^t B        kernel_0 = D,  kernel_t = C G_(t-1)        y = kernel * u + C A^t h_start
    h_next = A^n h_start + sum over the chunk's tokens s of G_(n-1-s) u_s

Kernels and powers are computed token by token for one chunk, without batch. Gu et al. 2021, arXiv:2110.13985, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

from seqc.analysis.affine import Transition, applied, linear_parts, mixed_axes, source, transition
from seqc.analysis.chain import Refusal
from seqc.analysis.components import leaf
from seqc.analysis.structure import span_of
from seqc.forms import recurrent
from seqc.forms.base import Applies, Form, Lowered, Refuses, final, state_lead
from seqc.forms.series import Series
from seqc.forms.transitions import grown
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.lift import lift
from seqc.ir.model import Input
from seqc.ir.program import BATCH, CHUNKS, HEADS, TOKENS, Carried, Carry, Equation, Program, inside, outer_of
from seqc.ir.recurrence import Output, Recurrence

MIXED = 64  # the most entries that a state may mix: its powers are dense matrices
LATER = "@s"  # tokens of a chunk, a second time
Parts = dict[str, Expr]  # by state


def applies(rec: Recurrence, sizes: Mapping[str, int]) -> Applies | Refuses:
    """States and outputs linear in states and inputs together, with coefficients of params alone."""
    verdict = recurrent.regrouped(rec, sizes)
    if isinstance(verdict, Refuses):
        return verdict
    if not rec.states:
        return Refuses("the layer carries no state", rec.span)
    scaled = next((s for s in rec.states if s.stabiliser), None)
    if scaled is not None:
        return Refuses(f"`{scaled.name}` takes in an exponential of an input", scaled.span)
    try:
        _linear(rec)
        found = _transition(rec, sizes)
        lower(rec, sizes)
    except Refusal as r:
        return Refuses(r.reason, span_of(rec, r.cause, rec.span), r.helps)
    mixed = tuple(dict.fromkeys(a for axes in found.mixed.values() for a in axes))
    return Applies((f"linear and the same at every token{', mixing ' + ', '.join(mixed) if mixed else ''}",))


def _linear(rec: Recurrence) -> None:
    """Raises Refusal unless all is linear in states and inputs, without an added constant."""
    inputs = {_given(i): _given(i) for i in rec.inputs}
    states = {leaf(s): leaf(s) for s in rec.states}
    for value, name in (*((s.next, s.name) for s in rec.states), *((o.value, o.name) for o in rec.outputs)):
        try:
            (part,) = linear_parts((value,), {**inputs, **states})
        except Refusal as r:
            reason = f"`{name}` is not linear in inputs and states with the same coefficients at every token: {r.reason}"
            raise Refusal(reason, r.cause) from r
        if part is not value:
            raise Refusal(f"`{name}` has a part that depends on no input and no state", value)
    if any(s.integer or s.scope != "head" for s in rec.states) or any(i.scope == "sequence" for i in rec.inputs):
        raise Refusal("a state is shared by heads, or an input is given once per sequence")


def _given(i: Input) -> Expr:
    return ops.var(i.name, i.axes, i.dtype)


def _transition(rec: Recurrence, sizes: Mapping[str, int]) -> Transition:
    found = transition({leaf(s): s.next for s in rec.states})
    for s in rec.states:
        total = 1
        for a in found.mixed[s.name]:
            total *= int(sizes.get(ops.base(a), MIXED + 1))
        if total > MIXED:
            raise Refusal(f"the powers of the transition of `{s.name}` are too large", s.next)
    return found


class _Response:
    """What an impulse of one input does, elementwise in those of its axes that nothing mixes: to states at once, to outputs at once."""

    def __init__(self, series: Series, i: Input):
        rec, u = series.rec, _given(i)
        roots = (*(s.next for s in rec.states), *(o.value for o in rec.outputs))
        touched = mixed_axes(roots, (u, *map(leaf, rec.states)))
        self.mixed = tuple(a for a in i.axes if a in touched)
        names = (*self.mixed, *map(source, self.mixed))
        impulse = ops.contract([ops.eye(a, source(a)) for a in self.mixed], names) if self.mixed else ops.number(1)
        self.name = i.name
        found = linear_parts(roots, {**_nothing(rec), u: impulse})
        self.first = {s.name: p for s, p in zip(rec.states, found, strict=False) if p is not None}
        self.at_once = {o.name: series.up(p) for o, p in zip(rec.outputs, found[len(rec.states) :], strict=True) if p is not None}
        self.given = ops.rename(series.table[u], {a: source(a) for a in self.mixed})

    def times(self, x: Expr, *gone: str) -> tuple[str, ...]:
        """The axes of a product with the input: all but those at the impulse's side, and `gone`."""
        every = dict.fromkeys((*self.given.axes, *x.axes))
        return tuple(a for a in every if a not in (*map(source, self.mixed), *gone))


def _nothing(rec: Recurrence) -> dict[Expr, Expr | None]:
    """No state, no input."""
    return dict.fromkeys((*map(leaf, rec.states), *map(_given, rec.inputs)))


def lower(rec: Recurrence, sizes: Mapping[str, int]) -> Lowered:
    """Kernels and powers of one chunk; states from chunk to chunk; convolutions."""
    series, t = Series(rec, sizes), _transition(rec, sizes)
    before, after = _powers(series, t)
    end = _End(series)
    local = {o.name: ops.number(0) for o in rec.outputs}
    writes = {s.name: ops.number(0) for s in rec.states}
    lasts = dict(writes)
    for r in (_Response(series, i) for i in rec.inputs):
        forward, backward = (_grown(series, r, reverse) for reverse in (False, True))
        for o in rec.outputs:
            local[o.name] = ops.add(local[o.name], _convolved(series, r, forward, o))
        for n, g in backward.items():
            writes[n] = ops.add(writes[n], ops.contract((g, r.given), r.times(g, TOKENS)))
            lasts[n] = ops.add(lasts[n], end.of(r, forward[n]))
    starts = _over_chunks(series, t, after, writes)
    outputs = []
    for o in rec.outputs:
        value = ops.add(local[o.name], _carried_over(series, t, before, starts, o))
        outputs.append(Equation(o.name, ops.broadcast(value, (CHUNKS, BATCH, HEADS, TOKENS, *o.axes)), o.span.where))
    for s in rec.states:
        rest = applied(t, end.powers(before, after), {n: end.chunk(x) for n, x in starts.items()}, s.name, ())
        outputs.append(Equation(final(s.name), ops.broadcast(ops.add(rest, lasts[s.name]), (*state_lead(s.scope), *s.axes))))
    program = Program("conv", series.inputs, tuple(series.stages), tuple(outputs), ((LATER, TOKENS, 1),))
    return Lowered(program, {})


def _powers(series: Series, t: Transition) -> tuple[dict[tuple[str, str], Expr], dict[tuple[str, str], Expr]]:
    """The composed transitions before each token of a chunk, and behind its last."""
    table = series.inner(TOKENS)
    axes = grown(t, table)
    entries = {x: ops.var(x.name, axes[ij]) for ij, x in t.leaves.items()}
    composed = lift([t.next[ij] for ij in t.leaves], {**table, **entries})
    carried, equations = [], []
    for (ij, x), value in zip(t.leaves.items(), composed, strict=True):
        carried.append(Carried(x.name, ops.broadcast(t.start[ij], axes[ij]), ops.broadcast(value, axes[ij]), f"{x.name}@end"))
        equations.append(Equation(f"{x.name}@t", entries[x]))
    if carried:
        series.stages.append(Carry(TOKENS, False, tuple(carried), tuple(equations)))
    before = {ij: outer_of(e, TOKENS) for ij, e in zip(t.leaves, equations, strict=True)}
    return before, {ij: ops.var(k.final, k.init.axes) for ij, k in zip(t.leaves, carried, strict=True)}


def _grown(series: Series, r: _Response, reverse: bool) -> Parts:
    """G_t at each token of a chunk, or G_(C-1-t): the states t tokens after the impulse."""
    rec, table = series.rec, series.inner(TOKENS)
    tail = "@back" if reverse else ""
    first = dict(zip(r.first, lift(r.first.values(), table), strict=True))
    axes = {n: e.axes for n, e in first.items()}
    while True:
        own = {n: ops.var(f"{n}.by.{r.name}{tail}", a) for n, a in axes.items()}
        parts = linear_parts([s.next for s in rec.states], {**_nothing(rec), **{leaf(s): own.get(s.name) for s in rec.states}})
        nexts = {s.name: lift((p,), table)[0] for s, p in zip(rec.states, parts, strict=True) if p is not None}
        wider = axes | {n: tuple(dict.fromkeys((*axes.get(n, ()), *e.axes))) for n, e in nexts.items()}
        if wider == axes:
            break
        axes = wider
    zero = ops.number(0)
    carried = [
        Carried(x.name, ops.broadcast(first.get(n, zero), x.axes), ops.broadcast(nexts.get(n, zero), x.axes), f"{x.name}@end")
        for n, x in own.items()
    ]
    equations = tuple(Equation(f"{x.name}@t", x) for x in own.values())
    if carried:
        series.stages.append(Carry(TOKENS, reverse, tuple(carried), equations))
    return {n: outer_of(e, TOKENS) for n, e in zip(own, equations, strict=True)}


def _convolved(series: Series, r: _Response, forward: Parts, o: Output) -> Expr:
    """What an input adds to an output inside each chunk."""
    rec = series.rec
    stand = {n: ops.var(f"{n}@g", tuple(a for a in x.axes if not a.startswith("@"))) for n, x in forward.items()}
    (part,) = linear_parts((o.value,), {**_nothing(rec), **{leaf(s): stand.get(s.name) for s in rec.states}})
    now = r.at_once.get(o.name)
    total = ops.number(0) if now is None else ops.contract((now, r.given), r.times(now))
    if part is None:
        return total
    read = lift((part,), {**series.table, **{x: forward[n] for n, x in stand.items()}})[0]
    kernel = ops.shift(read, TOKENS, 1)
    (kernel,) = series.map([Equation(f"{o.name}.of.{r.name}", kernel)])
    return ops.add(total, ops.convolve(kernel, r.given, TOKENS, r.times(kernel)))


def _carried_over(series: Series, t: Transition, before: Mapping[tuple[str, str], Expr], starts: Parts, o: Output) -> Expr:
    """What the states before a chunk add to an output: C A^t h_start. C is read off state by state, entry by entry where it sums."""
    rec = series.rec
    touched = mixed_axes((o.value,), map(leaf, rec.states))
    total: Expr = ops.number(0)
    for s in rec.states:
        summed = {a: f"{a}~'" for a in s.axes if a in touched}
        seed = ops.contract([ops.eye(a, b) for a, b in summed.items()], (*summed, *summed.values())) if summed else ops.number(1)
        (read,) = linear_parts((o.value,), {**_nothing(rec), leaf(s): seed})
        if read is None:
            continue
        for (i, j), entry in {**t.fixed, **before}.items():
            if i == s.name:
                start = ops.rename(starts[j], summed | {a: source(a) for a in t.mixed[j]})
                share = (series.up(read), ops.rename(entry, summed), start)
                have = {a for x in share for a in x.axes}
                out = tuple(a for a in (CHUNKS, BATCH, HEADS, TOKENS, *o.axes) if a in have)
                total = ops.add(total, ops.contract(share, out))
    return total


def _over_chunks(series: Series, t: Transition, after: Mapping[tuple[str, str], Expr], writes: Parts) -> Parts:
    """The states before each chunk."""
    rec = series.rec
    own = {s.name: ops.var(f"{s.name}@c", (*state_lead(s.scope), *s.axes)) for s in rec.states}
    named = series.map([Equation(f"{n}@write", ops.broadcast(e, (CHUNKS, *own[n].axes))) for n, e in writes.items()])
    carried = []
    for s, write in zip(rec.states, named, strict=True):
        new = ops.add(inside(write, CHUNKS), applied(t, after, own, s.name, ()))
        carried.append(Carried(f"{s.name}@c", series.first(s), ops.broadcast(new, own[s.name].axes), f"{s.name}@chunks"))
    equations = tuple(Equation(f"{n}@start", x) for n, x in own.items())
    series.stages.append(Carry(CHUNKS, False, tuple(carried), equations))
    return {n: outer_of(e, CHUNKS) for n, e in zip(own, equations, strict=True)}


class _End:
    """The chunk that holds a sequence's last token, and how many tokens of it are no padding."""

    def __init__(self, series: Series):
        first = ops.select(series.valid, TOKENS, 0)
        self.last = ops.sub(first, ops.shift(first, CHUNKS, -1))
        self.count = ops.contract((series.valid, self.last), (BATCH,))

    def chunk(self, x: Expr) -> Expr:
        """A value of that chunk."""
        return ops.contract((x, self.last), tuple(a for a in dict.fromkeys((*x.axes, *self.last.axes)) if a != CHUNKS))

    def of(self, r: _Response, g: Expr) -> Expr:
        """The sum over its tokens of what each leaves in the state at the end."""
        later = ops.add(ops.add(ops.iota(TOKENS), ops.iota(LATER)), ops.number(1))
        pairs = ops.where(ops.compare("eq", later, self.count), ops.number(1), ops.number(0))
        g = ops.rename(g, {TOKENS: LATER})
        out = tuple(a for a in r.times(g, TOKENS, LATER, CHUNKS))
        return ops.contract((g, self.chunk(r.given), pairs), out)

    def powers(self, before: Mapping[tuple[str, str], Expr], after: Mapping[tuple[str, str], Expr]) -> dict[tuple[str, str], Expr]:
        """The transitions composed over its tokens."""
        here = ops.where(ops.compare("eq", ops.iota(TOKENS), self.count), ops.number(1), ops.number(0))
        whole = ops.where(ops.compare("eq", ops.size(TOKENS), self.count), ops.number(1), ops.number(0))
        found = {}
        for ij, x in before.items():
            part = ops.contract((x, here), (BATCH, *(a for a in x.axes if a != TOKENS)))
            found[ij] = ops.add(part, ops.mul(whole, after[ij]))
        return found


NOTES = (
    "The conv form: inputs convolved with the layer's kernels inside each chunk, states handed on between chunks.",
    "Values lie as [chunks, B, H, tokens, ...]. With G_t = A^t B: kernel_t = C G_(t-1), y = D u + kernel * u + C A^t h_start,",
    "and a chunk of n tokens ends in A^n h_start + sum of G_(n-1-s) u_s.",
)

CONV = Form("conv", applies, lower, (CHUNKS, TOKENS), NOTES)
