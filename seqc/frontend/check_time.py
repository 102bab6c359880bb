"""The functions that look back in time, and those that draw: `start`, `shift`, `window`, `phase`, `uniform` and its kin."""

from __future__ import annotations

from collections.abc import Callable

from seqc.frontend import ast
from seqc.frontend.check_expr import position, read, read_real
from seqc.frontend.check_index import axis_of
from seqc.frontend.check_problems import Refused
from seqc.frontend.check_scope import Entity, Env
from seqc.frontend.check_sizes import static_size, whole_number
from seqc.frontend.check_values import Value, identity, ordered, relabel
from seqc.ir import model, ops
from seqc.ir.expr import Expr, depends

Brackets = tuple[ast.Expr, ...] | None


def _plain(env: Env, e: ast.Call, name: str, least: int, most: int) -> None:
    if e.named:
        raise env.build.problems.refuse("unknown-argument", f"`{name}` has no argument `{e.named[0][0].id}`", e.named[0][0].span)
    if not least <= len(e.args) <= most:
        wants = str(least) if least == most else f"{least} or {most}"
        raise env.build.problems.refuse(
            "argument-count",
            f"`{name}` takes {wants} argument{'' if wants == '1' else 's'}, and {len(e.args)} {'is' if len(e.args) == 1 else 'are'} given",
            e.span,
        )


def started(env: Env, e: ast.Call) -> tuple[Entity, int | str]:
    """The state that `start(S)`, `start(S, C)` or `start(S, inf)` names, and `token`, a block's length, or `first`."""
    _plain(env, e, "start", 1, 2)
    problems, target = env.build.problems, e.args[0]
    entity = env.names.get(target.id) if isinstance(target, ast.Ref) else None
    if entity is not None and entity.kind == "broken":
        raise Refused
    if entity is None or not entity.tensors:
        if isinstance(target, ast.Ref) and entity is None:
            read(env, target)
        raise problems.refuse(
            "not-a-state",
            "`start` takes a state or a memory",
            target.span,
            "",
            secondary=[(entity.span if entity else None, "declared here")],
        )
    env.build.used.add(entity.name)
    return entity, block(env, e)


def block(env: Env, e: ast.Call) -> int | str:
    if len(e.args) == 1:
        return "token"
    second = e.args[1]
    if isinstance(second, ast.Ref) and second.id == "inf":
        return "first"
    length = whole_number(env, read_real(env, second, "a block's length").expr, second.span, "the length of a block")
    if length < 1:
        raise env.build.problems.refuse(
            "not-a-whole-number", f"the length of a block comes out as {length}", second.span, "a block has at least one token"
        )
    return length


def start_leaf(env: Env, tensor: str, when: int | str) -> Expr:
    """The leaf that stands for a state tensor's earlier value; adds the hidden state that carries it."""
    build = env.build
    state = build.states.get(tensor) or build.owned[tensor]
    if when == "token":
        name = f"{tensor}@start"
    else:
        name = f"{tensor}@first" if when == "first" else f"{tensor}@start{when}"
        length = None if when == "first" else int(when)
        if length is not None:
            position(env)
        hidden = model.Hidden(name, "start", state.axes, None, length, None, tensor, state.dtype, state.scope)
        build.hidden.setdefault(name, hidden)
    build.scopes[name] = state.scope
    build.varying.add(name)
    return ops.var(name, state.axes, state.dtype)


def start_value(env: Env, entity: Entity, tensor: str, when: int | str) -> Value:
    """`start(S)` of one tensor: read through its link, unless a definition's own tensor asks for what is stored."""
    from seqc.frontend.check_memory import linked

    leaf = start_leaf(env, tensor, when)
    if entity.kind in ("state", "memory"):
        return linked(env, tensor, Value(leaf, leaf.axes))
    assert entity.value is not None
    return Value(relabel(leaf, dict(zip(leaf.axes, entity.inside, strict=True))), entity.value.axes)


def _start(env: Env, e: ast.Call, brackets: Brackets) -> Value:
    entity, when = started(env, e)
    if entity.deep is not None:
        raise env.build.problems.refuse(
            "deep-memory-value",
            f"`{entity.name}` is several tensors and is not a value",
            e.span,
            "",
            secondary=[(entity.span, "a deep memory")],
            helps=(f"apply it: `{e.span.text}(...)`",),
        )
    return start_value(env, entity, entity.tensors[0], when)


def _phase(env: Env, e: ast.Call, brackets: Brackets) -> Value:
    _plain(env, e, "phase", 1, 1)
    length = whole_number(env, read_real(env, e.args[0], "a block's length").expr, e.args[0].span, "the length of a block")
    counts = None
    value = read(env, e.args[0])
    if value.expr.op.name == "size":
        counts = str(value.expr.attr)
    return Value(ops.modulo(position(env).expr, ops.number(length)), (), counts)


