"""Files -> a folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from seqc.emit.layer import GeneratedFile

MARK = "manifest.json"  # a folder that holds it was written by seqc and may be replaced


class NotOurs(Exception):
    """The folder exists and was not generated: it is not replaced."""


def write_package(files: Iterable[GeneratedFile], folder: Path) -> None:
    """Writes the files aside and puts them in place by renaming, so that no reader ever sees half a package.

    Raises NotOurs if the folder holds something else, OSError if it cannot be written; nothing is left behind then.
    """
    if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise NotOurs(str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for f in files:
            (aside / f.name).write_text(f.text, encoding="utf-8", newline="\n")
        aside.chmod(0o755)
        _put(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, folder: Path) -> None:
    """Renames the new folder into place; of two writers at once, one's whole package stays."""
    for _ in range(100):
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        try:
            if folder.exists():
                os.replace(folder, old / "package")
            os.rename(aside, folder)
            return
        except OSError:
            if not folder.exists() and not aside.exists():
                raise
            if not (folder.exists() or aside.exists()):
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    raise OSError(f"cannot replace {folder}")
