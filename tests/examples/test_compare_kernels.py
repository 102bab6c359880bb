"""Times on a GPU, without one: both sides of a row are the same layer, and the plan says what would run."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow  # not part of `make check`
pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import compare_kernels  # noqa: E402
import loops  # noqa: E402


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.parametrize("name", (*loops.CELLS, *loops.LOOPS))
def test_both_sides_are_one_layer(name: str) -> None:
    row = loops.sides(name, (2, 19, 3, 8), "cpu", torch.float64)
    assert tuple(row.peers) == loops.peers_of(name)
    for arguments in (row.arguments, row.few):
        found, wanted = (compare_kernels.values(call, arguments) for call in (row.peers[loops.peers_of(name)[0]], row.exact))
        assert all(x is not None and y is not None for x, y in zip(found, wanted, strict=True))
        assert compare_kernels.error(found, wanted) < 1e-12


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_side_without_a_gpu_says_what_failed_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "sides", partial(loops.sides, device="cpu", dtype=torch.float32))
    found = compare_kernels.one("gru", (2, 9, 2, 8), "gru")
    assert 0 < found.pop("error") < 1e-5
    assert {*found} == {f"{what} {how}" for what in ("forward", "both") for how in ("eager", "graph")}
    assert all(isinstance(x, str) for x in found.values())


def test_a_row_has_a_ratio_for_each_peer() -> None:
    times = {f"{what} {how}": 2.0 for what in ("forward", "both") for how in ("eager", "graph")}
    ratios: list[float] = []
    peers = {"torch.compile": {"failed": "?"}, "chunk_ttt_linear": dict.fromkeys(times, 3.0)}
    text = compare_kernels.line("ttt_linear", (1, 2, 3, 4), {"ours": {**times, "error": 1e-3}, **peers}, ratios)
    assert text == "| ttt_linear | 1 x 2 x 3 x 4 |" + 4 * " 2 | ?, 1.50 |" + "  | 1.0e-03, -, - |" and not ratios
    compare_kernels.line("gla", (1, 2, 3, 4), {"ours": {**times, "floor": 1.0}, "triton": {**times}, "chosen": {"both eager": 1.0}}, ratios)
    assert ratios == [0.5]


def test_the_plan() -> None:
    command = [sys.executable, str(ROOT / "examples/compare_kernels.py"), "gla", "lstm", "titans"]
    done = subprocess.run([*command, "--plan"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*["gla"] * 6, *["lstm"] * 6, *["titans"] * 2]
    if not torch.cuda.is_available():
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr == "No GPU: nothing was timed.\n"
