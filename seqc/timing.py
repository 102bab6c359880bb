"""How long a call takes and what memory it needs: by the processor's clock, or by a GPU's own events and counters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

Call = Callable[[], object]


@dataclass(frozen=True)
class Taken:
    """Seconds, and the most bytes that were held during the call beyond those before it; None where nothing counts them."""

    seconds: float
    bytes: int | None = None


@dataclass(frozen=True)
class Clock:
    """How calls on a device are timed. warm_up: calls that do not count: the first one compiles, allocates and fills caches."""

    taken: Callable[[Call], Taken]
    warm_up: int


def clock_of(device: str) -> Clock:
    """The clock of `cpu` or `cuda`."""
    if device == "cpu":
        return Clock(by_processor, 1)
    import torch

    return Clock(partial(by_events, torch.cuda), 3)


def by_processor(call: Call) -> Taken:
    """Until the call returns."""
    start = time.perf_counter()
    call()
    return Taken(time.perf_counter() - start)


def by_events(cuda: Any, call: Call) -> Taken:
    """Until the device has done what the call has launched. cuda: the module `torch.cuda`.

    The events stand in the stream before and behind the call's own work, so that what lies between them is that work and the gaps in
    which the device waits for the next launch.
    """
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    start.record()
    call()
    end.record()
    cuda.synchronize()
    return Taken(start.elapsed_time(end) / 1e3, cuda.max_memory_allocated() - before)
