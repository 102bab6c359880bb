"""Library text, inlined: definitions found, arguments bound to formals, bodies run line by line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from seqc.diagnostics import SpecError
from seqc.frontend import ast, library
from seqc.frontend.check_expr import read, read_real
from seqc.frontend.check_mapping import Actual, Inside, leave, map_axes
from seqc.frontend.check_problems import STATEMENTS, Refused, listed
from seqc.frontend.check_scope import Entity, Env, unknown_name
from seqc.frontend.check_values import AxisError, Value, fit, shown
from seqc.frontend.parser import parse
from seqc.ir import model, ops
from seqc.source import Source, Span

DEEPEST = 16
PLURAL = {"objective": "objectives", "retention": "retentions", "algorithm": "algorithms", "function": "functions"}


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
    env: Env,
    definition: ast.Definition,
    e: ast.Call | ast.Method,
    first: Sequence[Actual],
    args: Sequence[ast.Expr],
    named: Sequence[tuple[ast.Name, ast.Expr]],
) -> Value:
    """The value of an objective or function on its arguments."""
    actuals = bind(env, definition, e.span, first, args, named)
    with opened(env, definition, e.span, actuals) as (inner, close):
        return close(body_value(inner, definition, actuals))


def bind(
    env: Env,
    definition: ast.Definition,
    span: Span,
    first: Sequence[Actual],
    args: Sequence[ast.Expr],
    named: Sequence[tuple[ast.Name, ast.Expr]],
) -> dict[str, Actual]:
    """Each formal's argument. `first` are those that the place gives (W, G)."""
    problems, what = env.build.problems, f"`{definition.name.id}`"
    formals = {f.name.id: f for f in definition.formals}
    bound: dict[str, Actual] = dict(zip(formals, first, strict=False))
    open_formals = [n for n in formals if n not in bound]
    if len(args) > len(open_formals):
        raise problems.refuse(
            "argument-count",
            f"{what} takes {len(open_formals)} arguments here, and {len(args)} are given",
            span,
            "",
            secondary=[(definition.name.span, "defined here")],
        )
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
            inside = env.inner(
                names={n: Entity("value", n, a.span, a.value) for n, a in bound.items()},
                axes={},
                layer=False,
                place=f"{definition.kind} `{definition.name.id}`",
                objective=False,
                home=_home(definition),
            )
            bound[name] = Actual(read_real(inside, formal.default, "a default"), formal.default.span)
    missing = [n for n in formals if n not in bound]
    if missing:
        raise problems.refuse(
            "missing-argument", f"{what} needs `{missing[0]}`", span, "", secondary=[(formals[missing[0]].span, "no default")]
        )
    return {n: bound[n] for n in formals}


def _actual(env: Env, e: ast.Expr) -> Actual:
    entity = env.names.get(e.id) if isinstance(e, ast.Ref) else None
    tensor = entity.tensors[0] if entity is not None and entity.tensors and entity.deep is None else None
    return Actual(read(env, e), e.span, tensor)


# --- Inside a definition ---------------------------------------------------------------------------------------


@contextmanager
def opened(
    env: Env, definition: ast.Definition, span: Span, actuals: Mapping[str, Actual]
) -> Iterator[tuple[Env, Callable[[Value], Value]]]:
    """The inside of a definition, and how a value leaves it."""
    key = (definition.kind, definition.name.id)
    problems = env.build.problems
    if key in env.within:
        raise problems.refuse(
            "recursive-definition",
            f"`{definition.name.id}` is made of itself",
            span,
            "",
            secondary=[(definition.name.span, "defined here")],
        )
    if len(env.within) >= DEEPEST:
        raise problems.refuse("nested-too-deep", f"definitions nest {DEEPEST} deep, and this goes deeper", span)
    formals = [(f.name.id, f.axes, actuals[f.name.id]) for f in definition.formals]
    with ExitStack() as stack:
        mapping, values = map_axes(env, stack, formals, f"`{definition.name.id}`")
        names = {f.name.id: _formal(f, actuals[f.name.id], values[f.name.id], mapping) for f in definition.formals}
        if definition.kind in ("algorithm", "retention") and definition.formals:
            w = definition.formals[0].name.id
            names[w] = replace(names[w], mutable=True)
        inner = Env(
            env.build,
            names,
            mapping.axes,
            f"{definition.kind} `{definition.name.id}`",
            _home(definition),
            definition.kind == "objective",
            env.reads,
            (*env.within, key),
            layer=False,
        )
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


# --- Bodies ----------------------------------------------------------------------------------------------------


def body_value(env: Env, definition: ast.Definition, actuals: Mapping[str, Actual]) -> Value:
    """What an objective or function returns."""
    if definition.value is not None:
        return read_real(env, definition.value, f"the value of a {definition.kind}")
    run_body(env, definition.body)
    result = next((s for s in definition.body if isinstance(s, ast.Result)), None)
    if result is None:
        raise env.build.problems.refuse(
            "no-return", f"`{definition.name.id}` returns nothing", definition.name.span, "", helps=("end it with `return ...`",)
        )
    value = read_real(env, result.value, f"the value of a {definition.kind}")
    return _with_slope(env, definition, result, value) if result.kind == "slope" else value


def _with_slope(env: Env, definition: ast.Definition, result: ast.Result, slope: Value) -> Value:
    """A scalar whose derivative in the first formal is the slope: the slope, held fixed, times the formal."""
    build, p = env.build, definition.formals[0].name.id
    target = env.names[p].value
    assert target is not None
    if set(slope.axes) != set(target.axes):
        raise build.problems.refuse(
            "slope-axes",
            f"the slope of `{definition.name.id}` does not have the axes of `{p}`",
            result.span,
            f"{listed(shown(slope.axes))} for {listed(shown(target.axes))}",
        )
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
        raise env.build.problems.refuse(
            "not-updatable",
            f"`{s.name.id}` is an argument and keeps its value",
            s.name.span,
            "",
            secondary=[(entity.span, "declared here")],
        )
    value = read_real(env, s.value, "what a name becomes")
    env.names[s.name.id] = replace(entity, value=conform(env, value, entity.value, s.value.span, s.name.id))


def conform(env: Env, value: Value, like: Value, span: Span, name: str) -> Value:
    """A value in the axes of what it replaces."""
    try:
        expr = fit(value, like.axes)
    except AxisError:
        raise env.build.problems.refuse(
            "axis-mismatch", f"`{name}` has the axes {listed(shown(like.axes))}, and this has {listed(shown(value.axes))}", span
        ) from None
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
    if not 0 <= count <= STATEMENTS:
        raise env.build.problems.refuse(
            "too-many-statements", f"a loop of {count} turns", s.count.span, f"a body has at most {STATEMENTS} statements after unrolling"
        )
    return [Value(ops.number(i), (), counts, i) for i in range(count)]
