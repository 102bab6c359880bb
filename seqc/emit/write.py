"""Files -> a folder, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seqc.emit.layer import GeneratedFile

MARK = "manifest.json"  # a folder whose manifest names all of its files was written by seqc and may be replaced
UNWRITTEN = frozenset((MARK, "__pycache__", ".DS_Store"))
STALE = 3600.0  # seconds after which a folder that a killed compilation left aside is removed


class NotOurs(Exception):
    """The folder holds what seqc did not write: it is not replaced."""


def write_package(files: Iterable[GeneratedFile], folder: Path, *, replace: bool = False) -> None:
    """Writes the files aside and puts them in place by renaming, so that no reader ever sees half a package.

    replace: the folder is seqc's own, whatever it holds. Raises NotOurs if it holds something else, OSError if it cannot be
    written; what was there before is there again then.
    """
    with _alone(folder.parent):
        if not replace and (foreign := not_ours(folder)) is not None:
            raise NotOurs(foreign)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    aside = Path(tempfile.mkdtemp(prefix=_aside(folder), dir=folder.parent))
    try:
        for f in files:
            (aside / f.name).write_text(f.text, encoding="utf-8", newline="\n")
        aside.chmod(0o755)
        with _alone(folder.parent):
            _put(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """One writer at a time below a folder, where the system has advisory locks on folders; elsewhere renaming alone has to do."""
    try:
        import fcntl

        handle = os.open(parent, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def not_ours(folder: Path) -> str | None:
    """What in a folder seqc did not write, or None."""
    if not os.path.lexists(folder):
        return None
    if not folder.is_dir():
        return str(folder)
    foreign = _foreign(folder)
    return str(folder / foreign) if foreign is not None else None


def _foreign(folder: Path) -> str | None:
    """The first entry that the folder's manifest does not name."""
    try:
        found = sorted(os.listdir(folder))
    except FileNotFoundError:
        return None
    try:
        manifest = json.loads((folder / MARK).read_bytes())
        written = UNWRITTEN | set(manifest["files"]) if "digest" in manifest else frozenset[str]()
    except (OSError, ValueError, KeyError, TypeError):
        written = frozenset()
    return next((name for name in found if name not in written and os.path.lexists(folder / name)), None)


def _aside(folder: Path) -> str:
    return f".{folder.name}-"


def _sweep(folder: Path) -> None:
    """Removes what compilations that were killed left beside the folder."""
    for path in folder.parent.glob(f"{_aside(folder)}????????"):
        try:
            if time.time() - path.stat().st_mtime > STALE:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def _put(aside: Path, folder: Path) -> None:
    """Renames the new folder into place; of two writers at once, one's whole package stays."""
    for _ in range(100):
        old = Path(tempfile.mkdtemp(prefix=_aside(folder), dir=folder.parent))
        try:
            if _put_once(aside, folder, old / "package"):
                return
        finally:
            shutil.rmtree(old, ignore_errors=True)
    raise OSError(f"cannot replace {folder}")


def _put_once(aside: Path, folder: Path, old: Path) -> bool:
    """Whether it worked: another writer may put its own package there between the two renames."""
    with suppress(FileNotFoundError):
        os.rename(folder, old)
    try:
        os.rename(aside, folder)
    except OSError:
        if os.path.lexists(folder):
            return False
        if old.exists():
            os.rename(old, folder)
        raise
    return True
