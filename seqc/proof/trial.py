"""One set of sizes with random points: what goes into the recurrence and into every form's programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, prod
from typing import Any

import numpy as np

from seqc.forms.base import SHOWN, VALID, final, initial, state_lead, unseen
from seqc.ir.expr import Expr, walk
from seqc.ir.meaning import remembered
from seqc.ir.model import Domain
from seqc.ir.ops import base
from seqc.ir.program import BATCH, CHUNKS, GROUPS, HEADS, TOKENS, Program
from seqc.ir.recurrence import Recurrence
from seqc.ir.rules import extent
from seqc.proof.arithmetic import Field
from seqc.proof.field import MODULI, REAL, L, P, Residues, raised
from seqc.proof.number import Number
from seqc.proof.oracles import Oracles
from seqc.proof.reach import COUNTED, NOWHERE, Reach, equalled, reach, scaled, whole_numbers

TIMES = (BATCH, HEADS, GROUPS, CHUNKS, TOKENS)
LISTED = 14  # the largest index for whose sake an axis is made longer


@dataclass(frozen=True)
class Trial:
    """Sizes and tokens per sequence. chunk: the length of a chunk; the axes' sizes are `axes`.

    begins: where in its first chunk each sequence begins, if chunks are blocks of the text; else none, which is at the start.
    """

    lengths: tuple[int, ...]
    chunk: int
    heads: int
    groups: int
    points: int
    axes: tuple[tuple[str, int], ...]
    begins: tuple[int, ...] = ()

    @property
    def chunks(self) -> int:
        ends = [n + b for n, b in zip(self.lengths, self.begins or (0,) * len(self.lengths), strict=True)]
        return -(-max(ends) // self.chunk)

    def sizes(self, chunked: bool) -> dict[str, int]:
        """Every axis: time as chunks of tokens, or as tokens alone."""
        t = self.chunk if chunked else self.chunk * self.chunks
        c = self.chunks if chunked else 1
        fixed = {BATCH: len(self.lengths), HEADS: self.heads, GROUPS: self.groups, CHUNKS: c, TOKENS: t}
        return {"heads": self.heads, "groups": self.groups, "depth": 3, "depths": 7, **dict(self.axes), **fixed}

    def sizes_of(self, program: Program) -> dict[str, int]:
        """Those that a program runs at: one without chunks runs for as many tokens as there are."""
        sizes = self.sizes(is_chunked(program))
        return sizes if is_chunked(program) else {**sizes, TOKENS: max(self.lengths)}

    def shown(self) -> tuple[tuple[str, int], ...]:
        """The sizes as a certificate lists them."""
        own = {"sequences": len(self.lengths), "heads": self.heads, "groups": self.groups, "tokens": max(self.lengths)}
        shortest = {"shortest": min(self.lengths)} if len(self.lengths) > 1 else {}
        begins = {"begins": max(self.begins)} if self.begins else {}
        return (*own.items(), *shortest.items(), ("chunk", self.chunk), *begins.items(), *self.axes)


def small_axes(rec: Recurrence, fixed: Iterable[str], sizes: Mapping[str, int], first: int = 2) -> tuple[tuple[str, int], ...]:
    """Every axis that the recurrence names: its own size if that is compiled in, else 2 or 3, by turns. first: of these."""
    nodes = tuple(walk(*(s.next for s in rec.states), *(o.value for o in rec.outputs)))
    own = {n for values in (rec.inputs, rec.params, rec.states, rec.outputs) for x in values for a in x.axes for n in _counted(a)}
    own |= {n for node in nodes for a in node.axes for n in _counted(a)} | {str(node.attr) for node in nodes if node.op.name == "size"}
    known = {**{s.name: int(s.default) for s in rec.sizes if s.default is not None}, **dict(rec.values), **sizes}
    kept = {**dict(rec.values), **{a: known[a] for a in fixed}}
    free = sorted(own - set(kept) - {*TIMES, "heads", "groups", "depth", "depths"})
    chosen = {**{a: 2 + (i + first) % 2 for i, a in enumerate(free)}, **{a: kept[a] for a in sorted(own & set(kept))}}
    for node in (*nodes, *nodes):  # what is settled last may be part of what was settled first
        _settle(chosen, node, set(free))
    return tuple(sorted(chosen.items()))


def _counted(axis: str) -> list[str]:
    """The sizes that an axis counts: K for K', K and V for K*V, none for a number."""
    return [n for n in base(axis).split("*") if not n.isdigit()]


