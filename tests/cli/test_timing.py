"""How `seqc bench` times: the clocks of both devices, what a GPU's table shows, and what is said where a GPU or Triton is missing.

There is no GPU here. Its clock is given a stand-in for `torch.cuda` that counts what is asked of it; that the real one keeps time is not
tested.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import seqc
from seqc import bench
from seqc.bench import Bench, Run, Timed, draw, measured, page
from seqc.cli import app
from seqc.terminal import BadUsage
from seqc.timing import Clock, Taken, by_events, clock_of


class Cuda:
    """What `torch.cuda` offers a clock, with a time and a memory that calls move on by hand. log: what was asked, in order."""

    def __init__(self) -> None:
        self.now, self.held, self.peak = 0.0, 100, 1000
        self.log: list[str] = []

    def Event(self, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.held

    def memory_allocated(self) -> int:
        return self.held

    def max_memory_allocated(self) -> int:
        return self.peak

    def work(self, milliseconds: float, held: int = 0) -> None:
        self.log.append("work")
        self.now += milliseconds
        self.peak = max(self.peak, self.held + held)


class Event:
    """A moment of the stand-in's time, which may be read only when the device is known to have come so far."""

    def __init__(self, cuda: Cuda):
        self.cuda = cuda
        self.at: float | None = None

    def record(self) -> None:
        self.cuda.log.append("record")
        self.at = self.cuda.now

    def elapsed_time(self, other: Event) -> float:
        assert self.at is not None and other.at is not None and self.cuda.log[-1] == "synchronize"
        return other.at - self.at


def test_a_gpu_is_timed_by_its_events() -> None:
    """Seconds between the events, bytes beyond what was held before; nothing of earlier calls is in either."""
    cuda = Cuda()
    assert by_events(cuda, lambda: cuda.work(8.0, 300)) == Taken(0.008, 300)
    assert cuda.log == ["synchronize", "record", "work", "record", "synchronize"]
    assert by_events(cuda, lambda: cuda.work(0.5)) == Taken(0.0005, 0)


def test_a_processor_is_timed_by_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1.0, 1.25))
    monkeypatch.setattr("seqc.timing.time.perf_counter", lambda: next(times))
    assert clock_of("cpu").taken(lambda: None) == Taken(0.25)
    assert clock_of("cpu").warm_up == 1 and clock_of("cuda").warm_up == 3


@pytest.fixture
def retnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SEQC_CACHE_DIR", os.environ.get("SEQC_TEST_CACHE", str(tmp_path)))
    return seqc.load("retnet", chunk_size=20)  # a size that nothing else loads


def test_medians_without_what_warms_up(retnet: Any) -> None:
    """Forms in turn; of each the median of the runs that count, forward alone and with the backward."""
    arguments = draw(retnet, {"K": 4, "V": 4}, Run(tokens=5), 2)
    subjects = [(form, "torch") for form in retnet.FORMS]
    cuda, called = Cuda(), 0

    def taken(call: Any) -> Taken:
        nonlocal called
        call()
        called += 1
        return by_events(cuda, lambda: cuda.work(called, 10 * called))

    found = measured(retnet, arguments, subjects, Clock(taken, 3), 3, lambda _: nullcontext(), gradient=True)
    n = len(subjects)
    assert called == 6 * n
    middle = [4 * n + 1 + i for i in range(n)]  # the call that is each form's second after three that warm up
    assert found == {s: Taken(m / 1e3, 10 * m) for s, m in zip(subjects, middle, strict=True)}
    assert all(x.grad is None for x in arguments)


def test_what_does_not_fit_is_one_diagnostic(retnet: Any) -> None:
    def full(call: Any) -> Taken:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")

    arguments = draw(retnet, {"K": 4, "V": 4}, Run(tokens=5), 2)
    with pytest.raises(BadUsage, match=r"^`chunkwise` by torch, forward, does not fit into the GPU's memory: time fewer --tokens"):
        measured(retnet, arguments, [("chunkwise", "torch")], Clock(partial(full), 1), 1, lambda _: nullcontext(), gradient=False)


# --- The table of a GPU ----------------------------------------------------------------------------------------------

