"""ast.Expr -> Value: names resolved, axes checked, built-in functions expanded, library functions and memories inlined."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from seqc.frontend import ast
from seqc.frontend import check_functions as functions
from seqc.frontend.check_functions import BUILTINS, DRAWS, NUMBERS, PROJECT_ONLY, Complaint
from seqc.frontend.check_problems import Refused, listed
from seqc.frontend.check_scope import Entity, Env, known_names, unknown_name
from seqc.frontend.check_sizes import exact
from seqc.frontend.check_values import AxisError, Value, canonical_names, identity, join, meet, number, ordered, plain, relabel, shown
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
        raise env.build.problems.refuse("boolean-value", f"{what} is a number, and this is a comparison", e.span, "true or false", helps=("write `where(..., 1, 0)`",))
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
            raise env.build.problems.refuse("deep-memory-value", f"`{e.id}` is several tensors and is not a value", e.span, "", secondary=[(entity.span, "a deep memory")], helps=(f"apply it: `{e.id}(...)`",))
        return state_value(env, entity.tensors[0])
    if entity.kind == "output":
        raise env.build.problems.refuse("reads-output", f"`{e.id}` is a result of the layer and has no value here", e.span, "", secondary=[(entity.span, "an output")], helps=("name the value with `let` and output that",))
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
    from seqc.frontend.check_library import linked
    from seqc.frontend.check_scope import current

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
            raise env.build.problems.refuse("boolean-value", f"`{e.op}` takes numbers, and this is a comparison", side.span, "true or false", helps=("write `where(..., 1, 0)`",))
        if e.op in RELATIONS and value.dtype == "complex":
            raise env.build.problems.refuse("complex-value", "complex values have no order", side.span, "complex", helps=("compare `re(...)`, `im(...)` or `abs(...)`",))
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
        helps = ()
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
            raise env.build.problems.refuse("boolean-value", "`@` takes numbers, and this is a comparison", side.span, "true or false", helps=("write `where(..., 1, 0)`",))
        if not value.axes:
            raise env.build.problems.refuse("axis-mismatch", f"{describe(side, 'left' if side is e.left else 'right')} has no axis to contract", side.span, "a number", helps=("write `*` to multiply by a number",))
    try:
        return join(left, right)
    except AxisError:
        pass
    ends, starts = shown(left.axes)[-1], shown(right.axes)[0]
    label = f"`@` joins the last axis of {describe(e.left, 'left')} to the first of {describe(e.right, 'right')}, which is `{starts}`"
    secondary = [(_declared(env, e.left), f"{describe(e.left, 'left')} ends in `{ends}`"), (_declared(env, e.right), f"{describe(e.right, 'right')} starts with `{starts}`")]
    raise env.build.problems.refuse(
        "axis-mismatch", f"cannot contract `{ends}` with `{starts}`", e.span, label, secondary=secondary[:1] if secondary[0][0] else secondary[1:],
        helps=_other_way(env, e, left, right),
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


# --- Indices -----------------------------------------------------------------------------------------------------


def axis_of(env: Env, e: ast.Expr) -> str:
    """The identity of an axis that brackets name."""
    if not isinstance(e, ast.Ref):
        raise env.build.problems.refuse("not-an-axis", "brackets after a function name axes", e.span)
    if e.id in env.axes:
        return env.axes[e.id]
    if env.layer and (e.id in env.build.sizes or e.id in env.build.growing):
        return e.id
    known = {n: (s.name.span if s else None) for n, s in env.build.sizes.items()} | dict(env.build.growing) if env.layer else dict.fromkeys(env.axes)
    secondary, helps = env.build.problems.misspelt(e.id, known)
    raise env.build.problems.refuse("unknown-axis", f"no axis is named `{e.id}`", e.span, f"not an axis of {env.place}", secondary=secondary, helps=helps)


def _index(env: Env, e: ast.Index) -> Value:
    if isinstance(e.base, ast.Ref) and e.base.id == "eye" and "eye" not in env.names:
        if len(e.items) != 1:
            raise env.build.problems.refuse("axis-not-named", "`eye` takes one axis", e.span)
        axis = identity(axis_of(env, e.items[0]))
        _need_fixed(env, e.items[0], "eye", (axis,))
        row, column = canonical_names((axis, axis))
        return Value(ops.eye(row, column), (row, column))
    if isinstance(e.base, ast.Ref) and e.base.id not in env.names and e.base.id in (*BUILTINS, "window", *PROJECT_ONLY):
        raise env.build.problems.refuse("not-a-value", f"`{e.base.id}` is a function and takes arguments", e.span)
    value = read(env, e.base)
    for item in e.items:
        value = take(env, e, value, item)
    return plain(value)


def take(env: Env, e: ast.Index, x: Value, item: ast.Expr) -> Value:
    """x at an index: along the axis that it counts, or, a whole number, into a vector."""
    problems = env.build.problems
    index = read(env, item)
    if not x.axes:
        raise problems.refuse("no-such-axis", f"{describe(e.base, 'left')} has no axis to index", e.span, "a number")
    whole = index.whole
    if whole is None and index.counts is None and index.expr.op.name == "const":
        value = exact(env.build, index.expr, item.span, "an index")
        whole = int(value) if value is not None and value.denominator == 1 else None
    if index.counts is None and (whole is None or len(x.axes) != 1):
        if whole is not None:
            raise problems.refuse("not-an-index", "a whole number indexes a vector", item.span, f"{describe(e.base, 'left')} has the axes {listed(shown(x.axes))}")
        raise problems.refuse("not-an-index", "this does not count an axis", item.span, "", notes=("an index is a `for` or binder variable, `phase(C)`, or a whole number into a vector",))
    counted = identity(index.counts) if index.counts is not None else identity(x.axes[0])
    matches = [a for a in x.axes if identity(a) == counted]
    if not matches:
        raise problems.refuse("no-such-axis", f"the index counts `{counted}`, which {describe(e.base, 'left')} does not have", item.span, f"{describe(e.base, 'left')} has the axes {listed(shown(x.axes))}")
    if len(matches) > 1 and len(e.items) < len(matches):
        raise problems.refuse("ambiguous-axis", f"`{counted}` is two axes of {describe(e.base, 'left')}", item.span)
    return _at(env, x, matches[0], index, whole, item)


def _at(env: Env, x: Value, axis: str, index: Value, whole: int | None, item: ast.Expr) -> Value:
    rest = tuple(a for a in x.axes if a != axis)
    if index.binds is not None and index.binds not in x.expr.axes:
        return ordered(relabel(x.expr, {axis: index.binds}), rest)
    if whole is None:
        return ordered(ops.gather(x.expr, axis, index.expr), rest)
    length = env.build.values.get(identity(axis))
    if whole < 0 or (length is not None and whole >= length):
        raise env.build.problems.refuse("index-out-of-range", f"`{ops.base(axis)}` has the entries 0 to {int(length or 1) - 1}, and this is {whole}", item.span)
    return ordered(ops.select(x.expr, axis, whole), rest)


# --- Calls -------------------------------------------------------------------------------------------------------


def _call(env: Env, e: ast.Call) -> Value:
    from seqc.frontend import check_library as library
    from seqc.frontend import check_time as time

    problems = env.build.problems
    if isinstance(e.function, ast.Call):
        return library.apply_start(env, e)
    brackets = e.function.items if isinstance(e.function, ast.Index) else None
    base = e.function.base if isinstance(e.function, ast.Index) else e.function
    if not isinstance(base, ast.Ref):
        raise problems.refuse("not-a-function", "this is not a function", e.function.span)
    entity = env.names.get(base.id)
    if entity is not None or (env.layer and base.id in env.build.sizes):
        if entity is not None and entity.kind == "memory" and brackets is None:
            return library.apply_memory(env, e, entity)
        raise _not_a_function(env, base, entity)
    if base.id in time.SPECIAL:
        return time.SPECIAL[base.id](env, e, brackets)
    if base.id in DRAWS:
        return time.draw(env, e, base.id)
    if base.id in BUILTINS:
        return _builtin(env, e, base.id, brackets)
    if base.id in PROJECT_ONLY:
        raise problems.refuse("project-only", f"`{base.id}` stands in a `project` section", base.span, "here nothing owns weights and heads are not seen")
    if base.id in functions.BUILT_IN_NAMES:
        raise problems.refuse("not-a-function", f"`{base.id}` is not a function", base.span)
    if brackets is not None:
        raise problems.refuse("not-a-function", f"`{base.id}` takes no axes in brackets", e.function.span)
    return library.call(env, e, base)


def _not_a_function(env: Env, base: ast.Ref, entity: Entity | None) -> Refused:
    if entity is not None and entity.kind == "broken":
        return Refused()
    helps = (f"declare it with `memory {base.id}[...]`",) if entity is not None and entity.kind == "state" else ()
    return env.build.problems.refuse(
        "not-a-function", f"`{base.id}` cannot be applied", base.span, "", secondary=[(entity.span if entity else None, "declared here")], helps=helps
    )


def _builtin(env: Env, e: ast.Call, name: str, brackets: tuple[ast.Expr, ...] | None) -> Value:
    problems, builtin = env.build.problems, BUILTINS[name]
    if brackets is not None and not builtin.brackets:
        raise problems.refuse("not-a-function", f"`{name}` takes no axes in brackets", e.function.span)
    axes = tuple(axis_of(env, b) for b in brackets) if brackets is not None else None
    args = tuple(read(env, a) for a in e.args)
    named: dict[str, Value] = {}
    for key, value in e.named:
        if key.id not in builtin.named:
            raise problems.refuse("unknown-argument", f"`{name}` has no argument `{key.id}`", key.span)
        named[key.id] = read(env, value)
    if not builtin.least <= len(args) <= builtin.most:
        wants = str(builtin.least) if builtin.least == builtin.most else f"{builtin.least} to {builtin.most}"
        plural = "" if wants == "1" else "s"
        raise problems.refuse("argument-count", f"`{name}` takes {wants} argument{plural}, and {len(args)} are given" if len(args) != 1 else f"`{name}` takes {wants} arguments, and 1 is given", e.span)
    for i, (arg, value) in enumerate(zip(e.args, args, strict=True)):
        if value.dtype == "bool" and not (name == "where" and i == 0):
            raise problems.refuse("boolean-value", f"`{name}` takes numbers, and this is a comparison", arg.span, "true or false", helps=("write `where(..., 1, 0)`",))
    return expand(env, e, functions.Call(name, args, named, axes))


def expand(env: Env, e: ast.Call, call: functions.Call) -> Value:
    """A built-in function's value, its complaints reported at the call."""
    problems = env.build.problems
    if call.name == "mean" and any(a in env.build.growing for a in _reduced(call)):
        return _mean_of_growing(env, e, call)
    if call.name in ("standardize", "roll", "diag", "concat"):
        _need_fixed(env, e, call.name, (*(call.brackets or ()), *(a for x in call.args for a in x.axes if call.brackets is None or call.name == "concat")))
    try:
        value = BUILTINS[call.name].rule(call)
    except Complaint as c:
        raise problems.refuse(c.code, c.message, e.span, c.label, helps=c.helps) from None
    except AxisError as error:
        raise _axes_differ(env, e, call, error) from None
    if call.name == "concat":
        _check_concat(env, e, call)
    return value


