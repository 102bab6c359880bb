"""Initial values of a layer's params, as values that the module's printer knows."""

from __future__ import annotations

from fractions import Fraction

from seqc.diagnostics import InternalError
from seqc.frontend.intervals import ANY, Interval, at_least, point
from seqc.frontend.project import visible
from seqc.frontend.project_names import COUNTS
from seqc.frontend.project_types import Value
from seqc.ir.expr import Expr
from seqc.ir.model import Draw, Param
from seqc.ir.ops import base

Axes = tuple[str, ...]
ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "div": "/", "power": "^", "maximum": "max"}
COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}
SAME = ("exp", "log", "sqrt", "abs", "sign", "sin", "cos", "tanh", "sigmoid", "softplus", "relu", "floor", "ceil", "expm1", "log1p", "neg")


def initial(param: Param, params: dict[str, Axes]) -> Value:
    """The param's initial value; `params` are the axes of those above it."""
    place = visible(param.axes, param.scope)
    draws = {d.name: d for d in param.init.draws}
    return _value(param.init.value, place, draws, params, param)


def _draw(draw: Draw, place: Axes, draws: dict[str, Draw], params: dict[str, Axes], param: Param) -> Value:
    """One number for each entry of the param; `learned` draws normal(0, 1 / sqrt(first axis))."""
    if draw.kind == "learned":
        first = Value("size", (), (param.axes[0],), range=at_least(1)) if param.axes else _number(1)
        args: tuple[Value, ...] = (_number(0), _scalar("^", first, Value("number", (), (Fraction(-1, 2),), range=point(-0.5))))
        return Value("normal", args, (), place)
    args = tuple(_value(a, place, draws, params, param) for a in draw.args)
    return Value(draw.kind, args, (), place, range=ANY)


def _number(value: int | Fraction) -> Value:
    return Value("number", (), (Fraction(value),), range=point(float(value)))


def _scalar(op: str, *args: Value) -> Value:
    return Value(op, args)


def _value(e: Expr, place: Axes, draws: dict[str, Draw], params: dict[str, Axes], param: Param) -> Value:
    args = tuple(_value(a, place, draws, params, param) for a in e.args)
    axes: Axes = max((a.axes for a in args), key=len, default=())
    name, attr = e.op.name, e.attr
    if name == "var":
        return _draw(draws[e.name], place, draws, params, param) if e.name in draws else _leaf(e.name, params)
    if name == "const":
        assert isinstance(attr, Fraction)
        return _number(attr)
    if name in ("constant", "size"):
        return Value(name, (), (str(attr),), range=point(3.141592653589793) if attr == "pi" else Interval())
    if name == "iota":
        assert isinstance(attr, tuple)
        return Value("iota", (), (base(str(attr[0])),), (str(attr[0]),))
    if name in SAME:
        return Value(name, args, (), axes)
    if name in ARITHMETIC:
        return Value(ARITHMETIC[name], args, (), axes)
    if name == "where":
        return Value("where", args, (), axes)
    if name == "compare":
        return Value("compare", args, (COMPARE.get(str(attr), str(attr)),), axes)
    if name == "rename":
        table: dict[str, str] = dict(attr)
        return Value("rename", args, (), tuple(table.get(a, a) for a in args[0].axes))
    if name == "broadcast":
        return args[0]
    if name == "contract":
        return _product(args, axes, attr)
    raise InternalError(f"the initial value of `{param.name}` uses {name}")


def _leaf(name: str, params: dict[str, Axes]) -> Value:
    if name in params:
        return Value("name", (), (name,), params[name])
    if name in COUNTS:
        return Value("count", (), (name,), COUNTS[name][0])
    raise InternalError(f"an initial value uses `{name}`")


def _product(args: tuple[Value, ...], axes: Axes, attr: object) -> Value:
    """A product, summed over the axes that do not stay."""
    assert isinstance(attr, tuple)
    result = args[0]
    for a in args[1:]:
        result = Value("*", (result, a), (), max(result.axes, a.axes, key=len))
    gone = tuple(a for a in axes if a not in attr and a not in ("heads", "groups"))
    return Value("sum", (result,), (gone, None), tuple(a for a in axes if a not in gone)) if gone else result
