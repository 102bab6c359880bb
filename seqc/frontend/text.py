"""Path -> Source: what a text must be before it is read as a spec."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

from seqc.diagnostics import Diagnostic, Label, SpecError
from seqc.source import Source, Span

MAX_BYTES = 64 * 1024
ALLOWED_CONTROLS = frozenset("\t\r\n")
MARK = "\ufeff"


def read_source(path: Path) -> Source:
    """The text of a file (a byte order mark is dropped); raises SpecError where there is none to read."""
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise _refused("unreadable-file", f"cannot read `{name}`: {reason}") from None
    except ValueError:
        raise _refused("unreadable-file", "cannot read a file of this name") from None
    if len(data) > MAX_BYTES:
        raise _refused("file-too-large", f"`{name}` is larger than {MAX_BYTES // 1024} KiB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refused("not-utf8", f"`{name}` is not UTF-8 text: line {line} has the byte 0x{data[error.start]:02x}") from None
    return Source(name, text.removeprefix(MARK))


def check_text(source: Source) -> None:
    """Raises SpecError for a text that is too large, or holds characters that a reader cannot see."""
    if len(source.text) > MAX_BYTES or len(source.text.encode("utf-8", "replace")) > MAX_BYTES:
        raise _refused("file-too-large", f"`{source.name}` is larger than {MAX_BYTES // 1024} KiB")
    hidden = tuple(_hidden(source))
    if hidden:
        raise SpecError(hidden[:1])


def _hidden(source: Source) -> Iterator[Diagnostic]:
    """Control, direction and unpaired characters: they would also reach the generated code through a document line."""
    if source.text.isascii() and source.text.isprintable():
        return
    for at, char in enumerate(source.text):
        alone = char == "\r" and source.text[at + 1 : at + 2] != "\n"
        if alone or (char not in ALLOWED_CONTROLS and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")):
            yield Diagnostic("bad-character", f"the text holds the invisible character {describe(char)}", Label(Span(source, at, at + 1)))


def describe(char: str) -> str:
    """A character as it is shown in a message: `%`, or `U+00A0` with its name."""
    if char.isascii() and char.isprintable() and char != "`":
        return f"`{char}`"
    name = unicodedata.name(char, "").lower()
    return f"`U+{ord(char):04X}`" + (f" ({name})" if name else "")


def _refused(code: str, message: str) -> SpecError:
    return SpecError((Diagnostic(code, message, None),))
