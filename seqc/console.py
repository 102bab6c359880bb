"""Diagnostics -> the text that a user reads."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import TextIO

from rich.console import Console
from rich.text import Text

from seqc.diagnostics import Diagnostic, Label
from seqc.source import Source

TAB = 4
MIN_WIDTH = 20
MAX_WIDTH = 500
STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
SECONDARY = "bold blue"


@dataclass(frozen=True)
class _Mark:
    """A label's share of one line: columns from 0 as shown, and the text where it is the label's last line."""

    line: int
    begin: int
    end: int
    primary: bool
    text: str


def use_color(stream: TextIO) -> bool:
    """Whether a stream takes colour: a terminal that is not dumb, unless NO_COLOR is set."""
    if os.environ.get("NO_COLOR"):
        return False
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def render(diagnostics: Iterable[Diagnostic], *, color: bool = False, width: int | None = None) -> str:
    """One block for each diagnostic and an empty line between them; `width` cuts source lines, never what is said."""
    blocks = [Text("\n").join(_block(diagnostic, width)) for diagnostic in diagnostics]
    text = Text("\n\n").join(blocks)
    if not color:
        return text.plain
    out = StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=10_000, no_color=False, highlight=False, emoji=False)
    console.print(text, soft_wrap=True, end="")
    return out.getvalue()


def _block(diagnostic: Diagnostic, width: int | None) -> Iterator[Text]:
    style = STYLES[diagnostic.level]
    yield Text.assemble((f"{diagnostic.level}[{diagnostic.code}]", style), (f": {diagnostic.message}", "bold"))
    gutter = _gutter(diagnostic)
    if diagnostic.primary is not None:
        home = diagnostic.primary.span.source
        yield _arrow("-->", diagnostic.primary)
        labels = [(diagnostic.primary, True), *((label, False) for label in diagnostic.secondary if label.span.source == home)]
        yield from _excerpt(home, labels, gutter, style, width)
    home_name = diagnostic.primary.span.source if diagnostic.primary else None
    for label in diagnostic.secondary:
        if label.span.source != home_name:
            yield _arrow(":::", label)
            yield from _excerpt(label.span.source, [(label, False)], gutter, style, width)
    for name, texts in (("note", diagnostic.notes), ("help", diagnostic.helps)):
        for text in texts:
            yield _remark(name, text, gutter)


def _gutter(diagnostic: Diagnostic) -> int:
    """The width of the largest line number shown."""
    labels = ([diagnostic.primary] if diagnostic.primary else []) + list(diagnostic.secondary)
    return max((len(str(_last_line(label))) for label in labels), default=1)


def _last_line(label: Label) -> int:
    span = label.span
    return span.source.position(max(span.start, span.end - 1))[0]


def _arrow(sign: str, label: Label) -> Text:
    return Text.assemble((f" {sign} ", SECONDARY), str(label.span))


def _remark(name: str, text: str, gutter: int) -> Text:
    first, *rest = text.split("\n")
    indent = "\n" + " " * (gutter + 5 + len(name))
    return Text.assemble((" " * (gutter + 1) + "= ", SECONDARY), (f"{name}:", "bold"), " " + indent.join((first, *rest)))


def _excerpt(source: Source, labels: Sequence[tuple[Label, bool]], gutter: int, style: str, width: int | None) -> Iterator[Text]:
    """The lines that labels point at, each with its marks below it."""
    marks = [mark for label, primary in labels for mark in _marks(source, label, primary)]
    room = max(MIN_WIDTH, min(width or MAX_WIDTH, MAX_WIDTH) - gutter - 3)
    for number in sorted({mark.line for mark in marks}):
        row = sorted((mark for mark in marks if mark.line == number), key=lambda mark: (mark.begin, not mark.primary))
        shift, text = _cut(_shown(source.line(number)), row, room)
        yield Text.assemble((f"{number:<{gutter}} | ", SECONDARY), text)
        for line in _underlines(_moved(row, shift, room), style):
            yield Text.assemble((" " * gutter + " | ", SECONDARY), line)


def _marks(source: Source, label: Label, primary: bool) -> Iterator[_Mark]:
    """The lines of a span that are shown: its only one, or its first and last."""
    (first, column), last = source.position(label.span.start), _last_line(label)
    if first == last:
        line = source.line(first)
        begin = _columns(line[: column - 1])
        end = _columns(line[: column - 1 + label.span.end - label.span.start])
        yield _Mark(first, begin, max(end, begin + 1), primary, label.text)
        return
    line = source.line(first)
    yield _Mark(first, _columns(line[: column - 1]), max(_columns(line), _columns(line[: column - 1]) + 1), primary, "")
    line = source.line(last)
    end = source.position(label.span.end - 1)[1]
    begin = len(line) - len(line.lstrip())
    yield _Mark(last, _columns(line[:begin]), max(_columns(line[:end]), _columns(line[:begin]) + 1), primary, label.text)


def _moved(marks: Iterable[_Mark], shift: int, room: int) -> list[_Mark]:
    """The marks as a line that is cut shows them; those outside are left out."""
    seen = (mark for mark in marks if mark.end > shift and mark.begin <= shift + room)
    return [replace(mark, begin=max(0, mark.begin - shift), end=min(mark.end - shift, room + 1)) for mark in seen]


def _underlines(marks: Sequence[_Mark], style: str) -> Iterator[Text]:
    """One row with all marks that do not overlap and the text of the last; then a row for each other text, from the right."""
    row = [mark for i, mark in enumerate(marks) if all(mark.begin >= other.end for other in marks[:i])]
    line = Text()
    for mark in row:
        line.append(" " * (mark.begin - len(line)))
        line.append(("^" if mark.primary else "-") * (mark.end - mark.begin), style if mark.primary else SECONDARY)
    if row[-1].text:
        line.append(" " + row[-1].text, style if row[-1].primary else SECONDARY)
    yield line
    for mark in reversed(row[:-1]):
        if mark.text:
            yield Text.assemble(" " * mark.begin, (mark.text, style if mark.primary else SECONDARY))
    for mark in marks:
        if mark not in row:
            yield from _underlines([mark], style)


def _shown(text: str) -> str:
    """A line as it is printed: tabs as spaces, characters without a shape as `?`."""
    return "".join(" " * width if char == "\t" else char if char.isprintable() else "?" for char, width in _widths(text))


def _widths(text: str) -> Iterator[tuple[str, int]]:
    """Each character with the columns it takes: tabs go to the next stop, wide characters take two, marks on others none."""
    column = 0
    for char in text:
        if char == "\t":
            width = TAB - column % TAB
        else:
            width = 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        column += width
        yield char, width


def _columns(text: str) -> int:
    """How many columns a text takes."""
    return sum(width for _, width in _widths(text))


def _cut(text: str, marks: Sequence[_Mark], room: int) -> tuple[int, str]:
    """A line that is wider than `room` -> by how many columns it is moved left, and the part shown, which holds the primary mark."""
    if _columns(text) <= room:
        return 0, text
    wanted = [mark.begin for mark in marks if mark.primary] or [mark.begin for mark in marks]
    start = max(0, wanted[0] - room // 3)
    kept, column = "", 0
    for char, width in _widths(text):
        if start <= column and column + width <= start + room:
            # A wide character that begins left of the cut leaves a gap.
            kept += " " * (column - start if not kept else 0) + char
        column += width
    return start, ("..." + kept[3:]) if start else kept
