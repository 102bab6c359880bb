"""Library text and memories, inlined: arguments bound to formals, axes mapped over, bodies run line by line."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from seqc.diagnostics import SpecError
from seqc.frontend import ast, library
from seqc.frontend import check_time as time
from seqc.frontend.check_expr import read, read_real
from seqc.frontend.check_problems import Refused, listed
from seqc.frontend.check_scope import Entity, Env, unknown_name
from seqc.frontend.check_values import AxisError, Value, canonical_names, fit, identity, join, relabel, shown
from seqc.frontend.parser import parse
from seqc.ir import model, ops
from seqc.source import Source, Span

DEEPEST = 16
PLURAL = {"objective": "objectives", "retention": "retentions", "algorithm": "algorithms", "function": "functions"}


@dataclass(frozen=True)
class Actual:
    """An argument: its value, where it stands, and the state tensor that it is, if it is one."""

    value: Value
    span: Span
    tensor: str | None = None


# --- Finding ---------------------------------------------------------------------------------------------------


def find(env: Env, kind: str, name: str, span: Span | None = None) -> ast.Definition | None:
    """A definition of this text, beside the spec or in the shipped library; notes the text it is in."""
    build = env.build
    own = build.homes.get(env.home, {})
    if (kind, name) in own:
        return own[kind, name]
    if (kind, name) not in build.library:
        found = library.find(kind, name, build.beside)
        if found is None:
            return None
        build.library[kind, name] = _read_library(env, kind, name, found.source)
        note_text(env, f"{PLURAL[kind]}/{name}.seq", found.source)
        shipped = library.find(kind, name, None) if found.hides is not None else None
        if shipped is not None and shipped.source.text != found.source.text:
            build.problems.report("hides-library", f"`{name}` beside the spec hides the library's {kind} of that name", span, level="note")
    return build.library[kind, name]


def _read_library(env: Env, kind: str, name: str, source: Source) -> ast.Definition:
    """The definition that a library text is named after; the others in it are its own."""
    problems = env.build.problems
    try:
        file = parse(source)
    except SpecError as error:
        problems.found.extend(d for d in error.diagnostics if d not in problems.found)
        raise Refused from None
    table = {(d.kind, d.name.id): d for d in file.definitions if isinstance(d, ast.Definition)}
    env.build.homes[source.name] = table
    if (kind, name) not in table:
        raise problems.refuse("library-name", f"this text does not define {_article(kind)} `{name}`", Span(source, 0, 0))
    return table[kind, name]


def note_text(env: Env, name: str, source: Source) -> None:
    env.build.texts.setdefault(name, model.Text(name, hashlib.sha256(source.text.encode()).hexdigest()))


def needed(env: Env, kind: str, name: ast.Name | ast.Ref) -> ast.Definition:
    """A definition, or an error if there is none; inside an objective a function serves as well."""
    found = find(env, kind, name.id, name.span)
    if found is None and kind == "objective":
        found = find(env, "function", name.id, name.span)
    if found is not None:
        return found
    other = next((k for k in PLURAL if k != kind and find(env, k, name.id)), None)
    if other is not None:
        raise env.build.problems.refuse("wrong-kind", f"`{name.id}` is {_article(other)}, and {_article(kind)} stands here", name.span)
    if isinstance(name, ast.Ref):
        raise unknown_name(env, name.id, name.span, known=_callable(env, kind))
    known: dict[str, Span | None] = {n: d.name.span for (k, n), d in env.build.homes.get(env.home, {}).items() if k == kind}
    known |= dict.fromkeys(library.names(kind, env.build.beside))
    secondary, helps = env.build.problems.misspelt(name.id, known)
    raise env.build.problems.refuse("unknown-name", f"no {kind} is named `{name.id}`", name.span, "", secondary=secondary, helps=helps)


def _callable(env: Env, kind: str) -> dict[str, Span | None]:
    """What a name in front of brackets may mean."""
    kinds = (kind, "function") if kind == "objective" else (kind,)
    return {n: None for k in kinds for n in library.names(k, env.build.beside)}


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "ao" else f"a {kind}"


# --- Binding ---------------------------------------------------------------------------------------------------


def call(env: Env, e: ast.Call, base: ast.Ref) -> Value:
    """A library function, or an objective inside `on`."""
    definition = needed(env, "objective" if env.objective else "function", base)
    return inline(env, definition, e, (), e.args, e.named)


def inline(
    env: Env, definition: ast.Definition, e: ast.Call | ast.Method, first: Sequence[Actual], args: Sequence[ast.Expr], named: Sequence[tuple[ast.Name, ast.Expr]]
) -> Value:
    """The value of an objective or function on its arguments."""
    actuals = bind(env, definition, e.span, first, args, named)
    with opened(env, definition, e.span, actuals) as (inner, close):
        return close(body_value(inner, definition, actuals))


def bind(
    env: Env, definition: ast.Definition, span: Span, first: Sequence[Actual], args: Sequence[ast.Expr], named: Sequence[tuple[ast.Name, ast.Expr]]
) -> dict[str, Actual]:
    """Each formal's argument. `first` are those that the place gives (W, G)."""
    problems, what = env.build.problems, f"`{definition.name.id}`"
    formals = {f.name.id: f for f in definition.formals}
    bound: dict[str, Actual] = dict(zip(formals, first, strict=False))
    open_formals = [n for n in formals if n not in bound]
    if len(args) > len(open_formals):
        raise problems.refuse("argument-count", f"{what} takes {len(open_formals)} arguments here, and {len(args)} are given", span, "", secondary=[(definition.name.span, "defined here")])
    for name, arg in zip(open_formals, args, strict=False):
        bound[name] = _actual(env, arg)
    for key, arg in named:
        if key.id not in formals:
            secondary, helps = problems.misspelt(key.id, {n: f.name.span for n, f in formals.items() if n not in bound})
            raise problems.refuse("unknown-argument", f"{what} has no argument `{key.id}`", key.span, "", secondary=secondary, helps=helps)
        if key.id in bound:
            raise problems.refuse("argument-twice", f"the argument `{key.id}` of {what} is given twice", key.span)
        bound[key.id] = _actual(env, arg)
    for name, formal in formals.items():
        if name not in bound and formal.default is not None:
            inside = env.inner(names={n: Entity("value", n, a.span, a.value) for n, a in bound.items()}, axes={}, layer=False, place=f"{definition.kind} `{definition.name.id}`", objective=False, home=_home(definition))
            bound[name] = Actual(read_real(inside, formal.default, "a default"), formal.default.span)
    missing = [n for n in formals if n not in bound]
    if missing:
        raise problems.refuse("missing-argument", f"{what} needs `{missing[0]}`", span, "", secondary=[(formals[missing[0]].span, "no default")])
    return {n: bound[n] for n in formals}


