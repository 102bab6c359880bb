"""Source -> the same spec in its one canonical layout, comments kept: what `seqc fmt` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from lark import Token

from seqc.frontend.lines import CLOSE, DEFINITIONS, OPEN, STATEMENTS, Line, lex, split
from seqc.frontend.parser import parse
from seqc.source import Source

INDENT = 2
KEYWORD = 8
COMMENT_COLUMN = 45

DEFINITION_TYPES = frozenset(word.upper() for word in DEFINITIONS)
OUTERMOST = DEFINITION_TYPES | {"SEQC"}
# The other statements' words fill a column.
PADDED = frozenset(word.upper() for word in STATEMENTS) - {"PROJECT", "FOR", "END"}
# Written without space around them where the text has none: `1/2`, `2*n`.
TIGHT = frozenset(("*", "/"))
ATOMS = frozenset(("NAME", "NUMBER"))
ENDS_VALUE = ATOMS | CLOSE


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
        indent = 0 if word in OUTERMOST else INDENT * (1 + loops + (project and word != "PROJECT"))
        apart = word in DEFINITION_TYPES or word == "PROJECT" or (previous == "LAYER STRING" and word != "STRING")
        for number, tokens in groupby(line.tokens[:-1], key=lambda token: token.line or 0):
            first = number == line.first.line
            code = _spelled(tuple(tokens), _before(line, number))
            rows[number] = Row(indent, code, apart=apart, inner=word == "STRING") if first else Row(indent + KEYWORD, code, inner=True)
        loops += word == "FOR"
        previous = f"LAYER {word}" if word == "STRING" and previous.startswith("LAYER") else word
    return rows


def _before(line: Line, number: int) -> Token | None:
    """The last token of a statement above a line of the text."""
    return next((token for token in reversed(line.tokens) if (token.line or 0) < number and token.type != "_NL"), None)


def _merged(code: dict[int, Row], comments: dict[int, str]) -> list[Row]:
    """Code and comments in the order of the text. A comment of its own is indented like the code below it, else above it."""
    numbers = sorted({*code, *comments})
    rows: list[Row] = []
    below = Row(code[max(code)].indent, "")
    for number, following in zip(reversed(numbers), (None, *reversed(numbers)), strict=False):
        if number in code:
            below = code[number]
            rows.append(replace(below, comment=comments.get(number, "")))
        else:
            rows.append(Row(below.indent + INDENT * (below.code == "end"), "", comments[number], inner=below.inner))
        if following is not None and following > number + 1:
            rows[-2] = replace(rows[-2], gap=True)
    return rows[::-1]


def _separated(rows: list[Row]) -> list[Row]:
    """The rows with the empty lines they have to have, above the comments that lead to them, and without those they must not."""
    kept = [replace(row, gap=row.gap and not row.inner) for row in rows]
    for i, row in enumerate(kept):
        if row.apart:
            first = i
            while first > 0 and not kept[first - 1].code:
                first -= 1
            if first > 0 and not any(above.gap for above in kept[first : i + 1]):
                kept[first] = replace(kept[first], gap=True)
    return kept


def _spelled(tokens: Sequence[Token], before: Token | None) -> str:
    """The tokens of one row with canonical space between them; `before` is what the statement has above it."""
    text = ""
    for i, token in enumerate(tokens):
        previous = tokens[i - 1] if i else before
        earlier = tokens[i - 2] if i > 1 else before if i == 1 else None
        if i:
            text += " " * _space(earlier, tokens[i - 1], token, tokens[i + 1] if i + 1 < len(tokens) else None)
        text += token
        if i == 0 and previous is None and token.type in PADDED and len(tokens) > 1:
            text = text.ljust(KEYWORD - 1)
    return text


def _space(earlier: Token | None, left: Token, right: Token, later: Token | None) -> bool:
    """Whether a space stands between two tokens; `earlier` and `later` are those beside them."""
    if left.type in OPEN or right.type in CLOSE or right.type in ("COMMA", "COLON") or "POWER" in (left.type, right.type):
        return False
    if left.type == "MINUS" and (earlier is None or earlier.type not in ENDS_VALUE):
        return False
    if right.type in OPEN:
        return left.type not in ENDS_VALUE
    if right in TIGHT:
        return not (later is not None and _tight(left, right, later))
    if left in TIGHT:
        return not (earlier is not None and _tight(earlier, left, right))
    return True


def _tight(left: Token, operator: Token, right: Token) -> bool:
    """Whether an operator between two atoms is written without space."""
    return {left.type, right.type} <= ATOMS and left.end_pos == operator.start_pos and operator.end_pos == right.start_pos
