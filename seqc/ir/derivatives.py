"""Derivatives of the ops: a node and its adjoint `g` -> an adjoint per argument, None where there is none.

A contribution may carry more axes than its argument (which was broadcast) or fewer (it is constant along them):
`seqc.passes.differentiate` fits it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from seqc.diagnostics import InternalError
from seqc.ir import ops
from seqc.ir.adjoint import adjoints, fit
from seqc.ir.expr import Expr, Mask
from seqc.ir.lift import lift
from seqc.ir.ops import Adjoints
from seqc.ir.rules import union


def none(e: Expr, g: Expr) -> Adjoints:
    return tuple(None for _ in e.args)


def through(derivative: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Adjoints]:
    """An elementwise function whose derivative is given in its argument and its value; of a complex one, the conjugate counts."""
    return lambda e, g: (ops.mul(g, ops.conj(derivative(e.args[0], e))),)


def full(g: Expr, axes: tuple[str, ...]) -> Expr:
    """The adjoint with all of the node's axes: a constant one may lack some."""
    return ops.broadcast(g, (*(a for a in g.axes if a not in axes), *axes))


def mul(e: Expr, g: Expr) -> Adjoints:
    x, y = e.args
    return ops.mul(g, ops.conj(y)), ops.mul(g, ops.conj(x))


def div(e: Expr, g: Expr) -> Adjoints:
    y = ops.conj(e.args[1])
    return ops.div(g, y), ops.neg(ops.div(ops.mul(g, ops.conj(e)), y))


def power(e: Expr, g: Expr) -> Adjoints:
    x, n = e.args
    towards_n = None if n.op.name in ("const", "size") else ops.mul(g, ops.conj(ops.mul(e, ops.log(x))))
    return ops.mul(g, ops.conj(ops.mul(n, ops.power(x, ops.sub(n, ops.number(1)))))), towards_n


def maximum(e: Expr, g: Expr) -> Adjoints:
    first = ops.compare("ge", *e.args)
    return ops.where(first, g, ops.number(0)), ops.where(first, ops.number(0), g)


def where(e: Expr, g: Expr) -> Adjoints:
    condition = e.args[0]
    return None, ops.where(condition, g, ops.number(0)), ops.where(condition, ops.number(0), g)


def max_over(e: Expr, g: Expr) -> Adjoints:
    assert isinstance(e.attr, tuple)
    hit = ops.where(ops.compare("eq", e.args[0], e), ops.number(1), ops.number(0))
    return (ops.mul(g, ops.div(hit, ops.sum_over(hit, map(str, e.attr)))),)


def contract(e: Expr, g: Expr) -> Adjoints:
    def towards(i: int) -> Expr:
        others = (g, *(ops.conj(a) for j, a in enumerate(e.args) if j != i))
        have = union(tuple(a.type for a in others))
        return ops.contract(others, tuple(a for a in e.args[i].axes if a in have))

    return tuple(towards(i) for i in range(len(e.args)))


def rename(e: Expr, g: Expr) -> Adjoints:
    return (ops.rename(g, {new: old for old, new in e.attr}),)


def cumsum(e: Expr, g: Expr) -> Adjoints:
    axis, reverse = e.attr
    return (ops.cumsum(full(g, e.axes), axis, not reverse),)


def convolve(e: Expr, g: Expr) -> Adjoints:
    axis, _ = e.attr
    g = full(g, e.axes)
    return tuple(ops.correlate(g, other, axis, _fitting(x, g, other)) for x, other in (e.args, e.args[::-1]))


def correlate(e: Expr, g: Expr) -> Adjoints:
    axis, _ = e.attr
    x, y = e.args
    g = full(g, e.axes)
    return ops.convolve(g, y, axis, _fitting(x, g, y)), ops.correlate(x, g, axis, _fitting(y, x, g))


def _fitting(x: Expr, *others: Expr) -> tuple[str, ...]:
    have = union(tuple(o.type for o in others))
    return tuple(a for a in x.axes if a in have)


def shift(e: Expr, g: Expr) -> Adjoints:
    axis, by = e.attr
    return (ops.shift(full(g, e.axes), axis, -by),)


def opposite(name: str) -> Callable[[Expr, Expr], Adjoints]:
    """A rearrangement whose transpose is another op with the same attribute."""
    return lambda e, g: (ops.TABLE[name].build((full(g, e.axes),), e.attr),)


def inverse(e: Expr, g: Expr) -> Adjoints:
    """T = (I + A)^-1: dA = -T^T dT T^T, strictly lower."""
    row, column = e.attr
    x, y = f"{row}~", f"{column}~"
    left, right = ops.rename(e, {row: x, column: row}), ops.rename(e, {row: column, column: y})
    inner = ops.rename(full(g, e.axes), {row: x, column: y})
    half = ops.contract((left, inner), tuple(y if a == column else a for a in e.axes))
    return (ops.neg(ops.masked(ops.contract((half, right), e.axes), Mask(row, column))),)


def apply_inverse(e: Expr, g: Expr) -> Adjoints:
    """y = (I + A)^-1 x: dx = (I + A)^-T dy, dA = -dx y^T, strictly lower. The inverse is a function of A, whose derivative this is."""
    row, column = e.attr
    A, inverse, _ = e.args
    g = full(g, e.axes)
    turned = ops.contract((inverse, g), tuple(column if a == row else a for a in e.axes))
    d_A = ops.contract((ops.rename(turned, {column: row}), ops.rename(e, {row: column})), A.axes)
    return ops.neg(ops.masked(d_A, Mask(row, column))), None, ops.rename(turned, {column: row})


