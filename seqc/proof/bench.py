"""One trial at work: what the recurrence gives at its points, and what a form's programs give there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from seqc.analysis.monoid import by_order
from seqc.forms.base import final, initial, state_lead
from seqc.ir import ops
from seqc.ir.execute import execute
from seqc.ir.expr import Expr
from seqc.ir.interp import evaluate
from seqc.ir.program import Program
from seqc.ir.recurrence import Output, Recurrence
from seqc.ir.rules import extent
from seqc.proof import reference
from seqc.proof.arithmetic import Field
from seqc.proof.candidate import Candidate
from seqc.proof.complexes import Complex, Complexes
from seqc.proof.dual import Dual, Duals
from seqc.proof.field import MODULI, P, Residues
from seqc.proof.number import Number
from seqc.proof.oracles import Oracles
from seqc.proof.reach import choices
from seqc.proof.trial import Trial, draw, flat, laid_out

STEP = "one token of the text"
STAGES = ("as lowered", "as printed", "gradient", "gradient of another form", "second gradient")


class Bench:
    """A recurrence at a trial's points; everything is computed when first asked for, and once.

    A state S with a stabiliser m stands for S e^m, which is what is compared: a form may choose an m of its own.
    """

    def __init__(self, rec: Recurrence, trial: Trial, seed: str):
        self.rec, self.trial = rec, trial
        self.sizes = trial.sizes(chunked=False)
        self.choices = {f"@{i}": e for i, e in enumerate(choices(rec))}
        asked = (Output(n, e.axes, ops.where(e, ops.number(1), ops.number(0)), rec.span) for n, e in self.choices.items())
        self.watched = replace(rec, outputs=(*rec.outputs, *asked))  # the recurrence that also says how its choices come out
        self.oracles = Oracles(seed, by_order(rec, self.sizes))
        self.draws = draw(rec, trial, self.oracles)
        self._adjoints: dict[tuple[str, str], dict[str, Residues]] = {}
        self._units: dict[str, dict[str, Number]] = {}
        self._given_seeds: dict[str, dict[str, Number]] = {}
        self._memo: dict[Any, dict[Any, Any]] = {}
        self.scaled = {s.name: s for s in rec.states if s.stabiliser is not None}

    # --- The recurrence ------------------------------------------------------------------------------------------

    def _given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the recurrence's names: a state's name holds its first value."""
        return {**values, **{s.name: values[initial(s.name)] for s in self.rec.states}}

    def _unit(self, A: Any, name: str, states: Mapping[str, Any]) -> Any:
        """e^m for a state's stabiliser m, with the state's axes."""
        s = self.scaled[name]
        (m,) = (t for t in self.rec.states if t.name == s.stabiliser)
        own, lead = (*state_lead(s.scope), *s.axes), state_lead(m.scope)
        value = ops.broadcast(ops.exp(ops.var(m.name, (*lead, *m.axes))), own)
        return evaluate(A, (value,), {m.name: states[m.name]})[0]

    def unscaled(self, A: Any, states: Mapping[str, Any], one: bool = False) -> dict[str, Any]:
        """States as the text has them; `one` sequence's alone, without its axis."""

        def side(x: Any, at: Callable[[Any], Any]) -> Any:
            return A.structural(at, x) if one else x

        wide = {n: side(x, lambda a: a[:, None]) for n, x in states.items()}
        products = {n: A.combine("mul", wide[n], self._unit(A, n, wide)) for n in self.scaled}
        return {**states, **{n: side(x, lambda a: a[:, 0]) for n, x in products.items()}}

    def _run(self, A: Any, values: Mapping[str, Any]) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
        found = []
        for i, n in enumerate(self.trial.lengths):
            outputs, last = reference.run(A, self.watched, self._given(values), self.trial.points, i, n)
            found.append((outputs, self.unscaled(A, last, one=True)))
        return found

    @cached_property
    def steps(self) -> list[tuple[list[dict[str, Dual]], dict[str, Dual]]]:
        """The recurrence's outputs per token and last states, sequence by sequence, with every input's direction."""
        values = {n: Dual(x, self.draws.tangents.get(n)) for n, x in self.draws.values.items()}
        return self._run(Duals(Field(self.oracles, self.sizes)), values)

    @cached_property
    def expected(self) -> list[tuple[list[dict[str, Number]], dict[str, Number]]]:
        """Outputs per token and last states, sequence by sequence."""

        def values(found: Mapping[str, Dual]) -> dict[str, Number]:
            return {n: x.value for n, x in found.items()}

        return [([values(o) for o in outputs], values(last)) for outputs, last in self.steps]

    def outcomes(self) -> dict[Expr, set[bool]]:
        """In which ways each choice comes out."""
        steps = [x for outputs, _ in self.steps for x in outputs]
        return {e: {bool(v) for x in steps for v in np.unique(x[n].value.p)} for n, e in self.choices.items()}

    @cached_property
    def oracles_per_token(self) -> int:
        """How often one token's step asks a random function."""
        oracles = Oracles(self.oracles.seed, self.oracles.ordered)
        run, last = reference.run(Field(oracles, self.sizes), self.rec, self._given(self.draws.values), self.trial.points, 0, 1)
        for value in (*run[0].values(), *last.values()):
            value.residue(0)
        return sum(oracles.calls.values())

    def slope(self, names: tuple[str, ...]) -> Residues:
        """<u, J v> per point: u the seeds, v the directions of the named inputs."""
        values = {n: Dual(x, self.draws.tangents.get(n) if n in names else None) for n, x in self.draws.values.items()}
        return self._along(self._run(Duals(Field(self.oracles, self.sizes)), values))

    @cached_property
    def slope_of_all(self) -> Residues:
        return self._along(self.steps)

    def _along(self, steps: list[tuple[list[dict[str, Dual]], dict[str, Dual]]]) -> Residues:
        """<u, J v> per point, of what a run found in the direction v."""
        seeds = self.draws.seeds
        total = np.zeros(self.trial.points, np.uint64)
        for i, (outputs, last) in enumerate(steps):
            pairs = [(x[o.name].tangent, seeds[o.name].p[:, i, :, t]) for t, x in enumerate(outputs) for o in self.rec.outputs]
            pairs += [(x.tangent, seeds[final(s)].p[:, i]) for s, x in last.items()]
            for tangent, seed in pairs:
                total = total if tangent is None else P.add(total, dot(tangent, seed))
        return total

    # --- The forms -----------------------------------------------------------------------------------------------

    def values(self, program: Program) -> dict[str, Residues]:
        """A forward program's results as the text has them: states in their own units."""
        found = self._executed(program, {})
        A = Field(self.oracles, self.trial.sizes_of(program))
        states = self.unscaled(A, {s.name: found[final(s.name)] for s in self.rec.states})
        return self._flat(program, {n: x.p for n, x in {**found, **{final(n): x for n, x in states.items()}}.items()})

    def units(self, form: Candidate) -> dict[str, Number]:
        """e^m at the end, by the name of each state that has a stabiliser m: a form may choose its own."""
        if self.scaled and form.name not in self._units:
            found = self._executed(form.forward, {})
            A = Field(self.oracles, self.sizes)
            states = {s.name: found[final(s.name)] for s in self.rec.states}
            self._units[form.name] = {n: self._unit(A, n, states) for n in self.scaled}
        return self._units.get(form.name, {})

    def run(self, program: Program, seeds: Mapping[str, Any]) -> dict[str, Residues]:
        """A program's results at the points, with time as tokens alone."""
        return self._flat(program, {n: x.p for n, x in self._executed(program, seeds).items()})

    def _executed(self, program: Program, seeds: Mapping[str, Any]) -> dict[str, Number]:
        sizes = self.trial.sizes_of(program)
        arithmetic: Any = partial(Field, self.oracles, memo=self._memo)
        given = laid_out(Field(self.oracles, sizes, self._memo), {**self.draws.values, **seeds}, program.inputs, self.trial)
        return execute(program, arithmetic, given, sizes)

    def _flat(self, program: Program, found: Mapping[str, Residues]) -> dict[str, Residues]:
        sizes = self.trial.sizes_of(program)

        def whole(p: Residues, axes: tuple[str, ...]) -> Residues:
            return flat(np.broadcast_to(p, (self.trial.points, *(extent(sizes, a) for a in axes))), axes, self.trial)

        return {e.name: whole(found[e.name], e.value.axes) for e in program.outputs if e.name in found}

    def forget(self) -> None:
        """Drops the values of nodes: the next form shares few. A value knows its arithmetic, which knows them: no count would end them."""
        for known in self._memo.values():
            known.clear()
        self._memo.clear()

    def adjoint(self, form: Candidate, which: str) -> dict[str, Residues]:
        """A form's `first` or `second` adjoint at the points."""
        key = (form.name, which)
        if key not in self._adjoints:
            seeds = self._seeds(form)
            if which == "first":
                self._adjoints[key] = self.run(form.backward, seeds)
            else:
                self._adjoints[key] = self.run(form.double_backward, {**seeds, **self._directions(form)})
        return self._adjoints[key]

    def _seeds(self, form: Candidate) -> dict[str, Number]:
        """The outputs' adjoints, those of last states in the form's units."""
        if form.name not in self._given_seeds:
            A, units = Field(self.oracles, self.sizes), {final(n): u for n, u in self.units(form).items()}
            of = {n: A.combine("mul", x, units[n]) if n in units else x for n, x in self.draws.seeds.items()}
            self._given_seeds[form.name] = {leaf.name: of[e.name] for leaf, e in zip(form.seeds, form.forward.outputs, strict=True)}
        return self._given_seeds[form.name]

    def bent(self, form: Candidate, names: tuple[str, ...]) -> Residues:
        """<w, B'(x) v> per point, for a form's backward B of the inputs x: w their directions, v the bends of those named."""
        program, bends = form.backward, self.draws.bends
        sizes = self.trial.sizes_of(program)
        duals: Any = lambda sizes: Duals(Field(self.oracles, sizes, self._memo))  # noqa: E731
        values = {n: Dual(x, bends.get(n) if n in names else None) for n, x in self.draws.values.items()}
        seeds = {n: Dual(x) for n, x in self._seeds(form).items()}
        found = execute(program, duals, laid_out(duals(sizes), {**values, **seeds}, program.inputs, self.trial), sizes)
        changes = self._flat(program, {n: x.tangent for n, x in found.items() if x.tangent is not None})
        total = np.zeros(self.trial.points, np.uint64)
        for name in form.wrt:
            if f"d_{name}" in changes:
                total = P.add(total, dot(changes[f"d_{name}"], self.direction(name)))
        return total

    def _directions(self, form: Candidate) -> dict[str, Any]:
        A = Field(self.oracles, self.sizes)
        residues = ((leaf.name, self.direction(n)) for leaf, n in zip(form.directions, form.wrt, strict=True))
        return {name: A.given([modulus.reduce(p) for modulus in MODULI]) for name, p in residues}

    def direction(self, name: str) -> Residues:
        """The random direction of an input; zero for whole numbers."""
        found = self.draws.tangents.get(name)
        return np.zeros_like(self.draws.values[name].p) if found is None else found


