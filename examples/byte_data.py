"""The text of the byte-level examples: bytes to learn and held-out bytes, the same on every run.

By default the .py files of the Python that runs it, one after another; test folders and installed packages stay out.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Split:
    """Bytes to learn from and bytes to be judged by, and where they come from."""

    train: np.ndarray
    heldout: np.ndarray
    origin: str


def is_held_out(name: str) -> bool:
    """Whether a file is held out: decided by a hash of its name, so it does not depend on the other files."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def standard_library() -> Split:
    """The standard library's own sources; one file in twenty is held out whole."""
    root = Path(sysconfig.get_path("stdlib"))
    texts: dict[bool, list[bytes]] = {False: [], True: []}
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if not LEFT_OUT & set(name.parts):
            texts[is_held_out(name.as_posix())].append(path.read_bytes())
    return Split(joined(texts[False]), joined(texts[True]), "the standard library's sources")


def joined(texts: list[bytes]) -> np.ndarray:
    """The texts one after another, each ended by a zero byte."""
    return np.frombuffer(b"".join(text + b"\0" for text in texts), np.uint8)


def load_split(data: Path | None) -> Split:
    """The standard library, or a file whose last tenth is held out."""
    if data is None:
        return standard_library()
    text = np.frombuffer(data.read_bytes(), np.uint8)
    cut = len(text) * 9 // 10
    return Split(text[:cut], text[cut:], data.name)
