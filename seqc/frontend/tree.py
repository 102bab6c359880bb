"""Parse tree -> ast.File, from the leaves up and without recursion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, TypeVar

from lark import Token, Tree

from seqc.diagnostics import Diagnostic, Label, SpecError
from seqc.frontend import ast
from seqc.source import Source, Span

MAX_DEPTH = 200
MAX_DIGITS = 40
MAX_EXPONENT = 400

T = TypeVar("T")
EXPRESSIONS = (ast.Number, ast.Ref, ast.Call, ast.Index, ast.Binary, ast.Negate)


@dataclass(frozen=True)
class Parts:
    """What a rule was read from: its nodes and tokens in order, and the place of the whole."""

    source: Source
    items: tuple[Any, ...]
    span: Span

    def all(self, *kinds: type[T]) -> tuple[T, ...]:
        return tuple(item for item in self.items if isinstance(item, kinds))

    def names(self) -> tuple[ast.Name, ...]:
        return tuple(self.name(token) for token in self.tokens("NAME"))

    def name(self, token: Token) -> ast.Name:
        return ast.Name(str(token), Span(self.source, token.start_pos or 0, token.end_pos or 0))

    def tokens(self, *types: str) -> tuple[Token, ...]:
        return tuple(item for item in self.items if isinstance(item, Token) and item.type in types)

    def has(self, type_: str) -> bool:
        return bool(self.tokens(type_))

    def expressions(self) -> tuple[ast.Expr, ...]:
        return self.all(*EXPRESSIONS)

    def expression_after(self, type_: str) -> ast.Expr | None:
        """The expression right after a token of a type, where there is such a token."""
        for before, item in pairwise(self.items):
            if isinstance(before, Token) and before.type == type_:
                return item  # type: ignore[no-any-return]
        return None

    def axes(self) -> tuple[ast.Axis, ...]:
        return next(iter(self.all(Axes)), Axes(())).items


@dataclass(frozen=True)
class Axes:
    items: tuple[ast.Axis, ...]


@dataclass(frozen=True)
class Named:
    name: ast.Name
    value: ast.Expr


@dataclass(frozen=True)
class Item:
    value: ast.Expr
    target: ast.Name


@dataclass(frozen=True)
class Like:
    name: ast.Name


@dataclass(frozen=True)
class Scope:
    name: ast.Name


@dataclass(frozen=True)
class Doc:
    text: str


@dataclass(frozen=True)
class Kind:
    word: str


@dataclass(frozen=True)
class Version:
    edition: int


def convert(tree: Tree[Token], source: Source) -> ast.File:
    """The tree of a whole file -> its AST; raises SpecError for numbers and nestings beyond the limits."""
    made: dict[int, Any] = {}
    places: dict[int, tuple[int, int]] = {}
    depths: dict[int, int] = {}
    for node in tree.iter_subtrees():
        span = Span(source, *_extent(node, places))
        items = tuple(made[id(child)] if isinstance(child, Tree) else child for child in node.children)
        depth = _depth(node, depths)
        if depth > MAX_DEPTH:
            raise SpecError((_too_deep(span),))
        made[id(node)], places[id(node)], depths[id(node)] = RULES[node.data](Parts(source, items, span)), (span.start, span.end), depth
    return made[id(tree)]  # type: ignore[no-any-return]


def _extent(node: Tree[Token], places: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """From a rule's first character to its last; line ends are left out."""
    ends = [
        places[id(child)] if isinstance(child, Tree) else (child.start_pos or 0, child.end_pos or 0)
        for child in node.children
        if isinstance(child, Tree) or child.type != "_NL"
    ]
    return ends[0][0], ends[-1][1]


def _depth(node: Tree[Token], depths: dict[int, int]) -> int:
    """How deep an expression nests; statements start again from 0."""
    below = max((depths[id(child)] for child in node.children if isinstance(child, Tree)), default=0)
    return below + 1 if node.data in NESTING else 0


def _too_deep(span: Span) -> Diagnostic:
    return Diagnostic(
        "nested-too-deep", f"this expression nests more than {MAX_DEPTH} deep", Label(span),
        notes=("every operator of a chain counts as one level",), helps=("name a part with `let`",),
    )


def _number(p: Parts) -> ast.Number:
    text = p.span.text
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 4 or abs(int(exponent or 0)) > MAX_EXPONENT:
        raise SpecError((
            Diagnostic(
                "number-out-of-range", "this number is too long or too far from 1", Label(p.span),
                notes=(f"a number has at most {MAX_DIGITS} characters and an exponent from -{MAX_EXPONENT} to {MAX_EXPONENT}",),
            ),
        ))
    return ast.Number(Fraction(text), text, p.span)


def _call(p: Parts) -> ast.Call:
    function, *args = p.all(*EXPRESSIONS, Named)
    return ast.Call(function, *_arguments(args), p.span)  # type: ignore[arg-type]


def _arguments(args: list[Any]) -> tuple[tuple[ast.Expr, ...], tuple[tuple[ast.Name, ast.Expr], ...]]:
    """Positional arguments and named ones; a positional one after a named one is refused."""
    positional = tuple(arg for arg in args if not isinstance(arg, Named))
    named = tuple((arg.name, arg.value) for arg in args if isinstance(arg, Named))
    for before, arg in pairwise(args):
        if isinstance(before, Named) and not isinstance(arg, Named):
            raise SpecError((
                Diagnostic(
                    "argument-order", "an argument without a name follows one with a name", Label(arg.span),
                    (Label(before.name.span, "a named argument"),), helps=("put the named arguments last",),
                ),
            ))
    return positional, named


