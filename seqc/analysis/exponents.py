"""Exponents as sums of parts with rational coefficients: what cancels is gone, and what is never positive is seen to be so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from seqc.analysis.bounds import bounds
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.model import Domain


@dataclass(frozen=True)
class Exponent:
    """A sum of coefficient times part, each part once, in the order of first use. Equal sums in equal order are equal."""

    terms: tuple[tuple[Expr, Fraction], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a for part, _ in self.terms for a in part.axes))

    def plus(self, other: Exponent, times: Fraction | int = 1) -> Exponent:
        """The sum with a multiple of another."""
        total = dict(self.terms)
        for part, coefficient in other.terms:
            total[part] = total.get(part, Fraction(0)) + coefficient * times
        return Exponent(tuple((p, c) for p, c in total.items() if c))

    def times(self, factor: Fraction) -> Exponent:
        return Exponent(tuple((p, c * factor) for p, c in self.terms)) if factor else Exponent()

    def minus(self, other: Exponent) -> Exponent:
        return self.plus(other, -1)

    @property
    def value(self) -> Expr:
        """The sum as an expression; what is added stands before what is taken away."""
        total: Expr = ops.number(0)
        for part, c in sorted(self.terms, key=lambda term: term[1] < 0):
            scaled = part if abs(c) == 1 else ops.mul(ops.number(abs(c)), part)
            total = ops.add(total, scaled) if c > 0 else ops.sub(total, scaled)
        return total


def exponent(e: Expr, times: Fraction | int = 1) -> Exponent:
    """An expression as a sum of parts."""
    match e.op.name:
        case "add":
            return exponent(e.args[0], times).plus(exponent(e.args[1], times))
        case "sub":
            return exponent(e.args[0], times).plus(exponent(e.args[1], -times))
        case "neg":
            return exponent(e.args[0], -times)
        case "broadcast":
            return exponent(e.args[0], times)
        case "mul" if ops.is_number(e.args[0]):
            return exponent(e.args[1], Fraction(e.args[0].attr) * times)
        case "div" if ops.is_number(e.args[1]) and e.args[1].attr:
            return exponent(e.args[0], times / Fraction(e.args[1].attr))
    return Exponent() if ops.is_zero(e) else Exponent(((e, Fraction(times)),))


def log_of(decay: Expr) -> Expr:
    """The logarithm of a positive factor, without leaving log space where the factor is an exponential already."""
    match decay.op.name:
        case "exp":
            return decay.args[0]
        case "sigmoid":
            return ops.neg(ops.unary("softplus", ops.neg(decay.args[0])))
        case "mul":
            return ops.add(log_of(decay.args[0]), log_of(decay.args[1]))
        case "div":
            return ops.sub(log_of(decay.args[0]), log_of(decay.args[1]))
        case "sub" if ops.is_number(decay.args[0], 1):
            return ops.unary("log1p", ops.neg(decay.args[1]))
    return ops.log(decay)


def never_positive(x: Exponent, domains: Mapping[str, Domain], sizes: Mapping[str, int]) -> bool:
    """Whether the sum is at most zero wherever its parts are: by their intervals, and since no a exceeds max(a, b)."""
    for part, c in x.terms:
        core = part.args[0] if part.op.name == "stop_gradient" else part
        if c == -1 and core.op.name == "maximum":
            rest = x.plus(Exponent(((part, Fraction(1)),)))
            if any(never_positive(rest.minus(exponent(side)), domains, sizes) for side in core.args):
                return True
        if c == -1 and core.op.name == "max_over":
            inner = exponent(core.args[0])
            if never_positive(x.plus(Exponent(((part, Fraction(1)),))).minus(inner), domains, sizes):
                return True
    high = 0.0
    for part, c in x.terms:
        low, top, _, _ = bounds(part, domains, sizes)
        high += float(c) * (top if c > 0 else low)
    return high <= 0
