"""Complex numbers over any arithmetic, as pairs: what a text's complex values mean where the proof evaluates it.

It shares nothing with `seqc.passes.pairs`, which writes complex values out in real ones: each is held to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from seqc.ir.expr import Mask
from seqc.proof.composed import NoFieldMeaning


@dataclass(frozen=True)
class Complex:
    """Real and imaginary part; None for an imaginary part that is zero."""

    re: Any
    im: Any = None


class Complexes:
    """`seqc.ir.meaning`'s arithmetic over Complex, on top of an arithmetic of the parts."""

    def __init__(self, parts: Any):
        self.parts, self.sizes = parts, parts.sizes

    def rational(self, value: Fraction) -> Complex:
        return Complex(self.parts.rational(value))

    def named(self, name: str) -> Complex:
        return Complex(self.parts.named(name))

    def integers(self, values: np.ndarray) -> Complex:
        return Complex(self.parts.integers(values))

    def _zero(self, like: Any) -> Any:
        return self.parts.binary("sub", like, like)

    def _im(self, x: Complex) -> Any:
        return self._zero(x.re) if x.im is None else x.im

    def _both(self, fn: Callable[..., Any], *values: Complex) -> Complex:
        """What acts on both parts alike."""
        re = fn(*(x.re for x in values))
        return Complex(re, None if all(x.im is None for x in values) else fn(*(self._im(x) for x in values)))

    def _real(self, name: str, *values: Complex) -> None:
        if any(x.im is not None for x in values):
            raise NoFieldMeaning(f"{name} of a complex value")

    def structural(self, fn: Callable[..., Any], *values: Complex) -> Complex:
        return self._both(lambda *xs: self.parts.structural(fn, *xs), *values)

    def complex(self, x: Complex, y: Complex) -> Complex:
        self._real("complex", x, y)
        return Complex(*self._alike(x.re, y.re))

    def _alike(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Both as wide as their sum."""
        return self.parts.binary("add", x, self._zero(y)), self.parts.binary("add", y, self._zero(x))

    def unary(self, name: str, x: Complex) -> Complex:
        A = self.parts
        match name:
            case "re":
                return Complex(x.re)
            case "im":
                return Complex(self._im(x))
            case "conj":
                return Complex(x.re, None if x.im is None else A.unary("neg", x.im))
            case "neg" | "stop_gradient":
                return self._both(lambda part: A.unary(name, part), x)
        if x.im is None:
            return Complex(A.unary(name, x.re))
        match name:
            case "exp":
                size = A.unary("exp", x.re)
                return Complex(*(A.binary("mul", size, A.unary(turn, x.im)) for turn in ("cos", "sin")))
            case "abs":
                return Complex(A.unary("sqrt", A.binary("add", A.binary("mul", x.re, x.re), A.binary("mul", x.im, x.im))))
            case "expm1":
                return self.binary("sub", self.unary("exp", x), self.rational(Fraction(1)))
        raise NoFieldMeaning(f"{name} of a complex value")

    def binary(self, name: str, x: Complex, y: Complex) -> Complex:
        A = self.parts
        match name:
            case "add" | "sub":
                both = self._both(lambda a, b: A.binary(name, a, b), x, y)
                return both
            case "mul":
                return self._product(x, y)
            case "div" if y.im is None:
                return self._both(lambda part: A.binary("div", part, y.re), x)
            case "div":
                size = A.binary("add", A.binary("mul", y.re, y.re), A.binary("mul", y.im, y.im))
                return self.binary("div", self._product(x, self.unary("conj", y)), Complex(size))
        self._real(name, x, y)
        return Complex(A.binary(name, x.re, y.re))

    def _product(self, x: Complex, y: Complex) -> Complex:
        return self._bilinear(lambda a, b: self.parts.binary("mul", a, b), x, y)

    def _bilinear(self, product: Callable[[Any, Any], Any], x: Complex, y: Complex) -> Complex:
        if x.im is None and y.im is None:
            return Complex(product(x.re, y.re))
        a, b, c, d = x.re, self._im(x), y.re, self._im(y)
        A = self.parts
        return Complex(A.binary("sub", product(a, c), product(b, d)), A.binary("add", product(a, d), product(b, c)))

    def power(self, x: Complex, n: Complex, exponent: Fraction | None) -> Complex:
        if x.im is None:
            self._real("power", n)
            return Complex(self.parts.power(x.re, n.re, exponent))
        if exponent is None or exponent.denominator != 1:
            raise NoFieldMeaning("a power of a complex value that is no whole number")
        total = self.rational(Fraction(1))
        for _ in range(abs(int(exponent))):
            total = self._product(total, x)
        return total if exponent >= 0 else self.binary("div", self.rational(Fraction(1)), total)

    def compare(self, relation: str, x: Complex, y: Complex) -> Complex:
        self._real("a comparison", x, y)
        return Complex(self.parts.compare(relation, x.re, y.re))

    def where(self, condition: Complex, x: Complex, y: Complex) -> Complex:
        return self._both(lambda a, b: self.parts.where(condition.re, a, b), x, y)

    def sum(self, x: Complex, axes: tuple[int, ...]) -> Complex:
        return self._both(lambda part: self.parts.sum(part, axes), x)

    def cumsum(self, x: Complex, axis: int, reverse: bool) -> Complex:
        return self._both(lambda part: self.parts.cumsum(part, axis, reverse), x)

    def maximum_over(self, x: Complex, axes: tuple[int, ...]) -> Complex:
        self._real("a maximum", x)
        return Complex(self.parts.maximum_over(x.re, axes))

    def contract(self, values: Iterable[Complex], axes: list[tuple[str, ...]], out: tuple[str, ...]) -> Complex:
        """Two by two, so that each product is one of two complex numbers; axes go with the last product."""
        values = tuple(values)
        if all(x.im is None for x in values):
            return Complex(self.parts.contract([x.re for x in values], axes, out))
        total, have = values[0], axes[0]
        if len(values) == 1:
            return self._both(lambda part: self.parts.contract([part], axes, out), total)
        for i, (x, own) in enumerate(zip(values[1:], axes[1:], strict=True), start=2):
            new = out if i == len(values) else tuple(dict.fromkeys((*have, *own)))
            pair = [have, own]
            total = self._bilinear(lambda a, b, pair=pair, new=new: self.parts.contract([a, b], pair, new), total, x)  # type: ignore[misc]
            have = new
        return total

    def exp_masked(self, x: Complex, mask: Mask) -> Complex:
        self._real("a masked exponential", x)
        return Complex(self.parts.exp_masked(x.re, mask))

    def solve(self, matrix: Complex, rhs: Complex) -> Complex:
        """The complex system as a real one of twice the size."""
        A = self.parts
        if matrix.im is None:
            return self._both(lambda part: A.solve(matrix.re, part), rhs)

        def above(x: Any, y: Any, axis: int) -> Any:
            return A.structural(lambda a, b: np.concatenate(np.broadcast_arrays(a, b), axis), x, y)

        rows = above(matrix.re, A.unary("neg", matrix.im), -1), above(matrix.im, matrix.re, -1)
        found = A.solve(above(*rows, -2), above(rhs.re, self._im(rhs), -2))
        return Complex(*(A.structural(lambda x, half=half: np.split(x, 2, -2)[half], found) for half in (0, 1)))

    def unit_lower_inverse(self, x: Complex) -> Complex:
        self._real("a triangular inverse", x)
        return Complex(self.parts.unit_lower_inverse(x.re))
