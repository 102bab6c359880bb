"""The built-in functions of the body: how each makes a value of its arguments. All expand into ops of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from seqc.frontend.check_values import (
    AxisError,
    Value,
    canonical_names,
    identity,
    join,
    ordered,
    outer,
    relabel,
    shown,
    together,
    without,
)
from seqc.ir import ops
from seqc.ir.expr import Expr


@dataclass(frozen=True)
class Complaint(Exception):
    """What is wrong with a call, without its place."""

    code: str
    message: str
    label: str = ""
    helps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """An evaluated call: `axes` are the node axes that the brackets name in the first argument (None without brackets)."""

    name: str
    args: tuple[Value, ...]
    named: Mapping[str, Value]
    brackets: tuple[str, ...] | None  # identities


Rule = Callable[[Call], Value]


def half() -> Expr:
    return ops.number(Fraction(1, 2))


def one() -> Expr:
    return ops.number(1)


def _square(x: Expr) -> Expr:
    return ops.power(x, ops.number(2))


def _absolute(x: Expr) -> Expr:
    if x.type.dtype == "complex":
        return ops.sqrt(ops.add(_square(ops.unary("re", x)), _square(ops.unary("im", x))))
    return ops.unary("abs", x)


def _gelu(x: Expr) -> Expr:
    return ops.mul(ops.mul(half(), x), ops.add(one(), ops.unary("erf", ops.div(x, ops.sqrt(ops.number(2))))))


def _elu(x: Expr) -> Expr:
    return ops.where(ops.compare("gt", x, ops.number(0)), x, ops.unary("expm1", ops.minimum(x, ops.number(0))))


# name -> (what becomes of the node, whether it may be complex)
ELEMENTWISE: dict[str, tuple[Callable[[Expr], Expr], bool]] = {
    "exp": (ops.exp, True),
    "log": (ops.log, False),
    "sqrt": (ops.sqrt, False),
    "abs": (_absolute, True),
    "sign": (lambda x: ops.unary("sign", x), False),
    "sin": (lambda x: ops.unary("sin", x), False),
    "cos": (lambda x: ops.unary("cos", x), False),
    "tanh": (lambda x: ops.unary("tanh", x), False),
    "sigmoid": (lambda x: ops.unary("sigmoid", x), False),
    "log_sigmoid": (lambda x: ops.neg(ops.unary("softplus", ops.neg(x))), False),
    "softplus": (lambda x: ops.unary("softplus", x), False),
    "softplus_inverse": (lambda x: ops.add(x, ops.log(ops.neg(ops.unary("expm1", ops.neg(x))))), False),
    "relu": (lambda x: ops.unary("relu", x), False),
    "gelu": (_gelu, False),
    "silu": (lambda x: ops.mul(x, ops.unary("sigmoid", x)), False),
    "elu": (_elu, False),
    "expm1": (lambda x: ops.unary("expm1", x), False),
    "log1p": (lambda x: ops.unary("log1p", x), False),
    "ceil": (lambda x: ops.unary("ceil", x), False),
    "floor": (lambda x: ops.unary("floor", x), False),
    "trailing_zeros": (lambda x: ops.unary("trailing_zeros", x), False),
    "re": (lambda x: ops.unary("re", x), True),
    "im": (lambda x: ops.unary("im", x) if x.type.dtype == "complex" else ops.mul(ops.number(0), x), True),
    "conj": (ops.conj, True),
}


def need_real(name: str, *values: Value) -> None:
    for v in values:
        if v.dtype == "complex":
            raise Complaint("complex-value", f"`{name}` takes real values, and this is complex", "complex", ("write `re(...)`, `im(...)` or `abs(...)`",))


def _elementwise(call: Call) -> Value:
    node, allows_complex = ELEMENTWISE[call.name]
    (x,) = call.args
    if not allows_complex:
        need_real(call.name, x)
    return Value(node(x.expr), x.axes)


def chosen(call: Call, x: Value, *, every: bool = False, single: bool = False) -> tuple[str, ...]:
    """The node axes that a function works along: those in brackets, or every one, or the only one."""
    if call.brackets is None:
        if every or len(x.axes) == 1:
            return x.axes
        have = f"it has {len(x.axes)}" if x.axes else "it has none"
        raise Complaint("axis-not-named", f"`{call.name}` needs to know its axis", have, _bracket_help(call.name, x))
    found: list[str] = []
    for name in call.brackets:
        matches = [a for a in x.axes if identity(a) == identity(name)]
        if not matches:
            have = f"it has the axes [{', '.join(shown(x.axes))}]" if x.axes else "it has no axes"
            raise Complaint("no-such-axis", f"`{call.name}` works along `{ops.base(name)}`, which its argument does not have", have)
        if len(matches) > 1:
            raise Complaint("ambiguous-axis", f"`{ops.base(name)}` names two axes of the argument of `{call.name}`", f"it has the axes [{', '.join(shown(x.axes))}]")
        found += matches
    if single and len(found) != 1:
        raise Complaint("axis-not-named", f"`{call.name}` works along one axis", f"{len(found)} are named")
    return tuple(found)


def _bracket_help(name: str, x: Value) -> tuple[str, ...]:
    return tuple(f"write `{name}[{a}](...)`" for a in dict.fromkeys(shown(x.axes)))


def count(x: Expr, axes: Sequence[str], growing: frozenset[str]) -> Expr:
    """How many entries `axes` hold together. A growing axis is counted along the value itself."""
    result = one()
    for a in axes:
        if a in growing:
            there = ops.where(ops.compare("eq", x, x), one(), ops.number(0))
            result = ops.mul(result, ops.div(ops.sum_over(there, (a,)), one()))
        else:
            result = ops.mul(result, ops.size(a))
    return result


def _sum(call: Call) -> Value:
    (x,) = call.args
    gone = chosen(call, x, every=True)
    return without(x, gone, ops.sum_over(x.expr, gone) if gone else x.expr)


def _mean(call: Call) -> Value:
    (x,) = call.args
    gone = chosen(call, x, every=True)
    return without(x, gone, average(x.expr, gone)) if gone else x


def average(x: Expr, axes: Sequence[str]) -> Expr:
    return ops.div(ops.sum_over(x, axes), count(x, axes, frozenset()))


def _extreme(call: Call) -> Value:
    """`max(a, b)` and `max[N](x)`; min likewise."""
    need_real(call.name, *call.args)
    largest = call.name == "max"
    if len(call.args) == 2 and call.brackets is None:
        x, y = call.args
        axes = together(x, y)
        return Value(ops.maximum(x.expr, y.expr) if largest else ops.minimum(x.expr, y.expr), axes)
    if len(call.args) != 1:
        raise Complaint("too-many-arguments", f"`{call.name}` along an axis takes one argument", f"{len(call.args)} are given")
    (x,) = call.args
    gone = chosen(call, x, every=True)
    if not gone:
        return x
    return without(x, gone, ops.max_over(x.expr, gone) if largest else ops.neg(ops.max_over(ops.neg(x.expr), gone)))


def _norm(call: Call) -> Value:
    x = call.args[0]
    gone = chosen(call, x, every=True)
    size = _absolute(x.expr) if x.dtype == "complex" else x.expr
    if len(call.args) == 1:
        return without(x, gone, ops.sqrt(ops.sum_over(_square(size), gone)))
    p = call.args[1]
    if p.axes:
        raise Complaint("not-a-number", "the power of `norm` is a number", f"this has the axes [{', '.join(shown(p.axes))}]")
    total = ops.sum_over(ops.power(_absolute(x.expr), p.expr), gone)
    return without(x, gone, ops.power(total, ops.div(one(), p.expr)))


def _shifted(x: Expr, axes: Sequence[str]) -> tuple[Expr, Expr]:
    """x less its largest entry along the axes, and that entry: it carries no gradient, as the results do not depend on it."""
    top = ops.stop_gradient(ops.max_over(x, axes))
    return ops.sub(x, top), top


def _softmax(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    e = ops.exp(_shifted(x.expr, axes)[0])
    return Value(ops.div(e, ops.sum_over(e, axes)), x.axes)


def _log_softmax(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    low, _ = _shifted(x.expr, axes)
    return Value(ops.sub(low, ops.log(ops.sum_over(ops.exp(low), axes))), x.axes)


def _logsumexp(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    low, top = _shifted(x.expr, axes)
    return without(x, axes, ops.add(top, ops.log(ops.sum_over(ops.exp(low), axes))))


def _cumsum(call: Call) -> Value:
    (x,) = call.args
    (axis,) = chosen(call, x, single=True)
    return Value(ops.cumsum(x.expr, axis), x.axes)


def epsilon(call: Call, default: Fraction) -> Expr:
    given = call.named.get("eps")
    if given is None:
        return ops.number(default)
    if given.axes:
        raise Complaint("not-a-number", "`eps` is a number", f"this has the axes [{', '.join(shown(given.axes))}]")
    return given.expr


def _l2norm(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    squares = ops.sum_over(_square(x.expr), axes)
    return Value(ops.div(x.expr, ops.sqrt(ops.add(squares, epsilon(call, Fraction(1, 10**6))))), x.axes)


def _standardize(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    centred = ops.sub(x.expr, average(x.expr, axes))
    variance = average(_square(centred), axes)
    return Value(ops.div(centred, ops.sqrt(ops.add(variance, epsilon(call, Fraction(1, 10**5))))), x.axes)


def _roll(call: Call) -> Value:
    """y[i] = x[i - s], indices taken around the end; mapped over the axes of s."""
    x, s = call.args
    need_real(call.name, s)
    (axis,) = chosen(call, Value(x.expr, x.axes), single=True)
    if axis in s.axes:
        raise Complaint("ambiguous-axis", f"the distance of `roll` has the axis `{ops.base(axis)}` that it rolls along", f"`{ops.base(axis)}` here")
    source = _unused(axis, (*x.expr.axes, *s.expr.axes))
    wanted = ops.modulo(ops.sub(ops.iota(axis), s.expr), ops.size(axis))
    hit = ops.where(ops.compare("eq", ops.iota(source), wanted), one(), ops.number(0))
    lead = tuple(a for a in s.axes if a not in x.axes)
    mapped = dict.fromkeys((*x.mapped, *s.mapped))
    moved = ops.contract((relabel(x.expr, {axis: source}), hit), (*mapped, *lead, *x.axes))
    return Value(moved, (*lead, *x.axes))


def _unused(axis: str, taken: Sequence[str]) -> str:
    name = ops.base(axis) + "~"
    while name in taken:
        name += "~"
    return name


def _where(call: Call) -> Value:
    condition, x, y = call.args
    if condition.dtype != "bool":
        raise Complaint("not-a-condition", "the first argument of `where` is a comparison", "this is a number", ("write a comparison, such as `x > 0`",))
    axes = together(condition, x, y)
    return Value(ops.where(condition.expr, x.expr, y.expr), axes)


def _lerp(call: Call) -> Value:
    a, b, w = call.args
    axes = together(a, b, w)
    return Value(ops.add(a.expr, ops.mul(w.expr, ops.sub(b.expr, a.expr))), axes)


def _complex(call: Call) -> Value:
    need_real(call.name, *call.args)
    x, y = call.args
    axes = together(x, y)
    return Value(ops.complex_(x.expr, y.expr), axes)


def _polar(call: Call) -> Value:
    need_real(call.name, *call.args)
    r, t = call.args
    axes = together(r, t)
    return Value(ops.complex_(ops.mul(r.expr, ops.unary("cos", t.expr)), ops.mul(r.expr, ops.unary("sin", t.expr))), axes)


def _outer(call: Call) -> Value:
    return outer(call.args)


def _diag(call: Call) -> Value:
    (x,) = call.args
    if len(x.axes) != 1:
        raise Complaint("not-a-vector", "`diag` takes a vector", f"this has the axes [{', '.join(shown(x.axes))}]" if x.axes else "this is a number")
    row, column = canonical_names((x.axes[0], x.axes[0]))
    return Value(ops.mul(x.expr, ops.eye(row, column)), (row, column))


def _transpose(call: Call) -> Value:
    (x,) = call.args
    if len(x.axes) != 2:
        raise Complaint("not-a-matrix", "`transpose` takes a matrix", f"this has the axes [{', '.join(shown(x.axes))}]" if x.axes else "this is a number")
    return ordered(x.expr, x.axes[::-1])


def _solve(call: Call) -> Value:
    """y with A y = b."""
    a, b = call.args
    if len(a.axes) != 2 or identity(a.axes[0]) != identity(a.axes[1]):
        raise Complaint("not-a-matrix", "`solve` takes a square matrix", f"the first argument has the axes [{', '.join(shown(a.axes))}]")
    if not b.axes or identity(b.axes[0]) != identity(a.axes[0]):
        raise AxisError("axis-mismatch", ops.base(a.axes[0]), *(shown(b.axes[:1]) or ("",)))
    row = a.axes[0]
    column = _unused(row, (*a.expr.axes, *b.expr.axes))
    y = ops.solve(relabel(a.expr, {a.axes[1]: column}), relabel(b.expr, {b.axes[0]: row}), row, column)
    names = canonical_names((row, *b.axes[1:]))
    return Value(relabel(y, dict(zip((column, *b.axes[1:]), names, strict=True))), names)


def _concat(call: Call) -> Value:
    """All arguments one after the other along the axis in brackets, each with its axes laid out in one row."""
    if call.brackets is None or len(call.brackets) != 1:
        raise Complaint("axis-not-named", "`concat` makes an axis", "it is not named", ("write `concat[F](...)`, with F a size of the layer",))
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


def _rotate(call: Call) -> Value:
    """Turns the pairs (2i, 2i + 1) of the last axis by the angles."""
    x, angle = call.args
    need_real(call.name, *call.args)
    if not x.axes or not angle.axes:
        raise Complaint("not-a-vector", "`rotate` turns the pairs of a vector by a vector of angles", "one of them is a number")
    whole, pairs = x.axes[-1], angle.axes[-1]
    if pairs in x.axes:
        raise Complaint("axis-mismatch", f"`rotate` needs an axis of half the length of `{ops.base(whole)}` for its angles", f"they have `{ops.base(pairs)}`")
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

    rule: Rule
    least: int = 1
    most: int = 1
    named: tuple[str, ...] = ()
    brackets: bool = False


BUILTINS: dict[str, Builtin] = {
    **{name: Builtin(_elementwise) for name in ELEMENTWISE},
    "sum": Builtin(_sum, brackets=True),
    "mean": Builtin(_mean, brackets=True),
    "max": Builtin(_extreme, 1, 2, brackets=True),
    "min": Builtin(_extreme, 1, 2, brackets=True),
    "norm": Builtin(_norm, 1, 2, brackets=True),
    "softmax": Builtin(_softmax, brackets=True),
    "log_softmax": Builtin(_log_softmax, brackets=True),
    "logsumexp": Builtin(_logsumexp, brackets=True),
    "cumsum": Builtin(_cumsum, brackets=True),
    "l2norm": Builtin(_l2norm, named=("eps",), brackets=True),
    "standardize": Builtin(_standardize, named=("eps",), brackets=True),
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

__all__ = ["BUILTINS", "BUILT_IN_NAMES", "DRAWS", "NUMBERS", "PROJECT_ONLY", "SPECIAL", "Builtin", "Call", "Complaint", "join"]
