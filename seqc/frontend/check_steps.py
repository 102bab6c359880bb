"""Statements of a layer's body -> the Model's steps, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from seqc.frontend import ast, check_declare
from seqc.frontend.check_declare import bound_value, declared_axes, fit_checked, need_scope
from seqc.frontend.check_expr import read, read_real
from seqc.frontend.check_fold import fold_operand
from seqc.frontend.check_learn import learn, retain
from seqc.frontend.check_library import loop_values
from seqc.frontend.check_problems import STATEMENTS, Refused, listed
from seqc.frontend.check_scope import Entity, Env, broken, declare, refuse_name, unknown_name
from seqc.frontend.check_values import Value, plain, shown
from seqc.ir import model, ops
from seqc.ir.expr import Expr, substitute


def run(env: Env, body: Sequence[ast.Statement]) -> None:
    """The statements from top to bottom. An error ends its statement only."""
    for s in body:
        if any(d.code == "too-many-statements" for d in env.build.problems.errors):
            return
        if len(env.build.steps) >= STATEMENTS:
            message = f"the body has more than {STATEMENTS} statements after unrolling"
            raise env.build.problems.refuse("too-many-statements", message, s.span)
        with env.build.problems.statement():
            try:
                RULES[type(s)](env, s)
            except Refused:
                for name in _declares(s):
                    broken(env, name)
                raise


def _declares(s: ast.Statement) -> tuple[ast.Name, ...]:
    if isinstance(s, (ast.Let, ast.DeepMemory)):
        return (s.name,)
    return ()


def _declaration(env: Env, s: ast.Declare) -> None:
    for t in s.tensors:
        with env.build.problems.statement():
            try:
                check_declare.param(env, t) if s.kind == "param" else check_declare.state(env, t, s.kind)
            except Refused:
                broken(env, t.name)


def _let(env: Env, s: ast.Let) -> None:
    refuse_name(env, s.name)
    build = env.build
    if s.axes:
        axes = declared_axes(env, s.axes)
        expr = bound_value(env, s.axes, axes, s.value, f"the value of `{s.name.id}`")
        value = Value(expr, axes)
    else:
        found = read(env, s.value)
        value = plain(found)
    name = s.name.id + env.suffix
    leaf = ops.var(name, value.expr.axes, value.dtype)
    build.steps.append(model.Let(name, value.expr, s.span))
    build.scopes[name] = build.scope_of(value.expr)[0]
    if build.varies(value.expr) is not None:
        build.varying.add(name)
    else:
        (build.fixed[leaf],) = substitute((value.expr,), build.fixed)
    lengths = tuple((a, len(build.grown.get(a, []))) for a in value.axes if a in build.growing)
    declare(env, s.name, Entity("let", s.name.id, s.name.span, Value(leaf, value.axes), lengths=lengths))


def _state_entity(env: Env, name: ast.Name, verb: str) -> Entity:
    """The plain state or memory that a line changes."""
    entity = env.names.get(name.id)
    if entity is None:
        raise unknown_name(env, name.id, name.span, "no state")
    if entity.kind == "broken":
        raise Refused
    if entity.kind not in ("state", "memory"):
        raise env.build.problems.refuse(
            "not-a-state",
            f"`{verb}` changes a state, and `{name.id}` is {_kind(entity)}",
            name.span,
            "",
            secondary=[(entity.span, "declared here")],
        )
    if entity.deep is not None:
        raise env.build.problems.refuse(
            "deep-memory-value",
            f"`{name.id}` is several tensors, and `{verb}` changes one",
            name.span,
            "",
            secondary=[(entity.span, "a deep memory")],
        )
    return entity


def _kind(entity: Entity) -> str:
    return "an input" if entity.kind == "input" else f"a {entity.kind}" if entity.kind != "let" else "a `let`"


def new_value(env: Env, e: ast.Expr, state: model.State, what: str) -> Expr:
    """An expression as the next value of a state."""
    value = read_real(env, e, what)
    if state.growing is None and any(a in env.build.growing for a in value.axes):
        raise env.build.problems.refuse(
            "axis-mismatch",
            f"`{state.name}` does not grow, and this has a growing axis",
            e.span,
            f"this has the axes {listed(shown(value.axes))}",
        )
    fit_checked(env, value, state.axes, e.span, what)
    if value.dtype == "complex" and state.dtype == "real":
        raise env.build.problems.refuse(
            "complex-value",
            f"`{state.name}` is real, and this is complex",
            e.span,
            "",
            secondary=[(state.span, "declared here")],
            helps=(f"declare `{state.name}` with `in complex`",),
        )
    need_scope(env, state.name, state.scope, e.span, value.expr)
    if not state.growing or state.growing in value.axes:
        return value.expr if value.expr.axes == state.axes else ops.broadcast(value.expr, state.axes)
    raise env.build.problems.refuse("axis-mismatch", f"`{state.name}` has the growing axis `{state.growing}`, and this has not", e.span)


def _update(env: Env, s: ast.Update) -> None:
    entity = _state_entity(env, s.name, "update")
    build = env.build
    if entity.name in build.links:
        raise build.problems.refuse(
            "linked-update",
            f"`{entity.name}` is read through the link of its retention and cannot be updated",
            s.name.span,
            "",
            secondary=[(build.links[entity.name].method.span, "its retention")],
        )
    state = build.states[entity.tensors[0]]
    value = new_value(env, s.value, state, f"what `{s.name.id}` becomes")
    build.line += 1
    build.steps.append(model.Update(state.name, value, s.span))


def _fold(env: Env, s: ast.Fold) -> None:
    entity = _state_entity(env, s.name, "fold")
    build = env.build
    if s.order is not None and s.order.id not in ("left", "tree"):
        _, helps = build.problems.misspelt(s.order.id, {"left": None, "tree": None})
        raise build.problems.refuse(
            "unknown-order", f"no order of a fold is named `{s.order.id}`", s.order.span, "orders are `left` and `tree`", helps=helps
        )
    state = build.states[entity.tensors[0]]
    value = new_value(env, s.value, state, f"what `{s.name.id}` becomes")
    order = s.order.id if s.order else "claimed"
    operand = fold_operand(build, state, value, order, s.value.span)
    build.line += 1
    build.steps.append(model.Fold(state.name, value, operand, order, s.span))  # type: ignore[arg-type]


def _append(env: Env, s: ast.Append) -> None:
    build, problems = env.build, env.build.problems
    items: list[tuple[str, Expr]] = []
    axis: str | None = None
    for e, name in s.items:
        entity = _state_entity(env, name, "append")
        state = build.states[entity.tensors[0]]
        if state.growing is None:
            raise problems.refuse(
                "not-growing",
                f"`{name.id}` does not grow",
                name.span,
                "",
                secondary=[(state.span, "declared here")],
                helps=(f"write `memory {name.id}[past, ...] = empty`",),
            )
        if axis is not None and state.growing != axis:
            raise problems.refuse("append-mixed", f"`{name.id}` grows along `{state.growing}`, and the others along `{axis}`", name.span)
        if any(name.id == other for other, _ in items):
            raise problems.refuse("appended-twice", f"`{name.id}` is appended to twice", name.span)
        axis = state.growing
        items.append((state.name, _entry(env, e, state)))
    assert axis is not None
    missing = [n for n, st in build.states.items() if st.growing == axis and n not in {name for name, _ in items}]
    if missing:
        raise problems.refuse(
            "append-incomplete",
            f"`{missing[0]}` grows along `{axis}` too, and nothing is appended to it",
            s.span,
            "",
            secondary=[(build.states[missing[0]].span, "declared here")],
            helps=(f"write `append ..., ... to {missing[0]}`",),
        )
    if build.grown.get(axis):
        raise problems.refuse(
            "appended-twice", f"`{axis}` grows twice in one token", s.span, "", secondary=[(build.grown[axis][0], "it grows here")]
        )
    build.grown.setdefault(axis, []).append(s.span)
    build.line += 1
    build.steps.append(model.Append(tuple(items), s.span))


def _entry(env: Env, e: ast.Expr, state: model.State) -> Expr:
    """What is appended: the state's axes without the growing one."""
    value = read_real(env, e, f"an entry of `{state.name}`")
    axes = tuple(a for a in state.axes if a != state.growing)
    fit_checked(env, value, axes, e.span, f"an entry of `{state.name}`")
    if value.dtype == "complex" and state.dtype == "real":
        raise env.build.problems.refuse(
            "complex-value",
            f"`{state.name}` is real, and this is complex",
            e.span,
            "",
            helps=(f"declare `{state.name}` with `in complex`",),
        )
    need_scope(env, state.name, state.scope, e.span, value.expr)
    return value.expr if value.expr.axes == axes else ops.broadcast(value.expr, axes)


