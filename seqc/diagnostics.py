"""One value for everything that is said to a user about a spec; `render` is in seqc.cli's console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from seqc.source import Span


@dataclass(frozen=True)
class Label:
    """A place in the text and what is to be said about it (may be empty)."""

    span: Span
    text: str = ""


@dataclass(frozen=True)
class Diagnostic:
    """A fact about a spec. Code: stable words. Message: lowercase, names in backticks, no advice, no period.

    `primary` marks the smallest span that shows the problem, `secondary` the other half of the conflict,
    `notes` explain, `helps` give text to write.
    """

    code: str
    message: str
    primary: Label | None
    secondary: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()
    level: Literal["error", "warning", "note"] = "error"


class SpecError(Exception):
    """The spec is wrong: one or more diagnostics, all of one stage, in the order of the text."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...]):
        self.diagnostics = diagnostics
        super().__init__("; ".join(f"{d.code}: {d.message}" for d in diagnostics))


class InternalError(Exception):
    """A bug in seqc: a stage met what an earlier one should have refused."""


def as_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """The diagnostic as plain data: what `--json` prints and an editor reads."""

    def place(label: Label) -> dict[str, Any]:
        source = label.span.source
        (line, column), (end_line, end_column) = source.position(label.span.start), source.position(label.span.end)
        return {"file": source.name, "line": line, "column": column, "end_line": end_line, "end_column": end_column, "text": label.text}

    return {
        "level": diagnostic.level, "code": diagnostic.code, "message": diagnostic.message,
        "primary": place(diagnostic.primary) if diagnostic.primary else None,
        "secondary": [place(label) for label in diagnostic.secondary],
        "notes": list(diagnostic.notes), "helps": list(diagnostic.helps),
    }
