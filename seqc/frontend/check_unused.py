"""Which declared names nothing uses, read off the text alone: a statement that is refused still counts as a use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from seqc.frontend import ast
from seqc.frontend.check_problems import Problems
from seqc.source import Span

EXPRESSIONS = (ast.Number, ast.Ref, ast.Call, ast.Index, ast.Binary, ast.Negate)


def expressions(node: Any) -> Iterator[Any]:
    """A node of the tree and everything below it. No recursion."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            stack.extend(reversed(item))
        elif _is_node(item):
            yield item
            stack.extend(getattr(item, name) for name in reversed(type(item).__slots__) if name != "span")


def _is_node(item: Any) -> bool:
    return type(item).__module__ == ast.__name__


def names_in(node: Any) -> set[str]:
    """Every name that is used as a value, function or bracketed axis below a node."""
    return {n.id for n in expressions(node) if isinstance(n, ast.Ref)}


def axes_in(node: Any) -> set[str]:
    """Every axis that is declared below a node, and names of `like`."""
    return {n.name for n in expressions(node) if isinstance(n, ast.Axis)}


def library_names(body: Iterable[ast.Statement]) -> set[str]:
    """The library names after `by`."""
    return {s.method.name.id for s in _flat(body) if isinstance(s, (ast.Retain, ast.Learn))}


def _flat(body: Iterable[ast.Statement]) -> Iterator[ast.Statement]:
    for s in body:
        if isinstance(s, ast.For):
            yield from _flat(s.body)
        else:
            yield s


def uses(body: Iterable[ast.Statement]) -> set[str]:
    """The names that statements use; an update of a name by itself is no use of it."""
    found: set[str] = set()
    for s in body:
        found |= _uses(s)
    return found


def _uses(s: ast.Statement) -> set[str]:
    if isinstance(s, ast.For):
        return uses(s.body) | names_in(s.count)
    if isinstance(s, (ast.Update, ast.Fold)):
        return names_in(s.value) - {s.name.id}
    if isinstance(s, (ast.Retain, ast.Learn)):
        return names_in(s) - {s.memory.id}
    if isinstance(s, ast.Output) and s.value is None:
        return {s.name.id}
    if isinstance(s, ast.DeepMemory):
        return names_in(s) - {s.formal.name.id}
    return names_in(s)


def declared(body: Iterable[ast.Statement]) -> Iterator[tuple[str, str, Span]]:
    """Kind, name and place of what statements declare."""
    for s in body:
        if isinstance(s, ast.Inputs):
            for signal in s.signals:
                yield "input", signal.name.id, signal.name.span
        elif isinstance(s, ast.Declare):
            for t in s.tensors:
                yield s.kind, t.name.id, t.name.span
        elif isinstance(s, ast.DeepMemory):
            yield "memory", s.name.id, s.name.span
        elif isinstance(s, ast.Let):
            yield "let", s.name.id, s.name.span
        elif isinstance(s, ast.For):
            yield from declared(s.body)


def report_unused(layer: ast.Layer, sizes: Mapping[str, ast.Size | None], problems: Problems) -> None:
    """An error for each input, param, state, memory, let and size of a layer that nothing uses."""
    used = uses(layer.body)
    for kind, name, span in declared(layer.body):
        if name not in used and name not in problems.suggested:
            _report(problems, kind, name, span)
    for s in _flat(layer.body):
        if isinstance(s, ast.DeepMemory):
            inside = names_in(s.body)
            for t in s.tensors:
                if t.name.id not in inside and t.name.id not in problems.suggested:
                    _report(problems, "tensor", t.name.id, t.name.span)
            if s.formal.name.id not in inside and s.formal.name.id not in problems.suggested:
                _report(problems, "argument", s.formal.name.id, s.formal.name.span)
    whole = names_in(layer.body) | axes_in(layer.body) | (names_in(layer.project) | axes_in(layer.project) if layer.project else set())
    whole |= {n for size in layer.sizes if size.default for n in names_in(size.default)}
    for name, size in sizes.items():
        if size is not None and name not in whole and name not in ("heads", "groups") and name not in problems.suggested:
            _report(problems, "size", name, size.name.span)


def report_unused_definition(definition: ast.Definition, file: ast.File, problems: Problems) -> None:
    """An error for a definition in the file that nothing uses, or for each formal, state and let of it that nothing uses."""
    called = {n.id for n in expressions(file.definitions) if isinstance(n, ast.Ref)}
    called |= {n.name.id for n in expressions(file.definitions) if isinstance(n, ast.Method)}
    if definition.name.id not in called and any(isinstance(d, ast.Layer) for d in file.definitions):
        _report(problems, definition.kind, definition.name.id, definition.name.span)
    if (
        definition.kind in ("function", "objective")
        and definition.value is None
        and not any(isinstance(s, ast.Result) for s in definition.body)
    ):
        return  # it gives nothing, which is said where it is used
    used = uses(definition.body) | (names_in(definition.value) if definition.value else set())
    updated = {s.name.id for s in _flat(definition.body) if isinstance(s, ast.Update)}
    shape = axes_in(definition.formals)
    for f in definition.formals:
        only_shape = any(a.name in names_in(definition.body) for a in f.axes)
        if f.name.id not in used | updated and not only_shape and f.name.id not in shape and f.name.id not in problems.suggested:
            _report(problems, "argument", f.name.id, f.name.span)
    for kind, name, span in declared(definition.body):
        if name not in used and name not in problems.suggested:
            _report(problems, kind, name, span)


def _report(problems: Problems, kind: str, name: str, span: Span) -> None:
    if any(d.primary is not None and d.primary.span == span for d in problems.errors):
        return  # its declaration was refused
    article = "an" if kind[0] in "aio" else "a"
    what = f"{article} {kind}" if kind != "let" else "a `let`"
    problems.report("unused", f"nothing uses `{name}`", span, what, helps=("remove it",) if kind != "input" else ())