def dot(x: Residues, y: Residues) -> Residues:
    """The inner product over all but the points."""
    product = P.mul(x, y)
    return P.sum(product.reshape((product.shape[0], -1)), (1,))


def step_differs(bench: Bench, text: Recurrence) -> Iterator[str]:
    """Where one token of the recurrence that forms take is not one token of the text, in values or in a derivative.

    The states are any, so that a whole sequence follows token by token. text: with its complex states, implicit steps and
    exponentials as they are written.
    """
    duals = Duals(Field(bench.oracles, bench.sizes))
    values = {n: Dual(x, bench.draws.tangents.get(n)) for n, x in bench.draws.values.items()}
    given = bench._given(values)
    mine, last = reference.run(duals, bench.rec, given, bench.trial.points, 0, 1)
    found = {**mine[0], **bench.unscaled(duals, last, one=True)}
    first = {**given, **bench.unscaled(duals, {s.name: given[s.name] for s in bench.rec.states})}
    theirs, after = reference.run(Complexes(duals), text, _complex(text, first), bench.trial.points, 0, 1)
    for name, x in {**theirs[0], **after}.items():
        parts = [(name, x.re)] if name in found else [(f"{name}.re", x.re), (f"{name}.im", x.im)]
        for part, y in parts:
            if (found[part].value.p != y.value.p).any() or (_tangent(found[part]) != _tangent(y)).any():
                yield part


