"""What each op means, written once over an `Arithmetic`: float64, the prime field and dual numbers all run this file.

A value's last dimensions are its node's axes, in order. An arithmetic offers `structural` (rearrange components without
arithmetic), `rational`, `named`, `integers`, `unary`, `binary`, `power`, `compare`, `where`, `sum`, `cumsum`, `maximum_over`,
`contract`, `exp_masked`, `solve`, `unit_lower_inverse`, and `sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqc.diagnostics import InternalError
from seqc.ir import ops
from seqc.ir.expr import Expr, Mask
from seqc.ir.lift import lift
from seqc.ir.rules import extent

Array = NDArray[Any]
Axes = Sequence[str]


def length(A: Any, axis: str) -> int:
    """The length of an axis."""
    return extent(A.sizes, axis)


def remembered(A: Any, what: Any, args: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What is made of the arguments, once for each of them if the arithmetic has a memory: `memo`, which keeps them alive too.

    An arithmetic that remembers parts of what it makes has a `remembered` of its own.
    """
    memo = getattr(A, "memo", None)
    if memo is None:
        own = getattr(A, "remembered", None)
        return make() if own is None else own(what, args, make)
    key = (what, *args)
    found = memo.get(key)
    if found is None:
        found = memo[key] = make()
    return found


def arrange(A: Any, value: Any, have: Axes, want: Axes) -> Any:
    """The value with its dimensions in the order of `want`; axes that it lacks have length 1."""
    if tuple(have) == tuple(want):
        return value

    def move(x: Array) -> Array:
        order = [have.index(a) for a in want if a in have]
        lead = x.ndim - len(have)
        x = x.transpose((*range(lead), *(lead + i for i in order)))
        shape = iter(x.shape[lead:])
        return x.reshape((*x.shape[:lead], *(next(shape) if a in have else 1 for a in want)))

    return remembered(A, ("arranged", tuple(have), tuple(want)), (value,), lambda: A.structural(move, value))


def _aligned(A: Any, e: Expr, args: tuple[Any, ...]) -> list[Any]:
    want = e.axes
    return [v if a.type.axes == want else arrange(A, v, a.axes, want) for v, a in zip(args, e.args, strict=True)]


def _at(e: Expr, axis: str) -> int:
    """The dimension of an axis, from the end."""
    return e.axes.index(axis) - len(e.axes)


