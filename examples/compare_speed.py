"""The generated chunkwise gated_deltanet against the PyTorch path of transformers, on this machine's CPU.

    python examples/compare_speed.py             medians of alternating runs in one process
    python examples/compare_speed.py --memory    peak memory over that of a call on one token, each in a process of its own

float32, B = 1, T = 2048, H = 4, K = V = 64, two threads by default. Needs transformers.
"""

from __future__ import annotations

import argparse
import inspect
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch

import seqc

Step = Callable[[bool], object]
SCALE = 64**-0.5


def arguments(T: int, H: int, D: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    q, k = (unit(torch.randn(1, T, H, D), dim=-1) for _ in range(2))
    v, beta, g = torch.randn(1, T, H, D), torch.rand(1, T, H), -torch.rand(1, T, H) * 0.1
    return tuple(x.requires_grad_() for x in (q, k, v, beta, g))


def ours(inputs: tuple[torch.Tensor, ...], adjoint: torch.Tensor) -> Step:
    package = seqc.load("gated_deltanet")
    q, k, v, beta, g = inputs

    def step(backward: bool) -> object:
        o, _ = package.gated_deltanet(q * SCALE, k, v, beta, g, form="chunkwise")
        return (o, *torch.autograd.grad(o, inputs, adjoint)) if backward else (o,)

    return step


def theirs(inputs: tuple[torch.Tensor, ...], adjoint: torch.Tensor) -> Step:
    from transformers.models.qwen3_next import modeling_qwen3_next

    function = inspect.unwrap(modeling_qwen3_next.torch_chunk_gated_delta_rule)  # the plain PyTorch code, not a faster kernel
    q, k, v, beta, g = inputs

    def step(backward: bool) -> object:
        o, _ = function(q, k, v, g, beta, chunk_size=64, initial_state=None, output_final_state=False)
        return (o, *torch.autograd.grad(o, inputs, adjoint)) if backward else (o,)

    return step


def alternate(first: Step, second: Step, backward: bool, runs: int) -> tuple[float, float]:
    """Median milliseconds of each, run in turn; of one thread its processor time, which other programs disturb little."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    for n in range(runs + 2):
        for step, kept in zip((first, second), times, strict=True):
            start = clock()
            with torch.set_grad_enabled(backward):
                step(backward)
            if n >= 2:
                kept.append(1e3 * (clock() - start))
    return median(times[0]), median(times[1])


def peak(which: str, backward: bool) -> float:
    """Peak memory in MiB of a process that makes the call, over that of one that makes it for one token only."""
    call = [sys.executable, __file__, "--peak-of", which, "both" if backward else "forward"]
    found = [int(subprocess.run([*call, T], check=True, capture_output=True, text=True).stdout) for T in ("1", "2048")]
    return (found[1] - found[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak-of", nargs=3, metavar=("WHICH", "WHAT", "T"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    T, H, D = 2048, 4, 64
    if options.peak_of:
        which, what, length = options.peak_of
        T = int(length)
    inputs, adjoint = arguments(T, H, D), torch.randn(1, T, H, D)
    if options.peak_of:
        step = {"ours": ours, "theirs": theirs}[which](inputs, adjoint)
        with torch.set_grad_enabled(what == "both"):
            step(what == "both")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    if options.memory:
        for what, backward in (("forward", False), ("forward and backward", True)):
            a, b = peak("ours", backward), peak("theirs", backward)
            print(f"{what}: {a:.0f} MiB, transformers {b:.0f} MiB, ratio {b / a:.2f}")
        return
    a, b = ours(inputs, adjoint), theirs(inputs, adjoint)
    for x, y in zip(a(True), b(True), strict=True):  # type: ignore[call-overload]
        assert (x - y).abs().max() < 1e-4 * y.abs().max().clamp(min=1), "the two do not compute the same"
    for what, backward in (("forward", False), ("forward and backward", True)):
        x, y = alternate(a, b, backward, options.runs)
        print(f"{what}: {x:.1f} ms, transformers {y:.1f} ms, ratio {y / x:.2f}")


if __name__ == "__main__":
    main()
