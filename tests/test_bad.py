"""Every message as a user reads it: one transcript of all texts in tests/bad, in the order of their names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from seqc.compiler import check_source, compile_checked
from seqc.console import render
from seqc.diagnostics import SpecError
from seqc.frontend.parser import read_source
from seqc.options import Options
from seqc.source import Source

ROOT = Path(__file__).parents[1]
BAD = ROOT / "tests" / "bad"

# Messages that no text in tests/bad can cause; they are rendered from here into the same transcript.
UNREADABLE = ("no_such_file.seq", "a_folder.seq", "too_large.seq")


def said(path: Path) -> str:
    """What is said about one text.

    `beside_` texts have the library of tests/bad/beside, `sizes_` texts get a size `M`, `form_` texts are compiled.
    """
    options = Options(sizes=(("M", 3),)) if path.name.startswith("sizes_") else Options()
    try:
        source = Source(path.name, read_source(path).text)
        checked = check_source(source, options, BAD / "beside" if path.name.startswith("beside_") else None)
        if path.name.startswith("form_"):
            compile_checked(checked)
    except SpecError as error:
        return render(error.diagnostics, color=False, width=140).replace(f"{path.parent}/", "")
    return render(checked.warnings, color=False, width=140)


def test_transcript(golden: Callable[[Path, str], None], tmp_path: Path) -> None:
    (tmp_path / "a_folder.seq").mkdir()
    (tmp_path / "too_large.seq").write_bytes(b"#" * (1 << 17))
    paths = [*sorted(BAD.glob("*.seq")), *(tmp_path / name for name in UNREADABLE)]
    golden(BAD / "expected.txt", "\n".join(f"=== {path.name}\n{said(path).rstrip()}\n" for path in paths))


def test_every_code_is_in_the_transcript() -> None:
    """Codes are found where they are raised: hyphenated words in the front end's sources and the table of syntax errors."""
    sources = [*(ROOT / "seqc" / "frontend").glob("*.py"), ROOT / "seqc" / "compiler.py"]
    words = {w for p in sources for w in re.findall(r'"([a-z]+(?:-[a-z0-9]+)+)"', p.read_text("utf-8"))} - {"utf-8"}
    words |= set(re.findall(r'code = "([a-z-]+)"', (ROOT / "grammar" / "syntax_errors.toml").read_text("utf-8")))
    shown = set(re.findall(r"^(?:error|warning|note)\[([a-z0-9-]+)\]", (BAD / "expected.txt").read_text("utf-8"), re.MULTILINE))
    assert words - shown == set()
    assert len(list(BAD.glob("*.seq"))) >= 60


@pytest.mark.parametrize("path", sorted(BAD.glob("*.seq")), ids=lambda p: p.stem)
def test_one_cause_gives_one_code(path: Path) -> None:
    assert len(set(re.findall(r"^(?:error|warning|note)\[([a-z0-9-]+)\]", said(path), re.MULTILINE))) == 1
