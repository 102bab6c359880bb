"""Declarations -> the Model's inputs, params, states and memories."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from seqc.frontend import ast
from seqc.frontend.check_expr import read_real
from seqc.frontend.check_mapping import Actual
from seqc.frontend.check_memory import apply_deep
from seqc.frontend.check_problems import Refused, listed
from seqc.frontend.check_scope import COARSE, Entity, Env, broken, declare, refuse_name, refuse_tensor_name
from seqc.frontend.check_sizes import approximate
from seqc.frontend.check_values import AxisError, Value, canonical_names, fit, relabel, shown
from seqc.ir import model, ops
from seqc.ir.expr import Expr, substitute
from seqc.source import Span

SCOPES: tuple[model.Scope, ...] = ("group", "layer", "sequence")
DOMAIN_WORDS = ("unit", "integer", "complex")


def declared_axes(env: Env, axes: Sequence[ast.Axis], *, growing: bool = False) -> tuple[str, ...]:
    """The node axes of a declaration; the first one of a growing tensor is a new name."""
    names: list[str] = []
    for i, axis in enumerate(axes):
        if axis.name in env.build.sizes or axis.name in env.build.growing or axis.name in env.axes:
            if growing and i == 0 and axis.name in env.build.sizes:
                size = env.build.sizes[axis.name]
                if any(d.code == "growing-size" for d in env.build.problems.errors):
                    raise Refused
                raise env.build.problems.refuse(
                    "growing-size",
                    f"`{axis.name}` is a size and cannot grow",
                    axis.span,
                    "",
                    secondary=[(size.span if size else None, "a size of the layer")],
                    helps=("name the growing axis by a new name, such as `past`",),
                )
        elif growing and i == 0:
            refuse_name(env, ast.Name(axis.name, axis.span))
            env.build.growing[axis.name] = axis.span
        else:
            known = {n: (s.name.span if s else None) for n, s in env.build.sizes.items()} | dict(env.build.growing)
            secondary, helps = env.build.problems.misspelt(axis.name, known)
            raise env.build.problems.refuse(
                "unknown-axis",
                f"no size is named `{axis.name}`",
                axis.span,
                "",
                secondary=secondary,
                helps=helps or (f"declare it: `layer ...({axis.name} = ...)`",),
            )
        names.append(env.axes.get(axis.name, axis.name))
    return canonical_names(names)


def scope_of(env: Env, scopes: Sequence[ast.Name], allowed: Sequence[model.Scope]) -> model.Scope:
    """The scope that `per` names; `head` without one."""
    if not scopes:
        return "head"
    word = scopes[0]
    if len(scopes) > 1:
        raise env.build.problems.refuse(
            "scope-conflict", "a name has one scope", scopes[1].span, "", secondary=[(word.span, "already given")]
        )
    for scope in allowed:
        if word.id == scope:
            return scope
    if word.id in SCOPES:
        raise env.build.problems.refuse("scope-conflict", f"`per {word.id}` is for inputs", word.span)
    _, helps = env.build.problems.misspelt(word.id, dict.fromkeys(allowed))
    raise env.build.problems.refuse(
        "unknown-scope", f"no scope is named `{word.id}`", word.span, f"scopes are {', '.join(f'`{s}`' for s in allowed)}", helps=helps
    )


def domain_of(env: Env, domains: Sequence[ast.Domain], axes: Sequence[str]) -> model.Domain:
    result = model.Domain()
    for d in domains:
        if d.kind == "interval":
            result = result.within(_end(env, d.low), d.open_low, _end(env, d.high), d.open_high)
        elif d.kind not in DOMAIN_WORDS:
            _, helps = env.build.problems.misspelt(d.kind, dict.fromkeys(DOMAIN_WORDS))
            raise env.build.problems.refuse(
                "unknown-domain",
                f"no domain is named `{d.kind}`",
                d.span,
                "domains are intervals, `unit`, `integer` and `complex`",
                helps=helps,
            )
        else:
            if d.kind == "unit" and not axes:
                raise env.build.problems.refuse(
                    "unit-needs-axis",
                    "`unit` bounds the norm along the last axis, and this has none",
                    d.span,
                    helps=("write `in [-1, 1]`",),
                )
            result = replace(result, **{d.kind: True})
    if result.empty:
        inside = f"from {result.low:g} to {result.high:g}"
        what = "no whole number lies" if result.integer else "no number lies"
        raise env.build.problems.refuse("empty-domain", f"{what} in this domain", domains[-1].span, inside)
    if result.complex and (result.integer or result.unit or result.low > float("-inf") or result.high < float("inf")):
        raise env.build.problems.refuse("domain-conflict", "a complex value has no other domain", domains[-1].span)
    return result


def _end(env: Env, e: ast.Expr | None) -> float:
    assert e is not None
    value = read_real(env.inner(names={}), e, "the end of a domain")
    end = approximate(value.expr, env.build.values) if not value.expr.axes else None
    if end is None:
        raise env.build.problems.refuse("domain-not-constant", "the end of a domain is a constant", e.span)
    return end


# --- Inputs and params -------------------------------------------------------------------------------------------


def inputs(env: Env, s: ast.Inputs) -> None:
    for signal in s.signals:
        with env.build.problems.statement():
            try:
                _input(env, signal)
            except Refused:
                broken(env, signal.name)
                raise


def _input(env: Env, signal: ast.Signal) -> None:
    refuse_tensor_name(env, signal.name)
    build = env.build
    axes = declared_axes(env, signal.axes)
    scope = scope_of(env, signal.scopes, SCOPES)
    domain = domain_of(env, signal.domains, axes)
    dtype = "complex" if domain.complex else "real"
    name = signal.name.id
    for axis in signal.axes:
        if axis.index is not None:
            raise build.problems.refuse("binder-here", "an input has no initial value to bind an index in", axis.span)
    build.inputs.append(model.Input(name, axes, scope, dtype, domain, signal.span))
    build.scopes[name] = scope
    if scope != "sequence":
        build.varying.add(name)
    declare(env, signal.name, Entity("input", name, signal.span, Value(ops.var(name, axes, dtype), axes)))


def bound_value(env: Env, axes: Sequence[ast.Axis], names: Sequence[str], value: ast.Expr, what: str, **changes: object) -> Expr:
    """A declared expression in its declared axes, with the binders' indices in scope."""
    with ExitStack() as stack:
        inner = dict(env.names)
        leads: dict[str, str] = {}
        for axis, name in zip(axes, names, strict=True):
            if axis.index is not None:
                refuse_name(env.inner(names=inner), ast.Name(axis.index, axis.span))
                if name in env.build.growing:
                    raise env.build.problems.refuse("growing-axis", f"`{name}` grows, and an index along it has no fixed length", axis.span)
                leads[name] = stack.enter_context(env.build.identity(ops.base(name)))
                index = Value(ops.iota(leads[name]), (), ops.base(name), None, leads[name])
                inner[axis.index] = Entity("value", axis.index, axis.span, index)
        result = read_real(env.inner(names=inner, binders=leads, **changes), value, what)
        rest = tuple(n for n in names if n not in leads)
        fit_checked(env, result, rest, value.span, what)
        table = {lead: name for name, lead in leads.items()} | dict(zip(result.axes, _free_names(result, rest), strict=True))
        expr = relabel(result.expr, table)
        return expr if expr.axes == tuple(names) else ops.broadcast(expr, names)


