"""What a real number is in the field: a residue mod p, and, where an exponent needs it, what its exponential is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from seqc.proof.field import Integers, Residues


@dataclass(frozen=True)
class Exponent:
    """exp(value) = g^l * (1 + extra).

    The extra factor is what logarithms contribute; none for None. It is kept minus one, so that zero stands for the
    value zero in all parts, and whatever fills with zeros (a shift, a mask) needs no exception.
    """

    l: Residues  # noqa: E741
    extra: Residues | None = None


Rule = Callable[..., Exponent]


class Number:
    """Values at several points: `p` their residues, points first; `whole` the numbers themselves if they are small and whole.

    The exponent is computed when it is first asked for: few values ever stand in one.
    """

    __slots__ = ("_exponent", "_parts", "_rule", "p", "whole")

    def __init__(self, p: Residues, rule: Rule, parts: tuple[Number, ...] = (), whole: Integers | None = None):
        self.p, self.whole = p, whole
        self._rule, self._parts = rule, parts
        self._exponent: Exponent | None = None

    def exponent(self) -> Exponent:
        """Computed along the chain of arguments, without recursion: a chain is as long as the sequence."""
        stack = [self]
        while stack:
            top = stack[-1]
            waiting = [n for n in top._parts if n._exponent is None]
            if top._exponent is None and waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if top._exponent is None:
                top._exponent = top._rule(*(n._exponent for n in top._parts))
                top._parts = ()
        assert self._exponent is not None
        return self._exponent
