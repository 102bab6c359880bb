"""What the analysis says of the step, tried in the prime field by the step itself: none of the analysis's own reasoning is used.

A step f that is affine in states has f(x + y - z) = f(x) + f(y) - f(z); one that is diagonal along an axis changes only those
entries of the next states whose entry before was changed; what a step does not read can be changed without effect; joining
elements in another grouping changes nothing. At random points, each of these is wrong for almost all steps that are otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqc.analysis.affine import Transition, fitting
from seqc.analysis.chain import Refusal
from seqc.analysis.components import Component, components
from seqc.analysis.monoid import Monoid, monoid, parts
from seqc.analysis.structure import Structure, analyse
from seqc.forms.conv import CONV
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.interp import evaluate
from seqc.ir.model import Domain
from seqc.ir.recurrence import Recurrence, State
from seqc.ir.rules import extent
from seqc.passes.blocks import in_blocks
from seqc.proof.arithmetic import Field
from seqc.proof.certificate import Fact, Gap
from seqc.proof.composed import NoFieldMeaning
from seqc.proof.field import MODULI, P, Residues
from seqc.proof.number import Number
from seqc.proof.oracles import Oracles
from seqc.proof.reach import COUNTED, reach
from seqc.proof.trial import small_axes, within

POINTS = 16
Values = Mapping[str, Number]


@dataclass(frozen=True)
class Claim:
    """kind: `affine`, `linear`, `diagonal`, `unread`, `monoid`. of: states whose next values it is about. by: what they depend on so."""

    kind: str
    of: tuple[str, ...]
    by: tuple[str, ...] = ()
    axis: str = ""
    joined: Monoid | None = None

    def words(self) -> str:
        match self.kind:
            case "affine":
                return f"affine in {_listed(self.by)}"
            case "linear":
                return "linear in states and inputs together, with the same coefficients at every token"
            case "diagonal":
                return f"diagonal along `{self.axis}`"
            case "unread":
                return f"independent of {_listed(self.by)}"
        return "joined in any grouping, and a state takes joined elements as it takes them in turn"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{n}`" for n in names)


def claims(rec: Recurrence, sizes: Mapping[str, int], forms: Collection[str]) -> Iterator[Claim]:
    """What the analysis says, and forms rely on."""
    try:
        yield from _of_structure(rec, analyse(rec, sizes))
    except Refusal:
        yield from _of_transitions(rec, sizes)
    for p in parts(rec, sizes):
        m = p if isinstance(p, Monoid) else monoid(rec, p, sizes)
        if m is not None:
            yield Claim("monoid", tuple(s.name for s in m.states), joined=m)
    if CONV.name in forms:
        yield Claim("linear", tuple(s.name for s in rec.states))


def _of_structure(rec: Recurrence, found: Structure) -> Iterator[Claim]:
    known: set[str] = set()
    for level in found.levels:
        for c in level:
            own = () if c.kind == "delay" else c.names
            if unread := tuple(s.name for s in rec.states if s.name not in {*known, *own}):
                yield Claim("unread", c.names, unread)
            first = c.names[0]
            if first in found.chains and any(r.rule is not None for step in found.chains[first].steps for r in step.rows):
                continue  # it writes any function of what it reads, which is no fact of its own
            if first in found.chains or first in found.others or first in found.couplings:
                yield Claim("affine", c.names, c.names)
            if first in found.others:
                yield from _diagonal(c, found.others[first])
            elif first in found.chains or first in found.couplings:  # reads contract keys, so that each column of values goes its own way
                columns = found.chains[first].value if first in found.chains else found.couplings[first].value
                yield from (Claim("diagonal", c.names, c.names, a) for a in columns)
        known |= {n for c in level for n in c.names}


def _of_transitions(rec: Recurrence, sizes: Mapping[str, int]) -> Iterator[Claim]:
    """Of states that are composed as they are, where no structure of the whole is found."""
    for c in (c for c in components(rec, sizes) if c.kind == "coupled"):
        with suppress(Refusal):
            found = fitting(c, sizes)
            yield Claim("affine", c.names, c.names)
            yield from _diagonal(c, found)


def _diagonal(c: Component, found: Transition) -> Iterator[Claim]:
    mixed = {a for axes in found.mixed.values() for a in axes}
    shared = [a for a in c.states[0].axes if all(a in s.axes for s in c.states)]
    yield from (Claim("diagonal", c.names, c.names, a) for a in shared if a not in mixed)


def examine(rec: Recurrence, sizes: Mapping[str, int], seed: str, forms: Collection[str]) -> tuple[tuple[Fact, ...], tuple[Gap, ...]]:
    """Every claim with what the step says of it; those that have no meaning in the field are gaps.

    Where blocks of tokens share a memory, of the step inside a block, in which that memory is as given.
    """
    shared: tuple[State, ...] = ()
    with suppress(Refusal):
        if (blocks := in_blocks(rec)) is not None:
            rec, shared = blocks.live, blocks.frozen
    step, facts, gaps = _Step(rec, sizes, seed, shared), [], []
    for claim in claims(rec, sizes, forms):
        line = next(s.span.line for s in rec.states if s.name == claim.of[0])
        try:
            facts.append(Fact(claim.of, claim.words(), line, step.holds(claim)))
        except NoFieldMeaning as e:
            gaps.append(Gap(f"{_listed(claim.of)}: {claim.words()}", str(e)))
    return tuple(facts), tuple(gaps)


class _Step:
    """The recurrence's own step at random points of one head and one token."""

    def __init__(self, rec: Recurrence, sizes: Mapping[str, int], seed: str, shared: tuple[State, ...]):
        self.rec = rec
        self.sizes = {"heads": 2, "groups": 1, "depth": 3, "depths": 7, **dict(small_axes(rec, (), sizes))}
        self.oracles = Oracles(f"facts {seed}", ordered=True)
        self.field = Field(self.oracles, self.sizes)
        self.met = reach(rec, ordered=True)
        self.states = {s.name: s for s in rec.states}
        self.drawn: dict[str, dict[str, Number]] = {}
        self.given = {i.name: self._drawn(i.name, i.axes, i.domain) for i in rec.inputs}
        self.fixed = {p.name: self._drawn(p.name, p.axes, Domain()) for p in rec.params}
        self.fixed |= {s.name: self._drawn(s.name, s.axes, Domain()) for s in shared}
        self.fixed |= {n: self._drawn(n, (), Domain()) for n in ("head", "heads", "depth", "depths")}

    def holds(self, claim: Claim) -> bool:
        match claim.kind:
            case "affine":
                x, y, z = (self._states(word) for word in "xyz")
                mixed = {n: self._sum(x[n], y[n], z[n]) if n in claim.by else x[n] for n in self.states}
                one, two, three = ({n: v if n in claim.by else x[n] for n, v in at.items()} for at in (x, y, z))
                return self._adds(*self._next(claim.of, mixed, one, two, three))
            case "linear":
                return self._linear(claim)
            case "diagonal":
                return self._diagonal(claim)
            case "unread":
                x, y = self._states("x"), self._states("y")
                other = {n: y[n] if n in claim.by else x[n] for n in self.states}
                return _same(*self._next(claim.of, x, other))
        assert claim.joined is not None
        return self._joins(claim.joined)

    def _linear(self, claim: Claim) -> bool:
        """f(x + y - z) = f(x) + f(y) - f(z) over states and inputs, f(0) = 0, outputs included; the coefficients are those of params."""
        outputs = {o.name: o.value for o in self.rec.outputs}
        x, y, z = ({**self._states(w), **{i.name: self._drawn(f"{w} {i.name}", i.axes, Domain()) for i in self.rec.inputs}} for w in "xyz")
        mixed = {n: self._sum(x[n], y[n], z[n]) for n in x}
        nothing = {n: self.field.structural(np.zeros_like, v) for n, v in x.items()}
        found = self._next(claim.of, mixed, x, y, z, nothing, more=outputs)
        return self._adds(*found[:4]) and all(not v.p.any() for v in found[4].values())

    def _diagonal(self, claim: Claim) -> bool:
        """Every state's first entry along the axis is changed; all next entries but the first are as before."""
        x, y = self._states("x"), self._states("y")

        def first(name: str) -> Number:
            at = 1 + self.states[name].axes.index(claim.axis)
            keep = np.arange(extent(self.sizes, claim.axis)).reshape([-1 if d == at else 1 for d in range(x[name].p.ndim)]) > 0
            return self.field.structural(lambda a, b: np.where(keep, a, b), x[name], y[name])

        before, after = self._next(claim.of, x, {n: first(n) if n in claim.by else x[n] for n in self.states})

        def rest(name: str, values: Mapping[str, Number]) -> Residues:
            return np.moveaxis(values[name].p, 1 + self.states[name].axes.index(claim.axis), 0)[1:]

        return all((rest(n, before) == rest(n, after)).all() for n in claim.of)

    def _joins(self, m: Monoid) -> bool:
        """(a . b) . c = a . (b . c), and a state that takes in a . b is one that takes in a, then b."""
        domains = {n: self._domain(m.given[n], n) for n in m.of}
        a, b, c = ({n: self._drawn(f"{w} {n}", m.of[n].axes, domains[n]) for n in m.of} for w in "abc")

        def joined(x: Values, y: Values) -> dict[str, Number]:
            leaves = {**{m.left[n].name: x[n] for n in m.of}, **{m.right[n].name: y[n] for n in m.of}}
            return self._values({n: (m.joined[n], m.of[n].axes) for n in m.of}, leaves)

        def acted(state: Values, x: Values) -> dict[str, Number]:
            leaves = {**state, **{m.right[n].name: x[n] for n in m.of}}
            return self._values({s.name: (m.acted[s.name], s.axes) for s in m.states}, leaves)

        start = self._states("x")
        in_turn = acted({**start, **acted(start, a)}, b)
        return _same(joined(joined(a, b), c), joined(a, joined(b, c))) and _same(acted(start, joined(a, b)), in_turn)

    def _domain(self, given: Expr, name: str) -> Domain:
        """A slope is not negative: that is what the closure of clipped maps rests on."""
        return Domain(low=0.0) if name.endswith(".slope") else Domain()

    # --- Evaluation ----------------------------------------------------------------------------------------------

    def _drawn(self, name: str, axes: tuple[str, ...], domain: Domain) -> Number:
        shape = (POINTS, *(extent(self.sizes, a) for a in axes))
        return within(self.field, domain, [self.oracles.draw(f"{name} {level}", m, shape) for level, m in enumerate(MODULI)], self.met)

    def _states(self, word: str) -> dict[str, Number]:
        if word not in self.drawn:
            self.drawn[word] = self._draw_states(word)
        return self.drawn[word]

    def _draw_states(self, word: str) -> dict[str, Number]:
        kinds = {n: COUNTED if s.integer else Domain() for n, s in self.states.items()}
        return {n: self._drawn(f"{word} {n}", s.axes, kinds[n]) for n, s in self.states.items()}

    def _next(self, names: Collection[str], *at: Values, more: Mapping[str, Expr] | None = None) -> list[dict[str, Number]]:
        """The next values at each setting of what the step reads; in one evaluation, the settings one after the other."""
        axes = {**{n: s.axes for n, s in self.states.items()}, **{f"output {o.name}": o.axes for o in self.rec.outputs}}
        wanted = {**{n: self.states[n].next for n in names}, **{f"output {n}": e for n, e in (more or {}).items()}}
        join = self.field.structural
        beside = {n: join(lambda x: np.concatenate([x] * len(at)), v) for n, v in {**self.fixed, **self.given}.items() if n not in at[0]}
        settings = {n: join(lambda *xs: np.concatenate(xs), *(values[n] for values in at)) for n in at[0]}
        found = self._values({n: (e, axes[n]) for n, e in wanted.items()}, {**beside, **settings}, len(at))
        return [{n: join(lambda x, i=i: x[i * POINTS : (i + 1) * POINTS], v) for n, v in found.items()} for i in range(len(at))]

    def _values(self, wanted: Mapping[str, tuple[Expr, tuple[str, ...]]], at: Values, settings: int = 1) -> dict[str, Number]:
        leaves: dict[str, Any] = {**self.fixed, **self.given, **at}
        found = evaluate(self.field, [ops.broadcast(e, axes) for e, axes in wanted.values()], leaves)

        def wide(value: Number, axes: tuple[str, ...]) -> Number:
            shape = (settings * POINTS, *(extent(self.sizes, a) for a in axes))
            return self.field.structural(lambda x: np.broadcast_to(x, shape), value)

        return {n: wide(v, axes) for (n, (_, axes)), v in zip(wanted.items(), found, strict=True)}

    def _sum(self, x: Number, y: Number, z: Number) -> Number:
        return self.field.combine("sub", self.field.combine("add", x, y), z)

    def _adds(self, mixed: Values, x: Values, y: Values, z: Values) -> bool:
        return all((P.sub(P.add(x[n].p, y[n].p), z[n].p) == mixed[n].p).all() for n in mixed)


def _same(x: Values, y: Values) -> bool:
    return all((x[n].p == y[n].p).all() for n in x)
