"""How likely it is that two different programs agree at a random point.

A value is a rational function of what was drawn and of the exponentials and oracles in it. Two such functions of degree
d that differ agree at a random point with a probability of at most d / l (Schwartz, Zippel), exponentials g^a and g^b of
different exponents of degree e with at most e / l for each pair. Degrees are bounded here along the recurrence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log2, prod

from seqc.ir.expr import Expr, walk
from seqc.ir.recurrence import Recurrence
from seqc.proof.field import L

Degree = tuple[int, int]  # of the numerator and of the denominator
OPAQUE = ("exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "softplus", "erf", "expm1", "log1p", "floor", "ceil", "decay", "modulo")
SUMS = ("add", "sub", "where", "maximum", "stack", "concat", "append")


def log2_error(rec: Recurrence, tokens: int, sizes: Mapping[str, int]) -> float:
    """The bound's binary logarithm for a run of so many tokens, forward and its first derivative, at one point."""
    state: dict[str, Degree] = {s.name: (1, 0) for s in rec.states}
    roots = [*(s.next for s in rec.states), *(o.value for o in rec.outputs)]
    worst, deepest, exponentials = 1, 1, 0
    for _ in range(tokens):
        found: dict[int, Degree] = {}
        for node in walk(*roots):
            args = [found[id(a)] for a in node.args]
            found[id(node)] = _degree(node, args, state, sizes)
            if node.op.name in OPAQUE:
                exponentials += _count(node.axes, sizes)
                deepest = max(deepest, *map(sum, args))
        state = {s.name: found[id(s.next)] for s in rec.states}
        worst = max(worst, *(sum(found[id(r)]) for r in roots))
    # A derivative of u/v has degree 2 (u + v) at most, and the other side of the comparison as much again.
    return round(log2(4 * worst + exponentials**2 * deepest) - log2(L.value), 1)


def _count(axes: Iterable[str], sizes: Mapping[str, int]) -> int:
    return prod(sizes.get(a.rstrip("'~"), 1) for a in axes)


def _degree(node: Expr, args: list[Degree], state: Mapping[str, Degree], sizes: Mapping[str, int]) -> Degree:
    name = node.op.name
    if name == "var":
        return state.get(node.name, (1, 0))
    if not args:
        return 0, 0
    if name in OPAQUE or name == "compare":
        return 1, 0
    if name == "mul":
        return args[0][0] + args[1][0], args[0][1] + args[1][1]
    if name == "div":
        return args[0][0] + args[1][1], args[0][1] + args[1][0]
    if name in SUMS:
        return _sum([a for a, e in zip(args, node.args, strict=True) if e.type.dtype != "bool"])
    if name == "power":
        exponent = node.args[1].attr if node.args[1].op.name == "const" else 1
        n = max(1, abs(int(exponent)))  # type: ignore[arg-type]
        return n * sum(args[0]), n * sum(args[0])
    if name in ("contract", "decayed"):
        terms = _count(dict.fromkeys(a for e in node.args for a in e.axes if a not in node.axes), sizes)
        return _terms((sum(a[0] for a in args[:4]), sum(a[1] for a in args)), terms)
    if name in ("solve", "unit_lower_inverse"):
        n = _count((str(node.attr[0]),), sizes)  # type: ignore[index]
        matrix = _terms(args[0], n * n)
        return n * sum(matrix) + sum(map(sum, args[1:])), n * sum(matrix)
    if name in ("cumsum", "max_over", "collect"):
        return _terms(args[0], _count(node.args[0].axes, sizes))
    return max(args)


def _terms(one: Degree, count: int) -> Degree:
    """A sum of so many terms over a common denominator."""
    return one[0] + (count - 1) * one[1], count * one[1]


def _sum(args: list[Degree]) -> Degree:
    total = args[0]
    for n, d in args[1:]:
        total = (max(total[0] + d, n + total[1]), total[1] + d)
    return total
