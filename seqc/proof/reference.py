"""The recurrence itself, token by token: what every form is held to.

It shares nothing with the forms: each sequence runs on its own for as many tokens as it has, so there is no padding and
no mask, and a value's scope is met by picking the entry that a head reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from seqc.ir.expr import walk
from seqc.ir.interp import evaluate
from seqc.ir.meaning import length
from seqc.ir.program import GROUPS, HEADS
from seqc.ir.recurrence import Recurrence
from seqc.proof.composed import NoFieldMeaning

Values = dict[str, Any]


def run(A: Any, rec: Recurrence, given: Mapping[str, Any], points: int, sequence: int, tokens: int) -> tuple[list[Values], Values]:
    """One sequence: its outputs per token, as [points, heads, axes], and its states after the last one.

    given: [points, sequences, head or group, tokens, axes] as the scopes have it; params lack the sequence, states the
    tokens, and a state's name holds its value before the first token.
    """
    if any(f.order == "tree" for f in rec.folds):
        raise NoFieldMeaning("fold along a tree")
    heads, groups = A.sizes[HEADS], A.sizes[GROUPS]
    picks = _Picks(A, sequence, heads, groups)
    fixed = {p.name: picks.folded(given[p.name], p.scope) for p in rec.params}
    fixed |= {i.name: picks.folded(picks.of(given[i.name]), "head") for i in rec.inputs if i.scope == "sequence"}
    fixed |= _numbers(A, points, heads)
    timed = {i.name: picks.folded(picks.of(given[i.name]), i.scope) for i in rec.inputs if i.scope != "sequence"}
    state = {s.name: picks.folded(picks.of(given[s.name]), s.scope) for s in rec.states}
    outputs: list[Values] = []
    roots = (*(s.next for s in rec.states), *(o.value for o in rec.outputs))
    order = tuple(walk(*roots))
    for t in range(tokens):
        now = {n: A.structural(lambda x, t=t: x[:, t], v) for n, v in timed.items()}
        values = evaluate(A, roots, {**fixed, **now, **state}, order)
        axes = [*(s.axes for s in rec.states), *(o.axes for o in rec.outputs)]
        wide = [_full(A, v, points * heads, a) for v, a in zip(values, axes, strict=True)]
        state = {s.name: v for s, v in zip(rec.states, wide, strict=False)}
        outputs.append({o.name: picks.unfolded(v) for o, v in zip(rec.outputs, wide[len(rec.states) :], strict=True)})
    return outputs, {s.name: picks.scoped(picks.unfolded(state[s.name]), s.scope) for s in rec.states}


def _numbers(A: Any, points: int, heads: int) -> Values:
    """What every token may read: which head it is, how many there are, and the layer's depth."""
    rows = A.integers(np.tile(np.arange(heads), points))
    return {
        "head": A.structural(lambda x: x.reshape(-1), rows), "heads": A.rational(Fraction(heads)),
        "depth": A.rational(Fraction(A.sizes["depth"])), "depths": A.rational(Fraction(A.sizes["depths"])),
    }  # fmt: skip


def _full(A: Any, value: Any, lead: int, axes: tuple[str, ...]) -> Any:
    """The value with one entry per index: a constant may have come with fewer."""
    return A.structural(lambda x: np.broadcast_to(x, (lead, *(length(A, a) for a in axes))), value)


class _Picks:
    """Heads as further points: [points, heads, ...] becomes [points * heads, ...], each head with the entry that it reads."""

    def __init__(self, A: Any, sequence: int, heads: int, groups: int):
        self.A, self.sequence, self.heads = A, sequence, heads
        self.group = np.arange(heads) // (heads // groups)

    def of(self, value: Any) -> Any:
        """The sequence's own entry."""
        return self.A.structural(lambda x: x[:, self.sequence], value)

    def folded(self, value: Any, scope: str) -> Any:
        def pick(x: np.ndarray) -> np.ndarray:
            if scope == "layer":
                x = np.repeat(x[:, None], self.heads, axis=1)
            elif scope == "group":
                x = x[:, self.group]
            return x.reshape((-1, *x.shape[2:]))

        return self.A.structural(pick, value)

    def unfolded(self, value: Any) -> Any:
        return self.A.structural(lambda x: x.reshape((-1, self.heads, *x.shape[1:])), value)

    def scoped(self, value: Any, scope: str) -> Any:
        """A state of the layer or of a group once: its heads agree."""
        if scope == "head":
            return value
        first = 0 if scope == "layer" else np.unique(self.group, return_index=True)[1]
        return self.A.structural(lambda x: x[:, first], value)
