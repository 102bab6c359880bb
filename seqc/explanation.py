"""Checked spec -> everything that can be said about it without making it: as data, and as a page of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from seqc.analysis.chain import Refusal
from seqc.analysis.cost import cost, state_size
from seqc.compiler import Checked, judge, prepared, programs
from seqc.console import render
from seqc.diagnostics import Diagnostic, Label, as_json
from seqc.emit.estimate import LONG, Estimate, estimate, fastest, settled
from seqc.emit.layer import Programs
from seqc.forms import FORMS, Applies, Refuses
from seqc.ir import ops
from seqc.ir.recurrence import Recurrence
from seqc.options import Options
from seqc.reading import Affine, Choice, affine, choices, readouts, stabilisers
from seqc.source import Span

UNKNOWN = 64  # the size that an axis is taken to have where only the module's width would tell
LENGTHS = (1, 64, LONG)  # tokens of the calls for which it is said what `auto` takes


@dataclass(frozen=True)
class Equation:
    """A statement of the text that changes a value."""

    line: int
    text: str


@dataclass(frozen=True)
class Computed:
    """A form that applies: from which facts, and per token and head its operations and bytes (4 per number), forward and backward.

    microseconds: what it should take per token and head of a long call, forward, and with the backward.
    """

    form: str
    evidence: tuple[str, ...]
    flops: int
    bytes: int
    backward_flops: int
    backward_bytes: int
    microseconds: float
    microseconds_both: float


@dataclass(frozen=True)
class Auto:
    """What `auto` takes for one sequence: by (tokens, form). From `settled` tokens on it is the last of them. gradient: with a backward."""

    gradient: bool
    takes: tuple[tuple[int, str], ...]
    settled: int


@dataclass(frozen=True)
class Refused:
    """A form that does not apply, and why, at the line that is the cause."""

    form: str
    why: Diagnostic


@dataclass(frozen=True)
class Explanation:
    """How seqc understands a spec.

    stabilisers: the states that are kept in units of their own. state_size: numbers per head that go from token to token;
    None if they grow. sizes: those that the costs are for; `assumed` are the ones among them that the spec does not give.
    """

    name: str
    doc: tuple[str, ...]
    choices: tuple[Choice, ...]
    states: tuple[Affine, ...]
    stabilisers: tuple[str, ...]
    readouts: tuple[str, ...]
    equations: tuple[Equation, ...]
    sizes: dict[str, int]
    assumed: tuple[str, ...]
    state_size: int | None
    forms: tuple[Computed, ...]
    auto: tuple[Auto, ...]
    refused: tuple[Refused, ...]

    def as_json(self) -> dict[str, Any]:
        """The explanation as plain data."""
        data = asdict(self)
        return {**data, "refused": [{"form": r.form, **as_json(r.why)} for r in self.refused]}

    def __str__(self) -> str:
        return page(self)


def explained(checked: Checked, options: Options) -> Explanation:
    """Reads a checked spec: nothing is proved or printed."""
    rec = checked.recurrence
    assumed, sizes = known_sizes(rec, checked)
    taken = _as_forms_take_it(checked)
    verdicts = judge(checked)
    applying = [(f, v) for f in FORMS if isinstance(v := verdicts[f.name], Applies)]
    made = [programs(checked, form) for form, _ in applying]
    times = tuple(estimate(p, sizes, options.chunk_size) for p in made)
    forms = tuple(_computed(p, v, t, sizes) for p, (_, v), t in zip(made, applying, times, strict=True))
    refused = tuple(Refused(name, refusal(name, v)) for name, v in verdicts.items() if isinstance(v, Refuses))
    return Explanation(
        rec.name, tuple(d.strip('"') for d in rec.doc), choices(checked.model), affine(rec, checked.sizes),
        stabilisers(taken), readouts(rec, checked.sizes), _equations(rec), sizes, assumed, state_size(taken, sizes), forms,
        _auto(times, sizes), refused,
    )  # fmt: skip


def _as_forms_take_it(checked: Checked) -> Recurrence:
    """With stabilisers; the text's own recurrence where no form can take it."""
    try:
        return prepared(checked)
    except Refusal:
        return checked.recurrence


def known_sizes(rec: Recurrence, checked: Checked) -> tuple[tuple[str, ...], dict[str, int]]:
    """Every size that a tensor shows, and the names of those that had to be assumed."""
    shown = [x.axes for x in rec.inputs] + [x.axes for x in rec.params] + [x.axes for x in rec.states] + [x.axes for x in rec.outputs]
    axes = dict.fromkeys(ops.base(a) for every in shown for a in every)
    growing = {s.growing for s in rec.states}
    assumed = tuple(a for a in axes if a not in checked.sizes and a not in growing)
    given = {**dict.fromkeys(axes, UNKNOWN), "depth": 1, "depths": 1, **checked.sizes}
    return assumed, {a: n for a, n in given.items() if a not in growing}


