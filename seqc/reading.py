"""Checked spec -> how it reads in the two languages of the field: what a memory learns (Miras), and S_t = A_t S_{t-1} + B_t.

In the second, S_t and B_t are matrices of keys by values, A_t of keys by keys: S_t = A_t S_{t-1} + B_t, o_t = C_t S_t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seqc.analysis.chain import Chain, MicroStep, Refusal, Row
from seqc.analysis.components import leaf, peak
from seqc.analysis.reader import Reader
from seqc.analysis.terms import factors, product
from seqc.ir import model, ops
from seqc.ir.expr import Expr, variables, walk
from seqc.ir.recurrence import Recurrence, State
from seqc.ir.text import show

LIMIT = 160  # characters of one part of an equation
POINTS = {
    "here": "at the memory of this line",
    "start": "at the memory before this token",
    "next": "at the memory after this line: an implicit step",
    "start(inf)": "at the memory before the first token",
}


@dataclass(frozen=True)
class Choice:
    """One `learn` line in the four choices of Miras, and where its gradient is taken."""

    line: int
    memory: str
    objective: str
    retention: str
    algorithm: str
    point: str
    times: int


@dataclass(frozen=True)
class Affine:
    """A state as S_t = A_t S_{t-1} + B_t: `equations` in the spec's names; or `reason`, why it is not of that kind."""

    state: str
    equations: tuple[str, ...]
    reason: str | None = None


# --- Miras -------------------------------------------------------------------------------------------------------


def choices(layer: model.Model) -> tuple[Choice, ...]:
    """Each `learn` line once, however often a loop repeats it."""
    found: dict[int, list[model.Learn]] = {}
    for step in layer.steps:
        if isinstance(step, model.Learn):
            found.setdefault(step.span.start, []).append(step)
    return tuple(_choice(layer, steps) for steps in found.values())


def _choice(layer: model.Model, steps: Sequence[model.Learn]) -> Choice:
    step = steps[0]
    retained = dict.fromkeys(_words(s.span.text) for s in layer.steps if isinstance(s, model.Retain) and s.memory == step.memory)
    kept = "; ".join(r.partition(" by ")[2] for r in retained) or "none: nothing is forgotten but what is overwritten"
    text = _words(step.span.text).partition(" by ")[2]
    algorithm = text.partition(" on ")[0] or step.library
    return Choice(step.span.line, _memory(layer, step.memory), step.objective_text, kept, algorithm, _point(step.point), len(steps))


def _point(point: str) -> str:
    return POINTS.get(point) or f"at the memory before the current block of {point.removeprefix('start(').removesuffix(')')} tokens"


def _memory(layer: model.Model, name: str) -> str:
    """The memory with the shapes of its tensors."""
    tensors = [s for s in layer.states if s.memory == name and (s.name == name or s.name.count(".") == 1)]
    return ", ".join(f"{s.name}[{', '.join(map(ops.base, s.axes))}]" for s in tensors) or name


def _words(text: str) -> str:
    return " ".join(text.split())


# --- S_t = A_t S_{t-1} + B_t ---------------------------------------------------------------------------------------


def spelled(*roots: Expr) -> dict[Expr, str]:
    """Names for the entries of the spec's tensors: `k[0]`."""
    picked = (e for e in walk(*roots) if e.op.name == "select" and e.args[0].op.name == "var" and isinstance(e.attr, tuple))
    return {e: f"{e.args[0].name}[{e.attr[-1]}]" for e in picked if isinstance(e.attr, tuple)}


def affine(rec: Recurrence, sizes: Mapping[str, int]) -> tuple[Affine, ...]:
    """Every state of the text and of its algorithms, as a chain of micro-steps where it has one."""
    names = spelled(*(s.next for s in rec.states), *(o.value for o in rec.outputs))
    sees = _sees(rec)
    return tuple(_state(rec, s, sizes, names, sees) for s in rec.states if s.role != "hidden")


def stabilisers(rec: Recurrence) -> tuple[str, ...]:
    """For every stabiliser of a recurrence as forms take it: which states it is the unit of, and its step."""
    out = []
    for m in (s for s in rec.states if s.role == "stabiliser"):
        scaled = " and ".join(s.name for s in rec.states if s.stabiliser == m.name)
        top = peak(m)
        step = "" if top is None else f", {m.name}_t = {_peak(m.name, *top)}"
        out.append(f"{scaled} {_are(scaled)} kept as multiples of e^{m.name}{step}")
    return tuple(out)


def _are(names: str) -> str:
    return "are" if " and " in names else "is"


