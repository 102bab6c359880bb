"""ast.Expr -> Value: names resolved and axes checked. Indices and calls, which read expressions in turn, have modules of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seqc.frontend import ast
from seqc.frontend import check_functions as functions
from seqc.frontend.check_functions import NUMBERS
from seqc.frontend.check_problems import Refused, listed
from seqc.frontend.check_scope import Entity, Env, current, unknown_name
from seqc.frontend.check_values import AxisError, Value, identity, join, meet, shown
from seqc.ir import model, ops

RELATIONS = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq"}
ARITHMETIC = {"+": ops.add, "-": ops.sub, "*": ops.mul, "/": ops.div, "^": ops.power}


def read(env: Env, e: ast.Expr) -> Value:
    """The value of an expression at this line; raises Refused after reporting what is wrong."""
    return RULES[type(e)](env, e)


def read_real(env: Env, e: ast.Expr, what: str) -> Value:
    """A value that is not a comparison."""
    value = read(env, e)
    if value.dtype == "bool":
        raise env.build.problems.refuse(
            "boolean-value", f"{what} is a number, and this is a comparison", e.span, "true or false", helps=("write `where(..., 1, 0)`",)
        )
    return value


def describe(e: ast.Expr, side: str) -> str:
    """How a message calls an operand."""
    return f"`{e.id}`" if isinstance(e, ast.Ref) else f"the {side} side"


def _number(env: Env, e: ast.Number) -> Value:
    whole = int(e.value) if e.value.denominator == 1 else None
    return Value(ops.number(e.value), (), None, whole)


def _negate(env: Env, e: ast.Negate) -> Value:
    value = read_real(env, e.value, "the operand of `-`")
    return Value(ops.neg(value.expr), value.axes)


def _ref(env: Env, e: ast.Ref) -> Value:
    entity = env.names.get(e.id)
    if entity is not None:
        return _named(env, e, entity)
    if env.layer and e.id in env.build.sizes:
        return Value(ops.var("heads") if e.id == "heads" else ops.size(e.id))
    if e.id in env.axes:
        return Value(ops.size(env.axes[e.id]))
    if e.id in NUMBERS:
        return _builtin_number(env, e.id)
    if e.id in ("learned", "empty"):
        raise env.build.problems.refuse("not-a-value", f"`{e.id}` stands alone as an initial value", e.span)
    if e.id in functions.BUILT_IN_NAMES:
        raise env.build.problems.refuse("not-a-value", f"`{e.id}` is not a value here", e.span)
    raise unknown_name(env, e.id, e.span)


def _builtin_number(env: Env, name: str) -> Value:
    if name in ("pi", "inf"):
        return Value(ops.constant(name))
    if name in ("true", "false"):
        return Value(ops.compare("eq", ops.number(0), ops.number(0 if name == "true" else 1)))
    return position(env) if name == "position" else Value(ops.var(name))


def position(env: Env) -> Value:
    """The tokens of the sequence so far: hidden state."""
    env.build.hidden.setdefault("position", model.Hidden("position", "position", scope="layer"))
    env.build.varying.add("position")
    env.build.scopes.setdefault("position", "layer")
    return Value(ops.var("position"))


def _named(env: Env, e: ast.Ref, entity: Entity) -> Value:
    env.build.used.add(entity.name)
    if entity.kind == "broken":
        raise Refused
    if entity.kind in ("state", "memory"):
        if entity.deep is not None:
            raise env.build.problems.refuse(
                "deep-memory-value",
                f"`{e.id}` is several tensors and is not a value",
                e.span,
                "",
                secondary=[(entity.span, "a deep memory")],
                helps=(f"apply it: `{e.id}(...)`",),
            )
        return state_value(env, entity.tensors[0])
    if entity.kind == "output":
        raise env.build.problems.refuse(
            "reads-output",
            f"`{e.id}` is a result of the layer and has no value here",
            e.span,
            "",
            secondary=[(entity.span, "an output")],
            helps=("name the value with `let` and output that",),
        )
    assert entity.value is not None
    for axis, made in entity.lengths:
        if len(env.build.grown.get(axis, [])) > made:
            _ended(env, e, entity, axis, made)
    return entity.value


def _ended(env: Env, e: ast.Ref, entity: Entity, axis: str, made: int) -> None:
    where = env.build.grown[axis][made]
    raise env.build.problems.refuse(
        "ended-by-append", f"`{e.id}` is as long as `{axis}` was before line {where.line}", e.span, "",
        secondary=[(entity.span, "made here"), (where, f"`{axis}` grows here")],
        helps=("move the `let` below the `append` to include this token, or the use above it to leave it out",),
    )  # fmt: skip


def state_value(env: Env, tensor: str) -> Value:
    """A state's value at this line: inside an objective its leaf, otherwise what is stored, read through its link."""
    from seqc.frontend.check_memory import linked

    if tensor in env.reads:
        return Value(env.reads[tensor], env.reads[tensor].axes)
    stored = current(env, tensor)
    return linked(env, tensor, Value(stored, stored.axes))


