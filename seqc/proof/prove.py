"""Recurrence and forms -> certificate: every form, and its derived backward, is the same function as the recurrence.

Both sides are evaluated at random points of a prime field and compared without tolerance. A form is examined as it is
lowered and as it is printed; its adjoint against directional derivatives of the recurrence itself, <J^T u, v> = <u, J v>,
and against another form's adjoint, differentiated once more too.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Lock

from seqc.forms.base import Lowered
from seqc.forms.recurrent import RECURRENT
from seqc.ir.expr import Expr
from seqc.ir.recurrence import Recurrence
from seqc.proof.bench import STAGES, STEP, Bench, differences, step_differs
from seqc.proof.bound import log2_error
from seqc.proof.candidate import Built, Candidate, candidate
from seqc.proof.certificate import Certificate, Failure, Gap
from seqc.proof.composed import NoFieldMeaning
from seqc.proof.facts import examine
from seqc.proof.reach import one_sided
from seqc.proof.trial import Trial, is_chunked, small_axes

POINTS = 16
Axes = tuple[tuple[str, int], ...]
SHORT = 4  # tokens of a block up to which a run over three blocks is short
SMALLEST = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (4, 3))  # tokens and chunk lengths that failures are looked for at

__all__ = ["POINTS", "Certificate", "prove"]


def prove(
    rec: Recurrence,
    forms: Mapping[str, Lowered | Built],
    seed: str,
    *,
    text: Recurrence | None = None,
    sizes: Mapping[str, int] | None = None,
    points: int = POINTS,
) -> Certificate:
    """The certificate for the forms of a recurrence.

    seed: what the points are drawn from; the hash of the content, so that equal contents have equal certificates.
    text: the recurrence as the text has it, of which `rec` is a rewriting over real numbers, without implicit steps, stabilised.
    sizes: the layer's sizes. Those that a form has compiled in are kept, all others are made small.
    """
    lowered = [form if isinstance(form, Lowered) else form.lowered for form in forms.values()]
    fixed = {a for x in lowered for a in x.fixed}
    axes, other = (small_axes(rec, fixed, sizes or {}, first) for first in (2, 3))
    candidates = [candidate(name, form) for name, form in forms.items()]
    trials = _trials(rec, axes, other, points, _block(rec, lowered))
    if not any(is_chunked(c.forward) for c in candidates):
        trials = trials[:1]
    rewritten = text is not None and text != rec
    gaps: dict[str, Gap] = {}
    failures: dict[tuple[str, str, str], Failure] = {}
    oracles, outcomes = 0, dict[Expr, set[bool]]()
    with without_collection():
        for trial in trials:
            bench = Bench(rec, trial, seed)
            for output in _step(bench, text, gaps) if text is not None and rewritten else ():
                failures.setdefault((STEP, STEP, output), Failure(STEP, STEP, output, trial.shown()))
            for form in sorted(candidates, key=lambda c: c.name != RECURRENT.name):  # first the one that others are compared with
                try:
                    oracles = oracles or bench.oracles_per_token
                    for stage, output in differences(bench, form, _other(candidates)):
                        failures.setdefault((form.name, stage, output), Failure(form.name, stage, output, trial.shown()))
                except NoFieldMeaning as e:
                    gaps.setdefault(form.name, Gap(form.name, str(e)))
                bench.forget()
            with suppress(NoFieldMeaning):
                outcomes = {e: outcomes.get(e, set()) | found for e, found in bench.outcomes().items()}
    facts, more = examine(rec, sizes or {}, seed, forms)
    gaps |= {g.form: g for g in more}
    stages = (STEP, *STAGES) if rewritten else STAGES
    found = _smallest(rec, candidates, seed, trials[0], failures) if failures else ()
    wrong = {f.form for f in found} | set(gaps)
    error = max(log2_error(rec, max(t.lengths), t.sizes(chunked=False), t.begins[0] if t.begins else None) for t in trials)
    drawn = -(-points // 2)  # points that are random in all entries
    return Certificate(
        name=rec.name, seed=seed, points=points, forms=tuple(n for n in forms if n not in wrong), stages=stages,
        sizes=tuple(t.shown() for t in trials), oracles=oracles,
        log2_error=round(error * drawn, 1), gaps=tuple(gaps.values()), failures=found, facts=facts,
        one_sided=one_sided(rec, outcomes),
    )  # fmt: skip


_collecting = Lock()
_without: list[bool] = []  # for each thread that is inside, whether collection was on: True for the first of them alone


@contextmanager
def without_collection() -> Iterator[None]:
    """A trial's values are many, alive, and hold each other in no ring: a search for rings among them takes a third of the time.

    Collection belongs to the process: of several threads, the last one to leave turns it on again.
    """
    with _collecting:
        _without.append(gc.isenabled())
        gc.disable()
    try:
        yield
    finally:
        with _collecting:
            if _without.pop() and not _without:
                gc.enable()


def _step(bench: Bench, text: Recurrence, gaps: dict[str, Gap]) -> tuple[str, ...]:
    """What differs in a token of the text; what of it has no meaning in the field is a gap."""
    try:
        return tuple(step_differs(bench, text))
    except NoFieldMeaning as e:
        gaps.setdefault(STEP, Gap(STEP, str(e)))
        return ()


def _block(rec: Recurrence, lowered: Iterable[Lowered]) -> int | None:
    """The tokens of a block, if a form's chunks are blocks, or blocks are short."""
    every = {s.clock.every for s in rec.states if s.clock.every is not None}
    short = next(iter(every)) if len(every) == 1 and max(every) <= SHORT else None
    return next((x.block for x in lowered if x.block is not None), short)