def _peak(name: str, fall: Expr | None, value: Expr | None) -> str:
    before = f"{name}_{{t-1}}"
    if fall is not None and not ops.is_zero(fall):
        sign, size = ("-", fall.args[0]) if fall.op.name == "neg" else ("+", fall)
        before = f"{before} {sign} {show(size, {}, limit=LIMIT)}"
    return before if value is None else f"max({before}, {show(value, {}, limit=LIMIT)})"


def _sees(rec: Recurrence) -> dict[str, set[str]]:
    """The states that each state depends on, by way of any number of others."""
    own = {s.name for s in rec.states}
    sees = {s.name: {v.name for v in variables(s.next)} & own for s in rec.states}
    for _ in rec.states:
        sees = {name: seen | {further for other in seen for further in sees[other]} for name, seen in sees.items()}
    return sees


def readouts(rec: Recurrence, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Every output with its reads of affine states as C_t S_t."""
    roots = [o.value for o in rec.outputs]
    names = spelled(*roots)
    for s in rec.states:
        try:
            reader = _reader(rec, s, sizes)
            chain = reader.chain()
            names |= dict(_reads(reader, chain, s, roots, names))
        except Refusal:
            continue
    return tuple(f"{o.name}_t = {_text(o.value, names)}" for o in rec.outputs)


def _text(e: Expr, names: Mapping[Expr, str]) -> str:
    return names[e] if e in names else show(e, names, limit=LIMIT)


def _reader(rec: Recurrence, s: State, sizes: Mapping[str, int]) -> Reader:
    users = tuple(o.value for o in rec.outputs) + tuple(other.next for other in rec.states if other is not s)
    return Reader(leaf(s), s.next, users, dict(sizes))


def _reads(reader: Reader, chain: Chain, s: State, roots: Sequence[Expr], names: Mapping[Expr, str]) -> list[tuple[Expr, str]]:
    """The nodes that read the state, as `q^T S_t`."""
    out = []
    for node in walk(*roots):
        read = None
        if node in chain.versions:
            version, query = node, None
        elif id(node) in reader.carry or not any(id(a) in reader.carry for a in node.args) or not (read := reader.read(node)):
            continue
        else:
            version, query = read.version, read.query
        if version not in chain.versions or (read is not None and read.rest):
            continue
        place = chain.versions[version]
        at = "_t" if place.done == len(chain.steps) else "_{t-1}" if place.done == 0 else f"_{{t,{place.done}}}"
        text = f"{s.name}{at}"
        if place.decay is not None:
            text = f"{_scaling(place.decay, chain, names)} {text}"
        if query is not None:
            asked = _vector(query, names)
            text = f"{asked}^T {text}" if read is None or read.over == chain.key else f"{text} {asked}"
        out.append((node, text))
    return out


def _state(rec: Recurrence, s: State, sizes: Mapping[str, int], names: Mapping[Expr, str], sees: Mapping[str, set[str]]) -> Affine:
    if s.growing:
        return Affine(s.name, (), "it grows with every token")
    other = next((o for o in sorted(sees[s.name] - {s.name}) if s.name in sees[o]), None)
    if other is not None:
        return Affine(s.name, (), f"`{s.name}` and `{other}` depend on each other")
    try:
        chain = _reader(rec, s, sizes).chain()
        if any(_right_decay(step, chain, names) and any(r.read is not None for r in step.rows) for step in chain.steps):
            raise Refusal(f"a step erases what `{s.name}` was before its decay along `{', '.join(chain.value)}`")
    except Refusal as refusal:
        return Affine(s.name, (), refusal.reason)
    return Affine(s.name, tuple(_equations(s.name, chain, names)))


def _equations(name: str, chain: Chain, names: Mapping[Expr, str]) -> list[str]:
    steps = chain.steps or (MicroStep(None, ()),)
    many = len(steps) > 1
    right = [_right_decay(step, chain, names) for step in steps]
    lines = [f"{name}_t = A_t {name}_{{t-1}}{''.join(right)} + B_t"]
    if many:
        order = [f"A_{i + 1}" for i in reversed(range(len(steps)))]
        lines.append(f"A_t = {' '.join(order)}")
        sums = [" ".join([*order[: len(steps) - 1 - i], f"B_{i + 1}{''.join(right[i + 1 :])}"]) for i in range(len(steps))]
        lines.append(f"B_t = {' + '.join(sums)}")
    for i, step in enumerate(steps):
        mark = str(i + 1) if many else "t"
        ruled = {r: f"u_{mark}" if len(step.rows) == 1 else f"u_{{{mark},{n + 1}}}" for n, r in enumerate(step.rows) if r.rule}
        lines += [f"A_{mark} = {_transition(step, chain, names)}", f"B_{mark} = {_written(step, chain, names, ruled)}"]
        before = f"{name}_{{t-1}}" if i == 0 else f"{name}_{{t,{i}}}"
        lines += [f"{u} = {_rule(r, before, names)}" for r, u in ruled.items()]
    return lines


def _rule(row: Row, before: str, names: Mapping[Expr, str]) -> str:
    """What a row writes, and what it finds."""
    assert row.rule is not None and row.read is not None
    spoken = {leaf: _vector(e, names) for leaf, e in zip(row.rule.leaves[1:], row.rule.given, strict=True)}
    asked = f"{_vector(ops.neg(row.read), names)}^T {before}"
    value, sign = (None, "") if row.value is None else (row.value.args[0], "-") if row.value.op.name == "neg" else (row.value, "+")
    found = asked if value is None else f"{asked} {sign} {_vector(value, names)}"
    return f"{show(row.rule.body, spoken, limit=LIMIT)} with {row.rule.leaves[0].name} = {found}"


def _right_decay(step: MicroStep, chain: Chain, names: Mapping[Expr, str]) -> str:
    """A decay along the value axes multiplies from the right."""
    decay = chain.halves(step.decay)[1] if step.decay is not None and chain.key else None
    return "" if decay is None else f" diag({_text(decay, names)})"


def _scaling(decay: Expr, chain: Chain, names: Mapping[Expr, str]) -> str:
    text = _text(decay, names)
    if set(decay.axes) & set(chain.state.axes):
        return f"diag({text})"
    return text if _atomic(text) else f"({text})"


def _transition(step: MicroStep, chain: Chain, names: Mapping[Expr, str]) -> str:
    """D (I - a b^T ...) or, where the reads see the decayed state, (I - a b^T ...) D."""
    decay = chain.halves(step.decay)[0] if step.decay is not None and chain.key else step.decay
    rows = [r for r in step.rows if r.read is not None and r.rule is None]
    through = [_without(r.read, decay) for r in rows if r.read is not None] if decay is not None else []
    if rows and decay is not None and all(q is not None for q in through):
        erased = " - ".join(_pair(r.write, q, names) for r, q in zip(rows, through, strict=True) if q is not None)
        return f"(I - {erased}) {_scaling(decay, chain, names)}"
    if decay is not None and not rows and not set(decay.axes) & set(chain.state.axes):
        return _text(decay, names)
    base = "I" if decay is None else _scaling(decay, chain, names)
    if decay is not None and not set(decay.axes) & set(chain.state.axes):
        base += " I"
    return " - ".join([base, *(_pair(r.write, r.read, names) for r in rows if r.read is not None)])


def _written(step: MicroStep, chain: Chain, names: Mapping[Expr, str], ruled: Mapping[Row, str]) -> str:
    parts = [_outer(r, chain, names, ruled.get(r)) for r in step.rows if r.value is not None or r.rule is not None]
    return " + ".join(parts) if parts else "0"


def _outer(row: Row, chain: Chain, names: Mapping[Expr, str], value: str | None) -> str:
    """write value^T, with numbers and the text's scalars in front. value: the name of what a rule makes."""
    if value is None:
        assert row.value is not None
        value = _text(row.value, names)
    if ops.is_number(row.write, 1):
        return value
    parts, sign = factors(row.write)
    scales = [p for p in parts if not set(p.axes) & set(chain.state.axes)] if sign > 0 else []
    rest = [p for p in parts if p not in scales] if scales else [row.write]
    words = [*([_vector(product(scales), names)] if scales else []), *([_vector(product(rest), names)] if rest else [])]
    if value != "1":
        words.append(f"{value if _atomic(value) else f'({value})'}{'^T' if chain.key and chain.value else ''}")
    return " ".join(words)


def _without(read: Expr, decay: Expr) -> Expr | None:
    """What is left of a read when the decay is taken out of it; None if it is not in it."""
    parts, sign = factors(read)
    if sign < 0 or decay not in parts:
        return None
    parts.remove(decay)
    return product(parts)


def _pair(write: Expr, read: Expr | None, names: Mapping[Expr, str]) -> str:
    """a b^T, with what both share written once: beta k k^T."""
    assert read is not None
    rest, ok = factors(write)[0], factors(write)[1] > 0
    for part in factors(read)[0]:
        ok = ok and part in rest
        if ok:
            rest.remove(part)
    if not ok or factors(read)[1] < 0:
        return f"{_vector(write, names)} {_vector(read, names)}^T"
    vector = _vector(read, names)
    scale = "" if not rest else f"{_vector(product(rest), names)} "
    return f"{scale}{vector} {vector}^T"


def _vector(e: Expr, names: Mapping[Expr, str]) -> str:
    text = _text(e, names)
    return text if _atomic(text) else f"({text})"


def _atomic(text: str) -> bool:
    """Whether a text reads as one thing beside others."""
    depth = 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == " " and depth == 0:
            return False
    return not text.startswith("-")