def _binary(env: Env, e: ast.Binary) -> Value:
    left, right = read(env, e.left), read(env, e.right)
    if e.op == "@":
        return _contract(env, e, left, right)
    for side, value in ((e.left, left), (e.right, right)):
        if value.dtype == "bool":
            raise env.build.problems.refuse(
                "boolean-value",
                f"`{e.op}` takes numbers, and this is a comparison",
                side.span,
                "true or false",
                helps=("write `where(..., 1, 0)`",),
            )
        if e.op in RELATIONS and value.dtype == "complex":
            raise env.build.problems.refuse(
                "complex-value", "complex values have no order", side.span, "complex", helps=("compare `re(...)`, `im(...)` or `abs(...)`",)
            )
    axes = elementwise(env, e, left, right)
    if e.op in RELATIONS:
        return Value(ops.compare(RELATIONS[e.op], left.expr, right.expr), axes)
    return Value(ARITHMETIC[e.op](left.expr, right.expr), axes)


def elementwise(env: Env, e: ast.Binary, left: Value, right: Value) -> tuple[str, ...]:
    """The axes of an elementwise operation, or an error that shows both sides."""
    try:
        return meet(left.axes, right.axes)
    except AxisError as error:
        if error.code == "ambiguous-axis":
            raise ambiguous(env, e, error.names[0], left, right) from None
        one, other = (_axes_text(v) for v in (left, right))
        helps: tuple[str, ...] = ()
        if e.op == "*" and len(left.axes) == len(right.axes) == 1:
            axes = listed(shown((*left.axes, *right.axes)))
            helps = (f"write `outer({e.left.span.text}, {e.right.span.text})`, which has the axes {axes}",)
        message = f"{describe(e.left, 'left')} has {one} and {describe(e.right, 'right')} {other}; neither includes the other"
        raise env.build.problems.refuse("silent-outer-product", message, e.span, helps=helps) from None


def _axes_text(value: Value) -> str:
    names = shown(value.axes)
    return f"the axis `{names[0]}`" if len(names) == 1 else f"the axes {listed(names)}"


def ambiguous(env: Env, e: ast.Expr, axis: str, left: Value, right: Value) -> Refused:
    return env.build.problems.refuse(
        "ambiguous-axis", f"`{axis}` occurs twice on one side, and the other side has different axes", e.span,
        f"{listed(shown(left.axes))} meets {listed(shown(right.axes))}",
        notes=("an axis that occurs twice meets only identical axes or numbers elementwise",),
    )  # fmt: skip


def _contract(env: Env, e: ast.Binary, left: Value, right: Value) -> Value:
    for side, value in ((e.left, left), (e.right, right)):
        if value.dtype == "bool":
            raise env.build.problems.refuse(
                "boolean-value",
                "`@` takes numbers, and this is a comparison",
                side.span,
                "true or false",
                helps=("write `where(..., 1, 0)`",),
            )
        if not value.axes:
            raise env.build.problems.refuse(
                "axis-mismatch",
                f"{describe(side, 'left' if side is e.left else 'right')} has no axis to contract",
                side.span,
                "a number",
                helps=("write `*` to multiply by a number",),
            )
    try:
        return join(left, right)
    except AxisError:
        pass
    ends, starts = shown(left.axes)[-1], shown(right.axes)[0]
    label = f"`@` joins the last axis of {describe(e.left, 'left')} to the first of {describe(e.right, 'right')}, which is `{starts}`"
    secondary = [
        (_declared(env, e.left), f"{describe(e.left, 'left')} ends in `{ends}`"),
        (_declared(env, e.right), f"{describe(e.right, 'right')} starts with `{starts}`"),
    ]
    raise env.build.problems.refuse(
        "axis-mismatch", f"cannot contract `{ends}` with `{starts}`", e.span, label,
        secondary=secondary[:1] if secondary[0][0] else secondary[1:], helps=_other_way(env, e, left, right),
    )  # fmt: skip


def _declared(env: Env, e: ast.Expr) -> Any:
    entity = env.names.get(e.id) if isinstance(e, ast.Ref) else None
    return entity.span if entity else None


def _other_way(env: Env, e: ast.Binary, left: Value, right: Value) -> tuple[str, ...]:
    if len(right.axes) == 1 and identity(left.axes[0]) == identity(right.axes[0]):
        swapped = f"`{e.right.span.text} @ {e.left.span.text}`"
        memory = isinstance(e.left, ast.Ref) and e.left.id in env.names and env.names[e.left.id].kind == "memory"
        call = f"`{e.left.span.text}({e.right.span.text})` or " if memory else ""
        return (f"write {call}{swapped} to read along `{shown(right.axes)[0]}`",)
    if len(left.axes) == 1 and identity(right.axes[-1]) == identity(left.axes[0]):
        return (f"write `{e.right.span.text} @ {e.left.span.text}` to read along `{shown(left.axes)[0]}`",)
    return ()


def _index(env: Env, e: ast.Index) -> Value:
    from seqc.frontend.check_index import indexed

    return indexed(env, e)


def _call(env: Env, e: ast.Call) -> Value:
    from seqc.frontend.check_call import called

    return called(env, e)


RULES: dict[type, Callable[[Env, Any], Value]] = {
    ast.Number: _number, ast.Ref: _ref, ast.Negate: _negate, ast.Binary: _binary, ast.Index: _index, ast.Call: _call,
}  # fmt: skip
