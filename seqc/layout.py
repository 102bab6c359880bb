"""`seqc fmt`: files -> the same files in the canonical layout."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from pathlib import Path

from seqc.diagnostics import SpecError
from seqc.frontend.format import format_file
from seqc.frontend.text import read_source
from seqc.source import Source
from seqc.terminal import BadUsage, CheckFailed, Terminal

STDIN = "-"


def formatted_files(t: Terminal, specs: list[str], *, write: bool, diff: bool) -> None:
    """Formats each file; what is wrong with one does not keep the others from it."""
    t.document["files"] = []
    changed = wrong = False
    for spec in specs:
        try:
            changed |= _one(t, spec, write, diff)
        except SpecError as error:
            t.diagnose(error.diagnostics)
            t.document["files"].append({"spec": spec, "changed": None})
            wrong = True
    if wrong:
        raise SpecError(())
    if changed and not write:
        raise CheckFailed


def _one(t: Terminal, spec: str, write: bool, diff: bool) -> bool:
    """Whether the text was not in its layout."""
    source = _stdin() if spec == STDIN else read_source(Path(spec))
    before = source.text if spec == STDIN else _bytes(spec)
    after = format_file(source)
    changed = before != after
    entry: dict[str, object] = {"spec": spec, "changed": changed}
    if diff and changed:
        entry["diff"] = _diff(source.text, after, spec)
        t.result(str(entry["diff"]).rstrip("\n"))
    elif spec == STDIN and write:
        entry["text"] = after
        t.result(after.removesuffix("\n"))
    elif changed and write:
        _write(Path(spec), after)
        t.result(f"{spec}: formatted")
    elif changed:
        t.result(f"{spec}: would be formatted")
    t.document["files"].append(entry)
    return changed


def _stdin() -> Source:
    try:
        return Source("<stdin>", sys.stdin.buffer.read().decode("utf-8"))
    except UnicodeDecodeError:
        raise BadUsage("stdin is not UTF-8 text") from None


def _bytes(spec: str) -> str:
    """The file's text with its own line ends and mark, which the layout has too."""
    return Path(spec).read_bytes().decode("utf-8", "replace")


def _diff(before: str, after: str, name: str) -> str:
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, f"{name} (formatted)"))


def _write(path: Path, text: str) -> None:
    """Replaces a file's text at once, and keeps its mode."""
    target = path.resolve()
    aside = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}-", delete=False) as file:
            aside = Path(file.name)
            file.write(text.encode())
        aside.chmod(target.stat().st_mode & 0o7777)
        os.replace(aside, target)
    except OSError as error:
        if aside is not None:
            aside.unlink(missing_ok=True)
        raise BadUsage(f"cannot write `{path}`: {(error.strerror or str(error)).lower()}") from None
