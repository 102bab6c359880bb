"""One group of states of any kind that composes over tokens: what it is, and the stages that a Series gets for it."""

from __future__ import annotations

from collections.abc import Mapping

from seqc.analysis.affine import fitting
from seqc.analysis.components import Component
from seqc.analysis.monoid import Monoid, Part, monoid
from seqc.forms.monoid import fold
from seqc.forms.series import Series
from seqc.forms.transitions import scan
from seqc.ir.recurrence import Recurrence

EARLIER = {
    "delay": "a value of the token before", "window": "values of the last tokens", "counter": "the position", "peak": "a running maximum",
}  # fmt: skip


def words(rec: Recurrence, c: Part, sizes: Mapping[str, int]) -> str:
    """What a group of states is, in words. Raises Refusal if it does not fit."""
    names = " and ".join(f"`{s.name}`" for s in c.states)
    if isinstance(c, Monoid):
        return f"{names}: {c.words}"
    if c.kind != "coupled":
        return f"{names}: {EARLIER[c.kind]}"
    folded = monoid(rec, c, sizes)
    if folded is not None:
        return f"{names}: {folded.words}"
    mixed = tuple(dict.fromkeys(a for axes in fitting(c, sizes).mixed.values() for a in axes))
    if mixed:
        return f"{names}: affine, mixing {', '.join(mixed)}"
    return f"{names}: affine, elementwise" if len(c.names) == 1 else f"{names}: affine, coupled elementwise"


def add(series: Series, c: Part) -> None:
    """The stages of one group. Raises Refusal if it does not fit."""
    folded = c if isinstance(c, Monoid) else monoid(series.rec, c, series.sizes)
    if folded is not None:
        fold(series, folded)
    elif isinstance(c, Component) and c.kind == "coupled":
        scan(series, c, fitting(c, series.sizes))
    elif isinstance(c, Component):
        series.add(c)
