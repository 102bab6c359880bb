"""States in series: each group of states becomes values at every token, which the groups behind it take like inputs.

Values stand at [chunks, ..., tokens, ...]. What is known of the token before comes from the chunk before, and at the first chunk
from the first state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import copy
from dataclasses import replace

from seqc.analysis.chain import Refusal
from seqc.analysis.components import BELOW_ALL, Component, leaf, peak
from seqc.forms.base import VALID, at_scope, body_leaves, final, initial, outer_leaves, per_head, state_lead
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.lift import lift
from seqc.ir.program import BATCH, CHUNKS, HEADS, TOKENS, Carried, Carry, Equation, Map, Stage, inside, outer_of
from seqc.ir.recurrence import Recurrence, State

FULL = (CHUNKS, BATCH, HEADS, TOKENS)


class Series:
    """The stages so far, and for every leaf of the token's step its value at all tokens.

    made: states that the layer has not, which start at their own first values. back: the layer's last states over those of `rec`.
    block: tokens per chunk where chunks are blocks of the text: a sequence may then begin inside of a chunk, behind padding.
    """

    def __init__(
        self,
        rec: Recurrence,
        sizes: Mapping[str, int],
        made: Collection[str] = (),
        back: Mapping[str, Expr] | None = None,
        block: int | None = None,
    ):
        self.rec, self.sizes, self.back, self.block = rec, sizes, back or {}, block
        self.made: Collection[str] = made
        self.outer = outer_leaves(replace(rec, states=tuple(s for s in rec.states if s.name not in made)), (CHUNKS, TOKENS))
        self.table = body_leaves(rec, self.outer, None)
        self.valid = self.outer[VALID]
        self.stages: list[Stage] = []
        self.finals: dict[str, Expr] = {}
        self.names = {s.name for s in rec.states}

    def beside(self, made: Collection[str]) -> Series:
        """A series that begins with what is known here, with stages and further states of its own."""
        found = copy(self)
        found.made, found.table, found.stages, found.finals = (*self.made, *made), dict(self.table), [], dict(self.finals)
        return found

    # --- Lifting -----------------------------------------------------------------------------------------------

    def up(self, e: Expr, blame: Expr | None = None) -> Expr:
        """A value of the token's step at all tokens."""
        return self.checked(lift((e,), self.table)[0], blame)

    def inner(self, axis: str) -> dict[Expr, Expr]:
        """The table as a Carry along an axis sees it."""
        return {k: lift((v,), {x: inside(x, axis) for x in walk(v) if x.op.name == "var"})[0] for k, v in self.table.items()}

    def checked(self, value: Expr, blame: Expr | None) -> Expr:
        """The value, if no state is left in it. Raises Refusal else."""
        for node in walk(value):
            if node.op.name == "var" and node.name in self.names and BATCH not in node.axes:
                raise Refusal(f"`{node.name}` is used as a whole here, not read along its key axis", blame or node)
        return value

    # --- Stages ------------------------------------------------------------------------------------------------

    def map(self, equations: Iterable[Equation]) -> list[Expr]:
        """A Map; returns the leaves that name its values."""
        equations = tuple(equations)
        self.stages.append(Map(equations))
        return [ops.var(e.name, e.value.axes, e.value.type.dtype) for e in equations]

    def first(self, s: State) -> Expr:
        if s.name in self.made:
            return ops.broadcast(s.init, (*state_lead(s.scope), *s.axes))
        return self.outer[initial(s.name)]

    def last(self, s: State) -> str:
        """The name of a state's value after the last token, where a Carry has it."""
        return f"{s.name}@last" if s.name in self.back else final(s.name)

    def earlier(self, value: Expr, first: Expr) -> Expr:
        """The value of the token before; at the first token `first`."""
        if self.block is not None:
            begun = ops.compare("gt", self._before(self.valid), ops.number(0))
            return ops.where(begun, self._before(value), first)
        before = ops.add(ops.shift(ops.select(value, TOKENS, -1), CHUNKS, 1), ops.place(first, CHUNKS, 0))
        return ops.add(ops.shift(value, TOKENS, 1), ops.place(before, TOKENS, 0))

    def _before(self, value: Expr) -> Expr:
        """The value of the token before, zero at the first place of all chunks."""
        last = ops.select(value, TOKENS, -1)
        return ops.add(ops.shift(value, TOKENS, 1), ops.place(ops.shift(last, CHUNKS, 1), TOKENS, 0))

    def at_end(self, value: Expr, axes: tuple[str, ...]) -> Expr:
        """The value at the last token that is not padding."""
        last = ops.select(self.valid, TOKENS, 0)
        ahead = ops.add(ops.shift(self.valid, TOKENS, -1), ops.place(ops.shift(last, CHUNKS, -1), TOKENS, -1))
        ends = ops.mul(self.valid, ops.sub(ops.number(1), ahead))
        have = {*value.axes, *ends.axes} - {CHUNKS, TOKENS}
        return ops.broadcast(ops.contract((value, ends), tuple(a for a in axes if a in have)), axes)

    def _wide(self, s: State, value: Expr, axes: tuple[str, ...]) -> Expr:
        return ops.broadcast(value, (CHUNKS, *state_lead(s.scope), TOKENS, *axes))

    # --- States that are earlier values ------------------------------------------------------------------------

    def add(self, c: Component) -> None:
        """A delay, a window, a counter or a running maximum: its values before each token, and after the last."""
        (s,) = c.states
        if c.kind == "peak":
            if self.block is not None:
                raise Refusal(f"`{s.name}` keeps exponentials apart, which blocks of tokens do not", s.next)
            self._peaks(s)
            return
        if c.kind == "counter":
            (before,) = self.map([Equation(f"{s.name}@t", self._counted(s))])
            after = ops.add(before, ops.number(1))
        else:
            assert c.newest is not None
            (newest,) = lift((c.newest,), at_scope(s.scope, self.table))
            newest = self._wide(s, self.checked(newest, None), s.axes if c.kind == "delay" else s.axes[1:])
            (newest,) = self.map([Equation(f"{s.name}@new", newest)])
            values = self.earlier(newest, self.first(s)) if c.kind == "delay" else self._window(s, newest)
            (before,) = self.map([Equation(f"{s.name}@t", values)])
            if c.kind == "delay":
                after = newest
            else:
                moved = ops.shift(before, s.axes[0], -1)
                after = ops.add(moved, ops.place(newest, s.axes[0], -1))
        self.table[leaf(s)] = per_head(s.scope, before)
        self.finals[s.name] = self.at_end(after, (*state_lead(s.scope), *s.axes))

    def _counted(self, s: State) -> Expr:
        within = ops.add(ops.mul(ops.iota(CHUNKS), ops.size(TOKENS)), ops.iota(TOKENS))
        first = self.first(s)
        if self.block is not None:
            first = ops.sub(first, ops.modulo(first, ops.number(self.block)))
        return self._wide(s, ops.add(first, within), ())

    def _window(self, s: State, newest: Expr) -> Expr:
        """The last values, oldest first: each is the one behind it, a token earlier."""
        axis, length = s.axes[0], int(self.sizes[s.axes[0]])
        entries = [newest]
        for i in range(length):
            entries.append(self.earlier(entries[-1], ops.select(self.first(s), axis, length - 1 - i)))
        return ops.broadcast(ops.stack(entries[:0:-1], axis), (CHUNKS, *state_lead(s.scope), TOKENS, *s.axes))

    def _peaks(self, s: State) -> None:
        """A running maximum: inside all chunks at once, from chunk to chunk, then both. Without gradient: it is a choice of units.

        What the text calls its next value is, everywhere, the value that is found here, whatever the order of comparisons.
        """
        found = peak(s)
        assert found is not None
        axes, table = (CHUNKS, *state_lead(s.scope), *s.axes), self.inner(TOKENS)
        fall, value = lift([ops.number(0) if e is None else e for e in found], table)
        is_token = ops.compare("gt", inside(self.valid, TOKENS), ops.number(0))
        top, fallen = ops.var(f"{s.name}.top", axes), ops.var(f"{s.name}.fall", axes)
        here = ops.add(top, fall) if found[1] is None else ops.maximum(ops.add(top, fall), value)
        nexts = {top: ops.where(is_token, here, top), fallen: ops.where(is_token, ops.add(fallen, fall), fallen)}
        first = {top: ops.number(BELOW_ALL), fallen: ops.number(0)}
        carried = tuple(Carried(x.name, ops.broadcast(first[x], axes), ops.broadcast(e, axes), f"{x.name}@end") for x, e in nexts.items())
        inner = tuple(Equation(f"{x.name}@l", k.next) for x, k in zip(nexts, carried, strict=True))
        self.stages.append(Carry(TOKENS, False, carried, inner))
        own = ops.var(f"{s.name}@c", axes[1:])
        ends = [inside(ops.var(k.final, axes), CHUNKS) for k in carried]
        used = ops.compare("gt", ops.select(self.valid, TOKENS, 0), ops.number(0))  # chunks that are not padding alone
        joined = ops.where(lift((used,), {self.valid: inside(self.valid, CHUNKS)})[0], ops.maximum(ops.add(own, ends[1]), ends[0]), own)
        over = Carried(own.name, self.first(s), ops.broadcast(joined, own.axes), f"{s.name}@chunks")
        start = Equation(f"{s.name}@start", own)
        self.stages.append(Carry(CHUNKS, False, (over,), (start,)))
        tops, falls = (outer_of(e, TOKENS) for e in inner)
        whole = ops.where(used, ops.maximum(ops.add(outer_of(start, CHUNKS), falls), tops), outer_of(start, CHUNKS))
        (after,) = self.map([Equation(f"{s.name}@new", self._wide(s, whole, s.axes))])
        (before,) = self.map([Equation(f"{s.name}@t", self.earlier(after, self.first(s)))])
        self.table |= {leaf(s): before, s.next: ops.stop_gradient(after)}
        self.finals[s.name] = self.at_end(ops.stop_gradient(after), (*state_lead(s.scope), *s.axes))

    # --- The end -----------------------------------------------------------------------------------------------

    def outputs(self) -> tuple[Equation, ...]:
        """The layer's outputs, then its last states."""
        values = [Equation(o.name, ops.broadcast(self.up(o.value, o.value), (*FULL, *o.axes)), o.span.where) for o in self.rec.outputs]
        ends = {leaf(s): self.finals[s.name] for s in self.rec.states}
        last = {s.name: lift((self.back[s.name],), ends)[0] if s.name in self.back else self.finals[s.name] for s in self.rec.states}
        theirs = [s for s in self.rec.states if s.name not in self.made]
        return (*values, *(Equation(final(s.name), ops.broadcast(last[s.name], (*state_lead(s.scope), *s.axes))) for s in theirs))

    @property
    def inputs(self) -> tuple[Expr, ...]:
        return tuple(self.outer.values())
