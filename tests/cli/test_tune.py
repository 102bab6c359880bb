"""`seqc tune`: what is written, what a package does with it, which ways are not taken, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import pytest
import torch

pytest.importorskip("triton")

import seqc
from seqc.timing import Clock, Taken
from seqc.tuning import Way, differs, judged

run, document = partial(commands.run, "tune"), partial(commands.document, "tune")
LAYER = ("linear_attention", "--form", "chunkwise", "-s", "K=16", "-s", "V=16", "--chunk-size", "16", "-T", "64")
TUNED = "triton_launching.tuned.json"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.slow
def test_what_is_written_is_taken() -> None:
    sizes = {"K": 16, "V": 16}
    path = Path(seqc.load("linear_attention", sizes=sizes, chunk_size=16, backend="triton").__file__).with_name(TUNED)
    data = document(*LAYER, "--target", "sm_90")
    assert data["path"] == str(path)
    ways = json.loads(path.read_text())["ways"]
    assert ways == {k["name"]: k["way"] for k in data["kernels"]}
    kernels = [name.split()[1] for name in ways]
    assert {"_forward_1", "_forward_kept_1", "_backward_1", "_backward_2"} == {*kernels} and len(kernels) == len({*ways})
    assert all(name.startswith("cuda:90 ") and " bfloat16 " in name and "K=16" in name for name in ways)

    def inspected() -> dict[str, tuple[int, int]]:
        gpu = import_module(f"{seqc.load('linear_attention', sizes=sizes, chunk_size=16, backend='triton').__name__}.triton_launching")
        gpu.tuned.cache_clear()
        found = commands.document("inspect", *LAYER, "--target", "sm_90")["kernels"]
        return {k["name"]: (k["stages"], k["warps"]) for k in found if k["kind"] == "triton"}

    before = inspected()
    (name,) = (n for n in ways if "_backward_2" in n)
    path.write_text(json.dumps({"ways": {**ways, name: [1, 0, 8]}}))
    assert inspected() == {**before, "_backward_2": (1, 8)} != before
    path.write_text(json.dumps({"ways": {name.replace("cuda:90", "cuda:80"): [1, 0, 8]}}))
    assert inspected() == before
    path.write_text('{"ways": {"a": 3, "b": [1, 2, 3]}}')
    gpu = import_module(f"{seqc.load('linear_attention', sizes=sizes, chunk_size=16, backend='triton').__name__}.triton_launching")
    gpu.tuned.cache_clear()
    with pytest.raises(ValueError, match="holds no ways of kernels"):
        gpu.tuned()
    assert document(*LAYER, "--target", "sm_90")["kernels"]
    assert json.loads(path.read_text())["ways"] == ways  # of a file that is none of ours nothing is kept
    path.unlink()
    gpu.tuned.cache_clear()


@pytest.mark.slow
def test_a_package_of_its_own(own_folder: Path) -> None:
    made = ("-s", "K=16", "-s", "V=16", "--chunk-size", "16", "--backend", "triton")
    assert commands.run("compile", "linear_attention", *made, "-o", "mine").exit_code == 0
    data = document(*LAYER, "--target", "sm_90", "--package", "mine/linear_attention")
    assert Path(data["path"]).resolve() == own_folder / "mine/linear_attention" / TUNED
    known = json.loads((own_folder / "mine/linear_attention" / TUNED).read_text())["ways"]
    assert document(*LAYER[:-2], "--target", "sm_80", "--package", "mine/linear_attention", "-T", "64")["ok"]
    both = json.loads((own_folder / "mine/linear_attention" / TUNED).read_text())["ways"]
    assert both.items() > known.items() and len(both) == 2 * len(known)
    assert commands.run("compile", "linear_attention", *made, "-o", "mine").exit_code == 0  # replaces the package, and keeps the file
    assert json.loads((own_folder / "mine/linear_attention" / TUNED).read_text())["ways"] == both
    other = document("linear_attention", "--target", "sm_90", "-s", "K=32", "--package", "mine/linear_attention", code=1)
    assert other["diagnostics"][0]["code"] == "other-package" and "differs" in other["diagnostics"][0]["message"]
    missing = document(*LAYER, "--target", "sm_90", "--package", "nowhere", code=1)
    assert "is missing" in missing["diagnostics"][0]["message"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is no need of a target")
def test_without_a_gpu_a_target_is_needed() -> None:
    assert "no GPU" in document(*LAYER, code=2)["error"]
    assert document(*LAYER, "--target", "sm_10", code=1)["diagnostics"][0]["code"] == "unknown-target"


# --- Ways that are run -----------------------------------------------------------------------------------------------------

WAYS: tuple[Way, ...] = ((0, 0, 4), (2, 0, 4), (1, 1, 4))
INSTEAD: tuple[Way, ...] = ((0, 0, 8),)


class Asked:
    """In place of a launch: a result that is twice the argument, or in one way something else; how long each takes."""

    def __init__(self, takes: dict[Way, float], wrong: Way | None, alike: Way | None = None) -> None:
        self.tensors = (torch.arange(4.0), torch.zeros(4))
        self.takes, self.wrong, self.alike, self.now = takes, wrong, alike, 0.0
        self.name, self.dtype = "gpu kernel text float32", torch.float32

    def blocks_and_options(self, *way: int) -> tuple[int, dict[str, Any]]:
        return 1, {"way": WAYS[0] if way == self.alike else way}

    def run(self, way: Way) -> None:
        self.tensors[1].copy_(self.tensors[0] * (3.0 if way == self.wrong else 2.0))
        self.now += self.takes[way]


def clock(asked: Asked) -> Clock:
    def taken(call: Any) -> Taken:
        before = asked.now
        call()
        return Taken(asked.now - before)

    return Clock(taken, 1)


def test_the_fastest_with_the_same_results_is_taken() -> None:
    gpu = SimpleNamespace(WAYS=WAYS, INSTEAD=INSTEAD, device=lambda: -1, chosen=lambda asked: WAYS[0])
    takes = {(0, 0, 4): 3.0, (2, 0, 4): 2.0, (1, 1, 4): 1.0, (0, 0, 8): 4.0}
    before = (torch.arange(4.0), torch.zeros(4))
    for wrong, best in ((None, (1, 1, 4)), ((1, 1, 4), (2, 0, 4))):
        asked = Asked(takes, wrong)
        asked.run(WAYS[0])
        found = judged(gpu, asked, before, clock(asked))
        assert (found.way, found.default, found.ms, found.default_ms) == (best, (0, 0, 4), 1e3 * takes[best], 3e3)
        assert found.wrong == ((wrong,) if wrong else ()) and asked.tensors[1].tolist() == [0.0, 2.0, 4.0, 6.0]
    asked = Asked(takes, None, alike=(1, 1, 4))  # another name for what the default does: not tried again
    asked.run(WAYS[0])
    assert judged(gpu, asked, before, clock(asked)).way == (2, 0, 4)
    gpu = SimpleNamespace(**{**vars(gpu), "device": lambda: 0, "fits": lambda way: way[0] != 1})
    asked = Asked(takes, None)
    asked.compiled = lambda way: way  # type: ignore[attr-defined]
    asked.run(WAYS[0])
    assert judged(gpu, asked, before, clock(asked)).way == (2, 0, 4)


def test_what_differs() -> None:
    x, nan = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])
    assert not differs(x, x, 0.0) and not differs(x * (1 + 1e-5), x, 1e-4) and differs(x * (1 + 1e-3), x, 1e-4)
    assert not differs(nan, nan, 0.0) and differs(x, nan, 1.0) and differs(nan, x, 1.0)
    assert differs(torch.tensor([1, 2]), torch.tensor([1, 3]), 1.0) and not differs(torch.tensor([1]), torch.tensor([1]), 0.0)


SCRIPT = """
import torch, seqc
from seqc.inspection import Subject
from seqc.timing import Clock, by_processor
from seqc import tuning
from seqc.tuning import judged, tried
from importlib import import_module
p = seqc.load("linear_attention", sizes={"K": 16, "V": 32}, chunk_size=16, backend="triton")
gpu = import_module(p.__name__ + ".triton_launching")
tuning.RUNS = 1
torch.manual_seed(0)
q, k, v = (torch.randn(1, 40, 2, n).requires_grad_() for n in (16, 16, 32))
subject = Subject(p, "chunkwise", {}, 2, (q, k, v), (q, k, v))
plain = subject()[0].detach()
found = tried(gpu, subject, lambda *a: judged(*a, Clock(by_processor, 0)))
assert len(found) == 4 and all(k.ms > 0 and k.default_ms > 0 and not k.wrong for k in found.values()), found
assert torch.equal(subject()[0].detach(), plain) and gpu.launch.__name__ == "launch"
gpu.plan = (lambda plan: lambda *a: ({**plan(*a)[0], "b_V": 16}, *plan(*a)[1:]) if a[2:] == (2,) else plan(*a))(gpu.plan)
found = tried(gpu, subject, lambda *a: judged(*a, Clock(by_processor, 0)))
assert any((1, 2, 4) in k.wrong for k in found.values()), found  # blocks of which there are too few
"""


@pytest.mark.slow
def test_kernels_are_run_and_compared(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