def _output(env: Env, s: ast.Output) -> None:
    build, problems = env.build, env.build.problems
    if any(isinstance(x, model.Output) and x.name == s.name.id for x in build.steps):
        raise problems.refuse("declared-twice", f"the output `{s.name.id}` is declared twice", s.name.span)
    if s.value is None:
        value, axes = _output_of_name(env, s)
    else:
        refuse_name(env, s.name)
        axes = declared_axes(env, s.axes)
        if any(a in build.growing for a in axes):
            raise problems.refuse(
                "growing-output", f"`{s.name.id}` would be as long as the sequence so far", s.span, "an output has a fixed length"
            )
        value = Value(bound_value(env, s.axes, axes, s.value, f"the value of `{s.name.id}`"), axes)
        env.names[s.name.id] = Entity("output", s.name.id, s.name.span)
    expr = value.expr if value.expr.axes == axes else ops.broadcast(value.expr, axes)
    build.steps.append(model.Output(s.name.id, axes, expr, s.span))


def _output_of_name(env: Env, s: ast.Output) -> tuple[Value, tuple[str, ...]]:
    """`output h`: the value of a state or `let` at this line."""
    problems = env.build.problems
    if s.axes:
        raise problems.refuse(
            "output-without-value",
            f"the output `{s.name.id}` has axes and no value",
            s.span,
            "",
            helps=(f"write `output {s.name.id}` for the value of that name",),
        )
    value = read_real(env, ast.Ref(s.name.id, s.name.span), "an output")
    if any(a in env.build.growing for a in value.axes):
        raise problems.refuse(
            "growing-output", f"`{s.name.id}` would be as long as the sequence so far", s.span, "an output has a fixed length"
        )
    return value, value.axes


def _for(env: Env, s: ast.For) -> None:
    for i, index in enumerate(loop_values(env, s)):
        names = dict(env.names)
        names[s.index.id] = Entity("index", s.index.id, s.index.span, index)
        inner = env.inner(names=names, suffix=f"{env.suffix}.{i}")
        before = len(env.build.problems.errors)
        run(inner, s.body)
        if len(env.build.problems.errors) > before:
            return


RULES: dict[type, Callable[[Env, Any], None]] = {
    ast.Inputs: check_declare.inputs, ast.Declare: _declaration, ast.DeepMemory: check_declare.deep_memory, ast.Let: _let,
    ast.Update: _update, ast.Fold: _fold, ast.Append: _append, ast.Output: _output, ast.For: _for, ast.Retain: retain, ast.Learn: learn,
}  # fmt: skip