def _actual(env: Env, e: ast.Expr) -> Actual:
    entity = env.names.get(e.id) if isinstance(e, ast.Ref) else None
    tensor = entity.tensors[0] if entity is not None and entity.tensors and entity.deep is None else None
    return Actual(read(env, e), e.span, tensor)


# --- Mapping over axes -------------------------------------------------------------------------------------------

FormalOf = tuple[str, tuple[ast.Axis, ...], Actual]


@dataclass(frozen=True)
class Inside:
    """How the axes of arguments look from inside a definition."""

    axes: dict[str, str]  # formal axis -> identity
    outside: dict[str, str]  # tagged identity -> identity; mapped axis -> the axis it was
    leads: tuple[str, ...]  # mapped axes, in the order of the result


@contextmanager
def opened(env: Env, definition: ast.Definition, span: Span, actuals: Mapping[str, Actual]) -> Iterator[tuple[Env, Callable[[Value], Value]]]:
    """The inside of a definition, and how a value leaves it."""
    key = (definition.kind, definition.name.id)
    problems = env.build.problems
    if key in env.within:
        raise problems.refuse("recursive-definition", f"`{definition.name.id}` is made of itself", span, "", secondary=[(definition.name.span, "defined here")])
    if len(env.within) >= DEEPEST:
        raise problems.refuse("nested-too-deep", f"definitions nest {DEEPEST} deep, and this goes deeper", span)
    formals = [(f.name.id, f.axes, actuals[f.name.id]) for f in definition.formals]
    with ExitStack() as stack:
        mapping, values = map_axes(env, stack, formals, f"`{definition.name.id}`")
        names = {f.name.id: _formal(f, actuals[f.name.id], values[f.name.id], mapping) for f in definition.formals}
        if definition.kind in ("algorithm", "retention") and definition.formals:
            w = definition.formals[0].name.id
            names[w] = replace(names[w], mutable=True)
        inner = Env(env.build, names, mapping.axes, f"{definition.kind} `{definition.name.id}`", _home(definition), definition.kind == "objective", env.reads, (*env.within, key), layer=False)
        yield inner, lambda value: leave(value, mapping)


