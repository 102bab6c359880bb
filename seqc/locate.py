"""A path or a shipped layer's name -> a checked spec."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from seqc.diagnostics import Diagnostic, SpecError
from seqc.frontend import library
from seqc.frontend.check import check
from seqc.frontend.derive import derive
from seqc.frontend.parser import parse
from seqc.frontend.text import read_source
from seqc.ir.model import Model
from seqc.source import Source

if TYPE_CHECKING:
    from seqc.compiler import Checked
    from seqc.options import Backend, Options


def find(spec: str | PathLike[str]) -> tuple[Source, Path | None]:
    """The text, and the folder whose library comes before the shipped one. Raises SpecError where there is no text.

    A file comes before a shipped layer of the same name; a name with a folder or a suffix is always a file's.
    """
    path = Path(fspath(spec))
    if not _is_file(path) and (shipped := library.shipped_layer(fspath(spec))) is not None:
        # Named as its file is, so that a copy of the text is the same layer in every way.
        return Source(f"{fspath(spec)}{library.SUFFIX}", shipped.text), None
    try:
        return read_source(path), path.resolve().parent
    except SpecError as error:
        raise SpecError(tuple(_with_names(d, path) for d in error.diagnostics)) from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _with_names(diagnostic: Diagnostic, path: Path) -> Diagnostic:
    """Says which names are known where a bare name stands for nothing."""
    if diagnostic.code != "unreadable-file" or path.suffix or path.name != str(path):
        return diagnostic
    known = ", ".join(library.shipped_layers())
    return Diagnostic(diagnostic.code, diagnostic.message, None, notes=(f"the layers that come with seqc are {known}",))


def options(sizes: Mapping[str, int], chunk_size: int = 32, backend: Backend = "torch") -> Options:
    """The options of a compilation; raises ValueError for values that none may have."""
    from seqc.options import Options

    return Options(sizes=tuple(sorted(sizes.items())), chunk_size=chunk_size, backend=backend)


def checked(spec: str | PathLike[str], chosen: Options) -> Checked:
    """The spec, checked. Raises SpecError."""
    from seqc.compiler import check_source

    source, beside = find(spec)
    return check_source(source, chosen, beside)


def meaning(spec: str | PathLike[str], sizes: Mapping[str, int]) -> tuple[Model, tuple[Diagnostic, ...]]:
    """The model of a spec that has a meaning, and warnings. Raises SpecError. What `checked` does without importing forms and proof."""
    source, beside = find(spec)
    layer, warnings = check(parse(source), sizes=sizes, beside=beside)
    tested(layer)
    return layer, warnings


def tested(layer: Model) -> None:
    """Raises SpecError if the layer has no meaning, or an operator is not what a `fold` claims."""
    if any(f.order == "claimed" for f in derive(layer).folds):
        from seqc.compiler import certified

        certified(layer)