def _method(p: Parts) -> ast.Method:
    return ast.Method(p.names()[0], *_arguments(list(p.all(*EXPRESSIONS, Named))), p.span)


def _binary(p: Parts) -> ast.Binary:
    left, op, right = p.items
    return ast.Binary(str(op), left, right, p.span)


def _interval(p: Parts) -> ast.Domain:
    low, high = p.expressions()
    return ast.Domain("interval", low, high, p.items[1].type == "LPAR", p.items[-1].type == "RPAR", p.span)


def _tensor(p: Parts) -> ast.Tensor:
    like = next((like.name for like in p.all(Like)), None)
    return ast.Tensor(p.names()[0], p.axes(), like, p.all(ast.Domain), p.expressions()[0], _scopes(p), p.span)


def _scopes(p: Parts) -> tuple[ast.Name, ...]:
    return tuple(scope.name for scope in p.all(Scope))


def _axis(p: Parts) -> ast.Axis:
    names = p.names()
    return ast.Axis(names[-1].id, names[0].id if len(names) == 2 else None, p.span)


def _deep(p: Parts) -> ast.DeepMemory:
    return ast.DeepMemory(p.names()[0], p.all(ast.Formal)[0], p.expressions()[0], p.all(ast.Tensor), p.span)


def _learn(p: Parts) -> ast.Learn:
    return ast.Learn(p.names()[0], p.all(ast.Method)[0], p.expressions()[0], p.expression_after("AT"), p.span)


def _append(p: Parts) -> ast.Append:
    return ast.Append(tuple((item.value, item.target) for item in p.all(Item)), p.span)


def _fold(p: Parts) -> ast.Fold:
    name, *order = p.names()
    return ast.Fold(name, p.expressions()[0], order[0] if order else None, p.span)


def _library(p: Parts) -> ast.Definition:
    value = p.expression_after("EQUAL")
    return ast.Definition(p.all(Kind)[0].word, p.names()[0], p.all(ast.Formal), _docs(p), p.all(*STATEMENTS), value, p.span)


def _layer(p: Parts) -> ast.Layer:
    project = next(iter(p.all(ast.Project)), None)
    return ast.Layer(p.names()[0], p.all(ast.Size), _docs(p), p.all(*STATEMENTS), project, p.span)


def _docs(p: Parts) -> tuple[str, ...]:
    return tuple(doc.text for doc in p.all(Doc))


def _first(p: Parts) -> ast.Expr | None:
    return next(iter(p.expressions()), None)


STATEMENTS = (
    ast.Declare, ast.Inputs, ast.DeepMemory, ast.Let, ast.Output, ast.Update, ast.Retain, ast.Learn, ast.Append, ast.Fold, ast.For,
    ast.Result, ast.Equation,
)

# Rules that add a level to an expression.
NESTING = frozenset(("binary", "negate", "call", "index", "parens", "named"))

# One entry for each rule of the grammar that makes a node.
RULES: dict[str, Callable[[Parts], Any]] = {
    "file": lambda p: ast.File(p.source, p.all(Version)[0].edition, p.all(ast.Layer, ast.Definition)),
    "version": lambda p: Version(int(p.tokens("NUMBER")[0])),
    "layer": _layer,
    "size": lambda p: ast.Size(p.names()[0], _first(p), p.span),
    "doc": lambda p: Doc(p.span.text[1:-1]),
    "library": _library,
    "kind": lambda p: Kind(p.span.text),
    "formal": lambda p: ast.Formal(p.names()[0], p.axes(), _first(p), p.span),
    "input": lambda p: ast.Inputs(p.all(ast.Signal), p.span),
    "declare": lambda p: ast.Declare(str(p.items[0]), p.all(ast.Tensor), p.span),
    "deep": _deep,
    "let": lambda p: ast.Let(p.names()[0], p.axes(), p.expressions()[0], p.span),
    "output": lambda p: ast.Output(p.names()[0], p.axes(), _first(p), p.span),
    "retain": lambda p: ast.Retain(p.names()[0], p.all(ast.Method)[0], p.span),
    "learn": _learn,
    "update": lambda p: ast.Update(p.names()[0], p.expressions()[0], p.span),
    "append": _append,
    "fold": _fold,
    "loop": lambda p: ast.For(p.names()[0], p.expressions()[0], p.all(*STATEMENTS), p.span),
    "result": lambda p: ast.Result(str(p.items[0]), p.expressions()[0], p.span),
    "signal": lambda p: ast.Signal(p.names()[0], p.axes(), p.all(ast.Domain), _scopes(p), p.span),
    "tensor": _tensor,
    "like": lambda p: Like(p.names()[0]),
    "item": lambda p: Item(p.expressions()[0], p.names()[0]),
    "method": _method,
    "axes": lambda p: Axes(p.all(ast.Axis)),
    "axis": _axis,
    "domain_word": lambda p: ast.Domain(p.names()[0].id, None, None, False, False, p.span),
    "interval": _interval,
    "scope": lambda p: Scope(p.name(p.items[1])),
    "project": lambda p: ast.Project(p.all(ast.Signal), p.names()[0], p.all(*STATEMENTS), p.span),
    "equation": lambda p: ast.Equation(p.names(), p.expressions()[0], p.span),
    "binary": _binary,
    "negate": lambda p: ast.Negate(p.expressions()[0], p.span),
    "call": _call,
    "index": lambda p: ast.Index(p.expressions()[0], p.expressions()[1:], p.span),
    "parens": lambda p: replace(p.expressions()[0], span=p.span),
    "named": lambda p: Named(p.names()[0], p.expressions()[0]),
    "ref": lambda p: ast.Ref(p.span.text, p.span),
    "number": _number,
}
