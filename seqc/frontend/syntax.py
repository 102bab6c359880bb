"""A place where the parser cannot go on -> what is said about it, in the words of grammar/syntax_errors.toml."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from lark import Token

from seqc.diagnostics import Diagnostic, Label
from seqc.frontend.lines import CLAUSES, CLOSE, DEFINITIONS, OPEN, STARTERS, STATEMENTS, Line, span_of
from seqc.frontend.text import describe
from seqc.source import Source, Span

EDITION = "1"
CONDITIONS = ("found", "before", "next", "in")
SIGNS = {
    "NAME": "a name", "NUMBER": "a number", "LPAR": "`(`", "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`", "COMMA": "a comma", "EQUAL": "`=`",
    "ARROW": "`->`", "COLON": "`:`", "_NL": "the end of the line", "STRING": "a text",
}
FIRST_LINE = "write `seqc 1` on the first line"
A_LAYER = "begin a layer with `layer NAME(size = value, ...)`"
WORDS = (*STATEMENTS, *DEFINITIONS)
FOREIGN_HEADERS = {"def": "FUNCTION", "fn": "FUNCTION", "func": "FUNCTION", "class": "LAYER"}
CLAUSE_TYPES = frozenset(word.upper() for word in CLAUSES)
OPERATORS = ("PLUS", "MINUS", "TIMES", "POWER", "COMPARE")


@dataclass(frozen=True)
class Place:
    """The token of a line that the parser refused, and the tokens it would have taken there."""

    source: Source
    line: Line
    index: int
    accepts: frozenset[str]
    previous: Line | None

    @property
    def found(self) -> Token:
        return self.line.tokens[self.index]

    @property
    def before(self) -> Token | None:
        return self.line.tokens[self.index - 1] if self.index else None

    @property
    def next(self) -> Token:
        return self.line.tokens[min(self.index + 1, len(self.line.tokens) - 1)]


@dataclass(frozen=True)
class Rule:
    """One message and when it is given; an absent condition is None."""

    accepts: frozenset[frozenset[str]] | None
    may: frozenset[str]
    tokens: Mapping[str, frozenset[str]]
    text: str | None
    code: str
    message: str
    label: str
    helps: tuple[str, ...]


@cache
def messages() -> dict[str, Any]:
    """grammar/syntax_errors.toml as it stands."""
    return tomllib.loads(files("seqc.grammar").joinpath("syntax_errors.toml").read_text("utf-8"))


@cache
def rules() -> tuple[Rule, ...]:
    """The rules of the file, in order, with their groups written out."""
    groups: dict[str, str] = messages()["groups"]

    def types(text: str) -> frozenset[str]:
        expanded = [types(groups[word]) if word in groups else frozenset((word,)) for word in text.split()]
        return frozenset().union(*expanded)

    def rule(entry: dict[str, Any]) -> Rule:
        accepts = frozenset(types(text) for text in entry["accepts"]) if "accepts" in entry else None
        tokens = {name: types(entry[name]) for name in CONDITIONS if name in entry}
        helps = entry.get("help", ())
        return Rule(
            accepts, types(entry.get("may", "")), tokens, entry.get("text"), entry["code"], entry["message"], entry.get("label", ""),
            (helps,) if isinstance(helps, str) else tuple(helps),
        )

    return tuple(rule(entry) for entry in messages()["rule"])


def of_tokens(source: Source, line: Line) -> Diagnostic | None:
    """What is wrong with a line before its words are read in order: limits, characters, brackets."""
    if line.problem is not None:
        return line.problem
    for token in line.tokens:
        if token.type in ("BAD", "SLIP"):
            return _strange(source, token)
    if line.closer is not None:
        return Diagnostic(
            "unmatched-bracket", f"nothing opens what this `{line.closer}` closes", Label(span_of(source, line.closer)),
            helps=(f"leave the `{line.closer}` out, or open it before",),
        )
    if line.opener is not None:
        last = line.tokens[-2]
        ends = (Label(span_of(source, last), "the statement ends here"),) if last is not line.opener else ()
        close = ")" if line.opener == "(" else "]"
        return Diagnostic(
            "unclosed-bracket", f"nothing closes this `{line.opener}`", Label(span_of(source, line.opener), "opened here"), ends,
            helps=(f"close it with `{close}`",),
        )
    return None


def _strange(source: Source, token: Token) -> Diagnostic:
    if token.type == "SLIP":
        message, help_ = messages()["slips"][str(token)]
        return Diagnostic("foreign-operator", message, Label(span_of(source, token)), helps=(help_,))
    if str(token) in messages()["characters"]:
        message, help_ = messages()["characters"][str(token)]
        code = "unclosed-text" if token == '"' else "bad-character"
        return Diagnostic(code, message, Label(span_of(source, token)), helps=(help_,))
    message = f"the character {describe(str(token))} is not part of the language"
    notes = () if token.isascii() else ("code is ASCII; comments and texts in quotes may hold any letter",)
    return Diagnostic("bad-character", message, Label(span_of(source, token)), notes=notes)


def of_parse(place: Place) -> Diagnostic:
    """What is wrong at a refused token."""
    if place.index == 0:
        return _first_word(place)
    if (error := _mistyped(place) or _wrong_bracket(place)) is not None:
        return error
    rule = next((rule for rule in rules() if _fits(rule, place)), None)
    return _default(place) if rule is None else _spoken(rule, place)


def _fits(rule: Rule, place: Place) -> bool:
    accepts = place.accepts - {"COMPARE"} if "TIMES" in place.accepts else place.accepts
    before = place.before.type if place.before else ""
    there = {"found": place.found.type, "before": before, "next": place.next.type, "in": place.line.first.type}
    return (
        (rule.accepts is None or accepts in rule.accepts) and rule.may <= accepts and (rule.text is None or rule.text == place.found)
        and all(there[name] in types for name, types in rule.tokens.items())
    )


def _spoken(rule: Rule, place: Place) -> Diagnostic:
    words = _words(place)
    helps = tuple(_help(text, words) for text in rule.helps if "{form}" not in text or words["form"])
    return Diagnostic(rule.code, rule.message.format(**words), Label(_mark(place), rule.label.format(**words)), helps=helps)


def _help(text: str, words: Mapping[str, str]) -> str:
    return f"write `{words['form']}`" if text == "{form}" else text.format(**words)


def _words(place: Place) -> dict[str, str]:
    """What the braces in a message stand for."""
    line, found, before = place.line, place.found, place.before or place.found
    names = [str(token) for token in line.outer() if token.type == "NAME" and (token.start_pos or 0) < (found.start_pos or 0)]
    return {
        "found": _quoted(found), "found_text": str(found), "before": _quoted(before), "before_text": str(before),
        "next": _quoted(place.next), "word": str(line.first),
        "word_quoted": "an equation" if line.first.type == "NAME" else f"`{line.first}`",
        "name": names[-1] if names else "x", "form": messages()["forms"].get(line.first.type, ""),
    }


def _quoted(token: Token) -> str:
    return "the end of the line" if token.type == "_NL" else "the text in quotes" if token.type == "STRING" else f"`{token}`"


def _mark(place: Place) -> Span:
    """The refused token; a line's end is marked right behind its last word."""
    if place.found.type == "_NL" and place.before is not None:
        end = place.before.end_pos or 0
        return Span(place.source, end, end)
    return span_of(place.source, place.found)