def _trials(rec: Recurrence, axes: Axes, other: Axes, points: int, block: int | None) -> tuple[Trial, ...]:
    """Lengths that no chunk divides, with a sequence that ends chunks before another; for forms with chunks, at other sizes, one that a
    chunk divides and one that is shorter than a chunk.

    Where chunks are blocks of the text: a sequence that ends one block, has one whole and begins a third, one that is a block, and one
    that ends with a block.
    """
    scopes = {x.scope for values in (rec.inputs, rec.params, rec.states) for x in values}
    heads, groups = (4, 2) if "group" in scopes else (2, 1)
    if block is not None:
        first = Trial((block + 2, block), block, heads, groups, points, axes, (block - 1, 0))
        return first, replace(first, lengths=(min(2, block),), begins=(min(1, block - 1),), axes=other)
    first = Trial((7, 2), 3, heads, groups, points, axes)
    return first, replace(first, lengths=(3, 2), axes=other)


def _other(candidates: list[Candidate]) -> Candidate:
    """The form that others are compared with: the recurrent one, or the first."""
    return next((c for c in candidates if c.name == RECURRENT.name), candidates[0])


def _smallest(
    rec: Recurrence, candidates: list[Candidate], seed: str, first: Trial, failures: Mapping[tuple[str, str, str], Failure]
) -> tuple[Failure, ...]:
    """The failures, each at the first of a row of growing sizes that shows it."""
    left, found = dict(failures), []
    wrong = [c for c in candidates if any(name == c.name for name, _, _ in failures)]
    for tokens, chunk in SMALLEST:
        if not left:
            break
        begins = (min(1, first.chunk - 1),) if first.begins else ()
        chunk = first.chunk if first.begins else chunk
        trial = replace(first, lengths=(tokens,), chunk=chunk, heads=1, groups=1, points=min(first.points, 4), begins=begins)
        bench = Bench(rec, trial, seed)
        for form in wrong:
            with suppress(NoFieldMeaning):  # a gap, which the trials have found
                for stage, output in differences(bench, form, _other(candidates)):
                    if left.pop((form.name, stage, output), None):
                        found.append(Failure(form.name, stage, output, trial.shown()))
    return (*found, *left.values())
