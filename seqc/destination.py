"""Where `seqc compile` writes, and what is said where that cannot be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from seqc.emit.layer import GeneratedFile
from seqc.emit.write import NotOurs, write_file, write_package
from seqc.terminal import BadUsage

FOLDER = Path("generated")


def destination(output: Path | None, name: str, single_file: bool) -> Path:
    """The folder of a package or its file. Raises BadUsage for what can be no such file."""
    if not single_file:
        return (output or FOLDER) / name
    path = output or FOLDER / f"{name}.py"
    if path.is_dir():
        raise BadUsage(f"`{path}` is a folder; with --single-file, -o names the file: -o {path / name}.py")
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise BadUsage(f"`{path}` is no name that Python can import; with --single-file, -o names a file such as {path.parent / name}.py")
    return path


def write(made: str | Iterable[GeneratedFile], place: Path) -> None:
    """Writes a file's text, or a package. Raises BadUsage where it must not or cannot stand there."""
    try:
        write_file(made, place) if isinstance(made, str) else write_package(made, place)
    except NotOurs as error:
        kept = f"`{place}` is not replaced, since " if str(error) != str(place) else ""
        raise BadUsage(f"{kept}seqc did not write `{error}`: move it away, or choose another place with -o") from None
    except OSError as error:
        raise BadUsage(f"cannot write `{place}`: {(error.strerror or str(error)).lower()}") from None
