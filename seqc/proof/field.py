"""Arithmetic modulo three numbers, vectorised: where programs are compared exactly.

p = 4 l + 1 and l = 12 q + 1 with p, l and q prime. The powers of 2^4 mod p are a group of order l: their exponents are
residues mod l, and g^(a + b) = g^a g^b holds exactly. The powers of 2^12 mod l are one of order q in the same way; q
itself is not handy, so that exponents of these are kept modulo l - 1 = 12 q. All moduli have at most 50 bits: float64 tells
the quotient of a product by one of them within one, and 64 bits hold the sum of thousands of residues.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Residues = NDArray[np.uint64]
Integers = NDArray[np.int64]

_LOW = np.uint64(2**32 - 1)
_HALF = np.uint64(32)
BITS = 50  # of the largest modulus
FEW = 24  # residues that Python's own integers are sooner done with: powers and inverses
WHOLE = 2 ** (64 - BITS)  # residues that a sum of 64 bits holds
WINDOW = 12  # bits of an exponent that are looked up at once
BLOCK = 4096  # residues of 8 bytes: a product's arrays lie in the first or second cache
LIMB = 17  # bits: residues have three limbs, and float64 holds the sum of 3 LONGEST products of two
LONGEST = 2**53 // (3 << 2 * LIMB)


def points_last(x: Any) -> Any:
    """The array with its first dimension, the points, running fastest in memory: the others are often 2 or 3 long, and every pass over
    an array takes as long for 2 numbers in a row as for 16. Ops keep the order; only what copies in another order is copied here."""
    return np.asfortranarray(x) if x.ndim > 1 and x.shape[0] > 1 and x.strides[0] > x.itemsize else x


def _least(x: Residues, y: Residues) -> Residues:
    """The smaller of each pair."""
    return np.asarray(np.minimum(x, y))


@dataclass(frozen=True)
class Modulus:
    """The integers modulo 2^bits - excess; residues are uint64 arrays below it. 2 LIMB < bits <= BITS, excess < 2^17.

    cofactor: the modulus is this many times a prime, and what counts is the residue modulo that prime.
    """

    bits: int
    excess: int
    cofactor: int = 1

    @cached_property
    def value(self) -> int:
        return (1 << self.bits) - self.excess

    @cached_property
    def prime(self) -> int:
        return self.value // self.cofactor

    @cached_property
    def _own(self) -> np.uint64:
        """The modulus as NumPy has it."""
        return np.uint64(self.value)

    def residue(self, value: int | Fraction) -> Residues:
        """A rational number's residue, as an array without dimensions."""
        value = Fraction(value)
        return np.asarray(value.numerator * pow(value.denominator, -1, self.prime) % self.prime, np.uint64)

    def residues(self, integers: Integers) -> Residues:
        """Small whole numbers, negative ones included."""
        return np.where(integers < 0, np.uint64(self.value) - (-integers).astype(np.uint64), integers.astype(np.uint64))

    def reduce(self, x: Residues) -> Residues:
        """Any 64-bit numbers, reduced."""
        return np.asarray(x % self._own)

    def add(self, x: Residues, y: Residues) -> Residues:
        total: Residues = x + y
        return _least(total, total - self._own)

    def sub(self, x: Residues, y: Residues) -> Residues:
        difference: Residues = x - y
        return _least(difference, difference + self._own)

    def neg(self, x: Residues) -> Residues:
        return np.where(x == 0, x, self._own - x)

    def mul(self, x: Residues, y: Residues) -> Residues:
        """Long ones by blocks that stay in a near cache: a product takes some passes over its operands."""
        if x.size == y.size == 1:
            return np.full(np.broadcast_shapes(x.shape, y.shape), x.item() * y.item() % self.value, np.uint64)
        if x.shape != y.shape or x.size <= BLOCK:
            return self._mul(x, y)
        flat, out = [v.ravel("F") for v in (x, y)], np.empty(x.size, np.uint64)
        for i in range(0, x.size, BLOCK):
            out[i : i + BLOCK] = self._mul(*(v[i : i + BLOCK] for v in flat))
        return out.reshape(x.shape, order="F")

    def dot(self, x: Residues, y: Residues, axes: tuple[int, ...]) -> Residues:
        """The sum of x y over dimensions."""
        rest = self._rest(x, y)
        if 2 * prod(rest.shape[a] for a in axes) <= WHOLE:
            return self.reduce(np.asarray(np.add.reduce(rest, axis=axes)))
        return self.sum(self.reduce(rest), axes)

    def _mul(self, x: Residues, y: Residues) -> Residues:
        rest = self._rest(x, y)
        return _least(rest, rest - self._own)

    def _rest(self, x: Residues, y: Residues) -> Residues:
        """x y less the modulus times a quotient that is x y / modulus, rounded down, or one less: below twice the modulus."""
        if x.size > y.size:
            x, y = y, x
        quotient = x.astype(float)
        quotient *= self._share
        rest: Residues = x * y
        rest -= (quotient * y).astype(np.uint64) * self._own  # modulo 2^64
        return rest

    @cached_property
    def _share(self) -> float:
        """One divided by the modulus, less 3 2^-53 of it: the quotient's three roundings never make it too large, and take less than
        6 2^-53 of it away, which is less than one of 2^BITS."""
        return (1 - 3 * 2.0**-53) / self.value

    def sum(self, x: Residues, axes: tuple[int, ...]) -> Residues:
        """The sum over dimensions; of more than 64 bits hold, halves are summed apart."""
        if prod(x.shape[a] for a in axes) <= WHOLE:
            return self.reduce(np.asarray(np.add.reduce(x, axis=axes)))
        return self._join((x >> _HALF).sum(axis=axes), (x & _LOW).sum(axis=axes))

    def matmul(self, x: Residues, y: Residues) -> Residues:
        """x y over the last two dimensions, of up to LONGEST products each: limbs by limbs in floating-point numbers, which nothing
        rounds, all pairs of one weight in one product; then joined from the highest weight to the lowest."""
        n = x.shape[-1]
        a, b = np.concatenate(_limbs(x), axis=-1), np.concatenate(_limbs(y)[::-1], axis=-2)
        up, rest, excess, by = (np.uint64(v) for v in (self.bits - LIMB, (1 << (self.bits - LIMB)) - 1, self.excess, LIMB))
        total = _whole(a[..., 2 * n :] @ b[..., :n, :])
        high = np.empty_like(total)
        for weight in (3, 2, 1, 0):  # limbs i and weight - i; total stays below 2^54: what is above the modulus' bits is folded once
            first, last = max(0, weight - 2), min(2, weight) + 1
            np.right_shift(total, up, out=high)
            high *= excess
            total &= rest
            total <<= by
            total += high
            total += _whole(a[..., first * n : last * n] @ b[..., (2 - weight + first) * n : (2 - weight + last) * n, :])
        return self.reduce(total)

    def cumsum(self, x: Residues, axis: int) -> Residues:
        if x.shape[axis] <= WHOLE:
            return self.reduce(np.cumsum(x, axis, dtype=np.uint64))
        return self._join(np.cumsum(x >> _HALF, axis, dtype=np.uint64), np.cumsum(x & _LOW, axis, dtype=np.uint64))

    def _join(self, high: Residues, low: Residues) -> Residues:
        """high 2^32 + low for sums of up to 2^31 halves."""
        shift = np.array(1 << 32, np.uint64)
        return self.add(self.mul(self.reduce(np.asarray(high)), shift), self.reduce(np.asarray(low)))

    def prod(self, x: Residues, axis: int) -> Residues:
        return _folded(self.mul, np.moveaxis(x, axis, 0), np.ones((), np.uint64))

    def cumprod(self, x: Residues, axis: int) -> Residues:
        rows = np.moveaxis(x, axis, 0).copy()
        for i in range(1, len(rows)):
            rows[i] = self.mul(rows[i - 1], rows[i])
        return np.moveaxis(rows, 0, axis)

    def power(self, x: Residues, n: int) -> Residues:
        """x^n for one whole exponent, by windows of four bits."""
        if n < 0:
            return self.power(self.inverse(x), -n)
        if x.size <= FEW:
            return np.array([pow(i, n, self.value) for i in x.ravel().tolist()], np.uint64).reshape(x.shape)
        digits = [int(d, 16) for d in f"{n:x}"]
        table = [np.ones_like(x), x]
        while len(table) <= max(digits):
            table.append(self.mul(table[-1], x))
        result = table[digits[0]]
        for d in digits[1:]:
            for _ in range(4):
                result = self.mul(result, result)
            result = self.mul(result, table[d]) if d else result
        return result

    def powers(self, x: Residues, n: Residues) -> Residues:
        """x^n for an exponent per element, by square and multiply."""
        x, n = np.broadcast_arrays(x, n)
        result = np.ones_like(x)
        for bit in reversed(range(int(n.max(initial=0)).bit_length())):
            result = self.mul(result, result)
            result = np.where((n >> np.uint64(bit)) & np.uint64(1) == 1, self.mul(result, x), result)
        return result

    def signed_powers(self, x: Residues, n: Integers) -> Residues:
        """x^n for a small whole exponent per element, which may be negative."""
        raised = self.powers(x, np.abs(n).astype(np.uint64))
        return np.where(n < 0, self.inverse(raised), raised) if (n < 0).any() else raised

    def inverse(self, x: Residues) -> Residues:
        """1 / x, and 0 for 0: a few inversions for the products of all, unwound along a binary tree of partial products."""
        level = np.where(x == 0, np.uint64(1), x).ravel()
        levels: list[Residues] = []
        while level.size > FEW:
            if level.size % 2:
                level = np.append(level, np.uint64(1))
            levels.append(level)
            level = self.mul(level[::2], level[1::2])
        found = np.array(self._inverses(level.tolist()), np.uint64)
        for level in reversed(levels):
            found = found[: level.size // 2]
            pairs = np.empty_like(level)
            pairs[::2], pairs[1::2] = self.mul(found, level[1::2]), self.mul(found, level[::2])
            found = pairs
        return np.where(x == 0, np.uint64(0), found[: x.size].reshape(x.shape))

    def _inverses(self, numbers: list[int]) -> list[int]:
        """Of a few numbers that are not zero: one inversion, of the product of all."""
        products = [1]
        for i in numbers:
            products.append(products[-1] * i % self.prime)
        below = pow(products[-1], -1, self.prime)
        found = []
        for i, before in zip(reversed(numbers), reversed(products[:-1]), strict=True):
            found.append(below * before % self.prime)
            below = below * i % self.prime
        return found[::-1]


def _limbs(x: Residues) -> tuple[NDArray[np.float64], ...]:
    """From the lowest to the highest."""
    low, by = np.uint64((1 << LIMB) - 1), np.uint64(LIMB)
    return tuple(part.astype(float) for part in (x & low, (x >> by) & low, x >> (by + by)))


def _whole(x: NDArray[np.float64]) -> Residues:
    """Whole numbers as such."""
    return x.astype(np.int64).view(np.uint64)


def _folded(join: Callable[[Residues, Residues], Residues], rows: Residues, empty: Residues) -> Residues:
    """The rows joined from the first to the last."""
    total = np.broadcast_to(empty, rows.shape[1:])
    for row in rows:
        total = join(total, row)
    return np.asarray(total)


class RealNumbers:
    """float64 with the methods of a modulus: what comparisons go by where an order is needed. Division by 0 gives 0 here too."""

    bits = 0  # of no modulus

    def residue(self, value: int | Fraction) -> Any:
        try:
            return np.asarray(float(value))
        except OverflowError:
            return np.asarray(np.inf if value > 0 else -np.inf)

    def residues(self, integers: Integers) -> Any:
        return integers.astype(float)

    def reduce(self, x: Residues) -> Any:
        """Any 64-bit numbers, spread over (-2, 2)."""
        return (x >> np.uint64(11)).astype(float) * 2.0**-51 - 2

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def sub(self, x: Any, y: Any) -> Any:
        return x - y

    def neg(self, x: Any) -> Any:
        return -x

    def mul(self, x: Any, y: Any) -> Any:
        return x * y

    def inverse(self, x: Any) -> Any:
        return np.where(x == 0, 0.0, 1 / np.where(x == 0, 1.0, x))

    def power(self, x: Any, n: int) -> Any:
        return self.inverse(x) ** -n if n < 0 else x**n

    def sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        return x.sum(axis=axes)

    def cumsum(self, x: Any, axis: int) -> Any:
        return np.cumsum(x, axis)


P = Modulus(BITS, 76811)  # values
L = Modulus(BITS - 2, 19203)  # their exponents: P.value = 4 L.value + 1
Q = Modulus(BITS - 2, 19204, 12)  # the exponents of these: L.value - 1
REAL = 3  # behind the levels of residues: the number itself, rounded
EXACT = 4  # and, of one that is known, as it is (`seqc.proof.exact`)
MODULI: tuple[Any, ...] = (P, L, Q, RealNumbers())  # by level
BASES = (2**4, 2**12)  # what is raised to an exponent mod p and mod l: of order L.value and Q.prime
QUARTER = pow(2, L.value, P.value)  # a square root of -1: the cosets of the powers of 2^4 are those of its powers


@cache
def _windows(level: int) -> tuple[Residues, ...]:
    """For each WINDOW bits of an exponent, the base's powers by them."""
    tables, step, modulus = [], BASES[level], MODULI[level]
    for _ in range(-(-max(m.bits for m in MODULI[1:]) // WINDOW)):
        row = np.ones(1, np.uint64)
        for _ in range(WINDOW):
            row = np.concatenate([row, modulus.mul(row, np.array([step], np.uint64))])
            step = step * step % modulus.value
        tables.append(row)
    return tuple(tables)


def raised(level: int, exponents: Residues) -> Residues:
    """The base of a level to the power of exponents, which are residues of the level below."""
    result: Residues | None = None
    for i, table in enumerate(_windows(level)):
        factor = table[(exponents >> np.uint64(WINDOW * i)) & np.uint64((1 << WINDOW) - 1)]
        result = factor if result is None else MODULI[level].mul(result, factor)
    assert result is not None
    return result


def half_power(x: Residues) -> Residues:
    """x^((l - 1) / 2), of which both x^l, which tells the coset, and the root x^((l + 1) / 2) of a positive x are made."""
    return P.power(x, (L.value - 1) // 2)


def cosets(x: Residues, half: Residues | None = None) -> Integers:
    """Which coset of the powers of 2^4: 0 for themselves (the positive numbers), 2 for their negatives, 1 and 3; -1 for zero."""
    half = half_power(x) if half is None else half
    root = P.mul(P.mul(half, half), x)
    out = np.full(x.shape, -1, np.int64)
    for name in range(4):
        out[root == np.uint64(pow(QUARTER, name, P.value))] = name
    return out