def _home(definition: ast.Definition) -> str:
    return definition.name.span.source.name


def _formal(formal: ast.Formal, actual: Actual, value: Value, mapping: Inside) -> Entity:
    if actual.tensor is None:
        return Entity("value", formal.name.id, formal.span, value)
    inward = {old: new for new, old in mapping.outside.items() if new in mapping.leads}
    extra = len(actual.value.axes) - len(value.axes)
    inside = (*(inward.get(a, a) for a in actual.value.axes[:extra]), *value.axes)
    return Entity("value", formal.name.id, formal.span, value, (actual.tensor,), inside=inside)


def map_axes(env: Env, stack: ExitStack, formals: Sequence[FormalOf], what: str) -> tuple[Inside, dict[str, Value]]:
    """Formals with axes take the trailing axes of their arguments; the rest is mapped over."""
    axes, outside = _name_axes(env, stack, formals, what)
    tables: dict[str, dict[str, str]] = {}
    visible: dict[str, tuple[str, ...]] = {}
    leads: dict[str, tuple[str, ...]] = {}
    for name, formal_axes, actual in formals:
        value = actual.value
        if not formal_axes:
            visible[name], leads[name], tables[name] = value.axes, (), {}
            continue
        n = len(formal_axes)
        tail, leads[name] = value.axes[-n:], value.axes[:-n]
        inside = [axes[a.name] for a in formal_axes]
        visible[name] = canonical_names(inside)
        tables[name] = dict(zip(tail, visible[name], strict=True))
    taken = {ops.base(a) for v in visible.values() for a in v} | {ops.base(i) for i in axes.values()}
    renamed = _lead_names(env, stack, leads, taken)
    outside.update({new: old for old, new in renamed.items()})
    values = {n: Value(relabel(a.value.expr, tables[n] | {x: renamed[x] for x in leads[n]}), visible[n], *((a.value.counts, a.value.whole) if not leads[n] else ())) for n, _, a in formals}
    return Inside(axes, outside, tuple(renamed[a] for a in _widest(env, leads, formals))), values


def _name_axes(env: Env, stack: ExitStack, formals: Sequence[FormalOf], what: str) -> tuple[dict[str, str], dict[str, str]]:
    """The identity that each formal axis has inside, and what those made for the purpose are outside.

    Two formal axes that take one size are told apart: both get an identity that no other argument has.
    """
    problems = env.build.problems
    taken: dict[str, str] = {}
    for name, formal_axes, actual in formals:
        value, n = actual.value, len(formal_axes)
        if len(value.axes) < n:
            have = f"this has the axes {listed(shown(value.axes))}" if value.axes else "this is a number"
            raise problems.refuse("too-few-axes", f"`{name}` of {what} has the axes {listed(a.name for a in formal_axes)}", actual.span, have)
        for formal, axis in zip(formal_axes, value.axes[len(value.axes) - n :], strict=True):
            have = taken.setdefault(formal.name, identity(axis))
            if have != identity(axis):
                raise problems.refuse(
                    "axis-mismatch", f"`{formal.name}` of {what} is `{ops.base(have)}` in one place and `{ops.base(axis)}` in `{name}`", actual.span
                )
    shared = Counter(taken.values())
    axes = {f: stack.enter_context(env.build.identity(ops.base(i))) if shared[i] > 1 else i for f, i in taken.items()}
    return axes, {axes[f]: i for f, i in taken.items() if axes[f] != i}


def _lead_names(env: Env, stack: ExitStack, leads: Mapping[str, tuple[str, ...]], taken: set[str]) -> dict[str, str]:
    """The mapped axes' names inside: their own unless the definition could see an axis of that name."""
    renamed: dict[str, str] = {}
    for axis in dict.fromkeys(a for group in leads.values() for a in group):
        clash = ops.base(axis) in taken or axis != identity(axis)
        renamed[axis] = stack.enter_context(env.build.identity(ops.base(axis))) if clash else axis
    return renamed


def _widest(env: Env, leads: Mapping[str, tuple[str, ...]], formals: Sequence[FormalOf]) -> tuple[str, ...]:
    widest = max(leads.values(), key=len, default=())
    for name, _, actual in formals:
        if not set(leads[name]) <= set(widest):
            raise env.build.problems.refuse("silent-outer-product", f"`{name}` is mapped over {listed(shown(leads[name]))} and another argument over {listed(shown(widest))}; neither includes the other", actual.span)
    return widest


