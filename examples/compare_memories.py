"""Memories that learn, generated chunkwise form against a plain loop that asks autograd for the inner gradient at every token.

    python examples/compare_memories.py                    titans and ttt_mlp, T = 2048
    python examples/compare_memories.py --tokens 512 --heads 2 --threads 1

float32, B = 1, D = 64, a hidden layer of 256, mini-batches of 16 tokens. Both sides go forward and backward, to all inputs and the first
weights, and their results are compared. Times are medians of alternating runs in one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

import seqc

D, E, CHUNK = 64, 256, 16
Weights = tuple[Tensor, ...]
Run = Callable[[], tuple[Tensor, ...]]


def mm(x: Tensor, W: Tensor) -> Tensor:
    """Vectors [B, H, D] through matrices [B, H, D, E]."""
    return (x[..., None, :] @ W)[..., 0, :]


def inner(model: Callable[[Tensor, Weights], Tensor], W: Weights, k: Tensor, v: Tensor, factor: float) -> Weights:
    """The gradient of factor times the squared error in the weights, with a graph for the outer gradient."""
    return torch.autograd.grad(factor * ((model(k, W) - v) ** 2).sum(), W, create_graph=True)


def titans(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, eta: Tensor, alpha: Tensor, *weights: Tensor) -> Tensor:
    """S = eta S - theta G, W = (1 - alpha) W + S, with G at the mini-batch's first weights."""

    def model(z: Tensor, W: Weights) -> Tensor:
        return mm(F.silu(mm(z, W[0])), W[1])

    live = tuple(w.expand(q.shape[0], *w.shape) for w in weights)
    speed, first, out = tuple(torch.zeros_like(w) for w in live), live, []
    for t in range(q.shape[1]):
        first = live if t % CHUNK == 0 else first
        a, b, c = (x[:, t, :, None, None] for x in (theta, eta, alpha))
        G = inner(model, first, k[:, t], v[:, t], 1.0)
        speed = tuple(b * s - a * g for s, g in zip(speed, G, strict=True))
        live = tuple((1 - c) * w + s for w, s in zip(live, speed, strict=True))
        out.append(model(q[:, t], live))
    return torch.stack(out, 1)


def ttt_mlp(q: Tensor, k: Tensor, v: Tensor, lr: Tensor, scale: Tensor, bias: Tensor, nu: Tensor, *weights: Tensor) -> Tensor:
    """W = first W - max(0, 1 / i + nu_i) sum of lr G over the mini-batch's first i tokens."""

    def model(z: Tensor, W: Weights) -> Tensor:
        h = mm(F.gelu(mm(z, W[0]) + W[1]), W[2]) + W[3]
        return z + F.layer_norm(h, (D,), eps=1e-5) * scale + bias

    W1, W2 = weights
    b1, b2 = (torch.zeros_like(W[:, 0]).requires_grad_() for W in weights)
    whole = (W1, b1, W2, b2)
    live = tuple(w.expand(q.shape[0], *w.shape) for w in whole)
    first, total, out = live, tuple(torch.zeros_like(w) for w in live), []
    for t in range(q.shape[1]):
        i = t % CHUNK
        if i == 0:
            first, total = live, tuple(torch.zeros_like(w) for w in live)
        G = inner(model, first, k[:, t], v[:, t], 0.5)
        total = tuple(s + lr[:, t].reshape(*s.shape[:2], *[1] * (s.dim() - 2)) * g for s, g in zip(total, G, strict=True))
        weight = (1 / (i + 1) + nu[:, i]).relu()
        live = tuple(w - weight.reshape(-1, *[1] * (w.dim() - 2)) * s for w, s in zip(first, total, strict=True))
        out.append(model(q[:, t], live))
    return torch.stack(out, 1)


def arguments(name: str, T: int, H: int) -> tuple[Tensor, ...]:
    """Inputs, params and first weights in declared order."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    q, k = (F.normalize(draw(1, T, H, D), dim=-1) for _ in range(2))
    v = draw(1, T, H, D) / 4
    if name == "titans":
        gates = (F.softplus(draw(1, T, H)) / D, torch.sigmoid(draw(1, T, H)), torch.sigmoid(draw(1, T, H) - 4))
        found = (q, k, v, *gates, draw(H, D, E) / D**0.5, draw(H, E, D) / E**0.5)
    else:
        lr = 0.1 * torch.sigmoid(draw(1, T, H)) / D
        params = (torch.ones(H, D), torch.zeros(H, D), torch.zeros(H, CHUNK))
        found = (q, k, v, lr, *params, draw(H, D, E) / D**0.5, draw(H, E, D) / E**0.5)
    return tuple(x.requires_grad_() for x in found)


def sides(name: str, T: int, H: int) -> tuple[Run, Run]:
    """The generated operator and the loop, forward and backward."""
    given = arguments(name, T, H)
    adjoint = torch.randn(1, T, H, D, generator=torch.Generator().manual_seed(1))
    package = seqc.load(name)

    def ours() -> tuple[Tensor, ...]:
        o, _ = getattr(package, name)(*given, form="chunkwise")
        return (o, *torch.autograd.grad(o, given, adjoint))

    def loop() -> tuple[Tensor, ...]:
        o = LOOPS[name](*given)
        return (o, *torch.autograd.grad(o, given, adjoint))

    return ours, loop


LOOPS = {"titans": titans, "ttt_mlp": ttt_mlp}


def seconds(run: Run) -> tuple[float, tuple[Tensor, ...]]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in LOOPS:
        ours, loop = sides(name, options.tokens, options.heads)
        ours()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.runs):
            (a, mine), (b, theirs) = seconds(ours), seconds(loop)
            times[0].append(a)
            times[1].append(b)
        far = max(((x - y).abs().max() / y.abs().max().clamp(min=1e-6)).item() for x, y in zip(mine, theirs, strict=True))
        one, two = median(times[0]), median(times[1])
        print(f"{name}: {1e3 * one:.0f} ms, loop {1e3 * two:.0f} ms, ratio {two / one:.1f}, largest relative difference {far:.1e}")


if __name__ == "__main__":
    main()