def _computed(p: Programs, verdict: Applies, time: Estimate, sizes: dict[str, int]) -> Computed:
    there, back = cost(p.forward, sizes, time.chunk or 1), cost(p.backward, sizes, time.chunk or 1)
    heads = _heads(sizes)
    once, both = (round(time.time(LONG, 1, heads, gradient) / (LONG * heads), 3) for gradient in (False, True))
    counts = (round(there.flops), round(there.bytes), round(back.flops), round(back.bytes))
    return Computed(p.form.name, verdict.evidence, *counts, once, both)


def _auto(times: tuple[Estimate, ...], sizes: dict[str, int]) -> tuple[Auto, ...]:
    """Without and with gradients; nothing where no form applies."""
    heads = _heads(sizes)
    return tuple(
        Auto(g, tuple((t, fastest(times, t, 1, heads, g)) for t in LENGTHS), settled(times, 1, heads, g)) for g in (False, True) if times
    )


def _heads(sizes: dict[str, int]) -> int:
    return sizes.get("heads", 1)


def refusal(form: str, verdict: Refuses) -> Diagnostic:
    """Why a form does not apply, at the line that is the cause."""
    primary = Label(verdict.span, "") if verdict.span else None
    message = f"the `{form}` form does not apply: {verdict.reason}"
    return Diagnostic("form-not-applicable", message, primary, helps=verdict.repairs, level="note")


def _equations(rec: Recurrence) -> tuple[Equation, ...]:
    """The text's own statements, in its order, each once however often a loop repeats it."""
    found = [x.span for x in rec.lines] + [x.span for x in rec.outputs]
    spans: dict[tuple[int, int], Span] = {(s.start, s.end): s for s in found}
    return tuple(Equation(span.line, " ".join(span.text.split())) for _, span in sorted(spans.items()))


# --- The page ------------------------------------------------------------------------------------------------------


def page(e: Explanation, *, color: bool = False, width: int | None = None) -> str:
    """The explanation for a reader: one section after another."""
    sections = (
        ("memory", list(_miras(e))), ("recurrence", list(_dsf(e))), ("equations", [f"{q.line:>4}  {q.text}" for q in e.equations]),
        ("size and cost", list(_costs(e))), ("forms", list(_forms(e))),
    )  # fmt: skip
    blocks = ["\n".join([_bold(e.name, color), *e.doc])]
    blocks += ["\n".join([_bold(title, color), *(f"  {line}".rstrip() for line in lines)]) for title, lines in sections if lines]
    blocks += [render((r.why,), color=color, width=width) for r in e.refused]
    return "\n\n".join(blocks) + "\n"


def _bold(text: str, color: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if color else text


def _miras(e: Explanation) -> Iterator[str]:
    """Memory, objective, retention, algorithm."""
    if not e.choices:
        yield "written as equations: no line learns by an objective"
    for i, c in enumerate(e.choices):
        if i:
            yield ""
        yield f"memory     {c.memory}"
        yield f"objective  {c.objective}"
        yield f"retention  {c.retention}"
        yield f"algorithm  {c.algorithm}{f', {c.times} times per token' if c.times > 1 else ''}"
        yield f"gradient   {c.point} (line {c.line})"


def _dsf(e: Explanation) -> Iterator[str]:
    """S_t = A_t S_{t-1} + B_t, and what is read."""
    for s in e.states:
        if s.reason is not None:
            yield f"{s.state}: no A_t and B_t, since {s.reason}"
        for i, line in enumerate(s.equations):
            yield f"{'' if i == 0 else '    '}{line}"
    yield from e.stabilisers
    yield from e.readouts


def _costs(e: Explanation) -> Iterator[str]:
    number = "grows with every token" if e.state_size is None else f"{e.state_size:,} numbers per head"
    yield f"state      {number}"
    shown = ", ".join(f"{a} = {n}" for a, n in e.sizes.items() if a not in ("depth", "depths"))
    if shown:
        yield f"sizes      {shown}{_assumed(e)}"
    if e.forms:
        yield "per token and head      FLOPs      bytes   FLOPs back   bytes back         us  us with back"
    for f in e.forms:
        counts = f"{f.flops:>10,} {f.bytes:>10,} {f.backward_flops:>12,} {f.backward_bytes:>12,}"
        yield f"  {f.form:<16} {counts} {_short(f.microseconds):>10} {_short(f.microseconds_both):>13}"
    if e.forms:
        yield f"us: an estimate for one core, {LONG} tokens of one sequence, heads = {_heads(e.sizes)}; `seqc bench` measures"
    for a in e.auto:
        yield f"auto, {'with gradients' if a.gradient else 'forward only'}: {_takes(a)}"


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _takes(a: Auto) -> str:
    """What auto takes, and from where on."""
    shown = ", ".join(f"{form} at {tokens}" for tokens, form in a.takes)
    return f"{shown} tokens{f'; from {a.settled} on {a.takes[-1][1]}' if a.settled > 1 else ''}"


def _forms(e: Explanation) -> Iterator[str]:
    for f in e.forms:
        yield f"{f.form}: applies"
        yield from (f"  {text}" for text in f.evidence)
    yield from (f"{r.form}: does not apply, see below" for r in e.refused)


def _assumed(e: Explanation) -> str:
    return f" ({', '.join(e.assumed)} assumed)" if e.assumed else ""