ROWS = (
    Timed("chunkwise", "torch", 2.0, None, 5.0, 3.0, 8.0, None, 4.0, 20.0),
    Timed("chunkwise", "triton", 0.5, None, 4.0, 1.5, 2.0, None, 3.0, 10.0),
    Timed("recurrent", "torch", 10.0, None, 1.0, 2.0, 32.0, None, 1.0, 30.0),
    Timed("recurrent", "triton", 2.0, None, 1.0, 0.25, 6.0, None, 1.0, 15.0),
)
ON_A_GPU = Bench("some", 2048, 1, 4, "bfloat16", 2, 5, {"K": 64}, ROWS, "chunkwise", "recurrent", "cuda", "NVIDIA H100", "triton")


def test_both_backends_stand_side_by_side() -> None:
    lines = page(ON_A_GPU).splitlines()
    assert lines[0] == "some: 2048 tokens, batch 1, heads 4, K = 64, bfloat16, NVIDIA H100"
    assert " ".join(lines[1].split()) == "form backend forward ms MiB vs recurrent both ms MiB vs recurrent auto"
    assert [line.split() for line in lines[2:6]] == [
        ["chunkwise", "torch", "2", "3", "5.00x", "8", "20", "4.00x"],
        ["chunkwise", "triton", "0.5", "1.5", "4.00x", "2", "10", "3.00x", "forward"],
        ["recurrent", "torch", "10", "2", "1.00x", "32", "30", "1.00x"],
        ["recurrent", "triton", "2", "0.25", "1.00x", "6", "15", "1.00x", "both"],
    ]
    assert "CUDA events" in lines[6] and "estimates" not in lines[6]
    alone = page(replace(ON_A_GPU, auto_both=None)).splitlines()
    assert " ".join(alone[1].split()) == "form backend forward ms MiB vs recurrent auto" and "both" not in alone[5]
    assert json.loads(json.dumps(ON_A_GPU.as_json()))["forms"][1]["backend"] == "triton"


# --- What is missing ---------------------------------------------------------------------------------------------------


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", "gla", *arguments])
    assert result.exit_code == 2 and not result.stdout and "Traceback" not in result.output
    return result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for built, words in ((None, "is built without CUDA"), ("13.0", "sees no GPU here")):
        monkeypatch.setattr(torch.version, "cuda", built)
        assert said("--device", "cuda") == f"error: PyTorch {torch.__version__} {words}: nothing can be timed with --device cuda\n"
    data = json.loads(CliRunner().invoke(app, ["bench", "gla", "--device", "cuda", "--json"]).stdout)
    assert data["exit"] == 2 and "sees no GPU" in data["error"]
    assert "Triton kernels run on a GPU" in said("--backend", "triton")
    assert "tpu" in said("--device", "tpu")


def test_backends_that_a_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both on a GPU, where Triton is installed and computes the type; PyTorch alone elsewhere."""
    monkeypatch.setattr(bench, "find_spec", lambda name: object())
    assert bench._backends(Run(), "cpu") == bench._backends(Run(dtype="float64"), "cuda") == ("torch",)
    assert bench._backends(Run(), "cuda") == ("torch", "triton") and bench._backends(Run(backend="triton"), "cuda") == ("triton",)
    with pytest.raises(BadUsage, match="float64 has the backend `torch` alone"):
        bench._backends(Run(backend="triton", dtype="float64"), "cuda")
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name == "triton" else object())
    assert bench._backends(Run(), "cuda") == bench._backends(Run(backend="torch"), "cuda") == ("torch",)
    with pytest.raises(BadUsage, match=r"Triton is not installed: pip install 'seqc\[triton\]'"):
        bench._backends(Run(backend="triton"), "cuda")


def test_forms_that_a_backend_has() -> None:
    class Package:
        FORMS = ("chunkwise", "newton")
        MANIFEST: dict[str, Any] = {"name": "some", "triton": {"forms": ["chunkwise"]}}  # noqa: RUF012

    package: Any = Package
    assert bench._subjects(package, ("torch", "triton")) == [("chunkwise", "torch"), ("chunkwise", "triton"), ("newton", "torch")]
    package.MANIFEST = {"name": "some"}
    with pytest.raises(BadUsage, match="no form of `some` has Triton kernels"):
        bench._subjects(package, ("triton",))
