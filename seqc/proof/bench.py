"""One trial at work: what the recurrence gives at its points, and what a form's programs give there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np

from seqc.forms.base import final, initial
from seqc.ir.execute import execute
from seqc.ir.program import Program
from seqc.ir.recurrence import Recurrence
from seqc.ir.rules import extent
from seqc.proof import reference
from seqc.proof.arithmetic import Field
from seqc.proof.candidate import Candidate
from seqc.proof.dual import Dual, Duals
from seqc.proof.field import L, P, Q, Residues
from seqc.proof.oracles import Oracles
from seqc.proof.trial import Trial, draw, flat, is_chunked, laid_out

STAGES = ("as lowered", "as printed", "gradient", "gradient of another form", "second gradient")


class Bench:
    """A recurrence at a trial's points; everything is computed when first asked for, and once."""

    def __init__(self, rec: Recurrence, trial: Trial, seed: str):
        self.rec, self.trial = rec, trial
        self.oracles = Oracles(seed)
        self.sizes = trial.sizes(chunked=False)
        self.draws = draw(rec, trial, self.oracles)
        self._adjoints: dict[tuple[str, str], dict[str, Residues]] = {}

    # --- The recurrence ------------------------------------------------------------------------------------------

    def _given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the recurrence's names: a state's name holds its first value."""
        return {**values, **{s.name: values[initial(s.name)] for s in self.rec.states}}

    @cached_property
    def expected(self) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """The recurrence's outputs per token and last states, sequence by sequence."""
        A, given = Field(self.oracles, self.sizes), self._given(self.draws.values)
        return [reference.run(A, self.rec, given, self.trial.points, i, n) for i, n in enumerate(self.trial.lengths)]

    @cached_property
    def oracles_per_token(self) -> int:
        """How often one token's step asks a random function."""
        oracles = Oracles(self.oracles.seed)
        run, last = reference.run(Field(oracles, self.sizes), self.rec, self._given(self.draws.values), self.trial.points, 0, 1)
        for value in (*run[0].values(), *last.values()):
            value.residue(0)
        return sum(oracles.calls.values())

    def slope(self, names: tuple[str, ...]) -> Residues:
        """<u, J v> per point: u the seeds, v the directions of the named inputs."""
        A = Duals(Field(self.oracles, self.sizes))
        values = {n: Dual(x, self.draws.tangents.get(n) if n in names else None) for n, x in self.draws.values.items()}
        given, seeds = self._given(values), self.draws.seeds
        total = np.zeros(self.trial.points, np.uint64)
        for i, n in enumerate(self.trial.lengths):
            outputs, last = reference.run(A, self.rec, given, self.trial.points, i, n)
            pairs = [(x.tangent, seeds[name].p[:, i, :, t]) for t, values in enumerate(outputs) for name, x in values.items()]
            pairs += [(x.tangent, seeds[final(s)].p[:, i]) for s, x in last.items()]
            for tangent, seed in pairs:
                total = total if tangent is None else P.add(total, dot(tangent, seed))
        return total

    @cached_property
    def slope_of_all(self) -> Residues:
        return self.slope(tuple(self.draws.tangents))

    # --- The forms -----------------------------------------------------------------------------------------------

    def run(self, program: Program, seeds: Mapping[str, Any]) -> dict[str, Residues]:
        """A program's results at the points, with time as tokens alone."""
        sizes = self.trial.sizes(is_chunked(program))
        arithmetic: Any = partial(Field, self.oracles)
        given = laid_out(Field(self.oracles, sizes), {**self.draws.values, **seeds}, program.inputs, self.trial)
        found = execute(program, arithmetic, given, sizes)

        def whole(p: Residues, axes: tuple[str, ...]) -> Residues:
            return flat(np.broadcast_to(p, (self.trial.points, *(extent(sizes, a) for a in axes))), axes)

        return {e.name: whole(found[e.name].p, e.value.axes) for e in program.outputs}

    def adjoint(self, form: Candidate, which: str) -> dict[str, Residues]:
        """A form's `first` or `second` adjoint at the points."""
        key = (form.name, which)
        if key not in self._adjoints:
            seeds = {leaf.name: self.draws.seeds[e.name] for leaf, e in zip(form.seeds, form.forward.outputs, strict=True)}
            if which == "first":
                self._adjoints[key] = self.run(form.backward, seeds)
            else:
                self._adjoints[key] = self.run(form.double_backward, {**seeds, **self._directions(form)})
        return self._adjoints[key]

    def _directions(self, form: Candidate) -> dict[str, Any]:
        A = Field(self.oracles, self.sizes)
        residues = ((leaf.name, self.direction(n)) for leaf, n in zip(form.directions, form.wrt, strict=True))
        return {name: A.given((p, L.reduce(p), Q.reduce(p))) for name, p in residues}

    def direction(self, name: str) -> Residues:
        """The random direction of an input; zero for whole numbers."""
        found = self.draws.tangents.get(name)
        return np.zeros_like(self.draws.values[name].p) if found is None else found


