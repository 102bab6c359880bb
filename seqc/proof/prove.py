"""Recurrence and forms -> certificate: every form, and its derived backward, is the same function as the recurrence.

Both sides are evaluated at random points of a prime field and compared without tolerance. A form is examined as it is
lowered and as it is printed; its adjoint against directional derivatives of the recurrence itself, <J^T u, v> = <u, J v>,
and against the other forms' adjoints, once more differentiated too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from seqc.forms.base import CHUNKS, TOKENS, VALID, Lowered, final, initial
from seqc.ir.expr import Expr
from seqc.ir.program import Program, execute
from seqc.ir.recurrence import Recurrence
from seqc.passes.differentiate import differentiate
from seqc.passes.phases import split
from seqc.proof import reference
from seqc.proof.arithmetic import Field, NoFieldMeaning
from seqc.proof.bound import log2_error
from seqc.proof.certificate import Certificate, Failure, Gap
from seqc.proof.dual import Dual, Duals
from seqc.proof.field import P, Residues
from seqc.proof.oracles import Oracles
from seqc.proof.trial import Draws, Trial, draw, flat, is_chunked, laid_out, small_axes

POINTS = 16
STAGES = ("as lowered", "as printed", "gradient", "gradient of another form", "second gradient")
Difference = tuple[str, str]  # stage, output


@dataclass(frozen=True)
class Candidate:
    """A form's programs: as lowered, as printed, and the printed adjoints."""

    name: str
    lowered: Lowered
    wrt: tuple[str, ...]
    seeds: tuple[str, ...]

    @cached_property
    def printed(self) -> Program:
        return split(self.lowered.program, self.lowered.hints, post=(CHUNKS,))

    @cached_property
    def adjoint(self) -> Program:
        return split(differentiate(self.printed, self.wrt, self.seeds), {}, post=(CHUNKS,))

    @cached_property
    def second(self) -> Program:
        """The adjoint of the adjoint."""
        return differentiate(self.adjoint, (*self.wrt, *(leaf.name for leaf in added(self.adjoint, self.printed))))


def added(adjoint: Program, program: Program) -> tuple[Expr, ...]:
    """The leaves of the outputs' adjoints, in the order of the outputs: their names may have had to give way to others."""
    return adjoint.inputs[len(program.inputs) :]


def prove(
    rec: Recurrence, forms: Mapping[str, Lowered], seed: str, *, sizes: Mapping[str, int] | None = None, points: int = POINTS
) -> Certificate:
    """The certificate for the forms of a recurrence. seed: what the points are drawn from, the content's hash.

    sizes: the layer's sizes; those that a form has compiled in are kept, all others are made small.
    """
    fixed = {a for lowered in forms.values() for a in lowered.fixed}
    trials = _trials(small_axes(rec, fixed, sizes or {}), points, any(x.scope == "group" for x in (*rec.inputs, *rec.params, *rec.states)))
    candidates = [_candidate(rec, name, lowered) for name, lowered in forms.items()]
    failures: dict[tuple[str, str, str], Failure] = {}
    gaps: dict[str, Gap] = {}
    oracles = 0
    for trial in trials:
        bench = Bench(rec, trial, seed)
        for candidate in candidates:
            try:
                for stage, output in _differences(bench, candidate, candidates[0]):
                    failures.setdefault((candidate.name, stage, output), Failure(candidate.name, stage, output, trial.shown()))
            except NoFieldMeaning as e:
                gaps.setdefault(candidate.name, Gap(candidate.name, str(e)))
        oracles = max(oracles, bench.oracles_per_token) if not gaps else oracles
    shown = _smallest(rec, candidates, seed, trials[0], failures) if failures else ()
    wrong = {f.form for f in shown} | set(gaps)
    error = log2_error(rec, max(trials[0].lengths), trials[0].sizes(chunked=False))
    return Certificate(
        rec.name, seed, points, tuple(n for n in forms if n not in wrong), STAGES, tuple(t.shown() for t in trials), oracles, error,
        tuple(gaps.values()), tuple(shown),
    )  # fmt: skip