def _need_fixed(env: Env, e: ast.Expr, name: str, axes: Iterable[str]) -> None:
    """Refuses a growing axis where the length of an axis enters."""
    growing = next((a for a in axes if a in env.build.growing), None)
    if growing is not None:
        raise env.build.problems.refuse("growing-axis", f"`{name}` needs an axis of fixed length, and `{growing}` grows", e.span, "", secondary=[(env.build.growing[growing], "it grows")])


def _reduced(call: functions.Call) -> tuple[str, ...]:
    return call.brackets if call.brackets is not None else call.args[0].axes


def _mean_of_growing(env: Env, e: ast.Call, call: functions.Call) -> Value:
    """A growing axis is counted along the value itself: its length is not a size."""
    (x,) = call.args
    ones = functions.Call("sum", (Value(ops.where(ops.compare("eq", x.expr, x.expr), ops.number(1), ops.number(0)), x.axes),), {}, call.brackets)
    total, count = expand(env, e, functions.Call("sum", call.args, {}, call.brackets)), expand(env, e, ones)
    return Value(ops.div(total.expr, count.expr), total.axes)


def _axes_differ(env: Env, e: ast.Call, call: functions.Call, error: AxisError) -> Refused:
    have = " and ".join(listed(shown(a.axes)) for a in call.args if a.axes)
    if error.code == "ambiguous-axis":
        return env.build.problems.refuse(
            "ambiguous-axis", f"`{error.names[0]}` occurs twice in one argument of `{call.name}`, and another has different axes", e.span, have
        )
    if error.code == "axis-mismatch":
        return env.build.problems.refuse("axis-mismatch", f"the arguments of `{call.name}` do not share the axis `{error.names[0]}`", e.span, have)
    return env.build.problems.refuse("silent-outer-product", f"the arguments of `{call.name}` have the axes {have}; none includes the others", e.span)


def _check_concat(env: Env, e: ast.Call, call: functions.Call) -> None:
    """The parts must fill the axis, where all lengths are known."""
    assert call.brackets is not None
    total, values = 0, env.build.values
    for x in call.args:
        length = 1
        for a in x.axes:
            size = values.get(ops.base(a))
            if size is None:
                return
            length *= int(size)
        total += length
    want = values.get(call.brackets[0])
    if want is not None and want != total:
        size = env.build.sizes.get(call.brackets[0])
        raise env.build.problems.refuse(
            "concat-size", f"the parts hold {total} entries and `{call.brackets[0]}` is {want}", e.span, "",
            secondary=[(size.span if size else None, "declared here")],
        )  # fmt: skip


RULES: dict[type, Callable[[Env, Any], Value]] = {
    ast.Number: _number, ast.Ref: _ref, ast.Negate: _negate, ast.Binary: _binary, ast.Index: _index, ast.Call: _call,
}  # fmt: skip

__all__ = ["RULES", "axis_of", "describe", "elementwise", "known_names", "number", "position", "read", "read_real", "state_value", "take"]
