"""Calls: memories, built-in functions and library functions."""

from __future__ import annotations

from seqc.frontend import ast
from seqc.frontend import check_functions as functions
from seqc.frontend import check_library as library
from seqc.frontend import check_memory as memory
from seqc.frontend import check_time as time
from seqc.frontend.check_expr import read
from seqc.frontend.check_functions import BUILTINS, DRAWS, PROJECT_ONLY
from seqc.frontend.check_index import axis_of, need_fixed
from seqc.frontend.check_problems import Refused, listed
from seqc.frontend.check_reduce import Call, Complaint
from seqc.frontend.check_scope import Entity, Env
from seqc.frontend.check_values import AxisError, Value, shown
from seqc.ir import ops


def called(env: Env, e: ast.Call) -> Value:
    problems = env.build.problems
    if isinstance(e.function, ast.Call):
        return memory.apply_start(env, e)
    brackets = e.function.items if isinstance(e.function, ast.Index) else None
    base = e.function.base if isinstance(e.function, ast.Index) else e.function
    if not isinstance(base, ast.Ref):
        raise problems.refuse("not-a-function", "this is not a function", e.function.span)
    entity = env.names.get(base.id)
    if entity is not None or (env.layer and base.id in env.build.sizes):
        if entity is not None and entity.kind == "memory" and brackets is None:
            return memory.apply_memory(env, e, entity)
        raise _not_a_function(env, base, entity)
    if base.id in time.SPECIAL:
        return time.SPECIAL[base.id](env, e, brackets)
    if base.id in DRAWS:
        return time.draw(env, e, base.id)
    if base.id in BUILTINS:
        return _builtin(env, e, base.id, brackets)
    if base.id in PROJECT_ONLY:
        raise problems.refuse(
            "project-only", f"`{base.id}` stands in a `project` section", base.span, "here nothing owns weights and heads are not seen"
        )
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
        "not-a-function",
        f"`{base.id}` cannot be applied",
        base.span,
        "",
        secondary=[(entity.span if entity else None, "declared here")],
        helps=helps,
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
        raise problems.refuse(
            "argument-count",
            f"`{name}` takes {wants} argument{plural}, and {len(args)} are given"
            if len(args) != 1
            else f"`{name}` takes {wants} arguments, and 1 is given",
            e.span,
        )
    for i, (arg, given) in enumerate(zip(e.args, args, strict=True)):
        if given.dtype == "bool" and not (name == "where" and i == 0):
            raise problems.refuse(
                "boolean-value",
                f"`{name}` takes numbers, and this is a comparison",
                arg.span,
                "true or false",
                helps=("write `where(..., 1, 0)`",),
            )
    return expand(env, e, Call(name, args, named, axes))


def expand(env: Env, e: ast.Call, call: Call) -> Value:
    """A built-in function's value, its complaints reported at the call."""
    problems = env.build.problems
    if call.name == "mean" and any(a in env.build.growing for a in _reduced(call)):
        return _mean_of_growing(env, e, call)
    if call.name in ("standardize", "roll", "diag", "concat"):
        need_fixed(
            env,
            e,
            call.name,
            (*(call.brackets or ()), *(a for x in call.args for a in x.axes if call.brackets is None or call.name == "concat")),
        )
    try:
        value = BUILTINS[call.name].rule(call)
    except Complaint as c:
        raise problems.refuse(c.code, c.message, e.span, c.label, helps=c.helps) from None
    except AxisError as error:
        raise _axes_differ(env, e, call, error) from None
    if call.name == "concat":
        _check_concat(env, e, call)
    return value


def _reduced(call: Call) -> tuple[str, ...]:
    return call.brackets if call.brackets is not None else call.args[0].axes


def _mean_of_growing(env: Env, e: ast.Call, call: Call) -> Value:
    """A growing axis is counted along the value itself: its length is not a size."""
    (x,) = call.args
    ones = Call("sum", (Value(ops.where(ops.compare("eq", x.expr, x.expr), ops.number(1), ops.number(0)), x.axes),), {}, call.brackets)
    total, count = expand(env, e, Call("sum", call.args, {}, call.brackets)), expand(env, e, ones)
    return Value(ops.div(total.expr, count.expr), total.axes)


def _axes_differ(env: Env, e: ast.Call, call: Call, error: AxisError) -> Refused:
    have = " and ".join(listed(shown(a.axes)) for a in call.args if a.axes)
    if error.code == "ambiguous-axis":
        return env.build.problems.refuse(
            "ambiguous-axis",
            f"`{error.names[0]}` occurs twice in one argument of `{call.name}`, and another has different axes",
            e.span,
            have,
        )
    if error.code == "axis-mismatch":
        return env.build.problems.refuse(
            "axis-mismatch", f"the arguments of `{call.name}` do not share the axis `{error.names[0]}`", e.span, have
        )
    return env.build.problems.refuse(
        "silent-outer-product", f"the arguments of `{call.name}` have the axes {have}; none includes the others", e.span
    )


def _check_concat(env: Env, e: ast.Call, call: Call) -> None:
    """The parts must fill the axis, where all lengths are known."""
    assert call.brackets is not None
    total, values = 0, env.build.values
    for x in call.args:
        length = 1
        for a in x.axes:
            known = values.get(ops.base(a))
            if known is None:
                return
            length *= int(known)
        total += length
    want = values.get(call.brackets[0])
    if want is not None and want != total:
        size = env.build.sizes.get(call.brackets[0])
        raise env.build.problems.refuse(
            "concat-size", f"the parts hold {total} entries and `{call.brackets[0]}` is {want}", e.span, "",
            secondary=[(size.span if size else None, "declared here")],
        )  # fmt: skip
