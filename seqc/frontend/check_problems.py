"""What a check found wrong: a collector of diagnostics, and the exception that ends one statement."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from seqc.diagnostics import Diagnostic, Label
from seqc.source import Span

STATEMENTS = 2048  # of a body after unrolling: the largest text is answered within two seconds


class Refused(Exception):
    """The statement at hand is wrong and has been reported, or it uses a name that was."""


@dataclass
class Problems:
    """The diagnostics of one check, and the names that a misspelt one was taken for."""

    found: list[Diagnostic] = field(default_factory=list)
    suggested: set[str] = field(default_factory=set)

    def report(
        self,
        code: str,
        message: str,
        span: Span | None,
        label: str = "",
        *,
        secondary: Iterable[tuple[Span | None, str]] = (),
        notes: Iterable[str] = (),
        helps: Iterable[str] = (),
        level: Literal["error", "warning", "note"] = "error",
    ) -> None:
        """Adds a diagnostic; the same fact at the same place is said once (a loop's body is read once per turn)."""
        others = tuple(Label(s, text) for s, text in secondary if s is not None)
        primary = Label(span, label) if span is not None else None
        new = Diagnostic(code, message, primary, others, tuple(notes), tuple(helps), level)
        if not any(d.code == code and d.primary and span and d.primary.span == span for d in self.found):
            self.found.append(new)

    def refuse(
        self,
        code: str,
        message: str,
        span: Span | None,
        label: str = "",
        *,
        secondary: Iterable[tuple[Span | None, str]] = (),
        notes: Iterable[str] = (),
        helps: Iterable[str] = (),
    ) -> Refused:
        """Adds an error and gives the exception to raise."""
        self.report(code, message, span, label, secondary=secondary, notes=notes, helps=helps)
        return Refused()

    @contextmanager
    def statement(self) -> Iterator[None]:
        """Ends the statement at its first error; the ones below are still read."""
        with suppress(Refused):
            yield

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self.found if d.level == "error")

    def misspelt(self, name: str, known: Mapping[str, Span | None]) -> tuple[tuple[tuple[Span | None, str], ...], tuple[str, ...]]:
        """The secondary label and the help for an unknown name, if a known one is like it."""
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        if not close:
            return (), ()
        self.suggested.add(close[0])
        span = known[close[0]]
        return ((span, "a similar name"),), (f"did you mean `{close[0]}`?",)


def listed(axes: Iterable[str]) -> str:
    """Axes as they are written: `[K, V]`."""
    return "[" + ", ".join(axes) + "]"