def keeps(mask: Mask, rows: int, columns: int) -> Array:
    """The mask as booleans [rows, columns]."""
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
    return np.asarray(j // mask.per_column < (i // mask.per_row) * mask.step + mask.offset)


def var(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    raise InternalError(f"`{e.name}` has no value")


def const(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.rational(e.attr)


def constant(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.named(e.attr)


def size(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.rational(Fraction(length(A, str(e.attr))))


def iota(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.integers(np.arange(length(A, e.axes[0])))


def eye(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.integers(np.eye(*(length(A, a) for a in e.axes), dtype=np.int64))


def unary(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.unary(e.op.name, args[0])


def binary(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.binary(e.op.name, *_aligned(A, e, args))


def complex_(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.complex(*_aligned(A, e, args))


def power(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    exponent = e.args[1].attr if e.args[1].op.name == "const" else None
    return A.power(*_aligned(A, e, args), exponent)


def compare(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.compare(e.attr, *_aligned(A, e, args))


def where(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.where(*_aligned(A, e, args))


def max_over(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.maximum_over(args[0], tuple(_at(e.args[0], str(a)) for a in e.attr))


def contract(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return A.contract(args, [a.axes for a in e.args], e.axes)


def broadcast(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    wide = arrange(A, args[0], e.args[0].axes, e.axes)

    def stretch(x: Array) -> Array:
        lead = x.ndim - len(e.axes)
        shape = (n if a in e.args[0].axes else length(A, a) for a, n in zip(e.axes, x.shape[lead:], strict=True))
        return np.broadcast_to(x, (*x.shape[:lead], *shape))

    return A.structural(stretch, wide)


def rename(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    return args[0]


def cumsum(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    axis, reverse = e.attr
    return A.cumsum(args[0], _at(e, str(axis)), reverse)


def _shifted(x: Array, axis: int, by: int) -> Array:
    x = np.moveaxis(x, axis, 0)
    out = np.zeros_like(x)
    if by >= 0:
        out[by:] = x[: max(len(x) - by, 0)]
    else:
        out[:by] = x[-by:]
    return np.moveaxis(out, 0, axis)


def shift(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    axis, by = e.attr
    return A.structural(lambda x: _shifted(x, _at(e, str(axis)), by), args[0])


def _lags(A: Any, e: Expr) -> tuple[str, range, list[str], list[str]]:
    axis, _ = e.attr
    x, y = e.args
    return str(axis), range(length(A, str(axis))), [a for a in x.axes if a != axis], list(y.axes)


def convolve(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    """Lag by lag: x at the lag times y moved by it."""
    axis, lags, have, other = _lags(A, e)
    total = None
    for lag in lags:
        x = A.structural(lambda v, lag=lag: np.take(v, lag, axis=_at(e.args[0], axis)), args[0])
        y = A.structural(lambda v, lag=lag: _shifted(v, _at(e.args[1], axis), lag), args[1])
        share = A.contract((x, y), [have, other], e.axes)
        total = share if total is None else A.binary("add", total, share)
    return total


def correlate(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    """Lag by lag: the sum of x times y moved by the lag."""
    axis, lags, _, other = _lags(A, e)
    out = [a for a in e.axes if a != axis]
    shares = []
    for lag in lags:
        y = A.structural(lambda v, lag=lag: _shifted(v, _at(e.args[1], axis), lag), args[1])
        shares.append(A.contract((args[0], y), [list(e.args[0].axes), other], out))
    at = _at(e, axis)
    return A.structural(lambda *xs: np.stack(np.broadcast_arrays(*xs), at), *shares)


def select(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    axis, index = e.attr
    return A.structural(lambda x: np.take(x, index, axis=_at(e.args[0], str(axis))), args[0])


def place(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    axis, index = e.attr
    n = length(A, str(axis))

    def put(x: Array) -> Array:
        lead = x.ndim - len(e.args[0].axes)
        out = np.zeros((*x.shape[:lead], n, *x.shape[lead:]), x.dtype)
        out[(slice(None),) * lead + (index,)] = x
        return out

    return A.structural(put, args[0])


def stack(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    rest = e.axes[1:]
    parts = [arrange(A, v, a.axes, rest) for v, a in zip(args, e.args, strict=True)]
    return A.structural(lambda *xs: np.stack(np.broadcast_arrays(*xs), axis=-1 - len(rest)), *parts)


def flatten(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    old, new = e.attr
    have = e.args[0].axes
    want = [b for a in e.axes for b in (old if a == new else (a,))]
    value = arrange(A, args[0], have, want)

    def merge(x: Array) -> Array:
        lead = x.ndim - len(want)
        start = lead + e.axes.index(new)
        return x.reshape((*x.shape[:start], -1, *x.shape[start + len(old) :]))

    return A.structural(merge, value)


def unflatten(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    old, new = e.attr
    lengths = [length(A, str(a)) for a in old]
    start = e.args[0].axes.index(new)

    def split(x: Array) -> Array:
        at = x.ndim - len(e.args[0].axes) + start
        return x.reshape((*x.shape[:at], *lengths, *x.shape[at + 1 :]))

    return A.structural(split, args[0])


def concat(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    _, parts = e.attr
    rest = e.axes[1:]
    values = [arrange(A, v, a.axes, (p, *rest)) for v, a, p in zip(args, e.args, parts, strict=True)]

    def join(*xs: Array) -> Array:
        at = -1 - len(rest)
        shape = np.broadcast_shapes(*((*x.shape[: x.ndim + at], 1, *x.shape[x.ndim + at + 1 :]) for x in xs))
        lead, tail = shape[: len(shape) + at], shape[len(shape) + at + 1 :]
        return np.concatenate([np.broadcast_to(x, (*lead, x.shape[at], *tail)) for x in xs], axis=at)

    return A.structural(join, *values)


def piece(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    axis, parts, which = e.attr
    start = sum(length(A, str(p)) for p in parts[:which])
    indices = np.arange(start, start + length(A, str(parts[which])))
    return A.structural(lambda x: np.take(x, indices, axis=_at(e.args[0], str(axis))), args[0])


def append(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    (axis,) = e.attr
    last = arrange(A, args[1], e.args[1].axes, e.axes)

    def join(x: Array, y: Array) -> Array:
        at = _at(e, str(axis))
        shape = list(x.shape)
        shape[at] = 1
        lead = np.broadcast_shapes(x.shape[: x.ndim - len(e.axes)], y.shape[: y.ndim - len(e.axes)])
        tail = shape[x.ndim - len(e.axes) :]
        x = np.broadcast_to(x, (*lead, *x.shape[x.ndim - len(e.axes) :]))
        return np.concatenate((x, np.broadcast_to(y, (*lead, *tail))), axis=at)

    return A.structural(join, args[0], last)


def drop_last(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    (axis,) = e.attr
    return A.structural(lambda x: np.take(x, np.arange(x.shape[_at(e, str(axis))] - 1), axis=_at(e, str(axis))), args[0])


def spread(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    groups, heads = e.attr
    each = length(A, str(heads)) // length(A, str(groups))
    return A.structural(lambda x: np.repeat(x, each, axis=_at(e, str(heads))), args[0])


def collect(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    groups, _ = e.attr
    n = length(A, str(groups))
    at = _at(e, str(groups))

    def split(x: Array) -> Array:
        d = x.ndim + at
        return np.moveaxis(x.reshape((*x.shape[:d], n, x.shape[d] // n, *x.shape[d + 1 :])), d + 1, -1)

    return A.sum(A.structural(split, args[0]), (-1,))


def _rows_first(A: Any, e: Expr, args: tuple[Any, ...]) -> tuple[Any, Any, list[str]]:
    """Matrix [.., row, column], right side [.., row, rest], and the axes before the last two."""
    row, column = (str(a) for a in e.attr)
    matrix, rhs = e.args
    lead = [a for a in matrix.axes if a not in (row, column)]
    rest = [a for a in rhs.axes if a != row and a not in lead]
    m = arrange(A, args[0], matrix.axes, (*lead, row, column))
    r = arrange(A, args[1], rhs.axes, (*lead, row, *rest))
    return m, r, lead


def solve(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    row, column = (str(a) for a in e.attr)
    m, r, lead = _rows_first(A, e, args)
    rest = [a for a in e.args[1].axes if a != row and a not in lead]

    def pack(x: Array) -> Array:
        return x.reshape((*x.shape[: x.ndim - len(rest)], -1))

    lengths = [length(A, a) for a in rest]
    solution = A.solve(m, A.structural(pack, r))
    out = A.structural(lambda x: x.reshape((*x.shape[:-1], *lengths)), solution)
    return arrange(A, out, (*lead, column, *rest), e.axes)


def masked(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    mask = e.attr
    assert isinstance(mask, Mask)
    order = (*(a for a in e.axes if a not in (mask.row, mask.column)), mask.row, mask.column)
    value = arrange(A, args[0], e.axes, order)
    value = A.structural(lambda x: np.where(keeps(mask, *x.shape[-2:]), x, np.zeros((), x.dtype)), value)
    return arrange(A, value, order, e.axes)


def unit_lower_inverse(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    row, column = (str(a) for a in e.attr)
    order = (*(a for a in e.axes if a not in (row, column)), row, column)
    return arrange(A, A.unit_lower_inverse(arrange(A, args[0], e.axes, order)), order, e.axes)


def apply_inverse(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    row, column = e.attr
    right = tuple(column if a == row else a for a in e.args[2].axes)
    return A.contract(args[1:], [e.args[1].axes, right], e.axes)


def _decay_factor(A: Any, upper: tuple[Any, Axes], lower: tuple[Any, Axes], mask: Mask) -> tuple[Any, Axes]:
    rest = [a for a in dict.fromkeys((*upper[1], *lower[1])) if a not in (mask.row, mask.column)]
    axes = (*rest, mask.row, mask.column)
    difference = A.binary("sub", arrange(A, upper[0], upper[1], axes), arrange(A, lower[0], lower[1], axes))
    return A.exp_masked(difference, mask), axes


def decay(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    mask = e.attr
    assert isinstance(mask, Mask)
    value, axes = _decay_factor(A, (args[0], e.args[0].axes), (args[1], e.args[1].axes), mask)
    return arrange(A, value, axes, e.axes)


def decayed(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    _, mask = e.attr
    assert isinstance(mask, Mask)
    factor, axes = _decay_factor(A, (args[2], e.args[2].axes), (args[3], e.args[3].axes), mask)
    return A.contract((args[0], args[1], factor), [e.args[0].axes, e.args[1].axes, axes], e.axes)


def decayed_solve(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    """Substitution row by row: u_i = r_i - sum of P_ij exp(L_i - M_j) u_j over the columns that row i sees."""
    mask, transposed = e.attr
    assert isinstance(mask, Mask)
    factor, axes = _decay_factor(A, (args[2], e.args[2].axes), (args[3], e.args[3].axes), mask)
    along, other = (mask.column, mask.row) if transposed else (mask.row, mask.column)
    rest = [a for a in e.axes if a != along]
    full = (*rest, along, other)
    matrix = A.binary("mul", arrange(A, args[0], e.args[0].axes, full), arrange(A, factor, axes, full))
    right = arrange(A, args[1], e.args[1].axes, (*rest, along))
    solved: dict[int, Any] = {}
    n = length(A, along)
    for i in reversed(range(n)) if transposed else range(n):
        total = A.structural(lambda x, i=i: x[..., i], right)
        for j, u in solved.items():
            entry = A.structural(lambda x, i=i, j=j: x[..., i, j], matrix)
            total = A.binary("sub", total, A.binary("mul", entry, u))
        solved[i] = total
    stacked = A.structural(lambda *xs: np.stack(np.broadcast_arrays(*xs), -1), *(solved[i] for i in range(n)))
    return arrange(A, stacked, (*rest, along), e.axes)


def strict_solve(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    """Substitution row by row: each row finds its right side and what the rows that it sees have written, and applies the rule."""
    from seqc.ir.interp import evaluate  # which needs `keeps` of this module

    mask, back, rule, leaves = e.attr
    assert isinstance(mask, Mask)
    along, other = (mask.column, mask.row) if back else (mask.row, mask.column)
    own = tuple(leaves[0].axes)
    rest = tuple(a for a in e.axes if a not in (along, *own))
    shape = [length(A, a) for a in (*rest, *own)]

    def whole(x: Array) -> Array:
        return np.broadcast_to(x, (*x.shape[: x.ndim - len(shape)], *shape))

    fronts = (rest, *(tuple(a for a in rest if a in v.axes) for v in e.args[2:]))
    wide = [ops.var(x.name, (*front, *x.axes)) for front, x in zip(fronts, leaves, strict=True)]
    (lifted,) = lift((rule,), dict(zip(leaves, wide, strict=True)))
    sides = [arrange(A, v, a.axes, (*x.axes, along)) for v, a, x in zip(args[1:], e.args[1:], wide, strict=True)]
    matrix = arrange(A, args[0], e.args[0].axes, (*rest, *own, along, other))
    n = length(A, along)
    seen = keeps(mask, n, n).T if back else keeps(mask, n, n)
    solved: dict[int, Any] = {}
    for i in reversed(range(n)) if back else range(n):
        found, *given = (A.structural(lambda x, i=i: x[..., i], side) for side in sides)
        for j in (j for j in solved if seen[i, j]):
            entry = A.structural(lambda x, i=i, j=j: x[..., i, j], matrix)
            found = A.binary("sub", found, A.binary("mul", entry, solved[j]))
        found = A.structural(whole, found)
        (value,) = evaluate(A, (lifted,), {x.name: v for x, v in zip(leaves, (found, *given), strict=True)})
        solved[i] = A.structural(whole, arrange(A, value, lifted.axes, (*rest, *own)))
    stacked = A.structural(lambda *xs: np.stack(np.broadcast_arrays(*xs), -1), *(solved[i] for i in range(n)))
    return arrange(A, stacked, (*rest, *own, along), e.axes)


def implicit(A: Any, e: Expr, args: tuple[Any, ...]) -> Any:
    raise InternalError("an implicit value is solved by the evaluator")
