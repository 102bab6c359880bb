"""Interval bounds of expressions from declared domains: evidence that a decay is positive and at most one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import exp, inf, log, log1p

from seqc.ir.expr import Expr, walk
from seqc.ir.model import Domain

Bounds = tuple[float, float, bool, bool]  # low, high, and whether each end is excluded
EVERYTHING: Bounds = (-inf, inf, True, True)


def bounds(root: Expr, domains: Mapping[str, Domain], sizes: Mapping[str, int]) -> Bounds:
    """An interval that holds every entry of the value, given the domains of its leaves."""
    table: dict[int, Bounds] = {}
    for node in walk(root):
        table[id(node)] = _of(node, [table[id(a)] for a in node.args], domains, sizes)
    return table[id(root)]


def is_decay(root: Expr, domains: Mapping[str, Domain], sizes: Mapping[str, int]) -> tuple[bool, bool]:
    """Whether a factor is proved positive, and proved at most one."""
    low, high, open_low, _ = bounds(root, domains, sizes)
    return low > 0 or (low == 0 and open_low), high <= 1


def _monotone(f: Callable[[float], float], x: Bounds) -> Bounds:
    return (_safe(f, x[0]), _safe(f, x[1]), x[2], x[3])


def _safe(f: Callable[[float], float], x: float) -> float:
    try:
        return f(x)
    except (OverflowError, ValueError):
        return inf if x > 0 else -inf


def _exp(x: float) -> float:
    return 0.0 if x == -inf else exp(x)


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x > -700 else 0.0


def _softplus(x: float) -> float:
    return x if x > 700 else log1p(exp(x))


def _log(x: float) -> float:
    return log(x) if x > 0 else -inf


def _add(x: Bounds, y: Bounds) -> Bounds:
    return (x[0] + y[0], x[1] + y[1], x[2] or y[2], x[3] or y[3])


def _neg(x: Bounds) -> Bounds:
    return (-x[1], -x[0], x[3], x[2])


def _mul(x: Bounds, y: Bounds) -> Bounds:
    corners = []
    for a, oa in ((x[0], x[2]), (x[1], x[3])):
        for b, ob in ((y[0], y[2]), (y[1], y[3])):
            product = 0.0 if a == 0 or b == 0 else a * b
            closed_zero = (a == 0 and not oa) or (b == 0 and not ob)
            corners.append((product, (oa or ob) and not (product == 0 and closed_zero)))
    low, high = min(c[0] for c in corners), max(c[0] for c in corners)
    return (low, high, all(o for v, o in corners if v == low), all(o for v, o in corners if v == high))


def _power(x: Bounds, n: Bounds) -> Bounds:
    if x[0] > 0 and x[0] != inf:
        pairs = [(b, e) for b in x[:2] if b != inf for e in n[:2] if abs(e) != inf]
        ends = [_exp(e * _log(b)) if e * _log(b) < 700 else inf for b, e in pairs]
        if ends and x[1] != inf and abs(n[0]) != inf:
            if n[1] == inf:
                ends.append(inf if x[1] > 1 else 0.0)
            return (min(ends), max(ends), False, False)
    if x[0] > 0 and x[0] == x[1] > 1 and n[0] == -inf:
        return (0.0, x[0] ** n[1], True, n[3])
    return EVERYTHING if x[0] < 0 else (0.0, inf, False, True)


def _of(node: Expr, args: list[Bounds], domains: Mapping[str, Domain], sizes: Mapping[str, int]) -> Bounds:
    match node.op.name:
        case "const":
            value = float(Fraction(node.attr))
            return (value, value, False, False)
        case "constant":
            value = {"pi": 3.141592653589793, "inf": inf}[str(node.attr)]
            return (value, value, False, False)
        case "size":
            n = sizes.get(str(node.attr))
            return (float(n), float(n), False, False) if n else (1.0, inf, False, True)
        case "iota":
            return (0.0, inf, False, True)
        case "var":
            known = domains.get(node.name)
            if node.name in ("head", "depth", "position"):
                return (0.0, inf, False, True)
            return (known.low, known.high, known.open_low, known.open_high) if known else EVERYTHING
        case "exp":
            return _monotone(_exp, args[0])
        case "log":
            return _monotone(_log, args[0]) if args[0][0] >= 0 else EVERYTHING
        case "sigmoid":
            return _monotone(_sigmoid, args[0])
        case "softplus":
            return _monotone(_softplus, args[0])
        case "tanh":
            low, high, ol, oh = args[0]
            return (max(-1.0, 2 * _sigmoid(2 * low) - 1), 2 * _sigmoid(min(2 * high, 700)) - 1, ol, oh)
        case "relu":
            return (max(args[0][0], 0.0), max(args[0][1], 0.0), False, args[0][3])
        case "abs":
            return (0.0, max(abs(args[0][0]), abs(args[0][1])), False, args[0][2] and args[0][3])
        case "neg":
            return _neg(args[0])
        case "add":
            return _add(*args)
        case "sub":
            return _add(args[0], _neg(args[1]))
        case "mul":
            return _mul(*args)
        case "div":
            low, high, ol, oh = args[1]
            if low > 0 or (low == 0 and ol):
                return _mul(args[0], (1 / high if high != inf else 0.0, 1 / low if low else inf, oh, ol))
            return EVERYTHING
        case "power":
            return _power(*args)
        case "maximum":
            (a, b, oa, ob), (c, d, oc, od) = args
            return (max(a, c), max(b, d), oa if a > c else oc if c > a else oa and oc, ob if b > d else od if d > b else ob and od)
        case "where":
            (a, b, oa, ob), (c, d, oc, od) = args[1:]
            return (min(a, c), max(b, d), oa if a < c else oc if c < a else oa and oc, ob if b > d else od if d > b else ob and od)
        case "broadcast" | "rename" | "select" | "stop_gradient" | "flatten" | "unflatten" | "spread" | "piece":
            return args[0]
    return EVERYTHING