def _settle(chosen: dict[str, int], node: Expr, free: set[str]) -> None:
    """Sizes that follow from others: of an axis that joins axes, of one whose entries are taken by number, or compared with one."""
    attr: Any = node.attr
    match node.op.name:
        case "compare":
            for axis in free & {base(a) for n in walk(node) if n.op.name == "iota" for a in n.axes}:
                chosen[axis] = max(chosen[axis], _entries_told_apart(node))
            return
        case "select" | "place":
            new, count = attr[0], max(extent(chosen, attr[0]), attr[1] + 1)
        case "flatten" | "unflatten":
            new, count = attr[1], prod(extent(chosen, a) for a in attr[0])
        case "concat" | "piece":
            new, count = attr[0], sum(extent(chosen, a) for a in attr[1])
        case _:
            return
    if base(new) in free:
        chosen[base(new)] = count


def _entries_told_apart(comparison: Expr) -> int:
    """How many entries an axis needs so that both outcomes of a comparison of its indices occur; around an end, so that ways differ."""
    inside = tuple(walk(comparison))
    numbers = [int(n.attr) for n in inside if n.op.name == "const" and Fraction(n.attr).denominator == 1]
    around = any(n.op.name == "modulo" and n.args[1].op.name == "size" for n in inside)
    return max(5 if around else 2, *(n + 2 for n in numbers if n <= LISTED), 2)


@dataclass(frozen=True)
class Draws:
    """Random residues for a trial, with time as tokens alone: values by the Programs' names of inputs, and directions.

    tangents: a direction for every input that is differentiated. bends: another, for second derivatives. seeds: an adjoint for every
    output, zero in the padding and for whole numbers and stabilisers, which have no gradient.
    """

    values: dict[str, Number]
    tangents: dict[str, Residues]
    bends: dict[str, Residues]
    seeds: dict[str, Number]


def draw(rec: Recurrence, trial: Trial, oracles: Oracles) -> Draws:
    """The points, from the seed and the names alone."""
    sizes = trial.sizes(chunked=False)
    field = Field(oracles, sizes)
    label = "/".join(f"{n}={k}" for n, k in trial.shown())

    def shape(axes: Iterable[str]) -> tuple[int, ...]:
        return (trial.points, *(extent(sizes, a) for a in axes))

    def residues(name: str, axes: tuple[str, ...]) -> list[Residues]:
        return [oracles.draw(f"{label}/{name} {level}", modulus, shape(axes)) for level, modulus in enumerate(MODULI)]

    values, met = {}, reach(rec, oracles.ordered)
    leaves = [(i.name, (*_timed(i.scope), *i.axes), i.domain) for i in rec.inputs]
    leaves += [(p.name, (*param_axes(p.scope), *p.axes), Domain()) for p in rec.params]
    leaves += [(initial(s.name), (*state_lead(s.scope), *s.axes), COUNTED if s.integer else Domain()) for s in rec.states]
    for name, axes, domain in leaves:
        values[name] = within(field, domain, residues(name, axes), met)
        if others := (met.equal or {}).get(name.removesuffix("@0")):
            which = oracles.draw(f"{label}/where {name} is equal", P, shape(axes))
            values[name] = equalled(field, values[name], domain, others, which)
    if trial.begins:  # in any block, at that place of it
        at = values[initial("position")].whole
        assert at is not None
        values[initial("position")] = field.whole(at - at % trial.chunk + np.array(trial.begins))
    units = {s.name for s in rec.states if s.role == "stabiliser"}
    directions = [n for n, _, domain in leaves if not domain.integer and n not in map(initial, units)]

    def ways(word: str) -> dict[str, Residues]:
        return {n: oracles.draw(f"{label}/{word} of {n}", P, values[n].p.shape) for n in directions}

    alive = np.arange(sizes[TOKENS]) < np.array(trial.lengths)[:, None]
    seeds = {}
    for o in rec.outputs:
        mask = alive.reshape((len(alive), 1, -1, *(1 for _ in o.axes))).astype(np.uint64)
        drawn = residues(f"adjoint of {o.name}", (BATCH, HEADS, TOKENS, *o.axes))
        seeds[o.name] = field.given([x * mask for x in drawn])
    for s in rec.states:
        drawn = residues(f"adjoint of {s.name}", (*state_lead(s.scope), *s.axes))
        seeds[final(s.name)] = field.given([np.zeros_like(x) for x in drawn] if s.integer or s.name in units else drawn)
    if hidden := unseen(rec):
        values[SHOWN] = field.given(residues(SHOWN, ("0", *hidden)))
    values[VALID] = field.whole(alive.astype(np.int64)[None])
    return Draws(values, ways("direction"), ways("bend"), seeds)


