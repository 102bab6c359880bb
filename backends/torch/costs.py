"""The table by which a package's operator chooses a form."""

from __future__ import annotations

from collections.abc import Mapping

from seqc.analysis.cost import Duration
from seqc.emit.estimate import estimate
from seqc.emit.layer import Layer


def print_costs(layer: Layer, sizes: Mapping[str, int]) -> list[str]:
    """COSTS: per form its microseconds, forward and with the backward."""
    found = [estimate(p, sizes, layer.options.chunk_size) for p in layer.programs.values()]
    return [
        '# Estimated microseconds on one core, by which form="auto" chooses: per slab of tokens, per step of the loop along the sequence,',
        "# per token of one head; forward alone, and with the backward.",
        "COSTS = {",
        *(f'    "{e.form}": ({_numbers(e.forward)}, {_numbers(e.both)}),' for e in found),
        "}",
    ]


def _numbers(d: Duration) -> str:
    return f"({d.slab!r}, {d.step!r}, {d.token!r})"
