"""Small random Programs with Maps and Carries in both directions, and the finite differences of what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from seqc.ir import ops
from seqc.ir.execute import execute
from seqc.ir.expr import Expr
from seqc.ir.interp import Reals
from seqc.ir.ops import var
from seqc.ir.program import CHUNKS, TOKENS, Carried, Carry, Equation, Map, Program
from seqc.ir.rules import extent

SIZES = {CHUNKS: 3, TOKENS: 4, "K": 2, "V": 3}
Array = np.ndarray
W = var("W", ("K", "K'"))
INPUTS = (var("x", (CHUNKS, "K")), var("u", (CHUNKS,)), var("b", ("K",)), W, var("s0", ("K",)), var("m0"))


class Grower:
    """Random expressions over a pool of values."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def pick(self, pool: Sequence[Expr]) -> Expr:
        return pool[int(self.rng.integers(len(pool)))]

    def one(self, pool: Sequence[Expr]) -> Expr:
        """One bounded op over values of the pool."""
        x, y = self.pick(pool), self.pick(pool)
        kind = int(self.rng.integers(8))
        if kind == 0 and "K" in x.axes:
            return ops.rename(ops.contract((x, W), (*(a for a in x.axes if a != "K"), "K'")), {"K'": "K"})
        if kind == 1 and "K" in x.axes:
            return ops.broadcast(ops.sum_over(x, ("K",)), (*(a for a in x.axes if a != "K"), "K"))
        if kind == 2:
            return ops.where(ops.compare("gt", x, ops.number(0)), x, ops.mul(y, ops.number(2)))
        if kind == 3:
            return ops.exp(ops.neg(ops.mul(x, x)))
        return (ops.mul, ops.add, ops.sub, lambda a, b: ops.unary("tanh", ops.add(a, b)))[kind % 4](x, y)

    def grow(self, pool: Sequence[Expr], count: int) -> list[Expr]:
        values = list(pool)
        for _ in range(count):
            values.append(self.one(values))
        return values


def fitted(e: Expr, axes: tuple[str, ...]) -> Expr:
    """A value with exactly these axes, bounded."""
    extra = tuple(a for a in e.axes if a not in axes)
    return ops.broadcast(ops.unary("tanh", ops.sum_over(e, extra)), axes)


def carry(g: Grower, reverse: bool, number: int, seen: Sequence[Expr]) -> Carry:
    """Two carried values along the chunks, each of which may depend on the other, and two equations."""
    s, m = var(f"s{number}_", ("K",)), var(f"m{number}_")
    inner = [var(v.name, (a for a in v.axes if a != CHUNKS)) for v in seen]
    values = g.grow([s, m, *inner], 6)
    carried = (
        Carried(s.name, var("s0", ("K",)), fitted(values[-1], ("K",)), f"s_last{number}"),
        Carried(m.name, ops.mul(var("m0"), ops.number(2)), fitted(values[-2], ()), f"m_last{number}"),
    )
    free = g.grow(inner, 2)[-1]  # never sees the carried values
    emitted = (
        Equation(f"e{number}", fitted(values[-3], ("K",))),
        Equation(f"f{number}", fitted(free, ("K",))),
        Equation(f"start{number}", ops.mul(s, m)),
    )
    return Carry(CHUNKS, reverse, carried, emitted)


def program(seed: int) -> Program:
    """Map, Carry, Map, Carry in the other direction, outputs; some values that nothing needs."""
    g = Grower(np.random.default_rng(seed))
    first = Map(tuple(Equation(f"a{i}", fitted(e, (CHUNKS, "K"))) for i, e in enumerate(g.grow(INPUTS[:3], 3)[-2:])))
    named = [var("a0", (CHUNKS, "K")), var("a1", (CHUNKS, "K")), *INPUTS[:3]]
    one = carry(g, bool(seed % 2), 1, named)
    stacked = [var(n, (CHUNKS, "K")) for n in ("e1", "f1", "start1")]
    second = Map((Equation("h", fitted(g.grow([*stacked, *named], 4)[-1], (CHUNKS, "K"))),))
    two = carry(g, not seed % 2, 2, [var("h", (CHUNKS, "K")), *stacked, var("s_last1", ("K",))])
    outputs = (
        Equation("y", ops.add(var("e2", (CHUNKS, "K")), var("start2", (CHUNKS, "K")))),
        Equation("z", ops.mul(var("m_last1"), ops.add(var("s_last2", ("K",)), var("m_last2")))),
        Equation("p", ops.mul(var("f1", (CHUNKS, "K")), var("u", (CHUNKS,)))),
    )
    return Program("random", INPUTS, (first, one, second, two), outputs)


def draw(leaves: Sequence[Expr], seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {leaf.name: rng.standard_normal([extent(SIZES, a) for a in leaf.axes]) for leaf in leaves}


def run(p: Program, given: Mapping[str, Array]) -> dict[str, Array]:
    return execute(p, Reals, given, SIZES)


def slope(p: Program, given: Mapping[str, Array], seeds: Mapping[str, Array], name: str, direction: Array, step: float = 1e-5) -> float:
    """The derivative of the outputs' sum, weighted by seeds, along a direction of one input: central differences."""
    ends = []
    for sign in (1, -1):
        found = run(p, {**given, name: given[name] + sign * step * direction})
        ends.append(sum(float((np.broadcast_to(found[n], w.shape) * w).sum()) for n, w in seeds.items()))
    return (ends[0] - ends[1]) / (2 * step)
