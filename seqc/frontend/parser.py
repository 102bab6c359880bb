"""Source -> ast.File: reads statement by statement, and after an error goes on with the next one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from lark import Token, Tree, UnexpectedToken
from lark.parsers.lalr_interactive_parser import InteractiveParser

from seqc.diagnostics import Diagnostic, SpecError
from seqc.frontend import ast, syntax
from seqc.frontend.grammar import accepted, load, snapshot
from seqc.frontend.lines import DEFINITIONS, Line, split
from seqc.frontend.sections import misplaced
from seqc.frontend.text import check_text, read_source
from seqc.frontend.tree import convert
from seqc.source import Source

__all__ = ["parse", "parse_text", "read_source"]

MAX_ERRORS = 30
MAX_LOOPS = 16

# What takes the place of a statement that could not be read, so that those around it can be.
STAND_INS = {
    "SEQC": "SEQC NUMBER", "LAYER": "LAYER NAME LPAR RPAR", "PROJECT": "PROJECT NAME ARROW NAME", "FOR": "FOR NAME IN NAME", "END": "END",
    "STRING": "STRING", **{kind.upper(): f"{kind.upper()} NAME LPAR RPAR" for kind in DEFINITIONS[1:]},
}
STATEMENT = "LET NAME EQUAL NUMBER"
EQUATION = "NAME EQUAL NUMBER"
HEADERS = frozenset(word.upper() for word in (*DEFINITIONS, "project"))


def parse(source: Source) -> ast.File:
    """The AST of a text; raises SpecError with every syntax error in it."""
    check_text(source)
    reader = _Reader(source, load().parse_interactive(""))
    for line in split(source):
        reader.read(line)
        if len(reader.errors) >= MAX_ERRORS:
            raise SpecError(_in_order(reader.errors))
    tree = reader.finish()
    if tree is None:
        raise SpecError(_in_order(reader.errors))
    file = convert(tree, source)
    if errors := misplaced(file):
        raise SpecError(_in_order(errors))
    return file


def parse_text(text: str, name: str = "<string>") -> ast.File:
    """The AST of a text; `name` stands in messages."""
    return parse(Source(name, text))


def _one_line(header: Line) -> bool:
    """Whether a definition's value stands in its header."""
    return any((a.type, b.type) == ("RPAR", "EQUAL") for a, b in pairwise(header.tokens))


def _in_order(errors: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    return tuple(sorted(errors, key=lambda error: error.primary.span.start if error.primary else 0))[:MAX_ERRORS]


@dataclass
class _Reader:
    """The parser between two statements, the errors so far, and the lines that those after them belong to."""

    source: Source
    parser: InteractiveParser
    errors: list[Diagnostic] = field(default_factory=list)
    loops: list[Line] = field(default_factory=list)
    layer: Line | None = None
    header: Line | None = None
    previous: Line | None = None

    def read(self, line: Line) -> None:
        """Takes in one statement."""
        word = syntax.meant(line)
        if self.previous is None and self._version(line):
            self._remember(line, word)
            return
        if word in HEADERS:
            self._close_loops()
        if word == "LAYER" and self.layer is not None:
            self.errors.append(syntax.second_layer(self.source, self.layer, line))
        if word == "END" and not self.loops:
            self.errors.append(syntax.end_without_for(self.source, line))
        elif word == "FOR" and len(self.loops) == MAX_LOOPS:
            self.errors.append(syntax.too_many_loops(self.source, line, MAX_LOOPS))
            return
        else:
            self._take(line, word)
        self._remember(line, word)

    def finish(self) -> Tree[Token] | None:
        """The tree of the whole text, or None where there are errors."""
        if self.previous is None:
            self.errors.append(syntax.empty(self.source))
            return None
        self._close_loops()
        end = Token("$END", "", start_pos=len(self.source.text), end_pos=len(self.source.text))
        try:
            tree = self.parser.feed_token(end)
        except UnexpectedToken:
            self.errors = self.errors or [syntax.unfinished(self.source, self.previous)]
            return None
        return None if self.errors else tree

    def _version(self, line: Line) -> bool:
        """Looks at the first line; whether it is a version line that cannot be read as one."""
        if line.first.type != "SEQC":
            self.errors.append(syntax.missing_version(self.source, line))
            self._feed_types(STAND_INS["SEQC"])
            return len(line.tokens) <= 3 and line.tokens[-2].type == "NUMBER"
        if (unknown := syntax.unknown_edition(self.source, line)) is not None:
            raise SpecError((unknown,))
        return False

    def _close_loops(self) -> None:
        while self.loops:
            self.errors.append(syntax.missing_end(self.source, self.loops.pop()))
            self._feed_types(STAND_INS["END"])

    def _take(self, line: Line, word: str) -> None:
        """Gives a statement to the parser; one that is wrong is reported and replaced by a stand-in."""
        before = snapshot(self.parser)
        error = syntax.of_tokens(self.source, line) or self._feed(line, before)
        if error is not None:
            self.errors.append(error)
            self._replace(line, word, before)

    def _replace(self, line: Line, word: str, before: InteractiveParser) -> None:
        """Puts the first stand-in that fits where a statement was: its own, that after a missing body, then one with a header."""
        own = STAND_INS.get(word, STATEMENT) if word != "SEQC" or self.previous is None else STATEMENT
        if word in HEADERS and _one_line(line):
            own += " EQUAL NUMBER"
        layer = STAND_INS["LAYER"]
        others = ((EQUATION,), (layer, STATEMENT, own)) if word == "PROJECT" else ((STATEMENT,), (layer,))
        for stand_in in ((own,), (STATEMENT, own), *others, ()):
            self.parser = snapshot(before)
            if all(self._feed_types(types) for types in stand_in):
                return

    def _feed(self, line: Line, before: InteractiveParser) -> Diagnostic | None:
        for i, token in enumerate(line.tokens):
            try:
                self.parser.feed_token(token)
            except UnexpectedToken:
                # Reductions on the way to the error have hidden what else could have followed: ask again without them.
                again = snapshot(before)
                for earlier in line.tokens[:i]:
                    again.feed_token(earlier)
                return syntax.of_parse(syntax.Place(self.source, line, i, accepted(again), self.previous))
        return None

    def _feed_types(self, types: str) -> bool:
        try:
            for type_ in (*types.split(), "_NL"):
                self.parser.feed_token(Token(type_, ""))
        except UnexpectedToken:
            return False
        return True

    def _remember(self, line: Line, word: str) -> None:
        self.previous = line
        if word == "FOR":
            self.loops.append(line)
        elif word == "END" and self.loops:
            self.loops.pop()
        elif word == "LAYER":
            self.layer = self.layer or line
