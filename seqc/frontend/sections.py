"""ast.File -> the statements in it that stand in a definition of another kind, or in a `for`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from seqc.diagnostics import Diagnostic, Label
from seqc.frontend import ast
from seqc.source import Span

# Where statements do not stand, and what is written instead.
RESULTS_IN_LAYER = {
    "return": "write `output o = expr` for a result of the layer",
    "slope": "write an `objective` definition, whose derivative a `slope` is",
    "link": "write a `retention` definition, whose reading a `link` is",
}
OWNER = {"slope": "objective", "link": "retention"}
LAYER_ONLY = {"input": "write a formal in the header: `{kind} NAME(x[N])`", "output": "write `return expr`", "param": "", "memory": ""}
NOT_IN_LOOP = frozenset(("input", "param", "state", "memory", "output", "return", "slope", "link"))


def misplaced(file: ast.File) -> tuple[Diagnostic, ...]:
    """All misplaced statements of a file."""
    return tuple(error for definition in file.definitions for error in (*_in_definition(definition), *_in_loops(definition.body)))


def word(statement: ast.Statement) -> str:
    """The word that a statement begins with; an equation has none."""
    match statement:
        case ast.Declare(kind=kind) | ast.Result(kind=kind):
            return kind
        case ast.Inputs():
            return "input"
        case ast.DeepMemory():
            return "memory"
        case ast.Equation():
            return ""
        case _:
            return type(statement).__name__.lower()


def _in_definition(definition: ast.Layer | ast.Definition) -> Iterator[Diagnostic]:
    kind = "layer" if isinstance(definition, ast.Layer) else definition.kind
    for statement in definition.body:
        what = word(statement)
        if kind == "layer" and what in RESULTS_IN_LAYER:
            yield _refused(statement, f"`{what}` does not stand in a layer", RESULTS_IN_LAYER[what])
        elif kind != "layer" and what in LAYER_ONLY:
            yield _refused(statement, f"`{what}` stands only in a layer", LAYER_ONLY[what].format(kind=kind))
        elif OWNER.get(what, kind) != kind:
            yield _refused(statement, f"`{what}` stands only in a definition of the kind `{OWNER[what]}`", "")


def _in_loops(body: Iterable[ast.Statement]) -> Iterator[Diagnostic]:
    for statement in body:
        if isinstance(statement, ast.For):
            for inner in statement.body:
                if word(inner) in NOT_IN_LOOP:
                    yield _refused(inner, f"`{word(inner)}` does not stand in a `for`", "put it above the `for`, or below its `end`")
            yield from _in_loops(statement.body)


def _refused(statement: ast.Statement, message: str, help_: str) -> Diagnostic:
    begin = statement.span.start
    mark = Span(statement.span.source, begin, begin + len(word(statement)))
    return Diagnostic("misplaced-statement", message, Label(mark), helps=(help_,) if help_ else ())