def leave(value: Value, mapping: Inside) -> Value:
    """A value as its caller sees it: what was mapped over comes first."""
    if not mapping.leads and not mapping.outside:
        return value
    result = tuple(mapping.outside.get(identity(a), identity(a)) for a in value.axes)
    before = tuple(mapping.outside.get(a, a) for a in mapping.leads)
    names = canonical_names((*before, *result))
    others = tuple(a for a in value.mapped if a not in mapping.leads)
    wide = value.expr if set(mapping.leads) <= set(value.expr.axes) else ops.broadcast(value.expr, (*others, *mapping.leads, *value.axes))
    return Value(relabel(wide, dict(zip((*mapping.leads, *value.axes), names, strict=True))), names)


# --- Bodies ----------------------------------------------------------------------------------------------------


def body_value(env: Env, definition: ast.Definition, actuals: Mapping[str, Actual]) -> Value:
    """What an objective or function returns."""
    if definition.value is not None:
        return read_real(env, definition.value, f"the value of a {definition.kind}")
    run_body(env, definition.body)
    result = next((s for s in definition.body if isinstance(s, ast.Result)), None)
    if result is None:
        raise env.build.problems.refuse("no-return", f"`{definition.name.id}` returns nothing", definition.name.span, "", helps=("end it with `return ...`",))
    value = read_real(env, result.value, f"the value of a {definition.kind}")
    return _with_slope(env, definition, result, value) if result.kind == "slope" else value


def _with_slope(env: Env, definition: ast.Definition, result: ast.Result, slope: Value) -> Value:
    """A scalar whose derivative in the first formal is the slope: the slope, held fixed, times the formal."""
    build, p = env.build, definition.formals[0].name.id
    target = env.names[p].value
    assert target is not None
    if set(slope.axes) != set(target.axes):
        raise build.problems.refuse("slope-axes", f"the slope of `{definition.name.id}` does not have the axes of `{p}`", result.span, f"{listed(shown(slope.axes))} for {listed(shown(target.axes))}")
    leaf = ops.var(f"slope@{len(build.slopes)}", slope.expr.axes)
    build.slopes.append((leaf, slope.expr))
    return Value(ops.sum_over(ops.mul(leaf, target.expr), target.axes))


def run_body(env: Env, body: Sequence[ast.Statement]) -> None:
    """The lines of a definition, from top to bottom; names get values, and nothing else happens."""
    for s in body:
        if isinstance(s, ast.Let):
            local_let(env, s)
        elif isinstance(s, ast.Update):
            local_update(env, s)
        elif isinstance(s, ast.For):
            local_loop(env, s)
        elif not isinstance(s, ast.Result) and not (isinstance(s, ast.Declare) and env.within[-1][0] == "algorithm"):
            raise env.build.problems.refuse("not-in-definition", f"{_article(env.within[-1][0])} has no such line", s.span)


def local_let(env: Env, s: ast.Let) -> None:
    from seqc.frontend.check_scope import declare

    if s.axes:
        raise env.build.problems.refuse("axes-in-definition", "a `let` of a definition takes the axes of its value", s.axes[0].span)
    value = read(env, s.value)
    declare(env, s.name, Entity("value", s.name.id, s.name.span, Value(value.expr, value.axes), mutable=True))


def local_update(env: Env, s: ast.Update) -> None:
    entity = env.names.get(s.name.id)
    if entity is None:
        raise unknown_name(env, s.name.id, s.name.span)
    if entity.kind == "broken":
        raise Refused
    if not entity.mutable or entity.value is None:
        raise env.build.problems.refuse("not-updatable", f"`{s.name.id}` is an argument and keeps its value", s.name.span, "", secondary=[(entity.span, "declared here")])
    value = read_real(env, s.value, "what a name becomes")
    env.names[s.name.id] = replace(entity, value=conform(env, value, entity.value, s.value.span, s.name.id))


def conform(env: Env, value: Value, like: Value, span: Span, name: str) -> Value:
    """A value in the axes of what it replaces."""
    try:
        expr = fit(value, like.axes)
    except AxisError:
        raise env.build.problems.refuse("axis-mismatch", f"`{name}` has the axes {listed(shown(like.axes))}, and this has {listed(shown(value.axes))}", span) from None
    if value.dtype == "complex" and like.dtype == "real":
        raise env.build.problems.refuse("complex-value", f"`{name}` is real, and this is complex", span)
    return Value(expr, like.axes)


