"""Generated Triton kernels beside written ones: those of flash-linear-attention, in the same interpreter, on the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ALL, ROOT

MISSING = [library for library in ("triton", "fla") if find_spec(library) is None]  # importing them takes seconds
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")]

TOLERANCE = 2e-5  # of float64, row by row, for both
PEERS = ("gated_deltanet", "gla", "deltanet", "gated_deltaproduct", "kda", "rwkv7")
NAMES = PEERS if ALL else PEERS[:1]  # all of them take minutes: `make kernels`


@pytest.mark.parametrize("name", NAMES)
def test_both_compute_the_recurrence(name: str, tmp_path: Path) -> None:
    """Output, last state and all gradients of a ragged, an even and a packed call. Neither is further from float64 than rounding,
    and they are no further from each other than the library from float64."""
    command = [sys.executable, str(ROOT / "tests/backends/peer_worker.py"), name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(line["call"], line["form"]) for line in lines} >= {(call, "chunkwise") for call in ("ragged", "even", "packed")}
    assert not [line for line in lines if not line["ours"] <= TOLERANCE]
    assert not [line for line in lines if not line["theirs"] <= TOLERANCE]
    assert not [line for line in lines if not line["between"] <= line["theirs"] + TOLERANCE]
