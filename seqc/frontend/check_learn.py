"""`retain` and `learn`: library text applied to each tensor of a memory, with the gradient of the objective derived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from seqc.frontend import ast
from seqc.frontend import check_time as time
from seqc.frontend.check_declare import need_scope
from seqc.frontend.check_expr import read_real, state_value
from seqc.frontend.check_library import bind, conform, find, needed, opened, run_body
from seqc.frontend.check_mapping import Actual
from seqc.frontend.check_problems import Refused, listed
from seqc.frontend.check_scope import Entity, Env, Link, current, unknown_name
from seqc.frontend.check_unused import names_in
from seqc.frontend.check_values import Value, canonical_names, relabel, shown
from seqc.ir import model, ops
from seqc.ir.adjoint import gradient
from seqc.ir.expr import Expr, depends, substitute, walk
from seqc.source import Span


def memory_entity(env: Env, name: ast.Name, verb: str) -> Entity:
    entity = env.names.get(name.id)
    if entity is None:
        raise unknown_name(env, name.id, name.span, "no memory")
    if entity.kind == "broken":
        raise Refused
    if entity.kind != "memory":
        helps = (f"declare it with `memory {name.id}`",) if entity.kind == "state" else ()
        raise env.build.problems.refuse(
            "not-a-memory",
            f"`{verb}` changes a memory, and `{name.id}` is none",
            name.span,
            "",
            secondary=[(entity.span, "declared here")],
            helps=helps,
        )
    return entity


def find_links(env: Env, body: Sequence[ast.Statement]) -> None:
    """Notes for each memory the retention whose link it is read through."""
    for s in body:
        if isinstance(s, ast.For):
            find_links(env, s.body)
        if not isinstance(s, ast.Retain):
            continue
        definition = find(env, "retention", s.method.name.id)
        if definition is None or not any(isinstance(x, ast.Result) and x.kind == "link" for x in definition.body):
            continue
        earlier = env.build.links.get(s.memory.id)
        if earlier is not None:
            raise env.build.problems.refuse(
                "two-links",
                f"`{s.memory.id}` is read through two links",
                s.method.span,
                "",
                secondary=[(earlier.method.span, "the other one")],
            )
        env.build.links[s.memory.id] = Link(definition, s.span.source, s.method)


# --- Retain --------------------------------------------------------------------------------------------------------


def retain(env: Env, s: ast.Retain) -> None:
    entity = memory_entity(env, s.memory, "retain")
    build = env.build
    definition = needed(env, "retention", s.method.name)
    updates: list[model.Update] = []
    shown_args: tuple[tuple[str, Expr], ...] = ()
    for tensor in entity.tensors:
        stored = Value(current(env, tensor), build.states[tensor].axes)
        actuals = bind(env, definition, s.method.span, (Actual(stored, s.span, tensor),), s.method.args, s.method.named)
        new = apply_definition(env, definition, s.method.span, actuals, {})[tensor]
        updates.append(model.Update(tensor, _settle(env, tensor, new, stored, s.method.span), s.span))
        shown_args = _arguments(actuals, 1)
    build.line += 1
    build.steps.append(model.Retain(entity.name, definition.name.id, shown_args, tuple(updates), s.span))


def _arguments(actuals: Mapping[str, Actual], given: int) -> tuple[tuple[str, Expr], ...]:
    return tuple((n, a.value.expr) for n, a in list(actuals.items())[given:])


def _settle(env: Env, tensor: str, new: Value, like: Value, span: Span) -> Expr:
    """A tensor's next value in its own axes and scope."""
    value = conform(env, new, like, span, tensor)
    state = env.build.states.get(tensor) or env.build.owned[tensor]
    need_scope(env, tensor, state.scope, span, value.expr)
    return value.expr if value.expr.axes == state.axes else ops.broadcast(value.expr, state.axes)


