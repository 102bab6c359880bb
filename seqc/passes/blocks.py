"""States that change only at the first token of a block (`start(S, C)`), as values that a whole block shares.

At a block's first token such a state takes in another state's value; anything else that begins anew there, `where(phase(C) == 0,
a, s)`, is told apart from the step in the same way. What is left is a step without a clock: inside a block it is what all
other forms know, and between blocks the states are exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from seqc.analysis.chain import Refusal
from seqc.analysis.components import leaf
from seqc.ir import ops
from seqc.ir.expr import Expr, substitute, variables, walk
from seqc.ir.recurrence import Recurrence, State


@dataclass(frozen=True)
class Blocks:
    """every: tokens per block. rec: the step inside a block, where frozen states are constants.

    restarts: by state, what it is before a block's first token, over the states as the last block left them. copies: states that
    nothing inside a block reads: they are made from others, and matter when the block is over.
    """

    every: int
    rec: Recurrence
    frozen: tuple[State, ...]
    restarts: dict[str, Expr]
    copies: tuple[State, ...]

    @property
    def live(self) -> Recurrence:
        """The step of those states that change from token to token and are read."""
        rest = {s.name for s in (*self.frozen, *self.copies)}
        return replace(self.rec, states=tuple(s for s in self.rec.states if s.name not in rest))


def in_blocks(rec: Recurrence) -> Blocks | None:
    """None for a layer without such states. Raises Refusal with the cause where a step cannot be told apart."""
    clocked = [s for s in rec.states if s.clock.every is not None]
    if not clocked:
        return None
    lengths = {s.clock.every for s in clocked}
    other = next((s for s in clocked if s.clock.every != clocked[0].clock.every), None)
    if other is not None:
        one, two = sorted(n for n in lengths if n is not None)[:2]
        raise Refusal(f"`{other.name}` has blocks of another length: {one} and {two} tokens", other.next)
    every = int(clocked[0].clock.every or 0)
    first = ops.compare("eq", ops.modulo(ops.var("position"), ops.number(every)), ops.number(0))
    roots = (*(s.next for s in rec.states), *(o.value for o in rec.outputs))
    restarts = _restarts(rec, roots, first)
    table = {ops.where(first, value, leaf(s)): leaf(s) for s in rec.states if (value := restarts.get(s.name)) is not None}
    nexts = substitute((s.next for s in rec.states), table)
    values = substitute((o.value for o in rec.outputs), table)
    states = tuple(replace(s, next=n) for s, n in zip(rec.states, nexts, strict=True))
    outputs = tuple(replace(o, value=v) for o, v in zip(rec.outputs, values, strict=True))
    frozen = tuple(s for s in states if s.clock.every is not None)
    for s in frozen:
        if s.next is not leaf(s):
            raise Refusal(f"`{s.name}` changes inside a block too", s.next)
    read = {v.name for v in variables(*nexts, *values)}
    copies = tuple(s for s in states if s.name not in read and s.clock.every is None)
    return Blocks(every, replace(rec, states=states, outputs=outputs), frozen, restarts, copies)


def _restarts(rec: Recurrence, roots: tuple[Expr, ...], first: Expr) -> dict[str, Expr]:
    """The states of which every use is `where(first, value, state)` with one value, and that value."""
    leaves = {leaf(s): s.name for s in rec.states}
    found: dict[str, list[Expr | None]] = {}
    for root in roots:
        if root in leaves:
            found.setdefault(leaves[root], []).append(None)
    for node in walk(*roots):
        begins = node.op.name == "where" and node.args[0] is first
        for n, a in enumerate(node.args):
            if a in leaves:
                if begins and n == 1:
                    continue  # what another state begins with: it comes from the block before
                found.setdefault(leaves[a], []).append(node.args[1] if begins and n == 2 else None)
    return {n: v[0] for n, v in found.items() if v[0] is not None and all(x is v[0] for x in v)}
