"""Programs with one node changed: what a lowering or an adjoint looks like that is wrong in one place.

`python tests/proof/mutants.py --each 20` draws mutants of the programs of many layers, and says how many of those that float64
tells from the original the proof rejects, and how many a comparison in bfloat16 would.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from seqc.compiler import Checked, check_file, judge, prepared, programs
from seqc.diagnostics import InternalError
from seqc.emit.layer import Programs
from seqc.forms import FORMS, Applies
from seqc.forms.base import SHOWN, VALID
from seqc.ir import ops
from seqc.ir.execute import execute
from seqc.ir.expr import Expr, Mask, rebuild, substitute, walk
from seqc.ir.interp import Reals
from seqc.ir.program import BATCH, CHUNKS, TOKENS, Carry, Map, Program, body_roots, changed_equations, flat
from seqc.ir.program import changed as changed_stage
from seqc.ir.rules import extent
from seqc.proof.prove import prove
from seqc.proof.trial import Trial, small_axes

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (
    "linear_attention", "gla", "gated_deltanet", "deltaproduct", "rwkv7", "kda", "mamba2", "gsa", "mesanet", "rg_lru", "lru", "s4d",
    "linoss", "rwkv4", "mlstm", "mamba3", "precond_gdn", "swla", "retnet", "titans_linear", "paragru", "paralstm",
)  # fmt: skip
BFLOAT = 1e-2  # what a comparison of 16-bit results commonly allows, relative and absolute
POINTS = 100  # random points of float64 at which a mutant may show

STAGES = ("forward", "backward", "double_backward")

Change = Callable[[Expr, tuple[Expr, ...]], Expr | None]


# --- What may go wrong at a node -------------------------------------------------------------------------------------


def _mask(e: Expr) -> Mask | None:
    found = [a for a in (e.attr if isinstance(e.attr, tuple) else (e.attr,)) if isinstance(a, Mask)]
    return found[0] if found else None


def _with_mask(e: Expr, args: tuple[Expr, ...], mask: Mask) -> Expr:
    attr = tuple(mask if isinstance(a, Mask) else a for a in e.attr) if isinstance(e.attr, tuple) else mask
    return e.op.build(args, attr)


def _without(args: tuple[Expr, ...], i: int, axes: tuple[str, ...]) -> Expr:
    """A product without one factor, with the axes that it had."""
    rest = tuple(a for n, a in enumerate(args) if n != i)
    have = {a for x in rest for a in x.axes}
    return ops.broadcast(ops.contract(rest, tuple(a for a in axes if a in have)), axes)


def _turned(x: Expr) -> Iterator[Expr]:
    """The value with two axes of one kind exchanged: rows for columns, K for K'."""
    for i, a in enumerate(x.axes):
        for b in x.axes[i + 1 :]:
            if ops.base(a) == ops.base(b) or {a[:2], b[:2]} <= {"@r", "@s"}:
                yield ops.rename(x, {a: b, b: a})


