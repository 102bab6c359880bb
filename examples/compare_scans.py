"""Generated scans and chunkwise forms against the PyTorch fallbacks of transformers, on this machine's CPU.

    python examples/compare_scans.py

Each pair is checked for equal outputs, then timed: medians of alternating runs in one process, forward and forward + backward.
float32, B = 1, T = 2048, two threads by default. Needs transformers.

mamba2   chunkwise at chunk 32, H = 4, N = P = 64, beside its chunked fallback at the same chunk length
mamba    scan, D = 64, N = 16, beside its loop over tokens
rg_lru   scan, 4 heads of 64, beside its loop over tokens (gates included on both sides)
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

import torch
from compare_speed import alternate
from torch import Tensor

import seqc

Step = Callable[[bool], tuple[Tensor, ...]]
Pair = tuple[str, Step, Step]


def step(run: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> Step:
    """A call, with the gradients of a fixed functional if they are asked for."""
    adjoint = torch.randn(run().shape, generator=torch.Generator().manual_seed(1))

    def both(backward: bool) -> tuple[Tensor, ...]:
        out = run()
        return (out, *torch.autograd.grad(out, inputs, adjoint)) if backward else (out,)

    return both


def leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.requires_grad_() for x in tensors)


def mamba2(T: int, chunk: int = 32) -> Pair:
    from transformers.models.mamba2 import modeling_mamba2 as theirs

    fallback = plain(theirs.mamba2_chunk_scan)
    H, N, P = 4, 64, 64
    x, dt, A_log = torch.randn(1, T, H, P), torch.rand(1, T, H) * 0.1 + 0.01, torch.rand(H)
    B, C, D = torch.randn(1, T, 1, N), torch.randn(1, T, 1, N), torch.ones(H)
    inputs = leaves(x, B, C, dt, A_log, D)
    ours = seqc.load("mamba2").mamba2
    return (
        "mamba2, chunkwise",
        step(lambda: ours(*inputs, form="chunkwise")[0], inputs),
        step(lambda: fallback(x, dt, -A_log.exp(), B, C, chunk, D=D), inputs),
    )


def mamba(T: int) -> Pair:
    from transformers.models.mamba import modeling_mamba as theirs

    fallback = plain(theirs.mamba_selective_scan)
    D, N = 64, 16
    x, dt, A_log = torch.randn(1, T, D), torch.rand(1, T, D) * 0.1 + 0.01, torch.rand(1, D, N)
    B, C, skip = torch.randn(1, T, N), torch.randn(1, T, N), torch.ones(1, D)
    inputs = leaves(x, B, C, dt, A_log, skip)
    ours = seqc.load("mamba").mamba

    def other() -> Tensor:
        turned = (y.transpose(1, 2) for y in (x, dt))
        return fallback(*turned, -A_log[0].exp(), B.transpose(1, 2), C.transpose(1, 2), skip[0]).transpose(1, 2)

    def own() -> Tensor:
        by_head = [y[:, :, None] for y in (x, B, C, dt)]
        return ours(*by_head, A_log, skip, form="scan")[0][:, :, 0]

    return "mamba, scan", step(own, inputs), step(other, inputs)


def rg_lru(T: int) -> Pair:
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    H, D = 4, 64
    x, r, i, a = torch.randn(1, T, H, D), torch.rand(1, T, H, D), torch.rand(1, T, H, D), torch.randn(H, D)
    inputs = leaves(x, r, i, a)
    reset = torch.zeros(1, T, 1, dtype=torch.bool)
    reset[:, 0] = True
    ours = seqc.load("rg_lru").rg_lru

    def other() -> Tensor:
        g = (-8 * r * torch.nn.functional.softplus(a)).flatten(2)
        scaled = torch.where(reset, 1.0, torch.sqrt(-torch.expm1(2 * g))) * (i * x).flatten(2)
        return RecurrentGemmaRglru._rnn_scan(None, scaled, g.exp(), reset, None)[0].unflatten(-1, (H, D))

    return "rg_lru, scan", step(lambda: ours(*inputs, form="scan")[0], inputs), step(other, inputs)


def plain(function: Any) -> Any:
    """The PyTorch code behind a function that may dispatch to a faster kernel."""
    return inspect.unwrap(getattr(function, "__func__", function))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for make in (mamba2, mamba, rg_lru):
        name, ours, theirs = make(options.tokens)
        for x, y in zip(ours(True), theirs(True), strict=True):
            assert (x - y).abs().max() < 1e-3 * y.abs().max().clamp(min=1), f"{name}: the two do not compute the same"
        for what, backward in (("forward", False), ("forward and backward", True)):
            a, b = alternate(ours, theirs, backward, options.runs)
            print(f"{name}, {what}: {a:.1f} ms, transformers {b:.1f} ms, ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