def _trials(axes: tuple[tuple[str, int], ...], points: int, grouped: bool) -> tuple[Trial, ...]:
    """Lengths that no chunk divides, a sequence that ends chunks before another, and one shorter than a chunk."""
    heads, groups = (4, 2) if grouped else (2, 1)
    return Trial((7, 2), 3, 2, 1, points, axes), Trial((2,), 3, heads, groups, points, axes)


def _smallest(
    rec: Recurrence, candidates: list[Candidate], seed: str, first: Trial, failures: Mapping[tuple[str, str, str], Failure]
) -> tuple[Failure, ...]:
    """The failures, each at the first of a row of growing sizes that shows it."""
    left, found = dict(failures), []
    wrong = [c for c in candidates if any(key[0] == c.name for key in failures)]
    for tokens, chunk in ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (4, 3)):
        trial = replace(first, lengths=(tokens,), chunk=chunk, heads=1, groups=1)
        bench = Bench(rec, trial, seed)
        for candidate in wrong:
            for stage, output in _differences(bench, candidate, candidates[0]):
                if left.pop((candidate.name, stage, output), None):
                    found.append(Failure(candidate.name, stage, output, trial.shown()))
    return (*found, *left.values())


def _candidate(rec: Recurrence, name: str, lowered: Lowered) -> Candidate:
    whole = {i.name for i in rec.inputs if i.domain.integer} | {initial(s.name) for s in rec.states if s.integer} | {VALID}
    wrt = tuple(leaf.name for leaf in lowered.program.inputs if leaf.name not in whole)
    seeds = (*(o.name for o in rec.outputs), *(final(s.name) for s in rec.states if not s.integer))
    return Candidate(name, lowered, wrt, seeds)


class Bench:
    """One trial's points, and what the recurrence itself gives at them; each computed when first asked for."""

    def __init__(self, rec: Recurrence, trial: Trial, seed: str):
        self.rec, self.trial = rec, trial
        self.oracles = Oracles(seed)
        self.draws: Draws = draw(rec, trial, self.oracles)
        self.sizes = trial.sizes(chunked=False)
        self._adjoints: dict[tuple[str, str], dict[str, Residues]] = {}

    def _given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the recurrence's names: a state's name holds its first value."""
        return {**values, **{s.name: values[initial(s.name)] for s in self.rec.states}}

    @cached_property
    def expected(self) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """The recurrence's outputs per token and last states, sequence by sequence."""
        given = self._given(self.draws.values)
        A = Field(self.oracles, self.sizes)
        return [reference.run(A, self.rec, given, self.trial.points, i, n) for i, n in enumerate(self.trial.lengths)]

    @cached_property
    def oracles_per_token(self) -> int:
        oracles = Oracles(self.oracles.seed)
        reference.run(Field(oracles, self.sizes), self.rec, self._given(self.draws.values), self.trial.points, 0, 1)
        return sum(oracles.calls.values())

    def slope(self, names: tuple[str, ...]) -> Residues:
        """<u, J v> per point, v the directions of the named inputs."""
        A = Duals(Field(self.oracles, self.sizes))
        values = {n: Dual(x, self.draws.tangents[n] if n in names else None) for n, x in self.draws.values.items()}
        total = np.zeros(self.trial.points, np.uint64)
        for i, n in enumerate(self.trial.lengths):
            outputs, last = reference.run(A, self.rec, self._given(values), self.trial.points, i, n)
            pairs = [(o[name].tangent, self.draws.seeds[name].p[:, i, :, t]) for t, o in enumerate(outputs) for name in o]
            pairs += [(x.tangent, self.draws.seeds[final(s)].p[:, i]) for s, x in last.items() if final(s) in self.draws.seeds]
            for tangent, seed in pairs:
                total = total if tangent is None else P.add(total, dot(tangent, seed))
        return total

    @cached_property
    def slope_of_all(self) -> Residues:
        return self.slope(tuple(self.draws.tangents))

    def run(self, program: Program, seeds: Mapping[str, Any] | None = None) -> dict[str, Residues]:
        """A program's results at the points, with time as tokens alone."""
        sizes = self.trial.sizes(is_chunked(program))
        given = {**self.draws.values, **(seeds or {})}
        arithmetic: Any = partial(Field, self.oracles)
        found = execute(program, arithmetic, laid_out(Field(self.oracles, sizes), given, program.inputs, self.trial), sizes)
        return {e.name: flat(self._wide(found[e.name].p, e.value.axes, sizes), e.value.axes) for e in program.outputs}

    def _wide(self, p: Residues, axes: tuple[str, ...], sizes: Mapping[str, int]) -> Residues:
        return np.broadcast_to(p, (self.trial.points, *(sizes[a.rstrip("'~")] for a in axes)))

    def adjoint(self, candidate: Candidate, which: str) -> dict[str, Residues]:
        """A form's adjoint, or the adjoint of that, at the points; each once."""
        key = (candidate.name, which)
        if key not in self._adjoints:
            first = {leaf.name: self.draws.seeds[n] for leaf, n in zip(added(candidate.adjoint, candidate.printed), candidate.seeds, strict=True)}
            program, seeds = candidate.adjoint, first
            if which == "second":
                A, program = Field(self.oracles, self.sizes), candidate.second
                directions = (self.draws.tangents[n] for n in candidate.wrt)
                seeds = {**first, **{leaf.name: A.given(t, t) for leaf, t in zip(added(program, candidate.adjoint), directions, strict=True)}}
            self._adjoints[key] = self.run(program, seeds)
        return self._adjoints[key]


