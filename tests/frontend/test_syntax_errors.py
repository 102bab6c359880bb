"""Every slip has a message of its own, in the words of the language."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seqc.diagnostics import Diagnostic, SpecError
from seqc.frontend import grammar, syntax
from seqc.frontend.lines import lex
from seqc.frontend.parser import parse, parse_text, read_source

ROOT = Path(__file__).parents[2]
BAD = sorted((ROOT / "tests/bad").glob("syntax_*.seq"))
SPECS = sorted([*ROOT.glob("specs/**/*.seq"), *ROOT.glob("tests/language/*.seq")])


def errors(path: Path) -> tuple[Diagnostic, ...]:
    with pytest.raises(SpecError) as caught:
        parse(read_source(path))
    return caught.value.diagnostics


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_spec_has_one_error(path: Path) -> None:
    code = path.stem.removeprefix("syntax_").split("__")[0].replace("_", "-")
    (error,) = errors(path)
    assert error.code == code
    house_style(error)


def house_style(error: Diagnostic) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", error.code)
    assert not error.message.endswith(".") and not error.message[0].isupper()
    for text in (error.message, *error.notes, *error.helps):
        for token in ("LPAR", "RSQB", "_NL", "NAME'", "COMPARE", "{", "Token", "illegal"):
            assert token not in text or f"`{token}" in text, text


def test_every_rule_is_a_known_token() -> None:
    names = {terminal.name for terminal in grammar.load().terminals} | {"$END"}
    for rule in syntax.rules():
        used = set(rule.may).union(*rule.tokens.values(), *(rule.accepts or ()))
        assert used <= names, rule
    assert set(syntax.messages()["forms"]) <= names


def slips() -> list[tuple[Path, str, int]]:
    """Each spec with one token left out, doubled or exchanged; every 7th, so that the test takes seconds."""
    found = []
    pool = ("(", "]", ",", "=", "2", "x", "in", "at", "to", "->", "==", "let", "%", "+")
    for path in SPECS:
        text = path.read_text("utf-8")
        tokens = [token for token in lex(text) if token.type not in ("_NL", "COMMENT")]
        for i, token in enumerate(tokens[2::7]):
            new = ("", str(token) + " " + str(token), pool[(i + len(text)) % len(pool)])[i % 3]
            found.append((path, text[: token.start_pos] + new + text[token.end_pos :], token.line or 0))
    return found


@pytest.mark.slow
def test_slips_are_reported_once_and_where_they_are() -> None:
    reported = here = once = 0
    for _, text, line in slips():
        try:
            parse_text(text)
        except SpecError as caught:
            reported += 1
            first = caught.diagnostics[0]
            here += first.primary is not None and first.primary.span.line == line
            once += len(caught.diagnostics) == 1
            for error in caught.diagnostics:
                house_style(error)
    assert reported > 1000
    assert here / reported > 0.99 and once / reported > 0.97


@pytest.mark.parametrize(
    ("line", "code", "help_"),
    [
        ("updte z = 1", "unknown-statement", "did you mean `update`?"),
        ("retian S by decay(1)", "unknown-statement", "did you mean `retain`?"),
        ("let a = x**2", "foreign-operator", "write `^` for a power"),
        ("update z == 1", "wrong-equals", "write `=`"),
        ("update z 1", "missing-equals", "write `update S = expr`"),
        ("let a = 2x", "missing-operator", "write `*` for a product"),
        ("for i in n:\n let a = 1\n end", "unexpected-colon", "leave the `:` out"),
        ("append k keys", "missing-clause", "write `append e to X, f to Y`"),
        ("z = 1", "missing-keyword", "write `update z = ...` for a state"),
        ("let a = f(x y)", "missing-comma", "write `,` between two arguments, `*` for a product"),
    ],
)
def test_slips(line: str, code: str, help_: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_text(f"seqc 1\nlayer toy(K = 2)\n  {line}\n  output  x\n")
    first = caught.value.diagnostics[0]
    assert (first.code, first.helps[0]) == (code, help_)


def test_opener_is_shown() -> None:
    (error,) = errors(ROOT / "tests/bad/syntax_bracket_mismatch.seq")
    assert error.secondary[0].span.text == "("
    (error,) = errors(ROOT / "tests/bad/syntax_unclosed_bracket.seq")
    assert error.primary is not None and error.primary.span.text == "("


def test_error_codes_are_documented() -> None:
    page = (ROOT / "grammar/README.md").read_text("utf-8")
    modules = ("lines", "parser", "sections", "syntax", "text", "tree")
    sources = "".join((ROOT / "seqc/frontend" / f"{name}.py").read_text("utf-8") for name in modules)
    codes = {*re.findall(r'\(\s*"([a-z0-9]+(?:-[a-z0-9]+)+)"', sources), *(rule.code for rule in syntax.rules())} - {"utf-8"}
    assert {code for code in codes if f"`{code}`" not in page} == set()
