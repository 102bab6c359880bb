"""A chunk that is a block (`seqc.passes.blocks`): what its first token exchanges, and what is known only at its end.

The grid of chunks begins at the block that a sequence's first token stands in, so that the first chunk may begin with padding. A
block begins where the first token of a chunk is no padding; in a chunk of padding alone, and in one that goes on with a block
of an earlier call, everything stays as it came in.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from seqc.analysis.chain import Refusal
from seqc.analysis.components import leaf
from seqc.forms.base import initial, state_lead
from seqc.forms.series import Series
from seqc.ir import ops
from seqc.ir.expr import Expr, variables
from seqc.ir.lift import lift
from seqc.ir.program import CHUNKS, TOKENS, Carried, Equation, inside, outer_of
from seqc.ir.recurrence import State
from seqc.passes.blocks import Blocks


class Block:
    """The states of one chunk: `first` holds those that restart or are frozen, as the chunk's tokens see them."""

    def __init__(self, blocks: Blocks, series: Series, table: Mapping[Expr, Expr]):
        self.blocks, self.series = blocks, series
        shared = next((s for s in blocks.rec.states if s.scope != "head" and not s.integer), None)
        if shared is not None:
            raise Refusal(f"`{shared.name}` is shared by heads, and blocks begin anew", shared.next)
        self.valid = inside(series.valid, CHUNKS)
        self.begins = ops.compare("gt", ops.select(self.valid, TOKENS, 0), ops.number(0))
        self.first = {s.name: self._first(s, table) for s in blocks.rec.states if s.name in blocks.restarts}
        self.table = {leaf(s): self.first[s.name] for s in blocks.frozen}

    def _own(self, s: State) -> Expr:
        return ops.var(s.name, (*state_lead("head"), *s.axes))

    def _first(self, s: State, table: Mapping[Expr, Expr]) -> Expr:
        """What the state is before the chunk's first token."""
        own = self._own(s)
        at_first = {k: ops.select(v, TOKENS, 0) if TOKENS in v.axes else v for k, v in table.items()}
        came_in = {leaf(o): self._own(o) for o in self.blocks.rec.states if not o.integer}
        (value,) = lift((self.blocks.restarts[s.name],), {**at_first, **came_in})
        return ops.where(self.begins, ops.broadcast(value, own.axes), own)

    def frozen(self) -> tuple[list[Carried], list[Equation], dict[Expr, Expr]]:
        """The frozen states in the Carry, and what stands for them outside."""
        carried = [Carried(s.name, self.series.outer[initial(s.name)], self.first[s.name], self.series.last(s)) for s in self.blocks.frozen]
        emitted = {s: Equation(f"{s.name}@c", self.first[s.name]) for s in self.blocks.frozen}
        return carried, list(emitted.values()), {leaf(s): outer_of(e, CHUNKS) for s, e in emitted.items()}

    def copies(self, ends: Mapping[Expr, Expr], table: Mapping[Expr, Expr]) -> list[Carried]:
        """The states that nothing reads, after the chunk's last token. ends: by state's next value, what it is at the chunk's end."""
        last = ops.mul(self.valid, ops.sub(ops.number(1), ops.shift(self.valid, TOKENS, -1)))
        there = ops.contract((last,), tuple(a for a in last.axes if a != TOKENS))
        last = ops.add(last, ops.place(ops.sub(ops.number(1), there), TOKENS, -1))  # of padding alone: any token, for its values
        at_last = {k: self._at(v, last) if TOKENS in v.axes else v for k, v in {**table, **self.table}.items()}
        found = []
        for s in self.blocks.copies:
            own = self._own(s)
            (value,) = lift((s.next,), {**at_last, **ends})
            value = ops.broadcast(self.series.checked(value, s.next), own.axes)
            value = ops.where(ops.compare("gt", there, ops.number(0)), value, own)
            found.append(Carried(s.name, self.series.outer[initial(s.name)], value, self.series.last(s)))
        return found

    def check(self, carried: Set[str]) -> None:
        """Raises Refusal where a block begins with a state that is not handed from chunk to chunk here."""
        for s in self.blocks.rec.states:
            if s.name in self.blocks.restarts:
                needs = {s.name, *(v.name for v in variables(self.blocks.restarts[s.name]))}
                for o in self.blocks.rec.states:
                    if o.name in needs - carried:
                        raise Refusal(f"`{o.name}` begins anew with a block, and is no sum of decayed writes", s.next)

    @staticmethod
    def _at(value: Expr, last: Expr) -> Expr:
        return ops.contract((value, last), tuple(a for a in value.axes if a != TOKENS))