def _default(place: Place) -> Diagnostic:
    words = _words(place)
    helps = (f"write `{words['form']}`",) if words["form"] else ()
    label = Label(_mark(place), _expected(place.accepts))
    return Diagnostic("unexpected-text", f"{words['found']} cannot follow {words['before']}", label, helps=helps)


def _expected(accepts: frozenset[str]) -> str:
    """What could stand there, in a few words; nothing where that is too much."""
    operator = ("an operator",) if "TIMES" in accepts else ()
    kept = accepts - set(OPERATORS) - ({"LPAR", "LSQB"} if operator else set())
    signs = sorted(SIGNS.get(type_, f"`{type_.lower()}`") for type_ in kept)
    *others, last = [*signs, *operator] or [""]
    if not last or len(others) > 4:
        return ""
    return f"expected {', '.join(others)} or {last}" if others else f"expected {last}"


def _mistyped(place: Place) -> Diagnostic | None:
    """A word that is almost the one that could stand there."""
    first, found = place.line.first, place.found
    if first.type == "NAME" and found.type == "NAME" and place.index == 1 and (error := _mistyped_statement(place.source, first)):
        return error
    words = [type_.lower() for type_ in place.accepts if type_ in CLAUSE_TYPES]
    if found.type == "NAME" and "NAME" not in place.accepts and (close := _closest(found, words)):
        mark = Label(span_of(place.source, found))
        return Diagnostic("unknown-word", f"`{found}` is not a word of `{first}`", mark, helps=(f"did you mean `{close}`?",))
    return None