def changes(e: Expr) -> Iterator[tuple[str, Change]]:
    """Every way in which a node may be wrong, by name."""
    mask, name = _mask(e), e.op.name
    if mask is not None:
        for by in (1, -1):
            yield f"{name}: mask by {by:+d}", lambda e, a, by=by: _with_mask(e, a, replace(mask, offset=mask.offset + by))
    if name in ("mul", "contract") and len(e.args) > 1:
        for i in range(len(e.args)):
            yield f"{name}: a factor dropped", lambda e, a, i=i: _without(a, i, e.axes)
    if name in ("add", "sub"):
        other = "sub" if name == "add" else "add"
        yield f"{name}: wrong sign", lambda e, a: ops.TABLE[other].build(a)
        for i in (0, 1):
            yield f"{name}: a term dropped", lambda e, a, i=i: ops.broadcast(a[i], e.axes)
    if name == "exp":
        yield "exp: decay dropped", lambda e, a: ops.broadcast(ops.number(1), e.axes)
        yield "exp: half the exponent", lambda e, a: ops.exp(ops.mul(ops.number(Fraction(1, 2)), a[0]))
        yield "exp: sign of the exponent", lambda e, a: ops.exp(ops.neg(a[0]))
    if name == "neg":
        yield "neg: dropped", lambda e, a: a[0]
    if name == "cumsum":
        yield "cumsum: reversed", lambda e, a: ops.cumsum(a[0], str(e.attr[0]), not e.attr[1])
        yield "cumsum: exclusive", lambda e, a: ops.shift(ops.cumsum(a[0], *e.attr), str(e.attr[0]), -1 if e.attr[1] else 1)
    if name == "shift":
        for by in (1, -1):
            yield f"shift: by {by:+d}", lambda e, a, by=by: ops.shift(a[0], str(e.attr[0]), int(e.attr[1]) + by)
    if name in ("select", "place"):
        yield f"{name}: another entry", lambda e, a: e.op.build(a, (e.attr[0], 0 if e.attr[1] else -1))
    if name == "where":
        yield "where: branches exchanged", lambda e, a: ops.where(a[0], a[2], a[1])
    if name == "compare" and e.attr in ("lt", "le", "gt", "ge"):
        near = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"}[str(e.attr)]
        yield "compare: the border", lambda e, a: ops.compare(near, *a)
    if name == "div":
        yield "div: not divided", lambda e, a: ops.broadcast(a[0], e.axes)
    if name == "maximum":
        yield "maximum: one side only", lambda e, a: ops.broadcast(a[0], e.axes)
    if name in ("decay", "decayed", "decayed_solve"):
        upper = len(e.args) - 2
        yield f"{name}: exponents forgotten", lambda e, a: e.op.build((*a[:upper], *(ops.mul(ops.number(0), x) for x in a[upper:])), e.attr)
    if name == "strict_solve":
        mask, back, rule, leaves = e.attr
        for i, leaf in enumerate(leaves):
            new = substitute((rule,), {leaf: ops.mul(ops.number(2), leaf)})[0]
            yield f"strict_solve: leaf {i} of the rule doubled", lambda e, a, new=new: e.op.build(a, (mask, back, new, leaves))
        yield "strict_solve: rows do not see each other", lambda e, a: e.op.build((ops.mul(ops.number(0), a[0]), *a[1:]), e.attr)
    if name == "unit_lower_inverse":
        yield "unit_lower_inverse: sign", lambda e, a: e.op.build((ops.neg(a[0]),), e.attr)
    if name == "apply_inverse":
        yield "apply_inverse: not applied", lambda e, a: ops.broadcast(a[2], e.axes)
    if name == "convolve":
        yield "convolve: correlated", lambda e, a: ops.TABLE["correlate"].build(a, e.attr)
    if name == "const" and e.attr not in (0,):
        yield "const: one more", lambda e, a: ops.number(e.attr + 1)
    if name == "iota":
        yield "iota: from one", lambda e, a: ops.add(e, ops.number(1))
    if e.args and name in ("contract", "solve", "unit_lower_inverse", "masked"):
        for i, x in enumerate(e.args):
            for n, _ in enumerate(_turned(x)):
                yield f"{name}: not transposed", lambda e, a, i=i, n=n: e.op.build((*a[:i], list(_turned(a[i]))[n], *a[i + 1 :]), e.attr)


def stages_of(program: Program, node: Expr, change: Change) -> Program:
    """The program with one node changed wherever it stands."""

    def rule(e: Expr, args: tuple[Expr, ...]) -> Expr:
        if e is node:
            return change(e, args) or e
        return e if args == e.args else e.op.build(args, e.attr)

    def new(values: Iterable[Expr]) -> tuple[Expr, ...]:
        values = tuple(values)
        return tuple(v if v.axes == e.axes else ops.broadcast(v, e.axes) for e, v in zip(values, rebuild(values, rule), strict=True))

    stages = tuple(changed_stage(s, new) for s in program.stages)
    return replace(program, stages=stages, outputs=changed_equations(program.outputs, new))


def body(s: Map | Carry) -> tuple[Expr, ...]:
    return body_roots(s) if isinstance(s, Carry) else tuple(e.value for e in s.equations)


def nodes(program: Program) -> list[Expr]:
    roots = [e.value for e in program.outputs] + [e for s in flat(program.stages) for e in body(s)]
    return [e for e in walk(*roots) if e.op.name != "var"]


# --- Mutants -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A layer's form: its programs, and what the proof needs."""

    layer: str
    checked: Checked
    built: Programs

    @property
    def name(self) -> str:
        return f"{self.layer} {self.built.form.name}"


@dataclass(frozen=True)
class Mutant:
    subject: Subject
    which: str  # of `STAGES`
    what: str
    program: Program
    node: str = ""

    def __str__(self) -> str:
        return f"{self.subject.name} {self.which}, {self.what}: {self.node}"


