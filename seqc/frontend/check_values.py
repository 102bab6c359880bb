"""Values during a check: an IR node with its axes in the order of the text, and the rules that combine two of them.

An axis of a node is an identity and, for the second and later one of the same identity, primes: `H[K, K]` has K and K'.
An identity is a size's name; a tilde marks one that must not meet it (an index that is mapped over). Axes of the node
that are not in `axes` are mapped over: nothing in the text at hand can see them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from seqc.ir import ops
from seqc.ir.expr import Expr


@dataclass(frozen=True, slots=True)
class Value:
    """A node, the axes that the text sees, and, for an index, the size that it counts and its whole number."""

    expr: Expr
    axes: tuple[str, ...] = ()
    counts: str | None = None
    whole: int | None = None
    binds: str | None = None  # the mapped axis that a binder's index runs along

    @property
    def mapped(self) -> tuple[str, ...]:
        return tuple(a for a in self.expr.axes if a not in self.axes)

    @property
    def dtype(self) -> str:
        return self.expr.type.dtype


class AxisError(Exception):
    """Two values whose axes do not fit: `code` and the names that the message needs."""

    def __init__(self, code: str, *names: str):
        self.code, self.names = code, names
        super().__init__(code)


def identity(axis: str) -> str:
    """K for K and K', K~ for K~ and K~'."""
    return axis.rstrip("'")


def shown(axes: Iterable[str]) -> tuple[str, ...]:
    """Axes as the text writes them."""
    return tuple(ops.base(a) for a in axes)


def canonical_names(identities: Iterable[str]) -> tuple[str, ...]:
    """Node axes for a list of identities: the second K is K'."""
    names: list[str] = []
    for i in identities:
        name = identity(i)
        while name in names:
            name += "'"
        names.append(name)
    return tuple(names)


def relabel(expr: Expr, table: Mapping[str, str]) -> Expr:
    """The node with axes renamed; an index is made anew instead."""
    table = {a: b for a, b in table.items() if a in expr.axes and a != b}
    if not table:
        return expr
    if expr.op.name == "iota":
        return ops.iota(table[expr.axes[0]])
    return ops.rename(expr, table)


def ordered(expr: Expr, axes: Sequence[str]) -> Value:
    """A value whose visible axes are the node's `axes` in that order, renamed to the canonical names."""
    names = canonical_names(axes)
    return Value(relabel(expr, dict(zip(axes, names, strict=True))), names)


def number(value: int) -> Value:
    return Value(ops.number(value), (), None, value)


def scalar(value: Value) -> bool:
    return not value.axes


def _occurrences(axes: Iterable[str]) -> Counter[str]:
    """How often each identity occurs."""
    return Counter(map(identity, axes))


def meet(x: tuple[str, ...], y: tuple[str, ...]) -> tuple[str, ...]:
    """The visible axes of an elementwise result, or AxisError."""
    if not x or not y:
        return x or y
    inside = set(y) <= set(x)
    if not inside and not set(x) <= set(y):
        raise AxisError("silent-outer-product")
    left, right = _occurrences(x), _occurrences(y)
    for name in (*left, *right):
        if left[name] != right[name] and max(left[name], right[name]) > 1:
            raise AxisError("ambiguous-axis", ops.base(name))
    return x if inside else y


def together(*values: Value) -> tuple[str, ...]:
    """The visible axes when values are combined elementwise."""
    axes: tuple[str, ...] = ()
    for v in values:
        axes = meet(axes, v.axes)
    return axes


def outer(values: Sequence[Value]) -> Value:
    """The product of all with the axes of all, in order."""
    names = canonical_names(a for v in values for a in v.axes)
    exprs: list[Expr] = []
    start = 0
    for v in values:
        exprs.append(relabel(v.expr, dict(zip(v.axes, names[start : start + len(v.axes)], strict=True))))
        start += len(v.axes)
    mapped = dict.fromkeys(a for v in values for a in v.mapped)
    return Value(ops.contract(exprs, (*mapped, *names)), names)


def join(x: Value, y: Value) -> Value:
    """`x @ y`: the last axis of x against the first of y."""
    if scalar(x) or scalar(y):
        raise AxisError("axis-mismatch", *(shown(x.axes[-1:]) or ("",)), *(shown(y.axes[:1]) or ("",)))
    last, first = x.axes[-1], y.axes[0]
    if identity(last) != identity(first):
        raise AxisError("axis-mismatch", ops.base(last), ops.base(first))
    left, right = x.axes[:-1], y.axes[1:]
    mapped = tuple(dict.fromkeys((*x.mapped, *y.mapped)))
    if last == first and not set(left) & set(right) and last not in (*left, *right):
        return ordered(ops.contract((x.expr, y.expr), (*mapped, *left, *right)), (*left, *right))
    names = canonical_names((*left, *right))
    through = next(a for a in chain((last, first), _primed(identity(last))) if a not in names)
    x_table = {**dict(zip(left, names, strict=False)), last: through}
    y_table = {**dict(zip(right, names[len(left) :], strict=True)), first: through}
    product = ops.contract((relabel(x.expr, x_table), relabel(y.expr, y_table)), (*mapped, *names))
    return Value(product, names)


def _primed(name: str) -> Iterable[str]:
    while True:
        yield name
        name += "'"


def without(value: Value, gone: Sequence[str], expr: Expr) -> Value:
    """The value of a reduction over `gone`."""
    return ordered(expr, tuple(a for a in value.axes if a not in gone))


def fit(value: Value, axes: Sequence[str]) -> Expr:
    """The node with exactly `axes` (declared, canonical) and what is mapped over; AxisError if it has one more."""
    for a in value.axes:
        if a not in axes:
            raise AxisError("axis-mismatch", ops.base(a))
    declared, own = _occurrences(axes), _occurrences(value.axes)
    for name, count in own.items():
        if count != declared[name]:
            raise AxisError("ambiguous-axis", ops.base(name))
    want = (*value.mapped, *axes)
    return value.expr if value.expr.axes == want else ops.broadcast(value.expr, want)


def plain(value: Value) -> Value:
    """The value without what it is as an index."""
    return replace(value, counts=None, whole=None, binds=None)