def _mistyped_statement(source: Source, word: Token) -> Diagnostic | None:
    if word in messages()["foreign"]:
        return _unknown_statement(source, word, messages()["foreign"][word])
    close = _closest(word, WORDS)
    return _unknown_statement(source, word, f"did you mean `{close}`?") if close else None


def meant(line: Line) -> str:
    """The type of statement that a line is taken for, by its first word."""
    first = line.first
    if first.type != "NAME" or line.tokens[1].type not in ("NAME", "STRING"):
        return first.type
    return FOREIGN_HEADERS.get(first) or (_closest(first, WORDS) or "NAME").upper()


def _closest(word: str, words: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word.lower(), list(words), 1, 0.65)), None)


def _wrong_bracket(place: Place) -> Diagnostic | None:
    """A bracket closed by the other kind."""
    other = {"RPAR": "RSQB", "RSQB": "RPAR"}.get(place.found.type)
    brackets: list[Token] = []
    for token in place.line.tokens[: place.index]:
        if token.type in OPEN:
            brackets.append(token)
        elif token.type in CLOSE and brackets:
            brackets.pop()
    if other not in place.accepts or not brackets or (brackets[-1] == "(") == (place.found == ")"):
        return None
    close = ")" if brackets[-1] == "(" else "]"
    return Diagnostic(
        "bracket-mismatch", f"`{brackets[-1]}` is closed by `{place.found}`", Label(span_of(place.source, place.found)),
        (Label(span_of(place.source, brackets[-1]), "opened here"),), helps=(f"close it with `{close}`",),
    )


def _first_word(place: Place) -> Diagnostic:
    """A line that cannot begin as it does."""
    first, source, mark = place.found, place.source, Label(span_of(place.source, place.found))
    inside = "LET" in place.accepts
    if first.type == "NAME":
        return _named_line(place)
    if first.type == "STRING":
        return Diagnostic(
            "misplaced-text", "text in quotes stands only on lines of its own below a header", mark, helps=("write `# ...` for a remark",),
        )
    if first.type not in STARTERS:
        return Diagnostic("unknown-statement", f"a statement does not begin with `{first}`", mark)
    if first.type == "SEQC":
        return Diagnostic("misplaced-version", "the edition stands on the first line and nowhere else", mark)
    closes = first in DEFINITIONS or first.type in ("PROJECT", "END")
    if inside and closes and "$END" not in place.accepts and place.previous is not None:
        return empty_body(source, place.previous)
    if first.type == "PROJECT":
        return Diagnostic(
            "misplaced-statement", "a `project` section belongs to a layer, once and at its end", mark,
            helps=("put all its equations in one section",),
        )
    if not inside:
        return Diagnostic(
            "misplaced-statement", f"`{first}` stands outside a definition", mark,
            helps=(A_LAYER, "end a header without `=` where statements follow"),
        )
    return Diagnostic(
        "misplaced-statement", f"`{first}` does not stand in a `project` section", mark,
        notes=("a `project` section holds `param`, `let` and equations; the steps stand above it",),
    )