def dot(x: Residues, y: Residues) -> Residues:
    """The inner product over all but the points."""
    product = P.mul(x, y)
    return P.sum(product.reshape((product.shape[0], -1)), (1,))


def _differences(bench: Bench, candidate: Candidate, other: Candidate) -> Iterator[Difference]:
    """Where a form and the recurrence, or the first form, are not the same."""
    for stage, program in ((STAGES[0], candidate.lowered.program), (STAGES[1], candidate.printed)):
        yield from ((stage, name) for name in _values_that_differ(bench, bench.run(program)))
    yield from ((STAGES[2], name) for name in _gradients_that_differ(bench, candidate))
    if candidate is not other:
        yield from ((STAGES[3], name) for name in _adjoints_that_differ(bench, candidate, other, "first"))
        # The second derivative is the costly one; the short trial has every stage of it.
        if bench.trial.chunks == 1:
            yield from ((STAGES[4], name) for name in _adjoints_that_differ(bench, candidate, other, "second"))


def _values_that_differ(bench: Bench, found: Mapping[str, Residues]) -> Iterator[str]:
    for o in bench.rec.outputs:
        pairs = ((found[o.name][:, i, :, t], values[o.name].p) for i, (run, _) in enumerate(bench.expected) for t, values in enumerate(run))
        if any((x != y).any() for x, y in pairs):
            yield o.name
    for s in bench.rec.states:
        if any((found[final(s.name)][:, i] != last[s.name].p).any() for i, (_, last) in enumerate(bench.expected)):
            yield final(s.name)


def _gradients_that_differ(bench: Bench, candidate: Candidate) -> Iterator[str]:
    """All gradients at once in one random direction; only if that fails, one input after the other."""
    tangents, found = bench.draws.tangents, bench.adjoint(candidate, "first")

    def holds(names: tuple[str, ...], slope: Residues) -> bool:
        total = np.zeros(bench.trial.points, np.uint64)
        for name in names:
            total = P.add(total, dot(found[f"d_{name}"], tangents[name]))
        return bool((total == slope).all())

    if not holds(candidate.wrt, bench.slope_of_all):
        yield from (f"d_{name}" for name in candidate.wrt if not holds((name,), bench.slope((name,))))


def _adjoints_that_differ(bench: Bench, candidate: Candidate, other: Candidate, which: str) -> Iterator[str]:
    mine, theirs = bench.adjoint(candidate, which), bench.adjoint(other, which)
    for name in mine:
        x, y = mine[name], theirs[name]
        if name in {f"d_d_{o.name}" for o in bench.rec.outputs}:
            # What the padding's outputs would be is no part of any form's meaning.
            pairs = [(x[:, i, :, :n], y[:, i, :, :n]) for i, n in enumerate(bench.trial.lengths)]
        else:
            pairs = [(x, y)]
        if any((a != b).any() for a, b in pairs):
            yield name
