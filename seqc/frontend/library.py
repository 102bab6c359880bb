"""A kind and a name -> the text that defines it: beside the spec, else in the shipped library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from seqc.frontend.text import read_source
from seqc.source import Source

FOLDERS = {"objective": "objectives", "retention": "retentions", "algorithm": "algorithms", "function": "functions"}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z", re.ASCII)
SUFFIX = ".seq"
SHIPPED = "seqc:"


@dataclass(frozen=True)
class Found:
    """A library text. `hides` is the name of the shipped text that the user's own takes the place of."""

    source: Source
    shipped: bool
    hides: str | None = None


def find(kind: str, name: str, beside: Path | None) -> Found | None:
    """The text that a name of a kind stands for, or None.

    `beside` is the folder of the spec, or None for a text without one. Raises SpecError for a file that cannot be read.
    """
    if kind not in FOLDERS or not NAME.match(name):
        return None
    shipped = _shipped(f"{FOLDERS[kind]}/{name}{SUFFIX}")
    if beside is not None:
        # Listed rather than opened: the case of a name counts even where the file system overlooks it.
        path = beside / FOLDERS[kind] / f"{name}{SUFFIX}"
        if name in _stems(beside / FOLDERS[kind]):
            return Found(read_source(path), False, shipped.name if shipped is not None else None)
    return Found(shipped, True) if shipped is not None else None


def names(kind: str, beside: Path | None) -> tuple[str, ...]:
    """All names that `find` knows of a kind, sorted: what a misspelt one is compared with."""
    folder = FOLDERS[kind]
    own = _stems(beside / folder) if beside is not None else frozenset()
    return tuple(sorted({*own, *_shipped_stems(folder)}))


def shipped_layers() -> tuple[str, ...]:
    """The names of the layers in the shipped library, sorted."""
    return tuple(sorted(_shipped_stems("")))


def shipped_layer(name: str) -> Source | None:
    """The text of a shipped layer, or None."""
    return _shipped(f"{name}{SUFFIX}") if NAME.match(name) else None


def _stems(folder: Path) -> frozenset[str]:
    try:
        return frozenset(path.stem for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file())
    except OSError:
        return frozenset()


@cache
def _shipped_stems(folder: str) -> frozenset[str]:
    return frozenset(entry.name.removesuffix(SUFFIX) for entry in _entries(folder) if entry.name.endswith(SUFFIX))


def _entries(folder: str) -> Iterator[Traversable]:
    root = files("seqc.specs")
    place = root.joinpath(folder) if folder else root
    yield from (entry for entry in place.iterdir() if entry.is_file()) if place.is_dir() else ()


@cache
def _shipped(path: str) -> Source | None:
    """A text of the shipped library by its place in it; shown as `seqc:objectives/l2.seq`."""
    folder, _, name = path.rpartition("/")
    if name.removesuffix(SUFFIX) not in _shipped_stems(folder):
        return None
    return Source(f"{SHIPPED}{path}", files("seqc.specs").joinpath(path).read_text("utf-8"))