def _complex(text: Recurrence, given: Mapping[str, Dual]) -> dict[str, Complex]:
    """Values by the text's names: a complex state from its parts."""
    pairs = {s.name: Complex(given[f"{s.name}.re"], given[f"{s.name}.im"]) for s in text.states if s.dtype == "complex"}
    return {n: Complex(x) for n, x in given.items()} | pairs


def _tangent(x: Dual) -> Residues:
    return np.zeros_like(x.value.p) if x.tangent is None else x.tangent


def differences(bench: Bench, form: Candidate, other: Candidate) -> Iterator[tuple[str, str]]:
    """Stage and output wherever a form and the recurrence, or the other form, are not the same."""
    for stage, program in ((STAGES[0], form.lowered), (STAGES[1], form.forward)):
        yield from ((stage, name) for name in _values_that_differ(bench, bench.values(program)))
    yield from ((STAGES[2], name) for name in _gradients_that_differ(bench, form))
    if form is other:
        yield from ((STAGES[4], name) for name in _second_that_differ(bench, form))
    else:
        yield from ((STAGES[3], name) for name in _adjoints_that_differ(bench, form, other, "first"))
        yield from ((STAGES[4], name) for name in _adjoints_that_differ(bench, form, other, "second"))


def _values_that_differ(bench: Bench, found: Mapping[str, Residues]) -> Iterator[str]:
    for o in bench.rec.outputs:
        pairs = ((found[o.name][:, i, :, t], values[o.name].p) for i, (run, _) in enumerate(bench.expected) for t, values in enumerate(run))
        if any((x != y).any() for x, y in pairs):
            yield o.name
    for s in (s for s in bench.rec.states if s.role != "stabiliser"):
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
    mine, theirs = _in_text_units(bench, form, which), _in_text_units(bench, other, which)
    of_outputs = {f"d_{leaf.name}" for leaf, o in zip(form.seeds, bench.rec.outputs, strict=False)}
    of_counts = {f"d_{initial(s.name)}" for s in bench.rec.states if s.integer}  # whole numbers have no gradient
    for name in (n for n in mine if n not in of_counts):
        x, y = mine[name], theirs[name]
        if name in of_outputs:
            # What an output would be in the padding is no part of any form's meaning.
            differ = any((x[:, i, :, :n] != y[:, i, :, :n]).any() for i, n in enumerate(bench.trial.lengths))
        else:
            differ = bool((x != y).any())
        if differ:
            yield name


