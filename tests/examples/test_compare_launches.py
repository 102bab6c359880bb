"""The table of launches: a line for each side, numbers known from elsewhere, and a clear word where the peer is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # not part of `make check`
pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SMALL = ("--tokens", "128", "--size", "32", "--configurations", "1")
ABSENT = "import importlib.metadata as m, runpy, sys; m.version = lambda name: (_ for _ in ()).throw(m.PackageNotFoundError(name));"


def lines(tmp_path: Path, *command: str) -> tuple[list[str], str]:
    """In a process of its own: the peer looks at the GPU once, when it is imported."""
    environment = {**os.environ, "SEQC_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines(), done.stderr


@pytest.mark.skipif(find_spec("fla") is None, reason="needs flash-linear-attention")
def test_both_sides(tmp_path: Path) -> None:
    found, _ = lines(tmp_path, str(ROOT / "examples/compare_launches.py"), "scalar_decay", *SMALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[2:]]
    assert [row[:2] for row in rows] == [["scalar_decay", "seqc"], ["", "`chunk_simple_gla`"]] and all(len(row) == 11 for row in rows)
    # Its kernels: sums of the decays, states, outputs; then states, their adjoints, those of q, k and the decays, of v, and sums again.
    assert rows[1][2] == "3 + 0" and rows[1][6].startswith("5 + ")
    # Forward: decays in, sums out; k, v and sums in, a state per 64 tokens out; q, k, v, sums and states in, the result out.
    D, state = 32 * 2, 32 * 32 * 2 // 64
    assert int(rows[1][3]) == (2 + 4) + (2 * D + 4 + state) + (3 * D + 4 + state + D)
    assert all(float(row[4]) > 1 and float(row[8]) > 1 and int(row[10]) > 0 for row in rows)


def test_without_the_peer(tmp_path: Path) -> None:
    script = str(ROOT / "examples/compare_launches.py")
    code = f"{ABSENT} sys.argv = ['', 'scalar_decay', *{SMALL}]; sys.path.insert(0, '')\n"
    code += f"try: runpy.run_path({script!r}, run_name='__main__')\nexcept SystemExit as end: assert not end.code\n"
    code += "assert 'fla' not in sys.modules"
    found, said = lines(tmp_path, "-c", code)
    assert len(found) == 3 and re.match(r"\| scalar_decay \| seqc \| \d+ \+ \d+ \|", found[2])
    assert "flash-linear-attention is not installed" in said and "pip install flash-linear-attention==0.6.0" in said


def test_an_unknown_layer(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "examples/compare_launches.py"), "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "no such layer: nothing" in done.stderr
