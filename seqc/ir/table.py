"""The rows of the op table: one per op, with everything that is known about it (see `seqc.ir.ops.OpDef`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from seqc.ir import derivatives, ops, rules, simplify
from seqc.ir.expr import Expr, walk
from seqc.ir.ops import OpDef, Sizes
from seqc.ir.rules import union


def means(name: str) -> Callable[[Any, Expr, tuple[Any, ...]], Any]:
    """A function of `seqc.ir.meaning`, looked up when it is first run: checking a text needs no NumPy."""
    return lambda A, e, args: _meaning(name)(A, e, args)


@cache
def _meaning(name: str) -> Callable[[Any, Expr, tuple[Any, ...]], Any]:
    from seqc.ir import meaning

    found: Callable[[Any, Expr, tuple[Any, ...]], Any] = getattr(meaning, name)
    return found


# --- Costs -----------------------------------------------------------------------------------------------------


def _free(e: Expr, sizes: Sizes) -> int:
    return 0


def _products(e: Expr, sizes: Sizes) -> int:
    axes = union(tuple(a.type for a in e.args))
    return (2 if len(e.args) > 1 else 1) * ops.numel(axes, sizes)


def _convolved(e: Expr, sizes: Sizes) -> int:
    return _products(e, sizes) * rules.extent(sizes, str(e.attr[0])) // 2


def _cubic(e: Expr, sizes: Sizes) -> int:
    return ops.numel(e.args[0].axes, sizes) * rules.extent(sizes, str(e.attr[0])) // 3


def _applied(e: Expr, sizes: Sizes) -> int:
    return 2 * ops.numel(e.axes, sizes) * rules.extent(sizes, str(e.attr[1]))


def _decayed(e: Expr, sizes: Sizes) -> int:
    return 3 * _products(e, sizes)


def _ruled(e: Expr, sizes: Sizes) -> int:
    """A product with the matrix, and the rule once a row."""
    row, (_, _, rule, _) = ops.numel((a for a in e.axes if a not in e.attr[2].axes), sizes), e.attr
    return 2 * ops.numel(union((e.args[0].type, e.type)), sizes) + row * sum(node.op.flops(node, sizes) for node in walk(rule))


# --- The rows --------------------------------------------------------------------------------------------------


def _unary(name: str, derivative: Callable[[Expr, Expr], Expr] | None, rule: Any = None, **row: Any) -> OpDef:
    vjp = derivatives.through(derivative) if derivative else derivatives.none
    return OpDef(name, rules.same, vjp, means("unary"), simplify=rule, **row)


EVERY = tuple(range(64))

ROWS: tuple[OpDef, ...] = (
    OpDef("var", rules.leaf, derivatives.none, means("var"), flops=_free),
    OpDef("const", rules.scalar, derivatives.none, means("const"), flops=_free),
    OpDef("constant", rules.scalar, derivatives.none, means("constant"), flops=_free),
    OpDef("size", rules.scalar, derivatives.none, means("size"), flops=_free),
    OpDef("iota", rules.listed, derivatives.none, means("iota"), flops=_free),
    OpDef("eye", rules.listed, derivatives.none, means("eye"), flops=_free),
    _unary("neg", lambda x, y: ops.number(-1), simplify.neg, linear=(0,)),
    _unary("exp", lambda x, y: y, simplify.exp),
    _unary("log", lambda x, y: ops.div(ops.number(1), x)),
    _unary("sqrt", lambda x, y: ops.div(ops.number(1), ops.mul(ops.number(2), y))),
    _unary("abs", lambda x, y: ops.unary("sign", x)),
    _unary("sign", None),
    _unary("sin", lambda x, y: ops.unary("cos", x)),
    _unary("cos", lambda x, y: ops.neg(ops.unary("sin", x))),
    _unary("tanh", lambda x, y: ops.sub(ops.number(1), ops.mul(y, y))),
    _unary("sigmoid", lambda x, y: ops.mul(y, ops.sub(ops.number(1), y))),
    _unary("softplus", lambda x, y: ops.unary("sigmoid", x)),
    _unary("relu", lambda x, y: ops.where(ops.compare("gt", x, ops.number(0)), ops.number(1), ops.number(0))),
    _unary("erf", lambda x, y: ops.mul(ops.div(ops.number(2), ops.sqrt(ops.constant("pi"))), ops.exp(ops.neg(ops.mul(x, x))))),
    _unary("expm1", lambda x, y: ops.add(y, ops.number(1))),
    _unary("log1p", lambda x, y: ops.div(ops.number(1), ops.add(ops.number(1), x))),
    _unary("floor", None),
    _unary("ceil", None),
    _unary("trailing_zeros", None),
    _unary("stop_gradient", None, simplify.unit),
    OpDef("conj", rules.same, lambda e, g: (ops.conj(g),), means("unary"), (0,), simplify=simplify.real),
    OpDef("re", rules.real, lambda e, g: (g,), means("unary"), (0,), simplify=simplify.real),
    OpDef("im", rules.real, lambda e, g: (ops.complex_(ops.number(0), g),), means("unary"), (0,)),
    OpDef("complex", rules.complex_, lambda e, g: (ops.unary("re", g), ops.unary("im", g)), means("complex_"), (0, 1), joint=True),
    OpDef("add", rules.elementwise, lambda e, g: (g, g), means("binary"), (0, 1), joint=True, simplify=simplify.add),
    OpDef("sub", rules.elementwise, lambda e, g: (g, ops.neg(g)), means("binary"), (0, 1), joint=True, simplify=simplify.sub),
    OpDef("mul", rules.elementwise, derivatives.mul, means("binary"), (0, 1), simplify=simplify.mul),
    OpDef("div", rules.elementwise, derivatives.div, means("binary"), (0,), simplify=simplify.div),
    OpDef("power", rules.elementwise, derivatives.power, means("power"), simplify=simplify.power),
    OpDef("maximum", rules.elementwise, derivatives.maximum, means("binary")),
    OpDef("modulo", rules.elementwise, lambda e, g: (g, None), means("binary")),
    OpDef("compare", rules.boolean, derivatives.none, means("compare")),
    OpDef("where", rules.where, derivatives.where, means("where"), (1, 2), joint=True, simplify=simplify.where),
    OpDef("max_over", rules.drop, derivatives.max_over, means("max_over")),
    OpDef("contract", rules.keep, derivatives.contract, means("contract"), EVERY, flops=_products, simplify=simplify.contract),
    OpDef("broadcast", rules.widen, lambda e, g: (g,), means("broadcast"), (0,), flops=_free, simplify=simplify.broadcast),
    OpDef("rename", rules.rename, derivatives.rename, means("rename"), (0,), flops=_free, simplify=simplify.rename),
    OpDef("cumsum", rules.along, derivatives.cumsum, means("cumsum"), (0,), simplify=simplify.linear),
    OpDef("shift", rules.along, derivatives.shift, means("shift"), (0,), flops=_free, simplify=simplify.linear),
    OpDef("convolve", rules.convolved, derivatives.convolve, means("convolve"), (0, 1), flops=_convolved),
    OpDef("correlate", rules.convolved, derivatives.correlate, means("correlate"), (0, 1), flops=_convolved),
    OpDef("select", rules.select, lambda e, g: (ops.place(g, *e.attr),), means("select"), (0,), flops=_free, simplify=simplify.select),
    OpDef("place", rules.place, derivatives.opposite("select"), means("place"), (0,), flops=_free),
    OpDef("stack", rules.stack, derivatives.stack, means("stack"), EVERY, joint=True, flops=_free),
    OpDef("flatten", rules.flatten, derivatives.opposite("unflatten"), means("flatten"), (0,), flops=_free),
    OpDef("unflatten", rules.unflatten, derivatives.opposite("flatten"), means("unflatten"), (0,), flops=_free),
    OpDef("concat", rules.concat, derivatives.concat, means("concat"), EVERY, joint=True, flops=_free),
    OpDef("piece", rules.piece, derivatives.piece, means("piece"), (0,), flops=_free),
    OpDef("append", rules.append, derivatives.append, means("append"), (0, 1), joint=True, flops=_free),
    OpDef("drop_last", rules.along, derivatives.drop_last, means("drop_last"), (0,), flops=_free),
    OpDef("spread", lambda t, a: rules.rename(t, (a,)), derivatives.opposite("collect"), means("spread"), (0,), flops=_free),
    OpDef("collect", lambda t, a: rules.rename(t, (a[::-1],)), derivatives.opposite("spread"), means("collect"), (0,)),
    OpDef("solve", rules.solve, derivatives.solve, means("solve"), (1,), flops=_cubic),
    OpDef("masked", rules.masked, derivatives.opposite("masked"), means("masked"), (0,), simplify=simplify.masked),
    OpDef("unit_lower_inverse", rules.square, derivatives.inverse, means("unit_lower_inverse"), flops=_cubic),
    OpDef("apply_inverse", rules.apply_inverse, derivatives.apply_inverse, means("apply_inverse"), (2,), flops=_applied),
    OpDef("decay", rules.decay, derivatives.decay, means("decay")),
    OpDef("decayed", rules.decayed, derivatives.decayed, means("decayed"), (0, 1), flops=_decayed),
    OpDef("decayed_solve", rules.decayed_solve, derivatives.decayed_solve, means("decayed_solve"), (1,), flops=_decayed),
    OpDef("strict_solve", rules.strict_solve, derivatives.strict_solve, means("strict_solve"), flops=_ruled),
    OpDef("implicit", lambda t, a: t[0], derivatives.implicit, means("implicit")),
)

ops.TABLE.update({row.name: row for row in ROWS})