def _free_names(result: Value, rest: Sequence[str]) -> tuple[str, ...]:
    """Visible axes of the value as the slots that no index binds call them, occurrence by occurrence."""
    slots = list(rest)
    found: list[str] = []
    for a in result.axes:
        match = next((s for s in slots if ops.base(s) == ops.base(a)), a)
        if match in slots:
            slots.remove(match)
        found.append(match)
    return tuple(found)


def fit_checked(env: Env, value: Value, axes: Sequence[str], span: Span, what: str) -> None:
    """Refuses a value with an axis that its place lacks, or with one of two axes of the same name."""
    try:
        fit(value, canonical_names(axes))
    except AxisError as error:
        place = f"[{', '.join(shown(axes))}]" if axes else "no axes"
        if error.code == "ambiguous-axis":
            raise env.build.problems.refuse("ambiguous-axis", f"`{error.names[0]}` occurs twice in {place}, and once here", span) from None
        raise env.build.problems.refuse(
            "axis-mismatch",
            f"{what} has the axis `{error.names[0]}`, and its place has {place}",
            span,
            f"this has the axes {listed(shown(value.axes))}",
        ) from None


def param(env: Env, t: ast.Tensor) -> None:
    refuse_tensor_name(env, t.name)
    build = env.build
    if t.domains:
        raise build.problems.refuse(
            "param-domain",
            "a param has no domain",
            t.domains[0].span,
            "it may be learned to any value",
            helps=(f"bound it with `let`, such as `let a = sigmoid({t.name.id})`",),
        )
    axes = _param_axes(env, t)
    scope = scope_of(env, t.scopes, ("group", "layer"))
    if not t.scopes and any(a.name in ("heads", "groups", "model") for a in t.axes):
        scope = "layer"
    name = t.name.id
    init = learned(name, axes) if isinstance(t.init, ast.Ref) and t.init.id == "learned" else _init(env, t, axes)
    need_scope(env, name, scope, t.init.span, init.value)
    add_param(env, name, axes, scope, init, t.span)
    declare(env, t.name, Entity("param", name, t.span, Value(ops.var(name, axes), axes)))


