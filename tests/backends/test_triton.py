"""Triton kernels: run by Triton's interpreter against float64, and compiled for a GPU that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SHIPPED

pytest.importorskip("triton")

FIRST = ("deltanet", "gated_deltanet", "gla", "linear_attention", "mamba2", "retnet")
TOLERANCE = 2e-5
AMPLIFIED = 4  # where float32 itself is further off in PyTorch, so much further may other orders of summation be
REFUSED: dict[str, tuple[str, ...]] = {}  # forms without kernels
every = pytest.mark.parametrize("name", (*FIRST, *(pytest.param(n, marks=pytest.mark.slow) for n in SHIPPED if n not in FIRST)))


def worker(name: str, folder: Path, lengths: str, rows: str = "") -> list[dict[str, object]]:
    command = [sys.executable, str(ROOT / "tests/backends/triton_worker.py"), name, str(folder), lengths, rows]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def near(line: dict[str, object]) -> bool:
    result, gradient, plain_result, plain_gradient = line["distances"]  # type: ignore[misc]
    return result < max(TOLERANCE, AMPLIFIED * plain_result) and gradient < max(TOLERANCE, AMPLIFIED * plain_gradient)


@every
def test_kernels_are_the_recurrence(name: str, tmp_path: Path) -> None:
    """Results and all gradients, at lengths around a chunk; packed rows with empty ones for the first layers."""
    lines = worker(name, tmp_path, "1,7,8,9,19" if name in FIRST else "1,9,19", "0,0,1,12,13,13" if name in FIRST else "")
    refused = {line["form"] for line in lines if "refused" in line}
    assert refused == set(REFUSED.get(name, ())), [line for line in lines if "refused" in line]
    found = [line for line in lines if "distances" in line]
    assert found or refused
    assert not [line for line in found if not near(line)]
