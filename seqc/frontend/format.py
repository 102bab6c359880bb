"""Source -> the same spec in its one canonical layout, comments kept: what `seqc fmt` writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lark import Token

from seqc.frontend.lines import DEFINITIONS, RESERVED, STATEMENTS, Line, lex, split
from seqc.frontend.parser import parse
from seqc.source import Source

INDENT = 2
KEYWORD = 8
COMMENT_COLUMN = 45

DEFINITION_TYPES = frozenset(word.upper() for word in DEFINITIONS)
# Their word is not padded: nothing stands in a column below it.
UNPADDED = frozenset(("SEQC", "PROJECT", "FOR", "END", *DEFINITION_TYPES))
PADDED = frozenset(word.upper() for word in STATEMENTS) - UNPADDED
WORDS = frozenset(word.upper() for word in RESERVED)
# Written without space around them where the text has none: `1/2`, `2*n`.
TIGHT = frozenset(("*", "/"))
ATOMS = frozenset(("NAME", "NUMBER"))


@dataclass(frozen=True)
class Row:
    """One line of the result: its indentation, its code (may be empty) and its comment (may be empty).

    `gap` says that an empty line stands above it, `apart` that one has to, `inner` that none may.
    """

    indent: int
    code: str
    comment: str = ""
    gap: bool = False
    apart: bool = False
    inner: bool = False


def format_file(source: Source) -> str:
    """The canonical text; raises SpecError for a text with syntax errors."""
    parse(source)
    rows = _separated(_merged(_code(source), _comments(source)))
    return "".join(("\n" if row.gap else "") + _text(row) + "\n" for row in rows)


def _text(row: Row) -> str:
    code = " " * row.indent + row.code
    if row.comment and row.code:
        return code.ljust(max(COMMENT_COLUMN, len(code) + 2)) + row.comment
    return code + row.comment


def _comments(source: Source) -> dict[int, str]:
    """The comments of a text by the number of their line."""
    return {token.line or 0: token.rstrip() for token in lex(source.text) if token.type == "COMMENT"}


def _code(source: Source) -> dict[int, Row]:
    """The rows with code by the number of their line in the text."""
    rows: dict[int, Row] = {}
    loops, project, previous = 0, False, ""
    for line in split(source):
        word = line.first.type
        project = (project or word == "PROJECT") and word not in DEFINITION_TYPES
        loops -= word == "END"
        if word in OUTERMOST:
            indent = 0
        else:
            indent = INDENT * (1 + loops + (project and word != "PROJECT"))
        apart = word in DEFINITION_TYPES or word == "PROJECT" or (previous == "LAYER STRING" and word != "STRING")
        for number, tokens in groupby(line.tokens[:-1], key=lambda token: token.line or 0):
            first = number == line.first.line
            code = _spelled(source, tuple(tokens), _before(line, number))
            rows[number] = Row(indent, code, apart=apart, inner=word == "STRING") if first else Row(indent + KEYWORD, code, inner=True)
        loops += word == "FOR"
        previous = f"LAYER {word}" if word == "STRING" and previous.startswith("LAYER") else word
    return rows


def _before(line: Line, number: int) -> Token | None:
    """The last token of a statement above a line of the text."""
    return next((token for token in reversed(line.tokens) if (token.line or 0) < number and token.type != "_NL"), None)


def _merged(code: dict[int, Row], comments: dict[int, str]) -> list[Row]:
    """Code and comments in the order of the text. A comment of its own is indented like the code below it, or else above it."""
    rows: list[Row] = []
    numbers = sorted({*code, *comments})
    below: dict[int, Row] = {}
    for number in reversed(numbers):
        below[number] = code.get(number) or below.get(_next(numbers, number), Row(0, ""))
    for i, number in enumerate(numbers):
        gap = i > 0 and number > numbers[i - 1] + 1
        if number in code:
            rows.append(replace(code[number], comment=comments.get(number, ""), gap=gap))
        else:
            rows.append(Row(0, "", comments[number], gap))
    return rows