def _param_axes(env: Env, t: ast.Tensor) -> tuple[str, ...]:
    if t.like is not None:
        raise env.build.problems.refuse("like-here", "`like` is for the state of an algorithm", t.like.span)
    return declared_axes(env, t.axes)


def learned(name: str, axes: Sequence[str]) -> model.Init:
    draw = f"{name}@learned0"
    return model.Init(ops.var(draw, axes), (model.Draw(draw, "learned", ()),))


def _init(env: Env, t: ast.Tensor, axes: tuple[str, ...]) -> model.Init:
    draws: list[model.Draw] = []
    above = {n: e for n, e in env.names.items() if e.kind in ("param", "broken")}
    value = bound_value(env.inner(names=above), t.axes, axes, t.init, "the initial value", draws=draws, draw_axes=axes, draw_name=t.name.id)
    if value.type.dtype == "complex":
        raise env.build.problems.refuse(
            "complex-value",
            "a param is real, and this is complex",
            t.init.span,
            "",
            helps=("declare two params and write `complex(a, b)`",),
        )
    varying = env.build.varies(value)
    if varying is not None:
        raise env.build.problems.refuse(
            "init-varies", f"the initial value uses `{varying}`, which differs from token to token", t.init.span
        )
    return model.Init(value, tuple(draws))


def add_param(env: Env, name: str, axes: tuple[str, ...], scope: model.Scope, init: model.Init, span: Span) -> None:
    env.build.params.append(model.Param(name, axes, scope, init, span))
    env.build.scopes[name] = scope


# --- States and memories -----------------------------------------------------------------------------------------


def state(env: Env, t: ast.Tensor, kind: str) -> None:
    refuse_tensor_name(env, t.name)
    name = t.name.id
    _state(env, t, name, name if kind == "memory" else None, f"{name}_init")
    declare(env, t.name, Entity(kind, name, t.span, tensors=(name,)))


def _state(env: Env, t: ast.Tensor, name: str, memory: str | None, param_name: str) -> None:
    """Adds one state tensor, and the param that it starts from if it is `learned`."""
    build, problems = env.build, env.build.problems
    if t.like is not None:
        raise problems.refuse("like-here", "`like` is for the state of an algorithm", t.like.span)
    empty = isinstance(t.init, ast.Ref) and t.init.id == "empty"
    if empty and not t.axes:
        raise problems.refuse(
            "empty-needs-axis", f"`{t.name.id}` has no axis to grow along", t.init.span, "", helps=(f"write `{t.name.id}[past] = empty`",)
        )
    if empty and memory is None:
        raise problems.refuse(
            "not-a-memory",
            "only a memory grows",
            t.init.span,
            "",
            secondary=[(t.name.span, "a state")],
            helps=(f"declare it with `memory {t.name.id}[...]`",),
        )
    axes = declared_axes(env, t.axes, growing=empty)
    if not empty and any(a in build.growing for a in axes):
        raise problems.refuse(
            "not-empty",
            f"`{t.name.id}` has the growing axis `{axes[0]}` and starts with a value",
            t.init.span,
            "",
            helps=("write `= empty`",),
        )
    domain = domain_of(env, t.domains, axes)
    if replace(domain, complex=False) != model.Domain():
        raise problems.refuse("state-domain", "a state has no domain but `complex`", t.domains[0].span)
    dtype = "complex" if domain.complex else "real"
    scope = scope_of(env, t.scopes, ("group", "layer"))
    if empty:
        init = ops.number(0)
    elif isinstance(t.init, ast.Ref) and t.init.id == "learned":
        init = _learned_init(env, t, axes, scope, param_name)
    else:
        init = _initial(env, t, axes, dtype, scope)
    build.states[name] = model.State(name, axes, scope, dtype, init, axes[0] if empty else None, memory, t.span)
    build.scopes[name] = scope
    build.varying.add(name)