def local_loop(env: Env, s: ast.For) -> None:
    for value in loop_values(env, s):
        outer = dict(env.names)
        env.names[s.index.id] = Entity("value", s.index.id, s.index.span, value)
        run_body(env, s.body)
        for name in [n for n in env.names if n not in outer]:
            del env.names[name]


def loop_values(env: Env, s: ast.For) -> list[Value]:
    """The values of a loop's index: whole numbers that count an axis if the loop runs over one."""
    from seqc.frontend.check_scope import refuse_name
    from seqc.frontend.check_sizes import static_size, whole_number

    refuse_name(env, s.index)
    counts: str | None = None
    if isinstance(s.count, ast.Ref) and s.count.id in env.axes:
        counts = env.axes[s.count.id]
        count = static_size(env.build, ops.base(counts), s.count.span, "the number of turns")
    else:
        value = read_real(env, s.count, "the number of turns")
        count = whole_number(env, value.expr, s.count.span, "the number of turns")
        counts = str(value.expr.attr) if value.expr.op.name == "size" else None
    if not 0 <= count <= 4096:
        raise env.build.problems.refuse("too-many-statements", f"a loop of {count} turns", s.count.span, "a body has at most 4096 statements after unrolling")
    return [Value(ops.number(i), (), counts, i) for i in range(count)]


# --- Memories --------------------------------------------------------------------------------------------------


def apply_memory(env: Env, e: ast.Call, entity: Entity, when: int | str | None = None) -> Value:
    """`S(z)` at this line, or at an earlier time."""
    from seqc.frontend.check_expr import state_value

    problems, build = env.build.problems, env.build
    build.used.add(entity.name)
    if e.named or len(e.args) != 1:
        raise problems.refuse("argument-count", f"a memory takes 1 argument, and {len(e.args) + len(e.named)} are given", e.span)
    z = read_real(env, e.args[0], "the argument of a memory")
    stored = entity.kind == "value"  # a definition's own tensor
    tensors = {
        t: (time.start_value(env, entity, t, when) if when is not None else entity.value if stored and entity.value else state_value(env, t)) for t in entity.tensors
    }
    if entity.deep is not None:
        return apply_deep(env, entity, entity.deep, Actual(z, e.args[0].span), tensors, e.span)
    memory = tensors[entity.tensors[0]]
    try:
        return join(z, memory)
    except AxisError:
        have = f"this ends in `{shown(z.axes)[-1]}`" if z.axes else "this is a number"
        raise problems.refuse("axis-mismatch", f"`{entity.name}` is applied along `{shown(memory.axes)[0]}`", e.args[0].span, have, secondary=[(entity.span, "its first axis")]) from None


def apply_deep(env: Env, entity: Entity, deep: ast.DeepMemory, z: Actual, tensors: Mapping[str, Value], span: Span) -> Value:
    """The expression of a deep memory on z, mapped over the axes that z has more."""
    formal = deep.formal
    with ExitStack() as stack:
        mapping, values = map_axes(env, stack, [(formal.name.id, formal.axes, z)], f"`{entity.name}`")
        for axis, actual in mapping.axes.items():
            if axis != actual:
                raise env.build.problems.refuse("axis-mismatch", f"`{entity.name}` is applied along `{axis}`", z.span, f"this ends in `{ops.base(actual)}`", secondary=[(formal.span, "its argument")])
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
        raise env.build.problems.refuse("not-a-function", f"`{entity.name}` cannot be applied", e.function.span, "", secondary=[(entity.span, "declared here")], helps=(f"declare it with `memory {entity.name}[...]`",))
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
    wanted = _mentioned(result.value)
    named = [(k, v) for k, v in method.named if k.id in wanted]
    formals = [f for i, f in enumerate(definition.formals) if i == 0 or f.name.id in wanted]
    positional = {f.name.id: a for f, a in zip(definition.formals[1:], method.args, strict=False)}
    named += [(ast.Name(n, a.span), a) for n, a in positional.items() if n in wanted]
    reduced = replace(definition, formals=tuple(formals))
    actuals = bind(outer, reduced, method.span, (Actual(stored, method.span),), (), named)
    with opened(outer, reduced, method.span, actuals) as (inner, close):
        return close(read_real(inner, result.value, "what a memory is read as"))


def _mentioned(e: ast.Expr) -> set[str]:
    from seqc.frontend.check_unused import names_in

    return names_in(e)
