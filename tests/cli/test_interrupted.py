"""A compile that runs out of room, or is killed, leaves the folder as it was, or whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

SPEC = ROOT / "specs/gla.seq"
COMPILE = [sys.executable, "-m", "seqc", "compile", str(SPEC)]


def whole(folder: Path) -> bool:
    """Every file that the manifest names is there, and nothing else."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return set(manifest["files"]) | {"manifest.json"} == {p.name for p in folder.iterdir() if p.name != "__pycache__"}


def compiled(tmp_path: Path, **more: object) -> subprocess.CompletedProcess[str]:
    command = [*COMPILE, "-o", str(tmp_path / "out")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("room", [2_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 20_000))])
def test_no_room(tmp_path: Path, room: int) -> None:
    """No file may grow beyond `room` bytes, which ends a write as a full disk does: with an error in its middle."""
    found = compiled(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
    assert found.returncode == 2 and "Traceback" not in found.stderr, found.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    done = compiled(tmp_path)
    assert done.returncode == 0 and whole(tmp_path / "out" / "gla")


LOAD = """
import resource, sys
import torch
room = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
import seqc
try:
    print(seqc.load("gla").FORMS)
except OSError as error:
    print("no room", error)
"""


@pytest.mark.slow
def test_no_room_in_the_cache(tmp_path: Path) -> None:
    """A package that did not fit is not there, in whole or in part; the next call makes it."""

    def loaded(room: int) -> str:
        env = {**os.environ, "SEQC_CACHE_DIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, "-c", LOAD, str(room)], capture_output=True, text=True, timeout=120, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for room in (0, 2_000, 20_000):
        assert loaded(room).startswith("no room")
        assert not [p for p in (tmp_path / "packages").rglob("*") if p.is_file()]
    assert "chunkwise" in loaded(10**9)
    (folder,) = (tmp_path / "packages").iterdir()
    assert whole(folder)


@pytest.mark.slow
def test_killed_at_any_time(tmp_path: Path) -> None:
    """SIGKILL while files are written and renamed: an old package stays whole, or a new one is."""
    assert compiled(tmp_path).returncode == 0
    folder = tmp_path / "out" / "gla"
    before, caught = (folder / "manifest.json").read_bytes(), 0
    for n in range(12):
        command = [*COMPILE, "-o", str(tmp_path / "out"), "--chunk-size", str(16 + n % 2)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(folder.parent.glob(".gla-*")):
            time.sleep(0.0005)
        time.sleep(0.0003 * n)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            caught += 1
        process.wait()
        if folder.exists():
            assert whole(folder)
        else:  # between two renames: the old package is beside, whole
            aside = [p for p in folder.parent.glob(".gla-*/package") if p.is_dir()]
            assert aside and whole(aside[0])
    assert caught > 3 and before
    assert compiled(tmp_path).returncode == 0 and whole(folder)