def subjects(layers: tuple[str, ...]) -> Iterator[Subject]:
    for layer in layers:
        c = check_file(ROOT / "specs" / f"{layer}.seq")
        verdicts = judge(c)
        for form in FORMS:
            if isinstance(verdicts[form.name], Applies):
                yield Subject(layer, c, programs(c, form))


def mutants(subject: Subject, count: int, rng: random.Random) -> Iterator[Mutant]:
    """Random mutants of a form's programs: first a node, then a way to be wrong."""
    for which in STAGES:
        program: Program = getattr(subject.built, which)
        every = [(node, what, change) for node in nodes(program) for what, change in changes(node)]
        rng.shuffle(every)
        made, seen = 0, Counter[str]()
        for node, what, change in every:
            if made == count:
                break
            if seen[what] * 4 > count:  # no kind of mistake takes over
                continue
            try:
                changed = stages_of(program, node, change)
            except InternalError:
                continue  # it would not be a program
            if changed != program:
                seen[what] += 1
                made += 1
                yield Mutant(subject, which, what, changed, repr(node)[:200])


# --- How float64 and bfloat16 see them ----------------------------------------------------------------------------------


class Numbers:
    """A form's programs over random float64 inputs, at sizes with padding and chunks that do not divide."""

    def __init__(self, subject: Subject):
        rec = prepared(subject.checked)
        axes = small_axes(rec, set(subject.built.lowered.fixed), subject.checked.sizes)
        self.trial = Trial((7, 4), 3, 2, 2, 1, axes)
        self.sizes = self.trial.sizes(any(CHUNKS in leaf.axes for leaf in subject.built.forward.inputs))
        self.domains = {i.name: i.domain for i in rec.inputs}
        self.kinds = {f"{s.name}@0": s for s in rec.states}
        # Whole numbers and stabilisers have no adjoints: none is given for their last values, and none of their first is looked at.
        without = [s.name for s in rec.states if s.integer or s.role == "stabiliser"]
        self.silent, self.ignored = {f"d_{n}@T" for n in without}, {f"d_{n}@0" for n in without}
        # In the adjoint of the backward, no direction of their gradients is given, and the adjoint of what was not given is not looked at.
        built = subject.built
        self.seeds = {leaf.name for leaf in built.backward.inputs[len(built.forward.inputs) :]}
        again = dict(zip((e.name for e in built.backward.outputs), built.double_backward.inputs[len(built.backward.inputs) :], strict=True))
        self.silent |= {leaf.name for name, leaf in again.items() if name in self.ignored}
        self.ignored |= {f"d_d_{n}@T" for n in without}

    def inputs(self, program: Program, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        found = {}
        for leaf in program.inputs:
            shape = [extent(self.sizes, a) for a in leaf.axes]
            if leaf.name == VALID:
                found[leaf.name] = self._valid(leaf.axes)
            elif leaf.name == SHOWN or leaf.name in self.silent:
                found[leaf.name] = np.zeros(shape)
            elif leaf.name in self.kinds and self.kinds[leaf.name].integer:
                found[leaf.name] = np.full(shape, 2.0)
            else:
                found[leaf.name] = self._inside(leaf.name, rng, shape)
            if leaf.name in self.seeds:  # what an output would be in the padding is no part of its meaning
                found[leaf.name] = self._alive(found[leaf.name], leaf.axes)
        return found

    def _inside(self, name: str, rng: np.random.Generator, shape: list[int]) -> np.ndarray:
        d = self.domains.get(name)
        x = rng.normal(size=shape)
        if d is None:
            return x + (1.5 if name.startswith(("z@0", "den@0", "n@0", "a@0", "H@0")) else 0.0)
        if d.integer:
            return rng.integers(0, 4, size=shape).astype(float)
        if np.isfinite(d.low) and np.isfinite(d.high):
            return d.low + (d.high - d.low) * rng.uniform(0.05, 0.95, size=shape)
        return d.low + abs(x) + 0.05 if np.isfinite(d.low) else d.high - abs(x) - 0.05 if np.isfinite(d.high) else x

    def _valid(self, axes: tuple[str, ...]) -> np.ndarray:
        alive = np.arange(self.trial.chunk * self.trial.chunks) < np.array(self.trial.lengths)[:, None]
        shaped = alive if CHUNKS not in axes else alive.reshape(len(self.trial.lengths), self.trial.chunks, self.trial.chunk)
        own = (BATCH, TOKENS) if CHUNKS not in axes else (BATCH, CHUNKS, TOKENS)
        return shaped.transpose([own.index(a) for a in axes]).astype(float)

    def run(self, program: Program, seed: int) -> dict[str, np.ndarray]:
        """Its outputs where there are tokens."""
        with np.errstate(all="ignore"):
            found = execute(program, Reals, self.inputs(program, seed), self.sizes)
        out = {}
        for e in (e for e in program.outputs if e.name not in self.ignored):
            shape = [extent(self.sizes, a) for a in e.value.axes]
            out[e.name] = self._alive(np.broadcast_to(found[e.name], shape), e.value.axes)
        return out

    def _alive(self, x: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
        """Zero where there is no token."""
        if TOKENS not in axes:
            return x
        kept = [a for a in axes if a in (BATCH, CHUNKS, TOKENS)]
        return x * self._valid(tuple(kept)).reshape([n if a in kept else 1 for a, n in zip(axes, x.shape, strict=True)])


def _apart(x: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray], relative: float, absolute: float) -> bool:
    return any(not np.allclose(a, y[n], rtol=relative, atol=absolute, equal_nan=True) for n, a in x.items())


def _rounded(x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """To eight bits of mantissa."""
    out = {}
    for n, a in x.items():
        bits = np.asarray(a, np.float32).view(np.uint32)
        out[n] = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(float)
    return out


@dataclass(frozen=True)
class Fate:
    mutant: Mutant
    differs: bool
    bfloat: bool
    proof: bool


@dataclass(frozen=True)
class _Changed:
    """A form's programs with one of them changed."""

    lowered: Any
    forward: Program
    backward: Program
    double_backward: Program


def fate(m: Mutant, numbers: Numbers, seed: int = 0) -> Fate:
    """Whether float64 tells a mutant from the original, and whether bfloat16 and the proof reject it."""
    right: Program = getattr(m.subject.built, m.which)
    differs = False
    for point in range(POINTS):
        x, y = numbers.run(m.program, seed + point), numbers.run(right, seed + point)
        if _apart(x, y, 1e-7, 1e-9):
            differs = True
            break
    x, y = numbers.run(m.program, seed), numbers.run(right, seed)
    built = m.subject.built
    parts = (m.program if m.which == w else getattr(built, w) for w in STAGES)
    changed = _Changed(built.lowered, *parts)
    c = m.subject.checked
    forms: dict[str, Any] = {built.form.name: changed}
    killed = not prove(prepared(c), forms, "mutant", text=c.recurrence, sizes=c.sizes, points=4).ok
    killed = killed or not prove(prepared(c), forms, "mutant", text=c.recurrence, sizes=c.sizes).ok
    return Fate(m, differs, _apart(_rounded(x), y, BFLOAT, BFLOAT), killed)


def report(fates: list[Fate]) -> str:
    real = [f for f in fates if f.differs]
    proof, bfloat = (sum(x) for x in ([f.proof for f in real], [f.bfloat for f in real]))
    lines = [f"{len(fates)} mutants, {len(real)} that float64 tells from the original at {POINTS} points"]
    shares = [f"{n} ({n / max(len(real), 1):.1%})" for n in (proof, bfloat)]
    lines.append(f"the proof rejects {shares[0]}, a comparison in bfloat16 at {BFLOAT} {shares[1]}")
    lines += [f"  survives the proof: {f.mutant}" for f in real if not f.proof]
    lines += [f"  rejected, and float64 sees nothing: {f.mutant}" for f in fates if f.proof and not f.differs]
    kinds = Counter(f.mutant.what for f in real)
    missed = Counter(f.mutant.what for f in real if not f.bfloat)
    for kind, n in kinds.most_common():
        lines.append(f"  {n:>4}  {kind}" + (f", {missed[kind]} of them missed by bfloat16" if missed[kind] else ""))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=10, help="mutants of each program; every form has three")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("layers", nargs="*", default=LAYERS)
    options = parser.parse_args()
    rng, fates = random.Random(options.seed), []
    for subject in subjects(tuple(options.layers)):
        numbers = Numbers(subject)
        for m in mutants(subject, options.each, rng):
            fates.append(fate(m, numbers))
            if fates[-1].differs and not fates[-1].proof:
                print(f"survives: {m}", flush=True)
        print(f"{subject.name}: {sum(f.proof for f in fates)} of {len(fates)}", flush=True)
    print(report(fates))


if __name__ == "__main__":
    main()
