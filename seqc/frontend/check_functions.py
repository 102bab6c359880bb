"""The built-in functions of the body: those that make or rearrange axes, and the table of all. They expand into ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seqc.frontend import check_reduce as along
from seqc.frontend.check_values import AxisError, Value, canonical_names, identity, ordered, outer, relabel, shown, together
from seqc.ir import ops
from seqc.ir.expr import Expr


def _roll(call: along.Call) -> Value:
    """y[i] = x[i - s], indices taken around the end; mapped over the axes of s."""
    x, s = call.args
    along.need_real(call.name, s)
    (axis,) = along.chosen(call, Value(x.expr, x.axes), single=True)
    if axis in s.axes:
        raise along.Complaint(
            "ambiguous-axis", f"the distance of `roll` has the axis `{ops.base(axis)}` that it rolls along", f"`{ops.base(axis)}` here"
        )
    source = _unused(axis, (*x.expr.axes, *s.expr.axes))
    wanted = ops.modulo(ops.sub(ops.iota(axis), s.expr), ops.size(axis))
    hit = ops.where(ops.compare("eq", ops.iota(source), wanted), along.one(), ops.number(0))
    lead = tuple(a for a in s.axes if a not in x.axes)
    mapped = dict.fromkeys((*x.mapped, *s.mapped))
    moved = ops.contract((relabel(x.expr, {axis: source}), hit), (*mapped, *lead, *x.axes))
    return Value(moved, (*lead, *x.axes))


def _unused(axis: str, taken: Sequence[str]) -> str:
    name = ops.base(axis) + "~"
    while name in taken:
        name += "~"
    return name


def _where(call: along.Call) -> Value:
    condition, x, y = call.args
    if condition.dtype != "bool":
        raise along.Complaint(
            "not-a-condition", "the first argument of `where` is a comparison", "this is a number", ("write a comparison, such as `x > 0`",)
        )
    axes = together(condition, x, y)
    return Value(ops.where(condition.expr, x.expr, y.expr), axes)


def _lerp(call: along.Call) -> Value:
    a, b, w = call.args
    axes = together(a, b, w)
    return Value(ops.add(a.expr, ops.mul(w.expr, ops.sub(b.expr, a.expr))), axes)


def _complex(call: along.Call) -> Value:
    along.need_real(call.name, *call.args)
    x, y = call.args
    axes = together(x, y)
    return Value(ops.complex_(x.expr, y.expr), axes)


def _polar(call: along.Call) -> Value:
    along.need_real(call.name, *call.args)
    r, t = call.args
    axes = together(r, t)
    return Value(ops.complex_(ops.mul(r.expr, ops.unary("cos", t.expr)), ops.mul(r.expr, ops.unary("sin", t.expr))), axes)


def _outer(call: along.Call) -> Value:
    return outer(call.args)


def _diag(call: along.Call) -> Value:
    (x,) = call.args
    if len(x.axes) != 1:
        raise along.Complaint(
            "not-a-vector", "`diag` takes a vector", f"this has the axes [{', '.join(shown(x.axes))}]" if x.axes else "this is a number"
        )
    row, column = canonical_names((x.axes[0], x.axes[0]))
    return Value(ops.mul(x.expr, ops.eye(row, column)), (row, column))


def _transpose(call: along.Call) -> Value:
    (x,) = call.args
    if len(x.axes) != 2:
        raise along.Complaint(
            "not-a-matrix",
            "`transpose` takes a matrix",
            f"this has the axes [{', '.join(shown(x.axes))}]" if x.axes else "this is a number",
        )
    return ordered(x.expr, x.axes[::-1])


def _solve(call: along.Call) -> Value:
    """y with A y = b."""
    a, b = call.args
    if len(a.axes) != 2 or identity(a.axes[0]) != identity(a.axes[1]):
        raise along.Complaint(
            "not-a-matrix", "`solve` takes a square matrix", f"the first argument has the axes [{', '.join(shown(a.axes))}]"
        )
    if not b.axes or identity(b.axes[0]) != identity(a.axes[0]):
        raise AxisError("axis-mismatch", ops.base(a.axes[0]), *(shown(b.axes[:1]) or ("",)))
    row = a.axes[0]
    column = _unused(row, (*a.expr.axes, *b.expr.axes))
    y = ops.solve(relabel(a.expr, {a.axes[1]: column}), relabel(b.expr, {b.axes[0]: row}), row, column)
    names = canonical_names((row, *b.axes[1:]))
    return Value(relabel(y, dict(zip((column, *b.axes[1:]), names, strict=True))), names)


def _concat(call: along.Call) -> Value:
    """All arguments one after the other along the axis in brackets, each with its axes laid out in one row."""
    if call.brackets is None or len(call.brackets) != 1:
        raise along.Complaint(
            "axis-not-named", "`concat` makes an axis", "it is not named", ("write `concat[F](...)`, with F a size of the layer",)
        )
    parts: list[str] = []
    exprs: list[Expr] = []
    for x in call.args:
        if len(x.axes) == 1:
            part, expr = x.axes[0], x.expr
        elif x.axes:
            part = "*".join(shown(x.axes))
            expr = ops.flatten(x.expr, x.axes, part)
        else:
            part, expr = "1", ops.broadcast(x.expr, ("1", *x.expr.axes))
        parts.append(part)
        exprs.append(expr)
    mapped = tuple(dict.fromkeys(a for x in call.args for a in x.mapped))
    wide = (ops.broadcast(e, (p, *mapped)) if set(e.axes) != {p, *mapped} else e for e, p in zip(exprs, parts, strict=True))
    axis = identity(call.brackets[0])
    return Value(ops.concat(wide, axis, parts), (axis,))


def _rotate(call: along.Call) -> Value:
    """Turns the pairs (2i, 2i + 1) of the last axis by the angles."""
    x, angle = call.args
    along.need_real(call.name, *call.args)
    if not x.axes or not angle.axes:
        raise along.Complaint("not-a-vector", "`rotate` turns the pairs of a vector by a vector of angles", "one of them is a number")
    whole, pairs = x.axes[-1], angle.axes[-1]
    if pairs in x.axes:
        raise along.Complaint(
            "axis-mismatch",
            f"`rotate` needs an axis of half the length of `{ops.base(whole)}` for its angles",
            f"they have `{ops.base(pairs)}`",
        )
    split = ops.unflatten(x.expr, (pairs, "2"), whole)
    even, odd = ops.select(split, "2", 0), ops.select(split, "2", 1)
    cos, sin = ops.unary("cos", angle.expr), ops.unary("sin", angle.expr)
    first = ops.sub(ops.mul(even, cos), ops.mul(odd, sin))
    second = ops.add(ops.mul(even, sin), ops.mul(odd, cos))
    axes = (*(a for a in angle.axes[:-1] if a not in x.axes), *x.axes)
    return Value(ops.flatten(ops.stack((first, second), "2"), (pairs, "2"), whole), axes)


@dataclass(frozen=True)
class Builtin:
    """A built-in function: its rule, how many arguments it takes, which names, and what it does with brackets."""

    rule: along.Rule
    least: int = 1
    most: int = 1
    named: tuple[str, ...] = ()
    brackets: bool = False


BUILTINS: dict[str, Builtin] = {
    **{name: Builtin(along.elementwise) for name in along.ELEMENTWISE},
    "sum": Builtin(along.total, brackets=True),
    "mean": Builtin(along.mean, brackets=True),
    "max": Builtin(along.extreme, 1, 2, brackets=True),
    "min": Builtin(along.extreme, 1, 2, brackets=True),
    "norm": Builtin(along.norm, 1, 2, brackets=True),
    "softmax": Builtin(along.softmax, brackets=True),
    "log_softmax": Builtin(along.log_softmax, brackets=True),
    "logsumexp": Builtin(along.logsumexp, brackets=True),
    "cumsum": Builtin(along.cumsum, brackets=True),
    "l2norm": Builtin(along.l2norm, named=("eps",), brackets=True),
    "standardize": Builtin(along.standardize, named=("eps",), brackets=True),
    "roll": Builtin(_roll, 2, 2, brackets=True),
    "where": Builtin(_where, 3, 3),
    "lerp": Builtin(_lerp, 3, 3),
    "complex": Builtin(_complex, 2, 2),
    "polar": Builtin(_polar, 2, 2),
    "outer": Builtin(_outer, 2, 64),
    "diag": Builtin(_diag),
    "transpose": Builtin(_transpose),
    "solve": Builtin(_solve, 2, 2),
    "concat": Builtin(_concat, 1, 64, brackets=True),
    "rotate": Builtin(_rotate, 2, 2),
}

# Read by the expression rules themselves, as their arguments are not plain values.
SPECIAL = ("start", "shift", "window", "phase", "eye")
DRAWS = ("uniform", "log_uniform", "normal")
PROJECT_ONLY = ("linear", "headwise", "conv", "rmsnorm", "layernorm", "groupnorm", "rope", "reshape", "first")
NUMBERS = ("pi", "inf", "true", "false", "head", "heads", "depth", "depths", "position")
WORDS = ("learned", "empty", "next", "unit", "integer", "model", "groups")
BUILT_IN_NAMES = frozenset((*BUILTINS, *SPECIAL, *DRAWS, *PROJECT_ONLY, *NUMBERS, *WORDS))