def apply_definition(
    env: Env, definition: ast.Definition, span: Span, actuals: Mapping[str, Actual], owned: Mapping[str, str]
) -> dict[str, Value]:
    """What a retention or algorithm makes of its tensor and of its own states (`owned`: name -> state)."""
    w = definition.formals[0].name.id
    tensor = actuals[w].tensor
    assert tensor is not None
    with opened(env, definition, span, actuals) as (inner, close):
        for name, state in owned.items():
            inside = inner.names[w].inside
            leaf = Value(current(env, state), current(env, state).axes)
            value = Value(_inward(leaf.expr, inside), inner.names[w].value.axes)  # type: ignore[union-attr]
            inner.names[name] = Entity("value", name, None, value, (state,), mutable=True, inside=inside)
        if definition.value is not None:
            new = read_real(inner, definition.value, f"the value of a {definition.kind}")
            inner.names[w] = replace(inner.names[w], value=conform(inner, new, inner.names[w].value, definition.value.span, w))  # type: ignore[arg-type]
        else:
            run_body(inner, definition.body)
        names = {tensor: w} | {state: name for name, state in owned.items()}
        return {state: close(inner.names[name].value) for state, name in names.items()}  # type: ignore[arg-type]


def _inward(leaf: Expr, inside: tuple[str, ...]) -> Expr:
    return relabel(leaf, dict(zip(leaf.axes, inside, strict=True)))


# --- Learn ---------------------------------------------------------------------------------------------------------


def learn(env: Env, s: ast.Learn) -> None:
    entity = memory_entity(env, s.memory, "learn")
    build = env.build
    if any(build.states[t].growing for t in entity.tensors):
        raise build.problems.refuse(
            "growing-learn", f"`{entity.name}` grows and cannot be learned", s.memory.span, "", secondary=[(entity.span, "declared here")]
        )
    if any(build.states[t].dtype == "complex" for t in entity.tensors):
        raise build.problems.refuse(
            "complex-value",
            f"`{entity.name}` is complex and cannot be learned",
            s.memory.span,
            "",
            secondary=[(entity.span, "declared here")],
        )
    definition = needed(env, "algorithm", s.method.name)
    objective, gradients = differentiate(env, s, entity)
    when = point(env, s, entity)
    here = {t: _at_point(env, entity, t, when) for t in entity.tensors}
    taken = dict(zip(entity.tensors, substitute(gradients, {_leaf(env, t): here[t] for t in entity.tensors}), strict=True))
    updates: list[model.Update] = []
    shown_args: tuple[tuple[str, Expr], ...] = ()
    for tensor in entity.tensors:
        made, shown_args = _step(env, s, definition, tensor, taken[tensor])
        updates += _implicit(env, s, tensor, made) if when == "next" else [model.Update(n, v, s.span) for n, v in made]
    build.line += 1
    build.steps.append(
        model.Learn(
            entity.name, definition.name.id, shown_args, objective, s.objective.span.text, _point_name(when), tuple(updates), s.span
        )
    )


def _leaf(env: Env, tensor: str) -> Expr:
    state = env.build.states[tensor]
    return ops.var(f"{tensor}@grad", state.axes)


def differentiate(env: Env, s: ast.Learn, entity: Entity) -> tuple[Expr, tuple[Expr, ...]]:
    """The objective over the memory's values at this line, and its gradients over leaves that stand for the memory."""
    build = env.build
    leaves = {t: _leaf(env, t) for t in entity.tensors}
    for t, leaf in leaves.items():
        build.scopes[leaf.name] = build.states[t].scope
    build.slopes = []
    value = read_real(env.inner(objective=True, reads=leaves), s.objective, "an objective")
    _need_scalar(env, s, value)
    if value.dtype == "complex":
        raise build.problems.refuse("complex-value", "an objective is real, and this is complex", s.objective.span)
    if not depends(value.expr, leaves.values()):
        raise build.problems.refuse(
            "objective-constant",
            f"the objective does not depend on `{entity.name}`",
            s.objective.span,
            "its gradient is zero",
            secondary=[(entity.span, "the memory")],
        )
    slopes = dict(build.slopes)
    if not _linear_in(value.expr, tuple(slopes), tuple(leaves.values())):
        raise build.problems.refuse(
            "slope-as-value",
            "an objective given by its slope has no value to compute with",
            s.objective.span,
            "",
            notes=("it may be scaled, added to others and summed",),
        )
    gradients = substitute_slopes(gradient(value.expr, tuple(leaves.values())), build.slopes)
    now = {leaf: state_value(env, t).expr for t, leaf in leaves.items()}
    (shown_objective,) = substitute((value.expr,), now)
    return shown_objective, gradients


