"""Simplification: arguments and attribute -> a simpler node or None, by identities that hold everywhere on the op's domain."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.rules import union


def _zero(axes: tuple[str, ...]) -> Expr:
    return ops.broadcast(ops.number(0), axes)


def neg(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    (x,) = args
    if ops.is_number(x):
        return ops.number(-x.attr)
    if ops.is_zero(x):
        return x
    return x.args[0] if x.op.name == "neg" else None


def add(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, y = args
    if ops.is_number(x) and ops.is_number(y):
        return ops.number(x.attr + y.attr)
    for one, other in ((x, y), (y, x)):
        if ops.is_zero(one) and one.type.dtype == "real":
            return ops.broadcast(other, union((x.type, y.type)))
    return ops.sub(x, y.args[0]) if y.op.name == "neg" else None


def sub(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, y = args
    if ops.is_number(x) and ops.is_number(y):
        return ops.number(x.attr - y.attr)
    if ops.is_zero(y):
        return ops.broadcast(x, union((x.type, y.type)))
    if ops.is_zero(x):
        return ops.broadcast(ops.neg(y), union((x.type, y.type)))
    return ops.add(x, y.args[0]) if y.op.name == "neg" else None


def mul(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, y = args
    if ops.is_number(x) and ops.is_number(y):
        return ops.number(x.attr * y.attr)
    for one, other in ((x, y), (y, x)):
        if ops.is_zero(one):
            return _zero(union((x.type, y.type)))
        if ops.is_number(one, 1):
            return other
        if ops.is_number(one, -1):
            return ops.neg(other)
        if one.op.name == "neg":
            return ops.neg(ops.mul(one.args[0], other))
        if one.op.name == "broadcast" and ops.is_number(one.args[0]) and set(one.axes) <= set(other.axes):
            return ops.mul(one.args[0], other)
        if ops.is_number(one) and other.op.name == "mul" and ops.is_number(other.args[0]):
            return ops.mul(ops.number(one.attr * other.args[0].attr), other.args[1])
        if one.op.name == "div" and ops.is_number(one.args[0], 1):
            return ops.div(other, one.args[1])
        if ops.is_number(one) and one is y:
            return ops.mul(one, other)  # numbers stand first
    return None


def div(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, y = args
    if ops.is_number(x) and ops.is_number(y) and y.attr != 0:
        return ops.number(Fraction(x.attr) / Fraction(y.attr))
    if ops.is_number(y, 1):
        return x
    return _zero(union((x.type, y.type))) if ops.is_zero(x) else None


def power(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, n = args
    if ops.is_number(n, 1):
        return x
    if ops.is_number(n, 0):
        return ops.broadcast(ops.number(1), x.axes)
    if ops.is_number(x) and ops.is_number(n) and n.attr.denominator == 1 and abs(n.attr) < 64 and (x.attr != 0 or n.attr > 0):
        return ops.number(Fraction(x.attr) ** int(n.attr))
    return None


def contract(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    """Numbers and signs leave; a zero makes zero; a lone argument that keeps its axes is itself; heads that share all share the product."""
    if any(ops.is_zero(a) for a in args):
        return _zero(attr)
    if len(args) == 1 and args[0].axes == attr:
        return args[0]
    if len(args) == 1 and args[0].op.name == "mul" and args[0].type.dtype == "real":
        return ops.contract(args[0].args, attr) if union(tuple(a.type for a in args[0].args)) == args[0].axes else None
    if len(args) > 1 and any(a.op.name == "neg" for a in args):
        inner = ops.contract((a.args[0] if a.op.name == "neg" else a for a in args), attr)
        return ops.neg(inner) if sum(a.op.name == "neg" for a in args) % 2 else inner
    if len(args) > 1 and any(ops.is_number(a) for a in args):
        rest = tuple(a for a in args if not ops.is_number(a)) or (ops.number(1),)
        result = ops.contract(rest, attr)
        for a in args:
            result = ops.mul(a, result) if ops.is_number(a) and rest != (a,) else result
        return result
    if len(args) == 2 and not (set(args[0].axes) | set(args[1].axes)) - set(attr):
        product = ops.mul(*args)
        return product if product.axes == attr else None
    return _shared(args, attr) if len(args) > 1 else None


def _shared(args: tuple[Expr, ...], out: tuple[str, ...]) -> Expr | None:
    """A product of values that are all spread from groups over their heads: formed once for each group."""
    inner = [_of_group(a) for a in args]
    groups, heads = inner[0][1] if inner[0] else ("", "")
    if any(x is None or x[1] != (groups, heads) for x in inner) or heads not in out:
        return None
    return ops.spread(ops.contract((x[0] for x in inner if x), (groups if a == heads else a for a in out)), groups, heads)


def _of_group(e: Expr) -> tuple[Expr, tuple[str, str]] | None:
    """The value of a group, and its axis and that of the heads, where e is that value for each head, with other axes renamed or not."""
    if e.op.name == "spread":
        return e.args[0], e.attr
    if e.op.name == "rename" and (found := _of_group(e.args[0])) and not set(found[1]) & {a for pair in e.attr for a in pair}:
        return ops.rename(found[0], dict(e.attr)), found[1]
    return None


def broadcast(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    (x,) = args
    if set(x.axes) == set(attr):
        return x if x.axes == attr else ops.TABLE["contract"].build((x,), attr)
    return ops.broadcast(x.args[0], attr) if x.op.name == "broadcast" else None


def rename(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    (x,) = args
    if not attr:
        return x
    table = dict(attr)
    if x.op.name == "rename":
        first = dict(x.attr)
        whole = {a: table.get(first.get(a, a), first.get(a, a)) for a in x.args[0].axes}
        return ops.rename(x.args[0], whole)
    if x.op.name == "broadcast" and ops.is_number(x.args[0]):
        return ops.broadcast(x.args[0], (table.get(a, a) for a in x.axes))
    return None


def linear(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    """A linear rearrangement of zero is zero."""
    return _zero(args[0].axes) if ops.is_zero(args[0]) else None


def masked(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    if ops.is_zero(args[0]) or (args[0].op.name in ("masked", "decay") and args[0].attr == attr):
        return args[0]
    return None


def unit(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    return args[0] if ops.is_number(args[0]) else None


def select(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    x, (axis, index) = args[0], attr
    if x.op.name == "stack" and x.attr[0] == axis:
        return x.args[int(index)]
    if x.op.name == "broadcast" and axis not in x.args[0].axes:
        return ops.broadcast(x.args[0], (a for a in x.axes if a != axis))
    return None


def where(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    _, x, y = args
    return ops.broadcast(x, union(tuple(a.type for a in args))) if x is y else None


def real(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    """`conj` and `re` of a real value are the value."""
    return args[0] if args[0].type.dtype == "real" else None


def exp(args: tuple[Expr, ...], attr: Any) -> Expr | None:
    return ops.number(1) if ops.is_number(args[0], 0) else ops.broadcast(ops.number(1), args[0].axes) if ops.is_zero(args[0]) else None
