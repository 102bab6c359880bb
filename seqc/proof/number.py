"""What a real number is in the field: residues at three levels, and what it is the logarithm of.

An exponential's residue mod p is a power of g, whose exponent is a residue mod l; its residue mod l, in case that it
stands in an exponent itself, a power of a generator mod l, whose exponent counts modulo l - 1. So a value has a residue
at each level, and exp takes the one below. Behind the levels stands the real number itself, rounded: what an order goes by;
behind that, if the number is known, a fraction that is it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from seqc.proof.field import EXACT, Integers, Residues, points_last

LEVELS = 3
WHOLE_LIMIT = 2**31  # of small whole numbers: products of smaller ones fit in 64 bits
INT64 = 2**63  # what is below it fits

# Of a level: numbers with their levels; None is the number itself, so that no number holds itself. Or numbers, each at that level.
Needs = Callable[[int], tuple[tuple["Number | None", int], ...]] | tuple["Number", ...]
Rule = Callable[..., Residues]


class Number:
    """Values at several points, which are the first dimension.

    whole: the numbers themselves if they are small and whole. known: whether the value is made of such numbers and constants
    alone, so that there is a fraction that is it. extra: where the value has a logarithm in it, log(s) + x,
    the number s - 1: the exponential is s times that of x. It is kept minus one so that zero stands for the value zero in
    all parts, and whatever fills with zeros (a shift, a mask) needs no exception.

    Residues are computed when they are first asked for: few values ever stand in an exponent.
    """

    __slots__ = ("_found", "_needs", "_rule", "extra", "known", "whole")

    def __init__(self, needs: Needs, rule: Rule, whole: Integers | None = None, extra: Number | None = None, known: bool = False):
        self._needs, self._rule = needs, rule
        self._found: list[Residues | None] = [None] * (EXACT + 1)
        self.whole, self.extra, self.known = whole, extra, known or whole is not None

    @property
    def p(self) -> Residues:
        """The residues mod p."""
        return self.residue(0)

    def residue(self, level: int) -> Residues:
        """The residues at a level; computed along the arguments without recursion: a chain is as long as the sequence."""
        if self._found[level] is None:
            self._compute(level)
        found = self._found[level]
        assert found is not None
        return found

    def _compute(self, level: int) -> None:
        stack: list[tuple[Number, int]] = [(self, level)]
        with np.errstate(all="ignore"):  # real numbers may overflow, and are then compared as infinite
            while stack:
                top, k = stack[-1]
                if top._found[k] is not None:
                    stack.pop()
                    continue
                needs = top._needs
                if isinstance(needs, tuple):
                    waiting = [(n, k) for n in needs if n._found[k] is None]
                    found = [n._found[k] for n in needs]
                else:
                    pairs = [(top if n is None else n, j) for n, j in needs(k)]
                    waiting = [pair for pair in pairs if pair[0]._found[pair[1]] is None]
                    found = [n._found[j] for n, j in pairs]
                if waiting:
                    stack += waiting
                    continue
                stack.pop()
                top._found[k] = points_last(top._rule(k, *found))


def of(*parts: Number) -> Needs:
    """A rule's needs: its arguments at its own level."""
    return parts


def values_of(*parts: Number) -> Needs:
    """A rule's needs: its arguments' residues mod p, whatever the level."""
    return lambda level: tuple((x, 0) for x in parts)


def on_whole(op: Callable[..., Any], x: Number, y: Number) -> Integers | None:
    """The op on the numbers themselves, while they stay small."""
    if x.whole is None or y.whole is None:
        return None
    return small(np.asarray(op(x.whole, y.whole)))


def small(found: Integers) -> Integers | None:
    """The numbers, if all are small."""
    return found if not found.size or np.abs(found).max() < WHOLE_LIMIT else None


def whole_contraction(values: tuple[Number, ...], axes: list[tuple[str, ...]], out: tuple[str, ...]) -> Integers | None:
    """The contraction of the numbers themselves: masks and positions stay what they are."""
    wholes = [x.whole for x in values if x.whole is not None]
    if len(wholes) < len(values):
        return None
    lengths = {a: n for w, group in zip(wholes, axes, strict=True) for a, n in zip(group, w.shape[1:], strict=True)}
    largest = prod(int(np.abs(w).max(initial=0)) for w in wholes)
    if largest * prod(n for a, n in lengths.items() if a not in out) >= INT64:
        return None
    names = {a: i for i, a in enumerate(dict.fromkeys(a for group in axes for a in group), start=1)}
    operands: list[Any] = [x for w, group in zip(wholes, axes, strict=True) for x in (w, [0, *(names[a] for a in group)])]
    return small(np.asarray(np.einsum(*operands, [0, *(names[a] for a in out)])))
