"""Every message as a user reads it: one transcript of all texts in tests/bad, in the order of their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from seqc.console import render
from seqc.diagnostics import SpecError
from seqc.frontend.check import check
from seqc.frontend.parser import parse
from seqc.source import Source

BAD = Path(__file__).parent / "bad"


def said(path: Path) -> str:
    """What is said about one text."""
    source = Source(path.name, path.read_bytes().decode("utf-8", errors="surrogateescape"))
    try:
        _, notes = check(parse(source), sizes={}, beside=None)
    except SpecError as error:
        return render(error.diagnostics, color=False, width=140)
    return render(notes, color=False, width=140)


def test_transcript(golden: Callable[[Path, str], None]) -> None:
    blocks = [f"=== {path.name}\n{said(path).rstrip()}\n" for path in sorted(BAD.glob("*.seq"))]
    golden(BAD / "expected.txt", "\n".join(blocks))
