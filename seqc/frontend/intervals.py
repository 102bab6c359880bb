"""Ranges of values: what proves that a project section stays inside the declared domains.

A range is an interval with open or closed ends, and the axis (if any) along which the L2 norm is at most 1. Every rule
gives a range that holds whatever the arguments are inside theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

INF = math.inf


@dataclass(frozen=True)
class Interval:
    """`(low, high)`; an infinite end is open. `unit`: the axis along which the norm is at most 1. `whole`: only whole numbers."""

    low: float = -INF
    high: float = INF
    open_low: bool = True
    open_high: bool = True
    unit: str | None = None
    whole: bool = False

    def __str__(self) -> str:
        return f"{'(' if self.open_low else '['}{show(self.low)}, {show(self.high)}{')' if self.open_high else ']'}"


ANY = Interval()


def point(value: float) -> Interval:
    return Interval(value, value, False, False, whole=value == math.floor(value)) if math.isfinite(value) else Interval(value, value)


def at_least(low: float) -> Interval:
    """A whole number that is no smaller: a size, a head, a position."""
    return Interval(low, INF, False, True, whole=True)


def show(value: float) -> str:
    """A number as a spec would write it."""
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e6 else f"{value:.4g}"


def inside(x: Interval, domain: Interval) -> bool:
    """Whether every value of x is in the interval of the domain (`unit` and `whole` are the caller's)."""
    low = x.low > domain.low or (x.low == domain.low and (x.open_low or not domain.open_low or math.isinf(x.low)))
    high = x.high < domain.high or (x.high == domain.high and (x.open_high or not domain.open_high or math.isinf(x.high)))
    return low and high


def hull(x: Interval, y: Interval) -> Interval:
    """Values of either."""
    low, high = min(x.low, y.low), max(x.high, y.high)
    return Interval(
        low, high,
        not any(i.low == low and not i.open_low for i in (x, y)), not any(i.high == high and not i.open_high for i in (x, y)),
        x.unit if x.unit == y.unit else None, x.whole and y.whole,
    )  # fmt: skip


def negate(x: Interval) -> Interval:
    return Interval(-x.high, -x.low, x.open_high, x.open_low, x.unit, x.whole)


def add(x: Interval, y: Interval) -> Interval:
    return Interval(
        _sum(x.low, y.low, -INF), _sum(x.high, y.high, INF), x.open_low or y.open_low, x.open_high or y.open_high, None, x.whole and y.whole
    )


def _sum(a: float, b: float, otherwise: float) -> float:
    return otherwise if math.isnan(a + b) else a + b


def subtract(x: Interval, y: Interval) -> Interval:
    return add(x, negate(y))


def multiply(x: Interval, y: Interval) -> Interval:
    """The norm of a product with factors in [-1, 1] is no larger."""
    ends = [_times(a, b) for a, b in product(_ends(x), _ends(y))]
    low, high = min(v for v, _ in ends), max(v for v, _ in ends)
    small, other = Interval(-1, 1, False, False), (x, y)
    unit = next((i.unit for i, j in (other, other[::-1]) if i.unit and (inside(j, small))), None)
    return Interval(low, high, all(o for v, o in ends if v == low), all(o for v, o in ends if v == high), unit, x.whole and y.whole)


def _ends(x: Interval) -> tuple[tuple[float, bool], tuple[float, bool]]:
    return (x.low, x.open_low), (x.high, x.open_high)


def _times(a: tuple[float, bool], b: tuple[float, bool]) -> tuple[float, bool]:
    """A product of two ends and whether it is open: zero is reached as soon as one factor reaches it."""
    if a[0] == 0 or b[0] == 0:
        return 0.0, not ((a[0] == 0 and not a[1]) or (b[0] == 0 and not b[1]))
    return a[0] * b[0], a[1] or b[1]


def reciprocal(x: Interval) -> Interval:
    if x.low > 0 or (x.low == 0 and x.open_low):
        high, open_high = (INF, True) if x.low == 0 else (1 / x.low, x.open_low)
        return Interval(1 / x.high, high, x.open_high, open_high)
    if x.high < 0 or (x.high == 0 and x.open_high):
        return negate(reciprocal(negate(x)))
    return ANY


def divide(x: Interval, y: Interval) -> Interval:
    return multiply(x, reciprocal(y))


def power(x: Interval, y: Interval) -> Interval:
    """x^y: whole powers of anything, and any power of a positive number."""
    if y.low == y.high and y.whole and 0 <= y.low < INF:
        return _whole_power(x, int(y.low))
    if x.low > 0 or (x.low == 0 and x.open_low):
        return exp(multiply(log(x), y))
    return ANY


def _whole_power(x: Interval, n: int) -> Interval:
    if n == 0:
        return point(1)
    if n % 2:
        return Interval(_raise(x.low, n), _raise(x.high, n), x.open_low, x.open_high, None, x.whole)
    return replace(_monotone(lambda v: _raise(v, n))(magnitude(x)), whole=x.whole)


def _raise(value: float, n: int) -> float:
    return math.copysign(INF, value) ** n if math.isinf(value) else _guard(lambda v: v**n, value)


def _guard(f: Callable[[float], float], value: float) -> float:
    """f, infinite where it overflows."""
    try:
        return f(value)
    except OverflowError:
        return math.copysign(INF, value)


def _monotone(f: Callable[[float], float]) -> Callable[[Interval], Interval]:
    """A function that grows: its range is that of its ends."""
    return lambda x: Interval(_guard(f, x.low), _guard(f, x.high), x.open_low, x.open_high)


def _log(v: float) -> float:
    return -INF if v <= 0 else math.log(v)


def _softplus(v: float) -> float:
    return max(v, 0.0) + math.log1p(math.exp(-abs(v)))


def _sigmoid(v: float) -> float:
    return 0.0 if v == -INF else 1 / (1 + math.exp(-v)) if v > -700 else math.exp(v)


def _softplus_inverse(v: float) -> float:
    return -INF if v <= 0 else v if v > 700 else math.log(math.expm1(v))


def _ceil(v: float) -> float:
    return v if math.isinf(v) else float(math.ceil(v))


def _floor(v: float) -> float:
    return v if math.isinf(v) else float(math.floor(v))


exp = _monotone(math.exp)
log = _monotone(_log)


def magnitude(x: Interval) -> Interval:
    """abs(x)."""
    if x.low >= 0:
        return x
    if x.high <= 0:
        return negate(x)
    high = max(-x.low, x.high)
    return Interval(0, high, False, all(o for v, o in ((-x.low, x.open_low), (x.high, x.open_high)) if v == high), x.unit, x.whole)


def maximum(x: Interval, y: Interval) -> Interval:
    low, high = max(x.low, y.low), max(x.high, y.high)
    return Interval(
        low, high,
        any(i.low == low and i.open_low for i in (x, y)), not any(i.high == high and not i.open_high for i in (x, y)),
        None, x.whole and y.whole,
    )  # fmt: skip


def minimum(x: Interval, y: Interval) -> Interval:
    return negate(maximum(negate(x), negate(y)))


def where(condition: Interval, x: Interval, y: Interval) -> Interval:
    return hull(x, y)


def lerp(x: Interval, y: Interval, w: Interval) -> Interval:
    """(1 - w) x + w y: between its ends while w is in [0, 1]. An end is reached only where its weight may be 1 or both ends reach it."""
    if not inside(w, Interval(0, 1, False, False)):
        return add(x, multiply(subtract(y, x), w))
    first, last = w.low == 0 and not w.open_low, w.high == 1 and not w.open_high

    def end(a: tuple[float, bool], b: tuple[float, bool], value: float) -> bool:
        at_a, at_b = (e[0] == value and not e[1] for e in (a, b))
        return not ((at_a and at_b) or (at_a and first) or (at_b and last))

    low, high = min(x.low, y.low), max(x.high, y.high)
    ends = tuple(zip(_ends(x), _ends(y), strict=True))
    return Interval(low, high, end(*ends[0], low), end(*ends[1], high), x.unit if x.unit == y.unit else None)


def _bounded(low: float, high: float, closed_low: bool = False, closed_high: bool = False) -> Callable[[Interval], Interval]:
    """Nothing is used of the argument."""
    return lambda x: Interval(low, high, not closed_low, not closed_high)


def total(x: Interval) -> Interval:
    """A sum along an axis of any length from 1."""
    low = (x.low, x.open_low) if x.low >= 0 else (-INF, True)
    high = (x.high, x.open_high) if x.high <= 0 else (INF, True)
    return Interval(low[0], high[0], low[1], high[1], None, x.whole)


def delayed(x: Interval) -> Interval:
    """The value one token ago, or zero."""
    return replace(hull(x, point(0)), unit=x.unit)


# Functions of one argument, entry by entry.
ELEMENTWISE: dict[str, Callable[[Interval], Interval]] = {
    "neg": negate,
    "exp": exp,
    "log": log,
    "sqrt": lambda x: _monotone(math.sqrt)(maximum(x, point(0))),
    "abs": magnitude,
    "sign": _bounded(-1, 1, True, True),
    "sin": _bounded(-1, 1, True, True),
    "cos": _bounded(-1, 1, True, True),
    "tanh": _monotone(math.tanh),
    "sigmoid": _monotone(_sigmoid),
    "log_sigmoid": lambda x: negate(_monotone(_softplus)(negate(x))),
    "softplus": _monotone(_softplus),
    "softplus_inverse": _monotone(_softplus_inverse),
    "relu": lambda x: maximum(x, point(0)),
    "gelu": _bounded(-0.17, INF),
    "silu": _bounded(-0.2785, INF),
    "elu": _monotone(lambda v: v if v > 0 else math.expm1(v)),
    "expm1": _monotone(math.expm1),
    "log1p": _monotone(lambda v: -INF if v <= -1 else math.log1p(v)),
    "ceil": lambda x: replace(_monotone(_ceil)(x), whole=True, open_low=math.isinf(x.low), open_high=math.isinf(x.high)),
    "floor": lambda x: replace(_monotone(_floor)(x), whole=True, open_low=math.isinf(x.low), open_high=math.isinf(x.high)),
}

# Functions of several arguments, entry by entry.
COMBINED: dict[str, Callable[..., Interval]] = {
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": divide,
    "^": power,
    "max": maximum,
    "min": minimum,
    "where": where,
    "lerp": lerp,
}

# Functions along axes.
ALONG: dict[str, Callable[[Interval], Interval]] = {
    "sum": total,
    "cumsum": total,
    "mean": lambda x: replace(x, unit=None, whole=False),
    "max": lambda x: replace(x, unit=None),
    "min": lambda x: replace(x, unit=None),
    "norm": _bounded(0, INF, True),
    "softmax": _bounded(0, 1, False, True),
    "log_softmax": _bounded(-INF, 0, False, True),
    "logsumexp": lambda x: Interval(x.low, INF, x.open_low, True),
    "standardize": lambda x: ANY,
    "l2norm": _bounded(-1, 1),
}