def _second_that_differ(bench: Bench, form: Candidate) -> Iterator[str]:
    """The adjoint of the backward B(x, u) = J(x)^T u in the directions w, against derivatives that are taken forward, op by op.

    What belongs to u is J w, the recurrence's own tangents. What belongs to x is y with <y, v> = <w, B'(x) v> for a v of its own.
    """
    found = _in_text_units(bench, form, "second")
    of = {e.name: f"d_{leaf.name}" for leaf, e in zip(form.seeds, form.forward.outputs, strict=True)}
    for o in bench.rec.outputs:
        pairs = ((found[of[o.name]][:, i, :, t], x[o.name]) for i, (run, _) in enumerate(bench.steps) for t, x in enumerate(run))
        if any((x != _tangent(y)).any() for x, y in pairs):
            yield of[o.name]
    for s in (s for s in bench.rec.states if s.role != "stabiliser" and not s.integer):
        name = of[final(s.name)]
        if any((found[name][:, i] != _tangent(last[s.name])).any() for i, (_, last) in enumerate(bench.steps)):
            yield name

    def holds(names: tuple[str, ...]) -> bool:
        total = np.zeros(bench.trial.points, np.uint64)
        for name in (n for n in names if n in bench.draws.bends):
            total = P.add(total, dot(found[f"d_{name}"], bench.draws.bends[name]))
        return bool((total == bench.bent(form, names)).all())

    if not holds(form.wrt):
        yield from (f"d_{name}" for name in form.wrt if not holds((name,)))


def _in_text_units(bench: Bench, form: Candidate, which: str) -> dict[str, Residues]:
    """A form's adjoint; what belongs to the adjoint of a last state is taken in the text's units, as those of two forms differ."""
    found = dict(bench.adjoint(form, which))
    for leaf, e in zip(form.seeds, form.forward.outputs, strict=True):
        units = {final(n): u for n, u in bench.units(form).items()}
        if e.name in units and f"d_{leaf.name}" in found:
            found[f"d_{leaf.name}"] = P.mul(found[f"d_{leaf.name}"], units[e.name].p)
    return found