def _learned_init(env: Env, t: ast.Tensor, axes: tuple[str, ...], scope: model.Scope, name: str) -> Expr:
    while name in env.names:
        name += "_"
    add_param(env, name, axes, scope, learned(name, axes), t.span)
    env.names[name] = Entity("param", name, t.span, Value(ops.var(name, axes), axes))
    return ops.var(name, axes)


def _initial(env: Env, t: ast.Tensor, axes: tuple[str, ...], dtype: str, scope: model.Scope) -> Expr:
    problems = env.build.problems
    value = bound_value(env, t.axes, axes, t.init, "the initial value")
    (value,) = substitute((value,), env.build.fixed)
    varying = env.build.varies(value)
    if varying is not None:
        raise problems.refuse(
            "init-varies",
            f"the initial value uses `{varying}`, which differs from token to token",
            t.init.span,
            "",
            notes=("a state starts from params, inputs `per sequence` and numbers",),
        )
    if value.type.dtype == "complex" and dtype == "real":
        raise problems.refuse(
            "complex-value",
            f"`{t.name.id}` is real, and this is complex",
            t.init.span,
            "",
            helps=(f"declare `{t.name.id}` with `in complex`",),
        )
    need_scope(env, t.name.id, scope, t.init.span, value)
    return value


def need_scope(env: Env, name: str, scope: model.Scope, span: Span, *values: Expr) -> None:
    """Refuses a value that is finer than the name it feeds."""
    finest, who = env.build.scope_of(*values)
    if COARSE[finest] > COARSE[scope]:
        declared = env.names.get(who.split("@")[0]) if who else None
        raise env.build.problems.refuse(
            "coarser-scope", f"`{name}` exists once per {scope}, and `{who}` once per {finest}", span, "",
            secondary=[(declared.span if declared else None, "the finer one")],
        )  # fmt: skip


def deep_memory(env: Env, s: ast.DeepMemory) -> None:
    """A memory that is an expression over tensors: `M.W1`, `M.W2`."""
    refuse_tensor_name(env, s.name)
    build, name = env.build, s.name.id
    refuse_name(env, s.formal.name)
    seen: dict[str, ast.Tensor] = {}
    for t in s.tensors:
        refuse_name(env, t.name)
        if t.name.id in seen or t.name.id in (name, s.formal.name.id):
            raise build.problems.refuse("declared-twice", f"`{t.name.id}` is declared twice", t.name.span)
        if isinstance(t.init, ast.Ref) and t.init.id == "empty":
            raise build.problems.refuse("deep-empty", "a tensor of a deep memory cannot grow", t.init.span)
        seen[t.name.id] = t
        _state(env, t, f"{name}.{t.name.id}", name, f"{name}_{t.name.id}_init")
    axes = declared_axes(env, s.formal.axes)
    if not axes:
        raise build.problems.refuse(
            "too-few-axes", f"the argument of `{name}` has no axes", s.formal.span, "", helps=(f"write `{s.formal.name.id}[...]`",)
        )
    entity = Entity("memory", name, s.span, tensors=tuple(f"{name}.{t}" for t in seen), deep=s)
    trial = {t: Value(ops.var(t, build.states[t].axes, build.states[t].dtype), build.states[t].axes) for t in entity.tensors}
    z = ops.var(f"{s.formal.name.id}@formal", axes)
    apply_deep(env, entity, s, Actual(Value(z, axes), s.formal.span), trial, s.span)
    declare(env, s.name, entity)
