"""`seqc doctor`: versions and folders, found without importing what they belong to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seqc import __version__
from seqc.frontend.grammar import cache_folder

TOOLS = ("lark", "numpy", "platformdirs", "pydantic", "rich", "typer")
RUNTIMES = ("torch", "triton")


def examined() -> dict[str, Any]:
    """What is installed, and what is kept where."""
    versions = {"seqc": __version__, "python": platform.python_version(), "platform": platform.platform()}
    versions |= {name: _installed(name) for name in (*TOOLS, *RUNTIMES)}
    return {"versions": versions, "caches": _caches()}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "installed, version unknown" if find_spec(name) is not None else "not installed"


def _caches() -> dict[str, str]:
    folder = cache_folder()
    packages = _entries(folder / "packages")
    total = sum(_size(p) for p in packages)
    return {
        "cache": str(folder), "writable": "yes" if _writable(folder) else "no", "packages": f"{len(packages)}, {total / 1024:.0f} KiB",
        "grammar tables": str(len(list(folder.glob("grammar-*.bin")))), "bug reports": str(len(_entries(folder / "reports"))),
    }  # fmt: skip


def _entries(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if not p.name.startswith(".")]
    except OSError:
        return []


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, can be written."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return os.access(there, os.W_OK)
