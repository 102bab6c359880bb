"""GPUs that kernels can be compiled for without one: what Triton calls them, and what a block of threads may have."""

from __future__ import annotations

from dataclasses import dataclass

KiB, GiB = 1 << 10, 1 << 30


@dataclass(frozen=True)
class Target:
    """backend and architecture: Triton's names. lanes: threads of a warp. shared: bytes of shared memory that a block can ask for."""

    name: str
    backend: str
    architecture: int | str
    capability: tuple[int, int]
    lanes: int
    shared: int
    processors: int
    memory: int


TARGETS = {
    t.name: t
    for t in (
        Target("sm_80", "cuda", 80, (8, 0), 32, 163 * KiB, 108, 80 * GiB),
        Target("sm_90", "cuda", 90, (9, 0), 32, 227 * KiB, 132, 141 * GiB),
        Target("sm_100", "cuda", 100, (10, 0), 32, 227 * KiB, 148, 180 * GiB),
        Target("gfx942", "hip", "gfx942", (9, 4), 64, 64 * KiB, 304, 192 * GiB),
    )
}
