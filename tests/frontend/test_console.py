"""What a user reads."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqc.console import render, use_color
from seqc.diagnostics import Diagnostic, Label
from seqc.source import Source, Span

TEXT = """seqc 1

layer deltaproduct(n = 2)
  "A text."

  input   q[K], k[n, K] in unit, v[n, V], beta in (0, 2)
  memory  S[K, V] = 0

  learn   S by descent(rate = beta) on l2(S(k), v)
  output  o[V] = S(q)
"""
SOURCE = Source("deltaproduct.seq", TEXT)


def at(text: str, source: Source = SOURCE) -> Span:
    start = source.text.index(text)
    return Span(source, start, start + len(text))


def test_one_excerpt_for_both_labels() -> None:
    error = Diagnostic(
        "objective-not-scalar", "the objective keeps the axis `n`", Label(at("l2(S(k), v)"), "one value for each of the `n` pairs"),
        (Label(at("k[n, K]"), "`n` comes from here"),), ("all pairs in one step and one pair after the other are different models",),
        ("write `sum[n](l2(S(k), v))` for one step on all pairs",),
    )
    assert render([error], color=False, width=None) == """\
error[objective-not-scalar]: the objective keeps the axis `n`
 --> deltaproduct.seq:9:40
6 |   input   q[K], k[n, K] in unit, v[n, V], beta in (0, 2)
  |                 ------- `n` comes from here
9 |   learn   S by descent(rate = beta) on l2(S(k), v)
  |                                        ^^^^^^^^^^^ one value for each of the `n` pairs
  = note: all pairs in one step and one pair after the other are different models
  = help: write `sum[n](l2(S(k), v))` for one step on all pairs"""


def test_line_numbers_share_a_column() -> None:
    error = Diagnostic("axis-mismatch", "x", Label(at("S(q)"), "here"), (Label(at("S[K, V]")),), helps=("h",), level="warning")
    assert render([error], color=False, width=None) == """\
warning[axis-mismatch]: x
 --> deltaproduct.seq:10:18
7  |   memory  S[K, V] = 0
   |           -------
10 |   output  o[V] = S(q)
   |                  ^^^^ here
   = help: h"""


def test_labels_on_one_line() -> None:
    others = (Label(at("q[K]"), "left"), Label(at("k[n, K] in unit, v"), "over"))
    error = Diagnostic("a-code", "x", Label(at("v[n, V]"), "right"), others)
    assert render([error], color=False, width=None).splitlines()[3:] == [
        "  |           ----  ------------------ over",
        "  |           left",
        "  |                                  ^^^^^^^ right",
    ]


def test_tabs_wide_characters_and_the_end() -> None:
    source = Source("a.seq", "\tx = \u5909\u6570 + y\n\n  z")
    mark = Diagnostic("a-code", "x", Label(at("y", source)), (Label(at("\u5909\u6570", source), "wide"),))
    shown = render([mark], color=False, width=None).splitlines()
    assert shown[2:] == ["1 |     x = \u5909\u6570 + y", "  |         ----   ^", "  |         wide"]
    end = Diagnostic("a-code", "x", Label(Span(source, len(source.text), len(source.text)), "more"))
    assert render([end], color=False, width=None).splitlines()[1:] == [" --> a.seq:3:4", "3 |   z", "  |    ^ more"]
    empty = Source("e.seq", "")
    nothing = Diagnostic("a-code", "x", Label(Span(empty, 0, 0)))
    assert render([nothing], color=False, width=None).splitlines()[1:] == [" --> e.seq:1:1", "1 | ", "  | ^"]


def test_several_lines_and_files() -> None:
    span = Span(SOURCE, SOURCE.text.index("memory"), SOURCE.text.index("(rate"))
    other = Source("l2.seq", "objective l2(p, y) = p\n")
    error = Diagnostic("a-code", "x", Label(span, "both"), (Label(at("l2", other), "defined here"),))
    assert render([error, error], color=False, width=None).split("\n\n")[1].splitlines()[1:] == [
        " --> deltaproduct.seq:7:3", "7 |   memory  S[K, V] = 0", "  |   ^^^^^^^^^^^^^^^^^^^",
        "9 |   learn   S by descent(rate = beta) on l2(S(k), v)", "  |   ^^^^^^^^^^^^^^^^^^^^ both", " ::: l2.seq:1:11",
        "1 | objective l2(p, y) = p", "  |           -- defined here",
    ]  # fmt: skip


def test_no_place() -> None:
    assert render([Diagnostic("no-file", "x", None, helps=("h",))], color=False, width=None) == "error[no-file]: x\n  = help: h"


def test_long_lines_are_cut_around_the_mark() -> None:
    source = Source("a.seq", "a" * 3000 + "b" + "c" * 3000)
    lines = render([Diagnostic("a-code", "x", Label(at("b", source), "here"))], color=False, width=80).splitlines()
    assert len(lines[2]) <= 80
    assert lines[2][lines[3].index("^")] == "b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert use_color(Terminal()) and not use_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color(Terminal())
    error = Diagnostic("a-code", "[bold]x[/bold] :smile:", Label(at("S(q)"), "[red]"), helps=("http://x.y",))
    coloured = render([error], color=True, width=None)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render([error], color=False, width=None)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab \t\n\r\u5909\u0301\x00\u00e9(", max_size=60), st.data())
def test_any_span_is_shown(text: str, data: st.DataObject) -> None:
    source = Source("a.seq", text)
    begin = st.integers(0, len(text))
    labels = []
    for _ in range(3):
        start = data.draw(begin)
        labels.append(Label(Span(source, start, data.draw(st.integers(start, len(text)))), data.draw(st.sampled_from(("", "said")))))
    error = Diagnostic("a-code", "x", labels[0], tuple(labels[1:]))
    shown = render([error], color=False, width=data.draw(st.sampled_from((None, 1, 30, 80))))
    assert "^" in shown and "\t" not in shown
