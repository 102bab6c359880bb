"""Which states a recurrence has, in which order they depend on each other, and each one's chain of micro-steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from seqc.analysis.bounds import is_decay
from seqc.analysis.chain import Chain, Refusal
from seqc.analysis.reader import Reader
from seqc.ir import ops
from seqc.ir.expr import Expr, variables, walk
from seqc.ir.model import Domain
from seqc.ir.recurrence import Recurrence, State
from seqc.source import Span


@dataclass(frozen=True)
class Structure:
    """The states in an order in which each reads only earlier ones, with their chains and readers."""

    order: tuple[State, ...]
    chains: dict[str, Chain]
    readers: dict[str, Reader]


def leaf(state: State) -> Expr:
    return ops.var(state.name, state.axes, state.dtype)


def span_of(rec: Recurrence, cause: Expr | None, fallback: Span) -> Span:
    """The line behind a node: the first line, then output, whose value holds it, else the fallback."""
    if cause is not None:
        for value, span in (*((e.value, e.span) for e in rec.lines), *((o.value, o.span) for o in rec.outputs)):
            if any(node is cause for node in walk(value)):
                return span
    return fallback


def in_series(rec: Recurrence) -> tuple[State, ...]:
    """The states so that each sees only earlier ones. Raises Refusal where two see each other."""
    waits = {s.name: {v.name for v in variables(s.next)} & {o.name for o in rec.states} - {s.name} for s in rec.states}
    order: list[State] = []
    while len(order) < len(rec.states):
        ready = [s for s in rec.states if s not in order and not waits[s.name] - {o.name for o in order}]
        if not ready:
            a = next(s for s in rec.states if s not in order)
            other = sorted(waits[a.name])[0]
            raise Refusal(f"`{a.name}` and `{other}` depend on each other", a.next)
        order += ready
    return tuple(order)


def analyse(rec: Recurrence, sizes: Mapping[str, int]) -> Structure:
    """Every state's chain. Raises Refusal with the cause."""
    order = in_series(rec)
    chains, readers = {}, {}
    for s in order:
        users = tuple(o.value for o in rec.outputs) + tuple(other.next for other in rec.states if other is not s)
        reader = Reader(leaf(s), s.next, users, dict(sizes))
        chains[s.name], readers[s.name] = reader.chain(), reader
    return Structure(order, chains, readers)


def domains(rec: Recurrence) -> dict[str, Domain]:
    return {i.name: i.domain for i in rec.inputs}


def check_decays(rec: Recurrence, chain: Chain, sizes: Mapping[str, int]) -> None:
    """Every decay is proved positive and at most one, so that products are sums of logs and no exponent is positive."""
    for step in chain.steps:
        if step.decay is None:
            continue
        positive, bounded = is_decay(step.decay, domains(rec), sizes)
        if not positive:
            helps = ("declare its input in (0, 1), or write it as exp(g) with `g in (-inf, 0)`",)
            raise Refusal(f"nothing shows that the decay of `{chain.state.name}` is positive", step.decay, helps)
        if not bounded:
            helps = ("declare `in (-inf, 0)` for a log decay, `in (0, 1)` for a decay",)
            raise Refusal(f"nothing bounds the decay of `{chain.state.name}` by 1", step.decay, helps)