def _hold(env: Env, e: ast.Call, value: Value) -> Expr:
    """The value as a leaf that means the same at every later line."""
    build, expr = env.build, value.expr
    if any(depends(expr, (leaf,)) for leaf in env.reads.values()):
        raise build.problems.refuse(
            "memory-in-window", "what is carried to later tokens cannot hold the memory that is differentiated", e.span
        )
    if value.mapped:
        raise build.problems.refuse(
            "mapped-in-time", "what is carried to later tokens cannot stand inside a function that is mapped", e.span
        )
    settled = build.varying - set(build.states) - set(build.owned)
    if expr.op.name == "var" and (expr.name in settled or expr.name not in build.varying):
        return expr
    if build.varies(expr) is None:
        return expr
    name = f"held@{len(build.steps)}"
    build.steps.append(model.Let(name, expr, e.span))
    build.scopes[name] = build.scope_of(expr)[0]
    build.varying.add(name)
    return ops.var(name, expr.axes, expr.type.dtype)


def _hidden(env: Env, e: ast.Call, kind: str, value: Value, axis: str | None, length: int | None) -> tuple[str, Expr]:
    """The hidden state that carries a value, one for each value, and the leaf it is held in."""
    build = env.build
    key = (kind, id(value.expr), axis or "", length or 0, build.line)
    if key in build.hidden_keys:
        return build.hidden_keys[key][1], value.expr
    held = _hold(env, e, value)
    stem = held.name if held.op.name == "var" and "@" not in held.name else ""
    count = sum(h.kind == kind for h in build.hidden.values())
    label = kind if length is None else f"{kind}{length}"
    name = f"{stem or count}@{label}"
    while name in build.hidden:
        name += "_"
    build.hidden_keys[key] = (value.expr, name)
    shape = value.axes if axis is None else (axis, *value.axes)
    scope = build.scope_of(held)[0]
    build.hidden[name] = model.Hidden(name, "shift" if kind == "shift" else "window", shape, axis, length, held, None, value.dtype, scope)
    build.scopes[name] = scope
    build.varying.add(name)
    return name, held


def _shift(env: Env, e: ast.Call, brackets: Brackets) -> Value:
    _plain(env, e, "shift", 1, 1)
    value = read_real(env, e.args[0], "the argument of `shift`")
    name, _ = _hidden(env, e, "shift", value, None, None)
    return Value(ops.var(name, value.axes, value.dtype), value.axes)


def _window(env: Env, e: ast.Call, brackets: Brackets) -> Value:
    _plain(env, e, "window", 1, 1)
    if brackets is None or len(brackets) != 1:
        raise env.build.problems.refuse(
            "axis-not-named",
            "`window` needs the axis that counts its values",
            e.span,
            "",
            helps=("write `window[c](...)`, with c a size of the layer",),
        )
    axis = identity(axis_of(env, brackets[0]))
    value = read_real(env, e.args[0], "the argument of `window`")
    length = static_size(env.build, ops.base(axis), brackets[0].span, "the length of a window")
    if axis in map(identity, value.axes):
        raise env.build.problems.refuse("ambiguous-axis", f"the argument of `window[{axis}]` has the axis `{axis}` already", e.span)
    name, _ = _hidden(env, e, "window", value, axis, length)
    axes = (axis, *value.axes)
    return ordered(ops.var(name, axes, value.dtype), axes)


SPECIAL: dict[str, Callable[[Env, ast.Call, Brackets], Value]] = {"start": _start, "phase": _phase, "shift": _shift, "window": _window}


def draw(env: Env, e: ast.Call, kind: str) -> Value:
    """A random number for each entry of the param at hand."""
    if env.draws is None:
        raise env.build.problems.refuse(
            "draw-outside-param",
            f"`{kind}` draws the initial value of a param",
            e.span,
            "this is computed at every token" if env.layer else "not an initial value",
        )
    _plain(env, e, kind, 2, 2)
    args = []
    for a in e.args:
        value = read_real(env, a, f"an argument of `{kind}`")
        if value.expr.axes:
            raise env.build.problems.refuse("not-a-number", f"the arguments of `{kind}` are numbers", a.span, "this has axes")
        args.append(value.expr)
    name = f"{env.draw_name}@{kind}{len(env.draws)}"
    env.draws.append(model.Draw(name, kind, tuple(args)))
    leaf = relabel(ops.var(name, env.draw_axes), env.binders)
    return Value(leaf, tuple(a for a in env.draw_axes if a not in env.binders))
