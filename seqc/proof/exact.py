"""Known numbers as they are, in fractions: by these they are rounded, wrapped around and compared.

Fractions have the methods of a modulus, so they are one more level of a Number (`seqc.proof.number`), and are computed only where
they are asked for. A number of more than BITS bits is None: it is then treated as one that is not known, and never as a rounded one.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np

from seqc.proof.field import EXACT, MODULI, REAL, Integers, Residues
from seqc.proof.number import WHOLE_LIMIT, Number

BITS = 512  # of numerators and denominators: a real number that is as large is no infinity


def _bits(x: Fraction) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def _kept(x: Fraction) -> Fraction | None:
    return x if _bits(x) <= BITS else None


def _each(op: Callable[..., Any], count: int = 1) -> Any:
    """The op on every entry, None where an argument is None. Entries may be Python's integers: zeros of what fills, whole numbers."""

    def one(*xs: Any) -> Any:
        return None if any(x is None for x in xs) else op(*[x if type(x) is Fraction else Fraction(x) for x in xs])

    return np.frompyfunc(one, count, 1, identity=0) if count == 2 else np.frompyfunc(one, count, 1)


def _power(x: Fraction, n: int) -> Fraction | None:
    return x**n if abs(x) == 1 or not x or _bits(x) * n <= BITS else None


def _zeros_of(x: Fraction) -> int | None:
    if x.denominator > 1:
        return None
    return (x.numerator & -x.numerator).bit_length() - 1 if x else 1024


_add, _sub = _each(lambda x, y: _kept(x + y), 2), _each(lambda x, y: _kept(x - y), 2)
_mul, _neg = _each(lambda x, y: _kept(x * y), 2), _each(lambda x: -x)
_inverse, _own = _each(lambda x: 1 / x if x else x), _each(_kept)
_modulo, _sign = _each(lambda x, y: x % y if y else Fraction(0), 2), _each(lambda x, y: (x > y) - (x < y), 2)
_ROUNDED = {"floor": _each(floor), "ceil": _each(ceil)}
_trailing = _each(_zeros_of)
_missing = np.frompyfunc(lambda x: x is None, 1, 1)


def _array(x: Any) -> Any:
    return np.asarray(x, object)


class Fractions:
    """Arrays of fractions with the methods of a modulus. Division by 0 gives 0 here too."""

    bits = 0  # of no modulus

    def residue(self, value: int | Fraction) -> Any:
        return _array(_own(_array(Fraction(value))))

    def residues(self, integers: Integers) -> Any:
        return integers.astype(object)

    def add(self, x: Any, y: Any) -> Any:
        return _array(_add(x, y))

    def sub(self, x: Any, y: Any) -> Any:
        return _array(_sub(x, y))

    def neg(self, x: Any) -> Any:
        return _array(_neg(x))

    def mul(self, x: Any, y: Any) -> Any:
        return _array(_mul(x, y))

    def inverse(self, x: Any) -> Any:
        return _array(_inverse(x))

    def power(self, x: Any, n: int) -> Any:
        return self.power(self.inverse(x), -n) if n < 0 else _array(_each(lambda a: _power(a, n))(x))

    def sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        return _array(_add.reduce(x, axis=axes))

    def cumsum(self, x: Any, axis: int) -> Any:
        return _array(_add.accumulate(x, axis, dtype=object))


ARITHMETIC: tuple[Any, ...] = (*MODULI, Fractions())  # by level


# --- What is decided by them -------------------------------------------------------------------------------------


def rounded(name: str, x: Number) -> Any:
    """floor or ceil."""
    return _array(_ROUNDED[name](x.residue(EXACT)))


def modulo(x: Number, y: Number) -> Any:
    return _array(_modulo(x.residue(EXACT), y.residue(EXACT)))


def trailing_zeros(x: Number) -> Any:
    """Of whole numbers; others are None."""
    return _array(_trailing(x.residue(EXACT)))


def order(x: Number, y: Number, otherwise: Callable[[], Integers]) -> Integers:
    """1, 0 or -1; otherwise: what to take where a number is too large."""
    found = _array(_sign(x.residue(EXACT), y.residue(EXACT)))
    missing = lacking(found)
    return np.where(missing, otherwise(), np.where(missing, 0, found).astype(np.int64)) if missing.any() else found.astype(np.int64)


def lacking(values: Any) -> Any:
    """Where a value is None."""
    return np.asarray(_missing(values), bool)


def number(values: Any, otherwise: Callable[[], Number]) -> Number:
    """Known numbers; otherwise: what stands where a value is None."""
    missing = lacking(values)
    other = (otherwise(),) if missing.any() else ()
    if not other and all(x.denominator == 1 and abs(x) < WHOLE_LIMIT for x in values.flat):
        whole = values.astype(np.int64)
        return Number((), lambda level: ARITHMETIC[level].residues(whole), whole)

    def rule(level: int, *beside: Residues) -> Residues:
        if level == EXACT:
            return np.asarray(values)
        found = [ARITHMETIC[level].residue(0 if x is None else x).item() for x in values.flat]
        own = np.array(found, float if level == REAL else np.uint64).reshape(values.shape)
        return np.where(missing, beside[0], own) if beside else own

    return Number(lambda level: () if level == EXACT else tuple((x, level) for x in other), rule, known=True)
