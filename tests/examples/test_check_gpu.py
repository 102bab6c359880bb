"""The check of Triton kernels: what it compares, what it says, and what it lets pass. There is no GPU; kernels run in the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import seqc

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "check_gpu.py"


@pytest.fixture
def check_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("SEQC_CACHE_DIR", os.environ.get("SEQC_TEST_CACHE", str(tmp_path)))
    import check_gpu

    yield check_gpu
    sys.modules.pop("check_gpu", None)


class Stand:
    """A package whose PyTorch kernels stand for those in Triton. wrong: a factor on what they give."""

    def __init__(self, name: str, wrong: float = 1.0):
        self.package, self.wrong = seqc.load(name, chunk_size=24), wrong
        self.MANIFEST = {**self.package.MANIFEST, "triton": {"forms": list(self.package.FORMS), "refused": {"newton": "no reason"}}}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.package, name)
        if name != self.package.MANIFEST["name"]:
            return found

        def function(*arguments: Any, backend: str, **options: Any) -> Any:
            assert backend == "triton" and arguments[0].dtype == torch.bfloat16
            out, *rest = found(*arguments, **options)
            return out * self.wrong, *rest

        return function


def on_the_cpu(check_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, stand: Stand) -> dict[str, Any]:
    """What the check finds, its device exchanged."""
    monkeypatch.setattr(check_gpu.seqc, "load", lambda *_, **__: stand)
    given = check_gpu.cases
    monkeypatch.setattr(check_gpu, "cases", lambda p, sizes, device, dtype: given(p, {**sizes, "K": 6, "V": 5}, "cpu", dtype))
    found: dict[str, Any] = check_gpu.check("retnet")["forms"]
    return found


def test_right_kernels_pass_and_wrong_ones_do_not(check_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to bfloat16 passes; results that are a hundredth too large do not, nor do their gradients."""
    right = on_the_cpu(check_gpu, monkeypatch, Stand("retnet"))
    assert set(right) == {"chunkwise", "recurrent", "newton"}
    for form in ("chunkwise", "recurrent"):
        said = right[form]
        assert 1e-4 < said["whole"] < said["ratio"] < check_gpu.MOST and said["ratio"] == max(said["outputs"], said["gradients"])
    monkeypatch.undo()
    wrong = on_the_cpu(check_gpu, monkeypatch, Stand("retnet", 1.01))
    for form in ("chunkwise", "recurrent"):
        assert all(wrong[form][kind] > 2 * right[form][kind] and wrong[form][kind] > check_gpu.MOST for kind in ("outputs", "gradients"))


def test_a_kernel_that_fails_is_named(check_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Stand):
        def __getattr__(self, name: str) -> Any:
            if name == "retnet":
                raise RuntimeError("an illegal memory access")
            return super().__getattr__(name)

    found = on_the_cpu(check_gpu, monkeypatch, Failing("retnet"))
    assert found["chunkwise"] == {"error": "rows: RuntimeError: an illegal memory access"}


def test_ratios_of_rows(check_gpu: ModuleType) -> None:
    """Of the row's own norm, or of a thousandth of the mean norm where a row has next to none."""
    wanted = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1000.0]]).double()  # mean norm 335
    for row, ratio in ((0, 1e-2 / 5), (1, 1e-2 / 0.335), (2, 1e-5)):
        found = wanted.clone()
        found[row, 0] += 1e-2
        assert check_gpu.ratio(found, wanted, 1) == pytest.approx(ratio)
    assert check_gpu.ratio(wanted, wanted, 1) == 0.0 and check_gpu.ratio(wanted[:0], wanted[:0], 1) == 0.0
    assert check_gpu.ratio(wanted * 0, wanted * 0, 1) == 0.0 and check_gpu.ratio(wanted + 1, wanted * 0, 1) == inf
    assert check_gpu.ratio(wanted * torch.nan, wanted, 1) == inf and check_gpu.ratio(wanted + 1, wanted, 0) < 1e-2