def dot(x: Residues, y: Residues) -> Residues:
    """The inner product over all but the points."""
    product = P.mul(x, y)
    return P.sum(product.reshape((product.shape[0], -1)), (1,))


def differences(bench: Bench, form: Candidate, other: Candidate) -> Iterator[tuple[str, str]]:
    """Stage and output wherever a form and the recurrence, or the other form, are not the same."""
    for stage, program in ((STAGES[0], form.lowered), (STAGES[1], form.forward)):
        yield from ((stage, name) for name in _values_that_differ(bench, bench.run(program, {})))
    yield from ((STAGES[2], name) for name in _gradients_that_differ(bench, form))
    if form is not other:
        yield from ((STAGES[3], name) for name in _adjoints_that_differ(bench, form, other, "first"))
        yield from ((STAGES[4], name) for name in _adjoints_that_differ(bench, form, other, "second"))


def _values_that_differ(bench: Bench, found: Mapping[str, Residues]) -> Iterator[str]:
    for o in bench.rec.outputs:
        pairs = ((found[o.name][:, i, :, t], values[o.name].p) for i, (run, _) in enumerate(bench.expected) for t, values in enumerate(run))
        if any((x != y).any() for x, y in pairs):
            yield o.name
    for s in bench.rec.states:
        if any((found[final(s.name)][:, i] != last[s.name].p).any() for i, (_, last) in enumerate(bench.expected)):
            yield final(s.name)


def _gradients_that_differ(bench: Bench, form: Candidate) -> Iterator[str]:
    """All gradients at once in one random direction; only if that fails, one input after the other."""
    found = bench.adjoint(form, "first")

    def holds(names: tuple[str, ...], slope: Residues) -> bool:
        total = np.zeros(bench.trial.points, np.uint64)
        for name in names:
            total = P.add(total, dot(found[f"d_{name}"], bench.direction(name)))
        return bool((total == slope).all())

    if not holds(form.wrt, bench.slope_of_all):
        yield from (f"d_{name}" for name in form.wrt if not holds((name,), bench.slope((name,))))


def _adjoints_that_differ(bench: Bench, form: Candidate, other: Candidate, which: str) -> Iterator[str]:
    mine, theirs = bench.adjoint(form, which), bench.adjoint(other, which)
    of_outputs = {f"d_{leaf.name}" for leaf, o in zip(form.seeds, bench.rec.outputs, strict=False)}
    for name in mine:
        x, y = mine[name], theirs[name]
        if name in of_outputs:
            # What an output would be in the padding is no part of any form's meaning.
            differ = any((x[:, i, :, :n] != y[:, i, :, :n]).any() for i, n in enumerate(bench.trial.lengths))
        else:
            differ = bool((x != y).any())
        if differ:
            yield name
