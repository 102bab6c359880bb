"""The built-in functions that work elementwise or along axes: how each makes a value of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from seqc.frontend.check_values import Value, identity, shown, together, without
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
    "expm1": (lambda x: ops.unary("expm1", x), True),
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
            raise Complaint(
                "complex-value",
                f"`{name}` takes real values, and this is complex",
                "complex",
                ("write `re(...)`, `im(...)` or `abs(...)`",),
            )


def elementwise(call: Call) -> Value:
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
            raise Complaint(
                "ambiguous-axis",
                f"`{ops.base(name)}` names two axes of the argument of `{call.name}`",
                f"it has the axes [{', '.join(shown(x.axes))}]",
            )
        found += matches
    if single and len(found) != 1:
        raise Complaint("axis-not-named", f"`{call.name}` works along one axis", f"{len(found)} are named")
    return tuple(found)


def _bracket_help(name: str, x: Value) -> tuple[str, ...]:
    return tuple(f"write `{name}[{a}](...)`" for a in dict.fromkeys(shown(x.axes)))


def total(call: Call) -> Value:
    (x,) = call.args
    gone = chosen(call, x, every=True)
    return without(x, gone, ops.sum_over(x.expr, gone) if gone else x.expr)


def mean(call: Call) -> Value:
    (x,) = call.args
    gone = chosen(call, x, every=True)
    return without(x, gone, average(x.expr, gone)) if gone else x


def average(x: Expr, axes: Sequence[str]) -> Expr:
    count = one()
    for a in axes:
        count = ops.mul(count, ops.size(a))
    return ops.div(ops.sum_over(x, axes), count)


def extreme(call: Call) -> Value:
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


def norm(call: Call) -> Value:
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


def softmax(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    e = ops.exp(_shifted(x.expr, axes)[0])
    return Value(ops.div(e, ops.sum_over(e, axes)), x.axes)


def log_softmax(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    low, _ = _shifted(x.expr, axes)
    return Value(ops.sub(low, ops.log(ops.sum_over(ops.exp(low), axes))), x.axes)


def logsumexp(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    low, top = _shifted(x.expr, axes)
    return without(x, axes, ops.add(top, ops.log(ops.sum_over(ops.exp(low), axes))))


def cumsum(call: Call) -> Value:
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


def l2norm(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    squares = ops.sum_over(_square(x.expr), axes)
    return Value(ops.div(x.expr, ops.sqrt(ops.add(squares, epsilon(call, Fraction(1, 10**6))))), x.axes)


def standardize(call: Call) -> Value:
    (x,) = call.args
    need_real(call.name, x)
    axes = chosen(call, x)
    centred = ops.sub(x.expr, average(x.expr, axes))
    variance = average(_square(centred), axes)
    return Value(ops.div(centred, ops.sqrt(ops.add(variance, epsilon(call, Fraction(1, 10**5))))), x.axes)