def test_the_exit_code_and_the_worst(check_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"outputs": 1e-3, "gradients": 2e-3, "whole": 5e-4, "worst": "d q, rows", "ratio": 2e-3}
    bad = {"chunkwise": good, "recurrent": {**good, "ratio": 6e-3}}
    answers = {"gla": {"forms": {"chunkwise": good}}, "kda": {"forms": bad}, "x": {"error": "gone"}}
    monkeypatch.setattr(check_gpu, "process", lambda what, spec: answers[spec])
    monkeypatch.setattr(check_gpu, "INTERPRET", True)
    for specs, code, said in (
        (["gla"], 0, "Above 0.005, or failed: none of 1 layers."),
        (["gla", "kda", "x"], 1, "Worst of each layer: x inf, kda 6.0e-03, gla 2.0e-03\nAbove 0.005, or failed: kda, x of 3 layers."),
    ):
        monkeypatch.setattr(sys, "argv", ["check_gpu.py", *specs, "--jobs", "2"])
        assert check_gpu.main() == code and said in (out := capsys.readouterr().out)
        assert "| gla | chunkwise | 1.0e-03 | 2.0e-03 | 5.0e-04 | d q, rows |" in out


def test_times_with_a_stand_in(check_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every shape forward and with the backward, eager and from a graph; what cannot be captured is a text, and the others are timed.

    Graphs and their capture are a GPU's, which is not here: only what surrounds them is tested.
    """

    def in_graph(step: Any) -> Any:
        if step() == "recurrent":
            raise RuntimeError("cannot be captured\nsince ...")
        return step

    stand = Stand("retnet")
    monkeypatch.setattr(check_gpu.seqc, "load", lambda *_, **__: stand)
    monkeypatch.setattr(check_gpu, "in_graph", in_graph)
    monkeypatch.setattr(check_gpu, "SHAPES", ((1, 1, 2), (2, 100, 3)))
    found = check_gpu.times("retnet", "cpu")
    kinds = [f"{what} {how}" for what in ("forward", "both") for how in ("eager", "graph")]
    assert [(row["shape"], row["form"]) for row in found["times"]] == [((1, 1, 2), "recurrent"), ((2, 100, 3), "chunkwise")]
    assert all(found["times"][1][kind] > 0 for kind in kinds) and found["times"][0]["both graph"] == "cannot be captured"
    check_gpu.print_times("specs/retnet.seq", json.loads(json.dumps(found)))
    check_gpu.print_times("gla", {"error": "gone"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| retnet | recurrent | 1 x 1 x 2 | ") and lines[0].endswith(" | cannot be captured |")
    assert [line.count("|") for line in lines] == [8, 8, 8] and lines[2] == "| gla | | gone | | | | |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(check_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "gla"])
    assert check_gpu.main() == 0
    out = capsys.readouterr().out
    assert out.startswith("No GPU: PyTorch") and "nothing was checked" in out and "kernels of 1 layers in bfloat16" in out


@pytest.mark.slow
def test_kernels_in_the_interpreter(tmp_path: Path) -> None:
    """One call of the script: the layer's kernels pass, a spec that is none fails by name."""
    pytest.importorskip("triton")
    (tmp_path / "wrong.seq").write_text("seqc 1\n", "utf-8")
    command = [sys.executable, str(SCRIPT), "retnet", "wrong.seq", "--interpret", "--jobs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SEQC_CACHE_DIR": os.environ.get("SEQC_TEST_CACHE", str(tmp_path))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in table[1:]] == [["retnet", "chunkwise"], ["retnet", "recurrent"], ["wrong", ""]], done
    assert all(1e-5 < float(x) < 5e-3 for row in table[1:-1] for x in row[2:5]) and "SpecError" in table[-1][5]
    assert done.returncode == 1 and "Above 0.005, or failed: wrong of 2 layers." in done.stdout