def _timed(scope: str) -> tuple[str, ...]:
    """The leading axes of a value at every token, as draws have them: time last."""
    return (BATCH, HEADS) if scope == "sequence" else (*state_lead(scope), TOKENS)


def param_axes(scope: str) -> tuple[str, ...]:
    """The leading axes of a param of this scope."""
    return {"head": (HEADS,), "group": (GROUPS,), "layer": ()}[scope]


def within(field: Field, domain: Domain, drawn: list[Residues], met: Reach = NOWHERE) -> Number:
    """A value of the domain's sign: positive numbers are the generator's powers. Whole numbers are those that the text may tell apart.

    drawn: residues by level, and real numbers behind them, which come to lie inside the domain.
    """
    if domain.integer:
        return field.whole(whole_numbers(drawn[0], domain, met))
    if domain.low >= 0:
        drawn = [raised(0, drawn[0] % np.uint64(L.value)), *drawn[1:]]
    elif domain.high <= 0:
        drawn = [P.neg(raised(0, drawn[0] % np.uint64(L.value))), *drawn[1:]]
    return field.given([*drawn[:REAL], _inside(domain, drawn[REAL], met)])


def _inside(domain: Domain, x: Any, met: Reach) -> Any:
    """Real numbers of (-2, 2), scaled where the domain has room for it, moved into the domain."""
    if isfinite(domain.low) and isfinite(domain.high):
        return domain.low + (domain.high - domain.low) * (x + 2) / 4
    x = scaled(x, met)
    return domain.low + np.abs(x) if isfinite(domain.low) else domain.high - np.abs(x) if isfinite(domain.high) else x


def laid_out(A: Any, values: Mapping[str, Any], leaves: Iterable[Expr], trial: Trial) -> dict[str, Any]:
    """The values as a Program's inputs want them: its axes in its order, tokens split into chunks where the leaf has them.

    Where it has none, tokens that no sequence has are left out.
    """

    def fitted(x: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
        have = _time_last(axes)
        if TOKENS in axes and CHUNKS not in axes:
            x = x.take(range(A.sizes[TOKENS]), 1 + have.index(TOKENS))
        if CHUNKS in axes:
            at = 1 + have.index(CHUNKS)
            x = _moved(x, trial.begins, 1 + have.index(BATCH), at) if trial.begins else x
            x = x.reshape((*x.shape[:at], trial.chunks, trial.chunk, *x.shape[at + 1 :]))
        return x.transpose(0, *(1 + have.index(a) for a in axes))

    def placed(value: Any, axes: tuple[str, ...]) -> Any:
        return remembered(A, ("laid out", axes), (value,), lambda: A.structural(lambda x: fitted(x, axes), value))

    return {leaf.name: placed(values[leaf.name], leaf.axes) for leaf in leaves}


def _moved(x: np.ndarray, by: Iterable[int], batch: int, time: int) -> np.ndarray:
    """Each sequence so many tokens later; what leaves at the end enters as padding."""
    rows = [np.roll(np.take(x, [i], batch), n, time) for i, n in enumerate(by)]
    return np.concatenate(rows, batch) if x.shape[batch] > 1 else rows[0]


def flat(p: Residues, axes: tuple[str, ...], trial: Trial) -> Residues:
    """A Program's result as draws are laid out, with chunks of tokens as tokens alone; zero for tokens that it did not see."""
    want = _time_last(axes)
    p = p.transpose(0, *(1 + axes.index(a) for a in want))
    if CHUNKS in axes:
        at = 1 + want.index(CHUNKS)
        p = p.reshape((*p.shape[:at], -1, *p.shape[at + 2 :]))
        return _moved(p, (-n for n in trial.begins), 1 + want.index(BATCH), at) if trial.begins else p
    if TOKENS not in axes:
        return p
    wide = [(0, trial.sizes(chunked=False)[TOKENS] - n if a == TOKENS else 0) for a, n in zip(want, p.shape[1:], strict=True)]
    return np.pad(p, [(0, 0), *wide])


def _time_last(axes: tuple[str, ...]) -> tuple[str, ...]:
    lead = tuple(a for a in TIMES if a in axes)
    return (*lead, *(a for a in axes if a not in lead))


def is_chunked(program: Program) -> bool:
    return any(CHUNKS in leaf.axes for leaf in program.inputs)
