"""Programs at random points of the prime field, where equal programs give equal numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from seqc.compiler import Checked, prepared, programs
from seqc.forms.base import Form
from seqc.ir.execute import execute
from seqc.ir.program import Program
from seqc.proof.arithmetic import Field
from seqc.proof.bench import Bench
from seqc.proof.trial import Trial, laid_out, small_axes


class Points:
    """A layer's arguments and the adjoints of its results, for programs of a form; rows of 7 and 2 tokens, two heads."""

    def __init__(self, checked: Checked, form: Form) -> None:
        rec, made = prepared(checked), programs(checked, form)
        lowered = made.lowered
        chunk = lowered.block or 3
        self.trial = Trial((7, 2), chunk, 2, 1, 4, small_axes(rec, set(lowered.fixed), checked.sizes), (0, 0) if lowered.block else ())
        self.bench = Bench(rec, self.trial, "points")
        self.sizes = self.trial.sizes_of(made.backward)
        self.seeds = {f"d_{n}": x for n, x in self.bench.draws.seeds.items()}

    def run(self, program: Program, given: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of a program. given: inputs that are no arguments."""
        field = Field(self.bench.oracles, self.sizes)
        named = {**self.bench.draws.values, **self.seeds}
        own = laid_out(field, named, [i for i in program.inputs if i.name not in given], self.trial)
        return execute(program, partial(Field, self.bench.oracles), {**own, **given}, self.sizes)


def assert_equal(found: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str] = ()) -> None:
    """Bit for bit, and not zero throughout."""
    for n in names or wanted:
        assert (found[n].p == wanted[n].p).all(), n
    assert any(x.p.any() for x in found.values())
