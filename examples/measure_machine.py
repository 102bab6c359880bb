"""Measures the machine constants of seqc's cost model on one core: they stand as CORE in seqc/analysis/cost.py.

    python examples/measure_machine.py

A call is timed in a loop over tensors of 64 numbers, where its work is nothing; the rate on batches of products as a chunk makes them;
bandwidth on sums, between results in fresh memory, as what a form keeps is, and results in the cache, as what it lets go of is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from math import sqrt
from statistics import median

import torch

REPEATS, LOOP = 21, 200


def seconds(body: Callable[[], object], loop: int = LOOP) -> float:
    """The median time of one call of `body`."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(loop):
            body()
        times.append((time.perf_counter() - start) / loop)
    return median(times)


def call() -> float:
    """Seconds of a call as it stands in a loop: with the slice, the view and the list that come with it."""
    tokens = 64
    g, k, state = torch.randn(tokens, 1, 1), torch.randn(tokens, 1, 1, 8), torch.randn(1, 1, 8, 8)

    def body() -> object:
        x, out = state, []
        for g_i, k_i in zip(g, k, strict=True):
            kept = g_i[..., None, None] * x
            read = (k_i[..., None, :] @ kept)[..., 0, :]
            x = torch.where(k_i[..., None] > 0.0, kept - read[..., None, :] * k_i[..., None], x)
            out.append(read)
        return torch.stack(out, 0)

    return seconds(body, 5) / (6 * tokens)


def bandwidth() -> tuple[float, float]:
    """Bytes per second of sums whose results are kept, so that each is in fresh memory, and of sums of what the cache holds."""
    x, y = torch.randn(64, 1 << 18), torch.randn(4, 128, 128)
    fresh = 12 * x.numel() / seconds(lambda: [a + b for a, b in pairwise(x)], 1)
    return fresh, 12 * y.numel() / seconds(lambda: y + y)


def rate() -> float:
    """Operations per second of batches of [32, K] @ [K, 64], 64 rows of a slab, whose results are kept."""
    found = []
    for size in (32, 64, 128):
        x, y = torch.randn(16, 64, 32, size), torch.randn(16, 64, size, 64)
        found.append(2 * x.numel() * 64 / seconds(lambda x=x, y=y: [a @ b for a, b in zip(x, y, strict=True)], 1))
    return median(found)


def main() -> None:
    """Prints one line per constant."""
    torch.set_num_threads(1)
    print(f"call       {1e6 * call():8.2f} us")
    print(f"rate       {1e-9 * rate():8.1f} GFLOP/s")
    fresh, cached = bandwidth()
    print(f"bandwidth  {1e-9 * sqrt(fresh * cached):8.1f} GB/s, the geometric mean of {1e-9 * fresh:.1f} and {1e-9 * cached:.1f}")


if __name__ == "__main__":
    main()