def _named_line(place: Place) -> Diagnostic:
    """A line that begins with a name where only statements are."""
    first, tokens = place.found, place.line.tokens
    equation = tokens[1].type in ("EQUAL", "COMMA", "LSQB") and any(token.type == "EQUAL" for token in place.line.outer())
    if not equation and (error := _mistyped_statement(place.source, first)):
        return error
    if equation and "LET" in place.accepts:
        return Diagnostic(
            "missing-keyword", f"no word says what this line does with `{first}`", Label(span_of(place.source, first)),
            notes=("only a `project` section has equations without a word before them",),
            helps=(f"write `update {first} = ...` for a state", f"write `let {first} = ...` for a new name"),
        )
    return _unknown_statement(place.source, first)


def _unknown_statement(source: Source, word: Token, *helps: str) -> Diagnostic:
    return Diagnostic("unknown-statement", f"`{word}` does not begin a statement", Label(span_of(source, word)), helps=helps)


def missing_version(source: Source, line: Line) -> Diagnostic:
    mark = Label(span_of(source, line.first))
    return Diagnostic("missing-version", "the file does not begin with its edition", mark, helps=(FIRST_LINE,))


def unknown_edition(source: Source, line: Line) -> Diagnostic | None:
    """A version line that is well formed and names another edition."""
    if [token.type for token in line.tokens] != ["SEQC", "NUMBER", "_NL"] or line.tokens[1] == EDITION:
        return None
    return Diagnostic(
        "unknown-edition", f"there is no edition `{line.tokens[1]}`", Label(span_of(source, line.tokens[1])),
        notes=(f"this compiler reads edition {EDITION}",), helps=(f"write `seqc {EDITION}`",),
    )


def second_layer(source: Source, first: Line, second: Line) -> Diagnostic:
    return Diagnostic(
        "second-layer", "a file has one layer", Label(span_of(source, second.first), "the second"),
        (Label(span_of(source, first.first), "the first"),), helps=("put it in a file of its own",),
    )


def missing_end(source: Source, loop: Line) -> Diagnostic:
    mark = Label(span_of(source, loop.first))
    return Diagnostic("missing-end", "nothing ends this `for`", mark, helps=("write `end` on a line below its last statement",))


def too_many_loops(source: Source, line: Line, limit: int) -> Diagnostic:
    return Diagnostic("nested-too-deep", f"more than {limit} loops are open here", Label(span_of(source, line.first)))


def end_without_for(source: Source, line: Line) -> Diagnostic:
    return Diagnostic(
        "end-without-for", "this `end` ends nothing", Label(span_of(source, line.first)),
        notes=("only `for` has an `end`; a definition ends where the next one begins",), helps=("leave the line out",),
    )


def empty(source: Source) -> Diagnostic:
    return Diagnostic("empty-file", f"`{source.name}` holds no statement", None, helps=(FIRST_LINE, A_LAYER))


def empty_body(source: Source, header: Line) -> Diagnostic:
    """A header, of whatever kind, that no statement follows."""
    what = {"FOR": "this `for`", "PROJECT": "this `project` section"}.get(header.first.type, "this definition")
    return Diagnostic("empty-body", f"{what} has no statements", Label(span_of(source, header.first)))


def unfinished(source: Source, last: Line) -> Diagnostic:
    """A text that ends too early."""
    if last.first.type == "SEQC":
        return Diagnostic("no-definition", "the file defines nothing", Label(span_of(source, last.first)), helps=(A_LAYER,))
    return empty_body(source, last)