def substitute_slopes(exprs: tuple[Expr, ...], slopes: Sequence[tuple[Expr, Expr]]) -> tuple[Expr, ...]:
    for leaf, slope in reversed(slopes):
        exprs = substitute(exprs, {leaf: slope})
    return exprs


def _need_scalar(env: Env, s: ast.Learn, value: Value) -> None:
    """An objective with an axis left is one value for each entry of it: which step that means is the author's to say."""
    if not value.expr.axes:
        return
    axis = shown(value.axes or value.expr.axes)[0]
    pairs = [i for i in env.build.inputs if axis in map(ops.base, i.axes)]
    used = [i.name for i in pairs if i.name in names_in(s.objective)]
    size = env.build.sizes.get(axis)
    source = next((i.span for i in pairs if i.name in used), size.span if size else None)
    helps = [f"write `sum[{axis}]({s.objective.span.text})` for one step on all pairs"]
    if used and size is not None:
        helps.append(f"write `for i in {axis}`, {', '.join(f'`{n}[i]`' for n in used)} and `end` for {axis} steps in turn")
    raise env.build.problems.refuse(
        "objective-not-scalar", f"the objective keeps the axis `{axis}`", s.objective.span, f"one value for each of the `{axis}` pairs",
        secondary=[(source, f"`{axis}` comes from here")], helps=helps,
        notes=("all pairs in one step and one pair after the other are different models",),
    )  # fmt: skip


def _linear_in(root: Expr, slopes: tuple[Expr, ...], leaves: tuple[Expr, ...]) -> bool:
    """Whether slopes are only scaled, added and summed, by factors free of the memory."""
    if not slopes:
        return True
    from_slope: dict[int, bool] = {}
    from_leaf: dict[int, bool] = {}
    product = {id(n) for n in walk(root) if any(a in slopes for a in n.args)}
    for node in walk(root):
        inherited = any(from_slope[id(a)] for a in node.args)
        from_leaf[id(node)] = any(node is x for x in leaves) or any(from_leaf[id(a)] for a in node.args)
        from_slope[id(node)] = any(node is x for x in slopes) or inherited
        if not inherited or id(node) in product:
            continue
        carriers = [i for i, a in enumerate(node.args) if from_slope[id(a)]]
        others = [a for i, a in enumerate(node.args) if i not in carriers]
        if any(i not in node.op.linear for i in carriers) or (
            not node.op.joint and (len(carriers) > 1 or any(from_leaf[id(a)] for a in others))
        ):
            return False
    return True


# --- Where the gradient is taken -----------------------------------------------------------------------------------


def point(env: Env, s: ast.Learn, entity: Entity) -> int | str:
    """`here`, `token` (start), a block's length, `first` or `next`."""
    problems, at = env.build.problems, s.point
    if at is None:
        return "here"
    good = isinstance(at, ast.Call) and isinstance(at.function, ast.Ref) and at.function.id in ("start", "next") and at.args
    if not good or not isinstance(at, ast.Call):
        raise problems.refuse(
            "unknown-point", "a gradient is taken at `start(...)` or `next(...)`", at.span, "", helps=(f"write `at start({entity.name})`",)
        )
    target = at.args[0]
    if not isinstance(target, ast.Ref) or target.id != entity.name:
        raise problems.refuse(
            "wrong-point",
            f"the gradient is in `{entity.name}`, and this is another point",
            target.span,
            "",
            helps=(f"write `{entity.name}`",),
        )
    if at.function.id == "start":  # type: ignore[union-attr]
        return time.started(env, at)[1]
    if len(at.args) != 1 or at.named:
        raise problems.refuse("argument-count", "`next` takes 1 argument", at.span)
    if entity.deep is not None:
        raise problems.refuse(
            "implicit-not-quadratic",
            "an implicit step needs an objective that is quadratic in the memory",
            at.span,
            "",
            secondary=[(entity.span, "a deep memory")],
        )
    if entity.name in env.build.links:
        raise problems.refuse("implicit-not-quadratic", f"`{entity.name}` is read through a link, and an implicit step needs none", at.span)
    return "next"


def _point_name(when: int | str) -> str:
    return f"start({when})" if isinstance(when, int) else {"token": "start", "first": "start(inf)"}.get(when, when)


def _at_point(env: Env, entity: Entity, tensor: str, when: int | str) -> Expr:
    """The memory's value where the gradient is taken."""
    if when == "here":
        return state_value(env, tensor).expr
    if when == "next":
        return _unknown(env, tensor)
    return time.start_value(env, entity, tensor, when).expr


