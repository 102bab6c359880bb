"""How likely it is that two different programs agree at a random point.

A value is a rational function of what was drawn and of the exponentials and oracles in it. Two such functions of degree
d that differ agree at a random point with a probability of at most d / l (Schwartz, Zippel), exponentials g^a and g^b of
different exponents of degree e with at most e / l for each pair. Degrees are bounded here along the recurrence.

A random point is one whose real inputs are drawn in all entries, given its whole numbers: the first and every second one after it. At
the others some entries are what the text compares them with (`seqc.proof.reach.equalled`), and the bound says nothing of those. Points are
drawn apart: all random ones hide a difference with the product of their chances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import log2, prod
from typing import Any

from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.recurrence import Recurrence
from seqc.ir.rules import extent
from seqc.proof.field import L

OPAQUE = ("exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "softplus", "erf", "expm1", "log1p", "floor", "ceil", "decay", "modulo")
SUMS = ("add", "sub", "where", "maximum", "stack", "concat", "append")


@dataclass(frozen=True)
class Degree:
    """Of a numerator, and the factors of the denominator, each so many times."""

    top: int
    below: Counter[Any] = field(default_factory=Counter)


@dataclass
class Degrees:
    """Bounds for nodes. factors: what was divided by, with its degree and its axes. begin: the first token's position, if it is known."""

    sizes: Mapping[str, int]
    factors: dict[Any, tuple[int, tuple[str, ...]]]
    opaque: int = 0
    deepest: int = 1
    begin: int | None = None

    def count(self, axes: Iterable[str]) -> int:
        return prod(extent(self.sizes, a) for a in axes)

    def whole(self, x: Degree) -> int:
        """Numerator and denominator together."""
        return x.top + self._of(x.below)

    def _of(self, below: Counter[Any]) -> int:
        return sum(self.factors[key][0] * n for key, n in below.items())

    def add(self, x: Degree, y: Degree) -> Degree:
        below = x.below | y.below
        return Degree(max(x.top + self._of(below - x.below), y.top + self._of(below - y.below)), below)

    def mul(self, x: Degree, y: Degree) -> Degree:
        return Degree(x.top + y.top, x.below + y.below)

    def div(self, x: Degree, y: Degree, key: Any, axes: tuple[str, ...]) -> Degree:
        shared = x.below & y.below
        self.factors[key] = (y.top, axes)
        return Degree(x.top + self._of(y.below - shared), (x.below - shared) + Counter([key]))

    def summed(self, x: Degree, axes: Iterable[str]) -> Degree:
        """Summed over axes: a factor that varies along them comes once per term."""
        gone = set(axes)
        more = Counter({k: n * (self.count(gone & set(self.factors[k][1])) - 1) for k, n in x.below.items()})
        return Degree(x.top + self._of(+more), x.below + more)

    def node(self, node: Expr, args: list[Degree], token: int) -> Degree:
        """The bound of a node that is no leaf."""
        name = node.op.name
        if name in OPAQUE:
            self.opaque += self.count(node.axes)
            self.deepest = max(self.deepest, *map(self.whole, args))
        if name in OPAQUE or name == "compare":
            return Degree(1)
        if name == "where" and (first := self._is_first(node.args[0], token)) is not None:
            return args[1 if first else 2]
        if name in SUMS:
            return reduce(self.add, [a for a, e in zip(args, node.args, strict=True) if e.type.dtype != "bool"])
        match name:
            case "mul":
                return self.mul(*args)
            case "div":
                return self.div(args[0], args[1], (token, id(node.args[1])), node.args[1].axes)
            case "power":
                return self._power(node, args[0], token)
            case "contract" | "decayed" | "convolve" | "correlate":
                have = dict.fromkeys(a for e in node.args for a in e.axes)
                along = node.attr[:1] if name in ("convolve", "correlate") else ()
                return self.summed(reduce(self.mul, args), (*along, *(a for a in have if a not in node.axes)))
            case "apply_inverse":
                return self.summed(self.mul(args[1], args[2]), (str(node.attr[1]),))
            case "cumsum" | "max_over" | "collect":
                return self.summed(args[0], node.args[0].axes)
            case "solve" | "unit_lower_inverse":
                return self._eliminated(node, args, token)
        return max(args, key=self.whole)

    def _is_first(self, condition: Expr, token: int) -> bool | None:
        """Whether a block of tokens begins here, for a condition that asks this."""
        if self.begin is None or condition.op.name != "compare" or condition.args[0].op.name != "modulo":
            return None
        (count, every), zero = condition.args[0].args, condition.args[1]
        known = count is ops.var("position") and every.op.name == "const" and ops.is_zero(zero) and condition.attr == "eq"
        return (self.begin + token) % int(every.attr) == 0 if known else None

    def _power(self, node: Expr, x: Degree, token: int) -> Degree:
        exponent = node.args[1].attr if node.args[1].op.name == "const" else 1
        n = max(1, abs(int(exponent)))
        raised = reduce(self.mul, [x] * n)
        return self.div(Degree(0), raised, (token, id(node)), node.axes) if exponent < 0 else raised

    def _eliminated(self, node: Expr, args: list[Degree], token: int) -> Degree:
        """Cramer's rule: minors over the determinant, of a matrix whose denominators are cleared."""
        n = self.count((str(node.attr[0]),))
        cleared = self.summed(args[0], node.args[0].axes)
        determinant = Degree(n * cleared.top)
        right = reduce(self.mul, args[1:], Degree(0))
        minors = self.mul(Degree((n - 1) * cleared.top + self._of(cleared.below)), self.summed(right, node.args[-1].axes))
        return self.div(minors, determinant, (token, id(node)), tuple(a for a in node.axes if a not in node.attr))


def log2_error(rec: Recurrence, tokens: int, sizes: Mapping[str, int], begin: int | None = None) -> float:
    """The bound's binary logarithm for a run of so many tokens, forward and its first derivative, at one point; 0 if vacuous."""
    degrees = Degrees(sizes, {}, begin=begin)
    state = {s.name: Degree(1) for s in rec.states}
    roots = [*(s.next for s in rec.states), *(o.value for o in rec.outputs)]
    worst = 1
    for token in range(tokens):
        found: dict[int, Degree] = {}
        for node in walk(*roots):
            args = [found[id(a)] for a in node.args]
            leaf = state.get(node.name, Degree(1)) if node.op.name == "var" else Degree(0)
            found[id(node)] = degrees.node(node, args, token) if args else leaf
        state = {s.name: found[id(s.next)] for s in rec.states}
        worst = max(worst, *(degrees.whole(found[id(r)]) for r in roots))
    # A derivative of u / v has degree 2 (u + v) at most, and the other side of the comparison as much again.
    return min(0.0, round(log2(4 * worst + degrees.opaque**2 * degrees.deepest) - log2(L.value), 1))
