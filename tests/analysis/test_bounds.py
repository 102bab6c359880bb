"""Interval bounds hold every value that the domains allow, and prove the decays that are written in practice."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import inf, isfinite

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqc.analysis.bounds import bounds, is_decay
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.interp import Reals, evaluate
from seqc.ir.model import Domain
from seqc.ir.ops import number, var

SIZES = {"K": 5, "@h": 3}
DOMAINS = {
    "unit": Domain(0, 1), "closed": Domain(-1, 2, False, False), "negative": Domain(-inf, 0), "positive": Domain(0, inf),
    "any": Domain(), "half": Domain(Fraction(1, 2), 3, False, True), "below": Domain(-inf, -1, True, False),
}  # fmt: skip
Grow = Callable[[Expr, Expr], Expr]

GROW: dict[str, Grow] = {
    "add": ops.add,
    "sub": ops.sub,
    "mul": ops.mul,
    "div": ops.div,
    "div exp": lambda x, y: ops.div(x, ops.add(number(1), ops.exp(y))),
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "where": lambda x, y: ops.where(ops.compare("lt", x, y), x, y),
    "neg": lambda x, y: ops.neg(x),
    **{n: lambda x, y, n=n: ops.unary(n, x) for n in ("exp", "sigmoid", "softplus", "tanh", "relu", "abs", "log")},
    "power": lambda x, y: ops.power(ops.exp(ops.unary("tanh", x)), y),
    "square": lambda x, y: ops.power(x, number(2)),
    "root": lambda x, y: ops.power(ops.unary("sigmoid", x), number(Fraction(1, 2))),
    "two to": lambda x, y: ops.power(number(2), x),
    "broadcast": lambda x, y: ops.broadcast(x, (*x.axes, *(a for a in ("K",) if a not in x.axes))),
    "sum": lambda x, y: ops.sum_over(ops.broadcast(x, ("K",)), ("K",)) if not x.axes else ops.sum_over(x, x.axes),
}

leaves = st.one_of(
    st.sampled_from([var(n) for n in DOMAINS]), st.sampled_from([0, 1, -1, 2, Fraction(-1, 2)]).map(number), st.just(ops.size("K")),
    st.just(ops.iota("@h")), st.just(ops.constant("pi")),
)  # fmt: skip
expressions = st.recursive(
    leaves, lambda inner: st.builds(lambda kind, x, y: GROW[kind](x, y), st.sampled_from(sorted(GROW)), inner, inner), max_leaves=6
)


def inside(domain: Domain, rng: np.random.Generator) -> float:
    """A point of a domain, often near an end of it."""
    near = float(rng.choice([1e-9, 1e-3, 0.3, 1.0]))
    low, high = float(domain.low), float(domain.high)
    if isfinite(low) and isfinite(high):
        return low + (high - low) * float(rng.choice([near / 2, 1 - near / 2, 0.5]))
    if isfinite(low):
        return low + near * float(rng.choice([1, 30]))
    if isfinite(high):
        return high - near * float(rng.choice([1, 30]))
    return float(rng.normal() * rng.choice([1, 30]))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(e=expressions, seed=st.integers(0, 20))
@pytest.mark.slow
def test_points_of_the_domains_stay_inside(e: Expr, seed: int) -> None:
    low, high = bounds(e, DOMAINS, SIZES)[:2]
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        for _ in range(8):
            point = {n: np.asarray(inside(d, rng)) for n, d in DOMAINS.items()}
            value = evaluate(Reals(SIZES), (e,), point)[0]
            value = value[np.isfinite(value)]  # outside of its domain an expression has no value
            slack = 1e-9 * np.maximum(1.0, np.abs(value))
            assert (value >= low - slack).all() and (value <= high + slack).all(), (low, high, value)


A, G, B = var("a", ("K",)), var("g"), var("b")
PROVED = {"a": Domain(0, 1), "g": Domain(-inf, 0), "b": Domain(0, inf), "s": Domain(-1, 1), "h": Domain(0, 1, False, False), "x": Domain()}
X, S, H = var("x"), var("s"), var("h")

# a decay as a text writes it -> (proved positive, proved at most one)
DECAYS: tuple[tuple[str, Expr, tuple[bool, bool]], ...] = (
    ("a", A, (True, True)),
    ("1 - a", ops.sub(number(1), A), (True, True)),
    ("exp(g)", ops.exp(G), (True, True)),
    ("sigmoid(x)", ops.unary("sigmoid", X), (True, True)),
    ("exp(-softplus(x))", ops.exp(ops.neg(ops.unary("softplus", X))), (True, True)),
    ("exp(-b * exp(x))", ops.exp(ops.neg(ops.mul(B, ops.exp(X)))), (True, True)),
    ("a * exp(g)", ops.mul(A, ops.exp(G)), (True, True)),
    ("1 - 2^(-5 - head)", ops.sub(number(1), ops.power(number(2), ops.sub(number(-5), var("head")))), (True, True)),
    ("1 / (1 + b)", ops.div(number(1), ops.add(number(1), B)), (True, True)),
    ("(1 + a) / 2", ops.div(ops.add(number(1), A), number(2)), (True, True)),
    ("s", S, (False, True)),
    ("1 + s", ops.add(number(1), S), (True, False)),
    ("h", H, (False, True)),
    ("b", B, (True, False)),
    ("exp(x)", ops.exp(X), (True, False)),
    ("exp(-x)", ops.exp(ops.neg(X)), (True, False)),
    ("2 * a", ops.mul(number(2), A), (True, False)),
    ("relu(x)", ops.unary("relu", X), (False, False)),
    ("x", X, (False, False)),
)


@pytest.mark.parametrize(("decay", "want"), [(e, want) for _, e, want in DECAYS], ids=[n for n, _, _ in DECAYS])
def test_decays(decay: Expr, want: tuple[bool, bool]) -> None:
    assert is_decay(decay, PROVED, {"K": 4}) == want


def test_what_is_not_known_is_everything() -> None:
    assert bounds(ops.unary("sin", X), PROVED, {})[:2] == (-inf, inf)
    assert bounds(ops.contract((A, A), ()), PROVED, {})[:2] == (-inf, inf)
