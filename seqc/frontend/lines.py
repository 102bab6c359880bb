"""Source -> lines: the tokens of each statement, with the line ends that do not count left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from lark import Token

from seqc.diagnostics import Diagnostic, Label
from seqc.frontend import grammar
from seqc.source import Source, Span

MAX_BRACKETS = 64
MAX_TOKENS = 2000

DEFINITIONS = ("layer", "objective", "retention", "algorithm", "function")
STATEMENTS = (
    "input", "param", "state", "memory", "let", "output", "retain", "learn", "update", "append", "fold", "for", "end",
    "slope", "link", "return", "project",
)
STARTERS = frozenset(word.upper() for word in ("seqc", *DEFINITIONS, *STATEMENTS))
CLAUSES = ("in", "by", "on", "at", "with", "to", "per", "like")
RESERVED = frozenset(("seqc", *DEFINITIONS, *STATEMENTS, *CLAUSES))

# A line end beside one of these does not end the statement.
JOINING = frozenset(("PLUS", "MINUS", "TIMES", "POWER", "COMPARE", "EQUAL", "ARROW", "COMMA", "SLIP", *(word.upper() for word in CLAUSES)))
OPEN = frozenset(("LPAR", "LSQB"))
CLOSE = frozenset(("RPAR", "RSQB"))


@dataclass(frozen=True)
class Line:
    """The tokens of one statement (its end included) and what is wrong with them as tokens.

    `opener` is the last bracket that nothing closes, `closer` the first that closes nothing.
    """

    tokens: tuple[Token, ...]
    opener: Token | None = None
    closer: Token | None = None
    problem: Diagnostic | None = None

    @property
    def first(self) -> Token:
        return self.tokens[0]

    def outer(self) -> Iterator[Token]:
        """The tokens outside all brackets."""
        depth = 0
        for token in self.tokens:
            depth -= token.type in CLOSE
            if depth <= 0:
                yield token
            depth += token.type in OPEN


def span_of(source: Source, token: Token) -> Span:
    """The place of a token."""
    return Span(source, token.start_pos or 0, token.end_pos or 0)


def lex(text: str) -> list[Token]:
    """All tokens of a text but space; comments and line ends are among them."""
    return [token for token in grammar.tokens(text) if token.type != "SPACE"]


def split(source: Source) -> Iterator[Line]:
    """The lines of a source, in order, each ended by a `_NL`."""
    tokens = _one_end_each(lex(source.text), len(source.text))
    i = 0
    while i < len(tokens):
        end, opener, closer, deepest = _scan(tokens, i)
        cut = _equation_inside(tokens, i, end) if opener else None
        stop = cut if cut is not None else end
        body = [token for token in tokens[i:stop] if token.type != "_NL"]
        at = body[-1].end_pos or 0
        mark = tokens[end] if cut is None else Token("_NL", "", start_pos=at, end_pos=at)
        if cut is not None:
            *_, opener, closer, deepest = _scan([*body, mark], 0)
        yield Line((*body, mark), opener, closer, _limits(source, body, deepest))
        i = end + 1 if cut is None else cut


def _one_end_each(tokens: list[Token], end: int) -> list[Token]:
    """Without comments, empty lines and line ends at the start; a line end closes the text."""
    kept: list[Token] = []
    for token in tokens:
        if token.type != "COMMENT" and (token.type != "_NL" or (kept and kept[-1].type != "_NL")):
            kept.append(token)
    if kept and kept[-1].type != "_NL":
        kept.append(Token("_NL", "", start_pos=end, end_pos=end))
    return kept


def _scan(tokens: list[Token], begin: int) -> tuple[int, Token | None, Token | None, Token | None]:
    """From a statement's first token: its end, the last bracket left open, the first closed without one, the first too deep."""
    brackets: list[Token] = []
    closer = deepest = None
    for i in range(begin, len(tokens)):
        token = tokens[i]
        if token.type == "_NL":
            if i + 1 == len(tokens) or _ends(tokens[i - 1].type, tokens[i + 1].type, bool(brackets)):
                return i, brackets[-1] if brackets else None, closer, deepest
        elif token.type in OPEN:
            brackets.append(token)
            if len(brackets) > MAX_BRACKETS:
                deepest = deepest or token
        elif token.type in CLOSE and brackets:
            brackets.pop()
        elif token.type in CLOSE:
            closer = closer or token
    raise AssertionError("every text ends in a line end")


def _ends(before: str, after: str, inside: bool) -> bool:
    """Whether a line end ends the statement: brackets and joining words hold it open, except before a starter."""
    return after in STARTERS or not (inside or before in JOINING or after in JOINING)


def _equation_inside(tokens: list[Token], begin: int, end: int) -> int | None:
    """Where, in a statement whose bracket stays open, a text line of the form `a, b = ...` begins."""
    for i in range(begin + 2, end):
        if tokens[i].type == "NAME" and tokens[i - 1].type == "_NL" and tokens[i - 2].type not in JOINING | OPEN:
            head = sum(1 for _ in takewhile(lambda token: token.type in ("NAME", "COMMA"), tokens[i:end]))
            if tokens[i + head].type == "EQUAL":
                return i
    return None


def _limits(source: Source, tokens: list[Token], deepest: Token | None) -> Diagnostic | None:
    if deepest is not None:
        return Diagnostic(
            "nested-too-deep", f"more than {MAX_BRACKETS} brackets are open here", Label(span_of(source, deepest)),
            helps=("name a part with `let`",),
        )
    if len(tokens) > MAX_TOKENS:
        return Diagnostic(
            "statement-too-long", f"this statement has more than {MAX_TOKENS} words and signs",
            Label(span_of(source, tokens[MAX_TOKENS])), (Label(span_of(source, tokens[0]), "begins here"),),
            helps=("name a part with `let`",),
        )
    return None
