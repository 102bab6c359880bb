"""What a `fold` claims of its operator, tested in the prime field before anything is derived from it.

For random elements a, b, c: (a . b) . c = a . (b . c), whatever the state a; and for elements like those that enter, the initial
value changes nothing from either side. Elements have random residues and random real numbers, which comparisons go by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqc.analysis.bounds import bounds
from seqc.analysis.monoid import together
from seqc.ir import ops
from seqc.ir.expr import Expr, variables
from seqc.ir.interp import evaluate
from seqc.ir.model import Domain
from seqc.ir.recurrence import Fold, Recurrence
from seqc.ir.rules import extent
from seqc.proof.arithmetic import Field
from seqc.proof.composed import NoFieldMeaning
from seqc.proof.field import MODULI, REAL
from seqc.proof.number import Number
from seqc.proof.oracles import Oracles
from seqc.proof.reach import reach
from seqc.proof.trial import small_axes, within

POINTS = 16
Element = dict[str, Number]  # by state


@dataclass(frozen=True)
class Broken:
    """A claim that does not hold: what of which fold, in words, and what would repair it."""

    fold: Fold
    reason: str
    help: str


def broken(rec: Recurrence, sizes: Mapping[str, int]) -> Broken | None:
    """The first claim of the text that does not hold."""
    for folds in together(rec):
        try:
            found = _Laws(rec, folds, sizes).broken()
        except NoFieldMeaning as e:
            found = Broken(folds[0], f"nothing shows that its operator is associative: {e}", IN_ORDER)
        if found is not None:
            return found
    return None


IN_ORDER = "write `by left` to fold in order, without the claim"


class _Laws:
    """One group of folds at random points."""

    def __init__(self, rec: Recurrence, folds: tuple[Fold, ...], sizes: Mapping[str, int]):
        self.rec, self.folds = rec, folds
        self.sizes = {"heads": 2, "groups": 1, "depth": 3, "depths": 7, **dict(small_axes(rec, (), sizes))}
        self.oracles = Oracles(f"laws of {rec.name}", ordered=True)
        self.field = Field(self.oracles, self.sizes)
        self.met = reach(rec, ordered=True)
        self.states = {f.state: next(s for s in rec.states if s.name == f.state) for f in folds}
        roots = [*(f.operator for f in folds), *(s.init for s in self.states.values())]
        known = {*self.states, *(f.leaf.name for f in folds)}
        self.fixed = {v.name: self._drawn(v.name, v.axes, Domain()) for v in variables(*roots) if v.name not in known}

    def broken(self) -> Broken | None:
        a, b, c = (self._element(name, inside) for name, inside in (("a", False), ("b", True), ("c", True)))
        if (f := self._differ(self._joined(self._joined(a, b), c), self._joined(a, self._joined(b, c)))) is not None:
            return Broken(f, self._why(f, a, b, c), IN_ORDER)
        first = {n: self._value(s.init, s.axes) for n, s in self.states.items()}
        sides = (("before", self._joined(first, b)), ("behind", self._joined(b, first)))
        for word, found in sides:
            if (f := self._differ(_powers(self.field, found), _powers(self.field, b))) is not None and self._differ(found, b) is not None:
                return Broken(f, f"its initial value is not neutral: it changes an element that it comes {word}", self._neutral(f))
        return None

    def _why(self, f: Fold, a: Element, b: Element, c: Element) -> str:
        """In words, and whether real numbers differ too: a logarithm of a sum has no exact meaning in the field."""
        left, right = (x[f.state].residue(REAL) for x in (self._joined(self._joined(a, b), c), self._joined(a, self._joined(b, c))))
        if np.allclose(left, right, rtol=1e-6, atol=1e-9, equal_nan=True):
            return "nothing shows that its operator is associative: it passes through functions that have no exact meaning in the field"
        at = np.unravel_index(np.nanargmax(np.abs(left - right)), left.shape)
        given = ", ".join(f"{x[f.state].residue(REAL)[at]:.3g}" for x in (a, b, c))
        shown = f" ({left[at]:.3g} against {right[at]:.3g} for a, b, c = {given})" if len(self.folds) == 1 and left.ndim <= 2 else ""
        return f"its operator is not associative: (a . b) . c is not a . (b . c){shown}"

    def _neutral(self, f: Fold) -> str:
        return f"start `{f.state}` from the operator's neutral element, such as 0 of a sum, 1 of a product, -inf of a maximum"

    def _drawn(self, name: str, axes: tuple[str, ...], domain: Domain) -> Number:
        shape = (POINTS, *(extent(self.sizes, a) for a in axes))
        return within(self.field, domain, [self.oracles.draw(f"{name} {level}", m, shape) for level, m in enumerate(MODULI)], self.met)

    def _element(self, name: str, inside: bool) -> Element:
        """Random parts; of an operand's sign, where that is known."""
        domains = {i.name: i.domain for i in self.rec.inputs}
        found = {}
        for f in self.folds:
            low, high, *_ = bounds(f.operand, domains, self.sizes) if inside else (float("-inf"), float("inf"))
            found[f.state] = self._drawn(f"{name} of {f.state}", self.states[f.state].axes, Domain(low, high))
        return found

    def _joined(self, a: Element, b: Element) -> Element:
        leaves: dict[str, Any] = {**self.fixed, **a}
        for f in self.folds:
            moved = _order(self.states[f.state].axes, f.leaf)
            leaves[f.leaf.name] = self.field.structural(lambda x, moved=moved: x.transpose(0, *moved), b[f.state])
        return {f.state: self._value(f.operator, self.states[f.state].axes, leaves) for f in self.folds}

    def _value(self, e: Expr, axes: tuple[str, ...], leaves: Mapping[str, Any] | None = None) -> Number:
        (found,) = evaluate(self.field, (ops.broadcast(e, axes),), self.fixed if leaves is None else leaves)
        shape = (POINTS, *(extent(self.sizes, a) for a in axes))
        return self.field.structural(lambda x: np.broadcast_to(x, shape), found)

    def _differ(self, x: Element, y: Element) -> Fold | None:
        return next((f for f in self.folds if (x[f.state].p != y[f.state].p).any()), None)


def _powers(field: Field, x: Element) -> Element:
    """The exponentials: equal where the values are, and exact of logarithms."""
    return {n: field.unary("exp", e) for n, e in x.items()}


def _order(axes: tuple[str, ...], leaf: Expr) -> list[int]:
    return [1 + axes.index(a) for a in leaf.axes]
