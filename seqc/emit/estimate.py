"""How long a form should take for a call, and the form that `auto` takes: what the packages decide by when they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seqc.analysis.cost import Duration, duration
from seqc.emit.layer import Programs
from seqc.forms.base import initial
from seqc.ir import ops
from seqc.ir.program import CHUNKS
from seqc.passes.binary import binary_program

ROWS, WRITTEN = 64, 2**18  # the size of a slab, as the packages' sequence.py has it
LONG = 2048  # tokens of a call that is long


@dataclass(frozen=True)
class Estimate:
    """A form's microseconds on one core. chunk: its tokens per chunk, 0 without chunks; rows: sequences x heads x chunks of a slab;
    `both`: forward and backward."""

    form: str
    chunk: int
    rows: int
    forward: Duration
    both: Duration

    def time(self, tokens: int, batch: int, heads: int, gradient: bool) -> float:
        """Of a call; with its backward, if `gradient`."""
        rows = batch * heads
        slab = self.chunk * max(1, self.rows // max(1, rows)) if self.chunk else ROWS
        step = self.chunk or 1
        steps = -(-tokens // step)
        return (self.both if gradient else self.forward).of(-(-tokens // slab), steps, steps * step * rows)


def estimate(p: Programs, sizes: Mapping[str, int], chunk_size: int) -> Estimate:
    """Of a form at these sizes."""
    chunk = (p.lowered.block or chunk_size) if CHUNKS in p.form.axes else 0
    there, back = (duration(binary_program(x), sizes, chunk) for x in (p.forward, p.backward))
    states = [v for v in p.forward.inputs if v.name.endswith(initial(""))]
    numbers = sum(ops.numel((a for a in v.axes if not a.startswith("@")), sizes) for v in states)
    rows = max(1, WRITTEN // max(1, chunk * numbers)) if p.form.written else ROWS
    return Estimate(p.form.name, chunk, rows, _rounded(there), _rounded(there + back))


def _rounded(d: Duration) -> Duration:
    """In microseconds, with the three digits that a package is printed with: both choose alike."""
    return Duration(*(float(f"{1e6 * x:.3g}") for x in (d.slab, d.step, d.token)))


def fastest(estimates: Iterable[Estimate], tokens: int, batch: int, heads: int, gradient: bool) -> str:
    """The form that `auto` takes: the one that should take least time, the first of several."""
    return min(estimates, key=lambda e: e.time(tokens, batch, heads, gradient)).form


def settled(estimates: Iterable[Estimate], batch: int, heads: int, gradient: bool) -> int:
    """The number of tokens from which on `auto` takes what it takes for a long call."""
    every = tuple(estimates)
    last = fastest(every, LONG, batch, heads, gradient)
    others = (t for t in range(LONG, 0, -1) if fastest(every, t, batch, heads, gradient) != last)
    return next(others, 0) + 1
