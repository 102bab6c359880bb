"""Ranges hold: values inside the arguments' ranges give results inside the result's."""

from __future__ import annotations

import math
import random

import pytest

from seqc.frontend.intervals import COMBINED, ELEMENTWISE, INF, Interval, at_least, inside, point, power

FUNCTIONS = {
    "neg": lambda x: -x, "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "abs": abs, "sin": math.sin, "cos": math.cos,
    "sign": lambda x: (x > 0) - (x < 0), "tanh": math.tanh, "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "log_sigmoid": lambda x: -math.log1p(math.exp(-x)), "softplus": lambda x: math.log1p(math.exp(x)),
    "softplus_inverse": lambda x: math.log(math.expm1(x)), "relu": lambda x: max(x, 0.0), "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))), "elu": lambda x: x if x > 0 else math.expm1(x), "expm1": math.expm1,
    "log1p": math.log1p, "ceil": math.ceil, "floor": math.floor,
}  # fmt: skip
OPERATORS = {
    "+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y, "/": lambda x, y: x / y, "^": lambda x, y: x**y,
    "max": max, "min": min, "lerp": lambda x, y, w: (1 - w) * x + w * y,
    "where": lambda c, x, y: x if c > 0.5 else y,
}  # fmt: skip


def drawn(rng: random.Random) -> tuple[Interval, float]:
    """A range and a value in it."""
    low, high = sorted(rng.choice([-4.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]) for _ in range(2))
    if low == high:
        return point(low), low
    open_low, open_high = rng.random() < 0.5, rng.random() < 0.5
    ends = [low] * (not open_low) + [high] * (not open_high) + [low + (high - low) * rng.uniform(0.01, 0.99)] * 3
    if rng.random() < 0.2:
        return Interval(low, INF, open_low), rng.choice(ends)
    return Interval(low, high, open_low, open_high), rng.choice(ends)


def holds(value: float, x: Interval) -> bool:
    slack = 1e-12 * max(1.0, abs(value))
    return x.low - slack <= value <= x.high + slack and not (
        value in (x.low, x.high) and not inside(point(value), x) and value == int(value)
    )


@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_functions(name: str) -> None:
    rng, tried = random.Random(name), 0
    for _ in range(500):
        x, value = drawn(rng)
        try:
            result = FUNCTIONS[name](value)
        except ValueError:
            continue
        tried += 1
        assert holds(result, ELEMENTWISE[name](x)), (x, value, result, ELEMENTWISE[name](x))
    assert tried > 50


@pytest.mark.parametrize("name", list(COMBINED))
def test_operators(name: str) -> None:
    rng = random.Random(name)
    count = 3 if name in ("lerp", "where") else 2
    for _ in range(2000):
        drawings = [drawn(rng) for _ in range(count)]
        if name == "where":
            drawings[0] = (Interval(0, 1, False, False), rng.choice([0.0, 1.0]))
        try:
            result = OPERATORS[name](*(v for _, v in drawings))
        except (ValueError, ZeroDivisionError):
            continue
        if isinstance(result, complex):
            continue
        found = COMBINED[name](*(x for x, _ in drawings))
        assert holds(result, found), (drawings, result, found)


def test_norms_stay_at_most_one() -> None:
    unit = Interval(-1, 1, unit="K")
    assert COMBINED["/"](unit, ELEMENTWISE["sqrt"](at_least(1))).unit == "K"
    assert COMBINED["*"](point(-1), unit).unit == "K"
    assert COMBINED["*"](point(2), unit).unit is None
    assert COMBINED["+"](unit, unit).unit is None
    assert COMBINED["lerp"](unit, unit, Interval(0, 1)).unit == "K"


def test_a_power_too_large_for_a_number() -> None:
    """An exponent of 1e400 is as far as a float goes; a text may have it."""
    assert power(Interval(0.5, 2.0), point(INF)).high == INF
    assert power(Interval(-1.0, 2.0), point(INF)).low == -INF
