"""Python text -> where it means a name of its module, and the text with other names in those places."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from seqc.diagnostics import InternalError

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class Place:
    """A name in a text: its line from 1, and where it begins there, in bytes; the attribute that is taken of it, if one is."""

    name: str
    line: int
    column: int
    attribute: str | None = None


def defined(tree: ast.Module) -> tuple[str, ...]:
    """The names that a module's own statements bind, in order; what it imports is not among them."""
    return tuple(dict.fromkeys(name for s in tree.body if not isinstance(s, (ast.Import, ast.ImportFrom)) for name in _bound(s)))


def spelled(tree: ast.Module) -> set[str]:
    """Every identifier of a module, local ones too."""
    found: set[str] = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Name | ast.arg | Definition):
            found.add(n.id if isinstance(n, ast.Name) else n.arg if isinstance(n, ast.arg) else n.name)
    return found


def module_names(text: str, tree: ast.Module) -> list[Place]:
    """Where the text means a name that no function, class or comprehension around it binds."""
    lines = text.encode().split(b"\n")
    attributes = {id(n.value): n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    found = [Place(node.id, node.lineno, node.col_offset, attributes.get(id(node))) for node in _outer(tree.body, ())]
    for node in tree.body:
        if isinstance(node, Definition):
            column = lines[node.lineno - 1].index(node.name.encode(), node.col_offset + len("def "))
            found.append(Place(node.name, node.lineno, column))
    return sorted(found, key=lambda p: (p.line, p.column))


def renamed(text: str, places: Iterable[Place], new: Callable[[str], str]) -> str:
    """The text with other names at those places. Raises InternalError if another name stands there."""
    lines = text.encode().split(b"\n")
    for p in sorted(places, key=lambda p: (p.line, p.column), reverse=True):
        line, end = lines[p.line - 1], p.column + len(p.name.encode())
        if line[p.column : end] != p.name.encode():
            raise InternalError(f"line {p.line}: `{p.name}` does not stand at {p.column}")
        lines[p.line - 1] = line[: p.column] + new(p.name).encode() + line[end:]
    return b"\n".join(lines).decode()


# --- Scopes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scope:
    """Names that are bound around a place; those of a class are not seen inside its functions."""

    names: frozenset[str]
    of_class: bool = False


Scopes = tuple[_Scope, ...]


def _outer(nodes: Iterable[ast.AST], scopes: Scopes) -> Iterator[ast.Name]:
    """The names in some nodes that none of the scopes binds."""
    for node in nodes:
        if isinstance(node, ast.Name):
            if not any(node.id in s.names for s in scopes):
                yield node
        elif isinstance(node, Function):
            body = [node.body] if isinstance(node, ast.Lambda) else node.body
            parameters = [a for a in ast.walk(node.args) if isinstance(a, ast.arg)]
            before: list[ast.AST | None] = [*node.args.defaults, *node.args.kw_defaults, *(a.annotation for a in parameters)]
            before += [] if isinstance(node, ast.Lambda) else [*node.decorator_list, node.returns]
            yield from _outer((n for n in before if n is not None), scopes)
            yield from _outer(body, _inside(scopes, {a.arg for a in parameters} | _names(body)))
        elif isinstance(node, ast.ClassDef):
            yield from _outer([*node.decorator_list, *node.bases, *node.keywords], scopes)
            yield from _outer(node.body, (*scopes, _Scope(frozenset(_names(node.body)), of_class=True)))
        elif isinstance(node, Comprehension):
            yield from _outer([node.generators[0].iter], scopes)
            rest = [n for n in ast.iter_child_nodes(node) if n is not node.generators[0]]
            rest += [n for n in ast.iter_child_nodes(node.generators[0]) if n is not node.generators[0].iter]
            yield from _outer(rest, _inside(scopes, {n for g in node.generators for n in _bound(g.target)}))
        else:
            yield from _outer(ast.iter_child_nodes(node), scopes)


def _inside(scopes: Scopes, names: set[str]) -> Scopes:
    return (*(s for s in scopes if not s.of_class), _Scope(frozenset(names)))


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    """What nodes bind in their own scope; but for what they say is the module's."""
    nodes = list(nodes)
    of_module = {name for node in nodes for n in ast.walk(node) if isinstance(n, ast.Global) for name in n.names}
    return {name for node in nodes for name in _bound(node)} - of_module


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a node binds in the scope in which it stands."""
    if isinstance(node, Definition):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
        yield node.id
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (a.asname or a.name.partition(".")[0] for a in node.names)
    elif isinstance(node, Comprehension):
        yield from (n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
    elif not isinstance(node, ast.Lambda):
        caught = getattr(node, "name", None) if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) else None
        yield from [caught] if caught else []
        yield from (name for child in ast.iter_child_nodes(node) for name in _bound(child))