def solve(e: Expr, g: Expr) -> Adjoints:
    row, column = e.attr
    adjoint = ops.solve(e.args[0], full(g, e.axes), column, row)
    return ops.neg(ops.contract((adjoint, e), e.args[0].axes)), adjoint


def decay(e: Expr, g: Expr) -> Adjoints:
    mask = e.attr
    assert isinstance(mask, Mask)
    d_upper = ops.contract((g, e), tuple(a for a in e.axes if a != mask.column))
    return d_upper, ops.neg(ops.contract((g, e), tuple(a for a in e.axes if a != mask.row)))


def decayed(e: Expr, g: Expr) -> Adjoints:
    """Closed in the family: dL = x * dx and dM = -y * dy for the factors x[row, k] and y[column, k], one of which may be the result."""
    _, mask = e.attr
    assert isinstance(mask, Mask)
    first, second, upper, lower = e.args
    g = full(g, e.axes)
    d_first = ops.decayed(g, second, upper, lower, first.axes, mask)
    d_second = ops.decayed(g, first, upper, lower, second.axes, mask)
    values = ((first, d_first), (second, d_second), (e, g))
    x, dx = next(v for v in values if mask.row in v[0].axes and mask.column not in v[0].axes)
    y, dy = next(v for v in values if mask.column in v[0].axes and mask.row not in v[0].axes)
    return d_first, d_second, ops.mul(x, dx), ops.neg(ops.mul(y, dy))


def decayed_solve(e: Expr, g: Expr) -> Adjoints:
    """u = (I + N)^-1 r with N_ij = P_ij exp(L_i - M_j): dr solves the transposed system, dN = -dr u^T, N u = r - u."""
    mask, transposed = e.attr
    assert isinstance(mask, Mask)
    P, right, upper, lower = e.args
    here, there = (mask.column, mask.row) if transposed else (mask.row, mask.column)
    g = full(g, e.axes)
    d_right = ops.rename(ops.decayed_solve(P, ops.rename(g, {here: there}), upper, lower, mask, not transposed), {there: here})
    pair = (ops.rename(e, {here: mask.row}), ops.rename(d_right, {here: mask.column})) if transposed else (
        ops.rename(d_right, {here: mask.row}), ops.rename(e, {here: mask.column}))  # fmt: skip
    d_P = ops.neg(ops.decayed(*pair, upper, lower, P.axes, mask))
    of_right, of_adjoint = ops.mul(d_right, ops.sub(e, right)), ops.mul(e, ops.sub(g, d_right))
    if transposed:
        return d_P, d_right, ops.rename(ops.neg(of_adjoint), {here: mask.row}), ops.neg(of_right)
    return d_P, d_right, of_right, ops.rename(of_adjoint, {here: mask.column})


def strict_solve(e: Expr, g: Expr) -> Adjoints:
    """u = rule(r), r = right - P u: the adjoint of r solves the transposed system, with the rule's pull-back for a rule."""
    mask, back, rule, leaves = e.attr
    assert isinstance(mask, Mask)
    P, right, *given = e.args
    here, there = (mask.column, mask.row) if back else (mask.row, mask.column)
    there_of = partial(ops.rename, table={here: there})
    here_of = partial(ops.rename, table={there: here})

    g = full(g, e.axes)
    found = ops.sub(right, ops.contract((P, there_of(e)), e.axes))
    seed = ops.var(f"adjoint{len(leaves)}", rule.axes)  # none of the leaves: each derivative has one more
    pulled = tuple(fit(x, leaf.axes) for x, leaf in zip(adjoints(((rule, seed),), leaves), leaves, strict=True))
    values = (found, *given)
    solved = ops.strict_solve(P, there_of(g), map(there_of, values), mask, pulled[0], (seed, *leaves), not back)
    d_right = here_of(solved)
    d_u = ops.sub(g, here_of(ops.contract((P, d_right), solved.axes)))
    d_P = ops.neg(ops.masked(ops.contract((d_right, there_of(e)), P.axes), mask))
    table = {seed: d_u, **dict(zip(leaves, values, strict=True))}
    return d_P, d_right, *lift(pulled[1:], table)


def stack(e: Expr, g: Expr) -> Adjoints:
    axis = e.attr[0]
    return tuple(ops.select(g, axis, i) if axis in g.axes else g for i in range(len(e.args)))


def concat(e: Expr, g: Expr) -> Adjoints:
    axis, parts = e.attr
    g = full(g, e.axes)
    return tuple(ops.piece(g, axis, parts, i) for i in range(len(e.args)))


def piece(e: Expr, g: Expr) -> Adjoints:
    axis, parts, which = e.attr
    g = full(g, e.axes)
    rest = tuple(a for a in g.axes if a != parts[which])
    return (ops.concat((g if i == which else ops.broadcast(ops.number(0), (p, *rest)) for i, p in enumerate(parts)), axis, parts),)


def append(e: Expr, g: Expr) -> Adjoints:
    axis = str(e.attr[0])
    g = full(g, e.axes)
    return ops.TABLE["drop_last"].build((g,), (axis,)), ops.select(g, axis, -1)


def drop_last(e: Expr, g: Expr) -> Adjoints:
    return (ops.append(full(g, e.axes), ops.number(0), e.attr[0]),)


def implicit(e: Expr, g: Expr) -> Adjoints:
    raise InternalError("an implicit value has no derivative")
