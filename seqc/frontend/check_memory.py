"""Memories applied: `S(z)`, a deep memory's expression, a memory at an earlier time, and what a stored tensor is read as."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from seqc.frontend import ast
from seqc.frontend import check_time as time
from seqc.frontend.check_expr import read_real, state_value
from seqc.frontend.check_library import bind, opened
from seqc.frontend.check_mapping import Actual, leave, map_axes
from seqc.frontend.check_scope import Entity, Env
from seqc.frontend.check_unused import names_in
from seqc.frontend.check_values import AxisError, Value, join, shown
from seqc.ir import ops
from seqc.source import Span


def apply_memory(env: Env, e: ast.Call, entity: Entity, when: int | str | None = None) -> Value:
    """`S(z)` at this line, or at an earlier time."""
    problems, build = env.build.problems, env.build
    build.used.add(entity.name)
    if e.named or len(e.args) != 1:
        raise problems.refuse("argument-count", f"a memory takes 1 argument, and {len(e.args) + len(e.named)} are given", e.span)
    z = read_real(env, e.args[0], "the argument of a memory")
    stored = entity.kind == "value"  # a definition's own tensor
    tensors = {
        t: (
            time.start_value(env, entity, t, when) if when is not None else entity.value if stored and entity.value else state_value(env, t)
        )
        for t in entity.tensors
    }
    if entity.deep is not None:
        return apply_deep(env, entity, entity.deep, Actual(z, e.args[0].span), tensors, e.span)
    memory = tensors[entity.tensors[0]]
    try:
        return join(z, memory)
    except AxisError:
        have = f"this ends in `{shown(z.axes)[-1]}`" if z.axes else "this is a number"
        raise problems.refuse(
            "axis-mismatch",
            f"`{entity.name}` is applied along `{shown(memory.axes)[0]}`",
            e.args[0].span,
            have,
            secondary=[(entity.span, "its first axis")],
        ) from None


def apply_deep(env: Env, entity: Entity, deep: ast.DeepMemory, z: Actual, tensors: Mapping[str, Value], span: Span) -> Value:
    """The expression of a deep memory on z, mapped over the axes that z has more."""
    formal = deep.formal
    with ExitStack() as stack:
        mapping, values = map_axes(env, stack, [(formal.name.id, formal.axes, z)], f"`{entity.name}`")
        for axis, actual in mapping.axes.items():
            if axis != actual:
                raise env.build.problems.refuse(
                    "axis-mismatch",
                    f"`{entity.name}` is applied along `{axis}`",
                    z.span,
                    f"this ends in `{ops.base(actual)}`",
                    secondary=[(formal.span, "its argument")],
                )
        names = dict(env.names) if env.layer else {}
        names[formal.name.id] = Entity("value", formal.name.id, formal.span, values[formal.name.id])
        for tensor, declared in zip(entity.tensors, deep.tensors, strict=True):
            names[declared.name.id] = Entity("value", declared.name.id, declared.span, tensors[tensor])
        inner = env.inner(names=names, objective=False)
        return leave(read_real(inner, deep.body, "what a memory gives"), mapping)


def apply_start(env: Env, e: ast.Call) -> Value:
    """`start(M, C)(x)`: a memory at an earlier time, applied."""
    assert isinstance(e.function, ast.Call)
    inner = e.function.function
    if not (isinstance(inner, ast.Ref) and inner.id == "start"):
        raise env.build.problems.refuse("not-a-function", "what a call gives is not a function", e.function.span)
    entity, when = time.started(env, e.function)
    if entity.kind == "state":
        raise env.build.problems.refuse(
            "not-a-function",
            f"`{entity.name}` cannot be applied",
            e.function.span,
            "",
            secondary=[(entity.span, "declared here")],
            helps=(f"declare it with `memory {entity.name}[...]`",),
        )
    return apply_memory(env, e, entity, when)


def linked(env: Env, tensor: str, stored: Value) -> Value:
    """What is read of a stored tensor: itself, or the link of the memory's retention."""
    build = env.build
    state = build.states.get(tensor)
    link = build.links.get(state.memory) if state is not None and state.memory else None
    if link is None:
        return stored
    definition, method = link.definition, link.method
    constants = {n: x for n, x in env.names.items() if x.kind == "param"} if env.layer else {}
    outer = env.inner(names=constants, objective=False, reads={})
    result = next(s for s in definition.body if isinstance(s, ast.Result) and s.kind == "link")
    wanted = names_in(result.value)
    named = [(k, v) for k, v in method.named if k.id in wanted]
    formals = [f for i, f in enumerate(definition.formals) if i == 0 or f.name.id in wanted]
    positional = {f.name.id: a for f, a in zip(definition.formals[1:], method.args, strict=False)}
    named += [(ast.Name(n, a.span), a) for n, a in positional.items() if n in wanted]
    reduced = replace(definition, formals=tuple(formals))
    actuals = bind(outer, reduced, method.span, (Actual(stored, method.span),), (), named)
    with opened(outer, reduced, method.span, actuals) as (inner, close):
        return close(read_real(inner, result.value, "what a memory is read as"))