def _unknown(env: Env, tensor: str) -> Expr:
    state = env.build.states[tensor]
    env.build.scopes[f"{tensor}@next"] = state.scope
    return ops.var(f"{tensor}@next", state.axes)


def _implicit(env: Env, s: ast.Learn, tensor: str, made: Sequence[tuple[str, Expr]]) -> list[model.Update]:
    """The step solved for its own result: W = step(W)."""
    unknown = _unknown(env, tensor)
    body = dict(made)[tensor]
    if not affine(body, unknown):
        raise env.build.problems.refuse(
            "implicit-not-quadratic",
            "an implicit step needs an objective that is quadratic in the memory",
            s.objective.span,
            "its gradient is not affine",
        )
    solved = ops.implicit(body, unknown) if depends(body, (unknown,)) else body
    others = substitute([v for n, v in made if n != tensor], {unknown: solved})
    rest = iter(others)
    return [model.Update(n, solved if n == tensor else next(rest), s.span) for n, _ in made]


def affine(root: Expr, leaf: Expr) -> bool:
    """Whether a node is affine in a leaf, by the linearity that the op table states."""
    inside: dict[int, bool] = {}
    for node in walk(root):
        carriers = [i for i, a in enumerate(node.args) if inside[id(a)]]
        inside[id(node)] = node is leaf or bool(carriers)
        if any(i not in node.op.linear for i in carriers) or (len(carriers) > 1 and not node.op.joint):
            return False
    return True


# --- The step ------------------------------------------------------------------------------------------------------


def _step(
    env: Env, s: ast.Learn, definition: ast.Definition, tensor: str, g: Expr
) -> tuple[list[tuple[str, Expr]], tuple[tuple[str, Expr], ...]]:
    """The algorithm's states and tensor after one step on a gradient, and the arguments it was given."""
    build = env.build
    stored = Value(current(env, tensor), build.states[tensor].axes)
    if len(definition.formals) < 2:
        raise build.problems.refuse(
            "missing-argument",
            f"`{definition.name.id}` does not take a tensor and its gradient",
            s.method.span,
            "",
            secondary=[(definition.name.span, "defined here")],
        )
    first, second = definition.formals[:2]
    if first.axes and not second.axes:
        definition = replace(definition, formals=(first, replace(second, axes=first.axes), *definition.formals[2:]))
    pair = (Actual(stored, s.span, tensor), Actual(Value(g, build.states[tensor].axes), s.span))
    actuals = bind(env, definition, s.method.span, pair, s.method.args, s.method.named)
    owned = {
        t.name.id: _owned_state(env, definition, t, tensor, s.span)
        for d in definition.body
        if isinstance(d, ast.Declare)
        for t in d.tensors
    }
    made = apply_definition(env, definition, s.method.span, actuals, owned)
    order = (*owned.values(), tensor)
    return [(n, _settle(env, n, made[n], stored, s.method.span)) for n in order], _arguments(actuals, 2)


def _owned_state(env: Env, definition: ast.Definition, t: ast.Tensor, tensor: str, span: Span) -> str:
    """An algorithm's state of its own for one tensor: `S.m`."""
    build, w = env.build, definition.formals[0].name.id
    if t.like is None or t.like.id != w:
        raise build.problems.refuse("like-here", f"a state of an algorithm is `like {w}`", t.span)
    key = (span.start, tensor, t.name.id)
    if key in build.owners:
        return build.owners[key]
    like, name = build.states[tensor], f"{tensor}.{t.name.id}"
    stem, count = name, 1
    while name in build.owned:
        count += 1
        name = f"{stem}{count}"
    build.owners[key] = name
    inner = Env(build, {}, {}, f"algorithm `{definition.name.id}`", layer=False)
    value = read_real(inner, t.init, "the initial value")
    if value.axes:
        raise build.problems.refuse(
            "axis-mismatch", "a state of an algorithm starts as a number", t.init.span, f"this has the axes {listed(shown(value.axes))}"
        )
    init = ops.broadcast(value.expr, canonical_names(like.axes))
    build.owned[name] = model.State(name, like.axes, like.scope, like.dtype, init, None, like.memory, t.span)
    build.scopes[name] = like.scope
    build.varying.add(name)
    return name
