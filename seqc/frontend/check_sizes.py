"""Sizes: the header's defaults as exact fractions, the values chosen for them, and whole numbers found in expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeGuard

from seqc.frontend import ast
from seqc.frontend.check_functions import BUILT_IN_NAMES
from seqc.frontend.check_problems import Problems, Refused
from seqc.frontend.check_scope import RESERVED, Build, Env
from seqc.ir import model
from seqc.ir.expr import Expr
from seqc.source import Span

LARGEST = 2**20
GIVEN = ("heads", "groups")  # sizes that every layer has
Values = Mapping[str, Fraction | None]


class NotExact(Exception):
    """A formula has no exact value: `unknown` names a size without one, else `reason` says why."""

    def __init__(self, unknown: str | None = None, reason: str = "", span: Span | None = None):
        self.unknown, self.reason, self.span = unknown, reason, span
        super().__init__(reason)


def evaluate(formula: ast.Expr, values: Values) -> Fraction:
    """A size formula as an exact fraction; NotExact if it has none."""
    if isinstance(formula, ast.Number):
        return formula.value
    if isinstance(formula, ast.Ref):
        value = values.get(formula.id)
        if value is None:
            raise NotExact(unknown=formula.id, span=formula.span)
        return value
    if isinstance(formula, ast.Negate):
        return -evaluate(formula.value, values)
    if isinstance(formula, ast.Binary):
        return _arithmetic(formula, evaluate(formula.left, values), evaluate(formula.right, values))
    if _rounds(formula):
        value = evaluate(formula.args[0], values)
        return Fraction(math.ceil(value) if formula.function.id == "ceil" else math.floor(value))
    raise NotExact(reason="a default has numbers, sizes, `model`, + - * / ^, `ceil` and `floor`", span=formula.span)


def _rounds(formula: ast.Expr) -> TypeGuard[Any]:
    """Whether a formula is a `ceil(...)` or `floor(...)`."""
    if not isinstance(formula, ast.Call) or len(formula.args) != 1 or formula.named:
        return False
    return isinstance(formula.function, ast.Ref) and formula.function.id in ("ceil", "floor")


def _arithmetic(formula: ast.Binary, x: Fraction, y: Fraction) -> Fraction:
    if formula.op == "+":
        return x + y
    if formula.op == "-":
        return x - y
    if formula.op == "*":
        return x * y
    if formula.op == "/" and y != 0:
        return x / y
    if formula.op == "^" and y.denominator == 1 and abs(y) <= 64 and (x != 0 or y > 0):
        return x ** int(y)
    raise NotExact(reason="this has no exact value", span=formula.span)


def references(formula: ast.Expr) -> tuple[ast.Ref, ...]:
    """The names in a formula, functions left out."""
    if isinstance(formula, ast.Ref):
        return (formula,)
    if isinstance(formula, ast.Negate):
        return references(formula.value)
    if isinstance(formula, ast.Binary):
        return references(formula.left) + references(formula.right)
    if isinstance(formula, ast.Call):
        return tuple(r for a in formula.args for r in references(a))
    return ()


def layer_sizes(
    layer: ast.Layer, given: Mapping[str, int], problems: Problems
) -> tuple[dict[str, ast.Size | None], dict[str, Fraction | None]]:
    """The sizes of a layer in order (`heads` and `groups` first where they are not declared), and their values."""
    sizes: dict[str, ast.Size | None] = {}
    for size in layer.sizes:
        with problems.statement():
            _declare(sizes, size, problems)
    given_to_all: dict[str, ast.Size | None] = {name: None for name in GIVEN if name not in sizes}
    sizes = given_to_all | sizes
    for name in given:
        if name not in sizes and name != "model":
            secondary, helps = problems.misspelt(name, {n: s.name.span if s else None for n, s in sizes.items()})
            problems.report(
                "unknown-size",
                f"the layer has no size `{name}`",
                layer.name.span,
                "a value is given for it",
                secondary=secondary,
                helps=helps,
            )
    values: dict[str, Fraction | None] = {n: Fraction(v) for n, v in given.items()}
    for name in sizes:
        with problems.statement():
            _value(name, sizes, values, problems, ())
    for name, declared_size in sizes.items():
        with problems.statement():
            _in_range(name, declared_size, values.get(name), problems, layer)
    heads, groups = values.get("heads"), values.get("groups")
    if heads is not None and groups and heads.denominator == groups.denominator == 1 and heads % groups:
        declared = sizes["groups"] or sizes["heads"]
        problems.report(
            "groups-do-not-divide", f"{groups} groups do not divide {heads} heads", declared.span if declared else layer.name.span
        )
    return sizes, values


def _declare(sizes: dict[str, ast.Size | None], size: ast.Size, problems: Problems) -> None:
    name = size.name.id
    if name in sizes:
        first = sizes[name]
        raise problems.refuse(
            "declared-twice", f"`{name}` is declared twice", size.name.span, "", secondary=[(first.span if first else None, "first here")]
        )
    if name in RESERVED:
        raise problems.refuse("reserved-name", f"`{name}` cannot be declared", size.name.span)
    if name in BUILT_IN_NAMES and name not in GIVEN:
        raise problems.refuse("redefines-builtin", f"`{name}` is built in, and nothing may redefine it", size.name.span)
    sizes[name] = size


def _value(
    name: str, sizes: Mapping[str, ast.Size | None], values: dict[str, Fraction | None], problems: Problems, path: tuple[str, ...]
) -> None:
    """Fills in the value of a size after those it is made of."""
    if name in values or name not in sizes:
        return
    size = sizes[name]
    if size is None:
        if name == "groups":
            _value("heads", sizes, values, problems, (*path, name))
        values[name] = Fraction(1) if name == "heads" else values.get("heads")
        return
    if size.default is None:
        values[name] = None
        return
    for ref in references(size.default):
        if ref.id not in sizes and ref.id != "model":
            values[name] = None
            secondary, helps = problems.misspelt(ref.id, {n: s.name.span if s else None for n, s in sizes.items()})
            raise problems.refuse("unknown-name", f"no size is named `{ref.id}`", ref.span, "", secondary=secondary, helps=helps)
        if ref.id in (*path, name):
            values[name] = None
            raise problems.refuse(
                "size-cycle", f"the size `{name}` is made of itself", ref.span, "", secondary=[(size.name.span, "declared here")]
            )
        _value(ref.id, sizes, values, problems, (*path, name))
    try:
        values[name] = evaluate(size.default, values)
    except NotExact as e:
        values[name] = None
        if e.unknown is None:
            raise problems.refuse("not-a-size", f"the default of `{name}` is not a size", e.span, e.reason) from None


def _in_range(name: str, size: ast.Size | None, value: Fraction | None, problems: Problems, layer: ast.Layer) -> None:
    span = size.span if size else layer.name.span
    if value is None:
        return
    if value.denominator != 1:
        raise problems.refuse("size-not-whole", f"the size `{name}` comes out as {value}", span, "sizes are whole")
    if value < 1:
        raise problems.refuse("size-not-positive", f"the size `{name}` comes out as {value}", span, "sizes are at least 1")
    if value > LARGEST:
        raise problems.refuse("size-too-large", f"the size `{name}` comes out as {value}", span, f"sizes go up to {LARGEST}")


def whole_number(env: Env, expr: Expr, span: Span, what: str) -> int:
    """A node of numbers and sizes as a whole number; the sizes in it become static."""
    value = exact(env.build, expr, span, what)
    if value is None:
        raise env.build.problems.refuse("not-a-whole-number", f"{what} is a whole number that is known when the layer is compiled", span)
    if value.denominator != 1:
        raise env.build.problems.refuse("not-a-whole-number", f"{what} comes out as {value}", span, "this must be whole")
    return int(value)


def static_size(build: Build, name: str, span: Span, what: str) -> int:
    """The value of a size that is used where the compiler must know it."""
    build.static.add(name)
    value = build.values.get(name)
    if value is None:
        size = build.sizes.get(name)
        raise build.problems.refuse(
            "size-without-value", f"`{name}` has no value, and {what} must be known when the layer is compiled", span, "",
            secondary=[(size.span if size else None, "declared here")], helps=(f"give it a default, or write `-s {name}=...`",),
        )  # fmt: skip
    if value.denominator != 1:
        raise Refused
    return int(value)


def exact(build: Build, expr: Expr, span: Span, what: str) -> Fraction | None:
    """The exact value of a node of numbers and sizes, or None."""
    name = expr.op.name
    if name == "const":
        return Fraction(expr.attr)
    if name == "size":
        return Fraction(static_size(build, str(expr.attr), span, what))
    args = [exact(build, a, span, what) for a in expr.args]
    if any(a is None for a in args) or name not in EXACT:
        return None
    try:
        return Fraction(EXACT[name](*args))
    except (ZeroDivisionError, OverflowError, TypeError, ValueError):
        return None


EXACT: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": lambda x, y: x / y, "neg": lambda x: -x,
    "floor": math.floor, "ceil": math.ceil, "maximum": max, "modulo": lambda x, y: x % y,
    "power": lambda x, y: x ** int(y) if y.denominator == 1 and abs(y) <= 64 else None,
}  # fmt: skip


def approximate(expr: Expr, values: Values) -> float | None:
    """A constant node as a float, or None: the ends of domains."""
    name = expr.op.name
    if name == "const":
        return float(expr.attr)
    if name == "constant":
        return math.pi if expr.attr == "pi" else math.inf
    if name == "size":
        value = values.get(str(expr.attr))
        return None if value is None else float(value)
    args = [approximate(a, values) for a in expr.args]
    if any(a is None for a in args) or name not in FLOATS:
        return None
    try:
        return float(FLOATS[name](*args))
    except (ZeroDivisionError, OverflowError, ValueError, TypeError):
        return None


FLOATS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": lambda x, y: x / y, "neg": lambda x: -x,
    "power": lambda x, y: x**y, "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "maximum": max, "floor": math.floor, "ceil": math.ceil,
    "tanh": math.tanh, "abs": abs, "sin": math.sin, "cos": math.cos,
}  # fmt: skip


def model_sizes(build: Build) -> tuple[tuple[model.Size, ...], tuple[tuple[str, int], ...]]:
    """The Model's sizes, and the values of the static ones."""
    sizes = []
    for name, size in build.sizes.items():
        if size is None:
            formula = "1" if name == "heads" else "heads"
            sizes.append(model.Size(name, formula, build.values[name], name in build.static, None))
        else:
            formula_text = size.default.span.text if size.default is not None else None
            sizes.append(model.Size(name, formula_text, build.values[name], name in build.static, size.span))
    chosen = tuple((name, int(build.values[name] or 0)) for name in build.sizes if name in build.static and build.values[name] is not None)
    return tuple(sizes), chosen
