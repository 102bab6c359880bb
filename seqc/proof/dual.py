"""Derivatives in the field, forward and one op at a time: what the derived backward is held to.

Each op's tangent is written here on its own, from the op's definition; nothing is shared with the derivative rules of
the op table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np

from seqc.ir.expr import Mask
from seqc.ir.meaning import keeps
from seqc.proof.arithmetic import Field
from seqc.proof.composed import Composed, NoFieldMeaning
from seqc.proof.elimination import einsum, matmul
from seqc.proof.field import P, Residues, points_last
from seqc.proof.number import Number


@dataclass(frozen=True)
class Dual:
    """A value and its tangent mod p; None for a tangent of zero."""

    value: Number
    tangent: Residues | None = None


class Duals(Composed[Dual]):
    """`seqc.ir.meaning`'s arithmetic over Duals."""

    def __init__(self, field: Field):
        self.field, self.sizes = field, field.sizes

    def remembered(self, what: Any, args: tuple[Dual, ...], make: Callable[[], Dual]) -> Dual:
        """A value that the field has computed, in a run without tangents, is not computed again; values are so when they are asked for."""
        made, memo = make(), self.field.memo
        if memo is None:
            return made
        known: Number = memo.setdefault((what, *(x.value for x in args)), made.value)
        return made if known is made.value else Dual(known, made.tangent)

    def _make(self, value: Number, *shares: Residues | None, like: tuple[Number, ...] = ()) -> Dual:
        """The value with the sum of its tangent's shares, as wide as the value. like: its arguments, if it is as wide as all of them."""
        total = _summed(*shares)
        if total is None:
            return Dual(value)
        wide = np.broadcast_shapes(*(x.p.shape for x in like or (value,)))
        return Dual(value, total if total.shape == wide else np.broadcast_to(total, np.broadcast_shapes(total.shape, wide)))

    def shape(self, x: Dual) -> tuple[int, ...]:
        return self.field.shape(x.value)

    def structural(self, fn: Callable[..., Any], *values: Dual) -> Dual:
        moved = self.field.structural(fn, *(x.value for x in values))
        if all(x.tangent is None for x in values):
            return Dual(moved)
        return Dual(moved, points_last(fn(*(np.zeros_like(x.value.p) if x.tangent is None else x.tangent for x in values))))

    def rational(self, value: Fraction) -> Dual:
        return Dual(self.field.rational(value))

    def named(self, name: str) -> Dual:
        return Dual(self.field.named(name))

    def integers(self, values: np.ndarray) -> Dual:
        return Dual(self.field.integers(values))

    def primitive(self, name: str, x: Dual) -> Dual:
        if name == "stop_gradient":
            return Dual(self.field.primitive(name, x.value))
        value = self.field.primitive(name, x.value)
        if x.tangent is None or name in ("floor", "ceil", "trailing_zeros"):
            return Dual(value)
        return self._make(value, self._slope(name, x.value, value, x.tangent), like=(x.value,))

    def _inverse(self, x: Residues) -> Residues:
        return self.field.oracles.inverse(0, x)

    def _slope(self, name: str, x: Number, y: Number, b: Residues) -> Residues:
        """The tangent of y = f(x) for the tangent b of x."""
        match name:
            case "neg":
                return P.neg(b)
            case "exp":
                return P.mul(y.p, b)
            case "log":
                return P.mul(b, self._inverse(x.p))
            case "tanh":
                return P.mul(P.sub(np.ones(1, np.uint64), P.mul(y.p, y.p)), b)
            case "sqrt":
                return P.mul(b, self._inverse(P.add(y.p, y.p)))
            case "sin":
                return P.mul(self.field.primitive("cos", x).p, b)
            case "cos":
                return P.neg(P.mul(self.field.primitive("sin", x).p, b))
            case "erf":
                bell = self.field.primitive("exp", self.field.primitive("neg", self.field.combine("mul", x, x)))
                half_root = P.mul(self.field.primitive("sqrt", self.field.named("pi")).p, P.residue(Fraction(1, 2))[None])
                return P.mul(P.mul(bell.p, P.inverse(half_root)), b)
        raise NoFieldMeaning(name)

    def combine(self, name: str, x: Dual, y: Dual) -> Dual:
        value = self.field.combine(name, x.value, y.value)
        a, b, like = x.tangent, y.tangent, (x.value, y.value)
        match name:
            case "add":
                return self._make(value, a, b, like=like)
            case "sub":
                return self._make(value, a, None if b is None else P.neg(b), like=like)
            case "mul":
                return self._make(value, _times(a, y.value.p), _times(b, x.value.p), like=like)
            case "div":
                inverse = self._inverse(y.value.p)
                through_y = None if b is None else P.neg(P.mul(P.mul(value.p, inverse), b))
                return self._make(value, _times(a, inverse), through_y, like=like)
            case "modulo":
                return self._make(value, a, like=like)
        raise NoFieldMeaning(name)

    def power(self, x: Dual, n: Dual, exponent: Fraction | None) -> Dual:
        """x^n: n x^(n-1) x' + x^n log(x) n'."""
        value = self.field.power(x.value, n.value, exponent)
        one = self.field.rational(Fraction(1))
        shares: list[Residues | None] = []
        if x.tangent is not None:
            below = self.field.power(x.value, self.field.combine("sub", n.value, one), None if exponent is None else exponent - 1)
            shares.append(P.mul(P.mul(n.value.p, below.p), x.tangent))
        if n.tangent is not None:
            shares.append(P.mul(P.mul(value.p, self.field.primitive("log", x.value).p), n.tangent))
        return self._make(value, *shares)

    def compare(self, relation: str, x: Dual, y: Dual) -> Dual:
        return Dual(self.field.compare(relation, x.value, y.value))

    def where(self, condition: Dual, x: Dual, y: Dual) -> Dual:
        chosen = condition.value.whole
        assert chosen is not None
        value = self.field.where(condition.value, x.value, y.value)
        if x.tangent is None and y.tangent is None:
            return Dual(value)
        zero = np.zeros(1, np.uint64)
        tangent = np.where(chosen != 0, zero if x.tangent is None else x.tangent, zero if y.tangent is None else y.tangent)
        return self._make(value, tangent, like=(condition.value, x.value, y.value))

    def sum(self, x: Dual, axes: tuple[int, ...]) -> Dual:
        return Dual(self.field.sum(x.value, axes), None if x.tangent is None else P.sum(x.tangent, axes))

    def cumsum(self, x: Dual, axis: int, reverse: bool) -> Dual:
        value = self.field.cumsum(x.value, axis, reverse)
        if x.tangent is None:
            return Dual(value)
        turned = np.flip(x.tangent, axis) if reverse else x.tangent
        total = P.cumsum(turned, axis)
        return Dual(value, np.flip(total, axis) if reverse else total)

    def contract(self, values: Iterable[Dual], axes: list[tuple[str, ...]], out: tuple[str, ...]) -> Dual:
        values = tuple(values)
        residues = [x.value.p for x in values]

        def share(i: int, tangent: Residues) -> Residues:
            return einsum(P, [tangent if i == j else p for j, p in enumerate(residues)], axes, out)

        shares = [share(i, x.tangent) for i, x in enumerate(values) if x.tangent is not None]
        return Dual(self.field.contract([x.value for x in values], axes, out), _summed(*shares))

    def exp_masked(self, x: Dual, mask: Mask) -> Dual:
        value = self.field.exp_masked(x.value, mask)
        kept = keeps(mask, *x.value.p.shape[-2:])
        return self._make(value, None if x.tangent is None else np.where(kept, P.mul(value.p, x.tangent), np.uint64(0)))

    def solve(self, matrix: Dual, rhs: Dual) -> Dual:
        """M y = r: M y' = r' - M' y."""
        value, inverse = self.field.solve(matrix.value, rhs.value), self.field.inverse_matrix(matrix.value)
        through = None if matrix.tangent is None else P.neg(matmul(P, matrix.tangent, value.p))
        right = self._make(rhs.value, rhs.tangent, through).tangent
        return self._make(value, None if right is None else matmul(P, inverse.p, right))

    def unit_lower_inverse(self, x: Dual) -> Dual:
        """T = (1 + x)^-1: T' = -T x' T."""
        value = self.field.unit_lower_inverse(x.value)
        return self._make(value, None if x.tangent is None else P.neg(matmul(P, matmul(P, value.p, x.tangent), value.p)))


def _summed(*shares: Residues | None) -> Residues | None:
    found = [s for s in shares if s is not None]
    return reduce(P.add, found) if found else None


def _times(tangent: Residues | None, factor: Residues) -> Residues | None:
    return None if tangent is None else P.mul(tangent, factor)
