"""Which states a recurrence has, in which order they depend on each other, and each one's chain of micro-steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from seqc.analysis.affine import Transition, fitting
from seqc.analysis.bounds import is_decay
from seqc.analysis.chain import Chain, Refusal
from seqc.analysis.components import Component, added_whole, in_levels, leaf
from seqc.analysis.coupled import Coupling, coupling
from seqc.analysis.exponents import exponent, log_of, never_positive
from seqc.analysis.reader import Reader
from seqc.ir.expr import Expr, walk
from seqc.ir.model import Domain
from seqc.ir.recurrence import Recurrence, State
from seqc.source import Span


@dataclass(frozen=True)
class Structure:
    """The groups of states, level by level: each reads only earlier levels. Chains and readers by state."""

    levels: tuple[tuple[Component, ...], ...]
    chains: dict[str, Chain]
    readers: dict[str, Reader]
    others: dict[str, Transition]  # of groups that are no chain but are affine: by their first state
    couplings: dict[str, Coupling]  # of matrices that depend on each other, or are no chain: by their first state

    @property
    def order(self) -> tuple[State, ...]:
        """The states that are chains."""
        return tuple(c.states[0] for level in self.levels for c in level if c.states[0].name in self.chains)


def span_of(rec: Recurrence, cause: Expr | None, fallback: Span) -> Span:
    """The line behind a node: the first line, then output, whose value holds it, else the fallback."""
    return (_line(rec, cause) if cause is not None else None) or fallback


def _line(rec: Recurrence, cause: Expr) -> Span | None:
    for value, span in (*((e.value, e.span) for e in rec.lines), *((o.value, o.span) for o in rec.outputs)):
        if any(node is cause for node in walk(value)):
            return span
    return None


def analyse(rec: Recurrence, sizes: Mapping[str, int]) -> Structure:
    """Every group of states: earlier values as they are, others as a chain, as a joint step or by their transition.

    Where that fails, matrices that are added to others as a whole (a momentum) become one group with them. Raises Refusal with the cause.
    """
    try:
        return _analysed(rec, sizes, in_levels(rec, sizes))
    except Refusal:
        joined = added_whole(rec)
        if not joined:
            raise
    return _analysed(rec, sizes, in_levels(rec, sizes, joined))


def _analysed(rec: Recurrence, sizes: Mapping[str, int], levels: tuple[tuple[Component, ...], ...]) -> Structure:
    chains, readers, others, couplings = {}, {}, {}, {}
    for c in (c for level in levels for c in level if c.kind == "coupled"):
        matrix = any(len(s.axes) > 1 for s in c.states)  # it is not written out at every token
        if matrix and len(c.states) > 1:
            couplings[c.names[0]] = _coupling(rec, c, sizes)
            continue
        try:
            if len(c.states) > 1:
                raise Refusal(f"`{c.names[0]}` and `{c.names[1]}` depend on each other", c.states[0].next)
            (s,) = c.states
            users = tuple(o.value for o in rec.outputs) + tuple(other.next for other in rec.states if other is not s)
            reader = Reader(leaf(s), s.next, users, dict(sizes))
            chain = reader.chain()
            check_decays(rec, chain, sizes)
            if s.scope != "head":
                raise Refusal(f"`{s.name}` is shared by heads", s.next)
            chains[s.name], readers[s.name] = chain, reader
        except Refusal as refused:
            if refused.cause is not None and _line(rec, refused.cause) is None:
                refused.cause = c.states[0].next  # a decay that several factors of the text make up
            try:
                if matrix:
                    couplings[c.names[0]] = replace(_coupling(rec, c, sizes), reason=refused.reason)
                else:
                    others[c.names[0]] = fitting(c, sizes)
            except Refusal:
                raise refused from None
    return Structure(levels, chains, readers, others, couplings)


def _coupling(rec: Recurrence, c: Component, sizes: Mapping[str, int]) -> Coupling:
    shared = next((s for s in c.states if s.scope != "head"), None)
    if shared is not None:
        raise Refusal(f"`{shared.name}` is shared by heads", shared.next)
    found = coupling(c, tuple(o.value for o in rec.outputs) + tuple(s.next for s in rec.states if s not in c.states), sizes)
    kept = {n: x.states[n] for n, x in found.next.items() if n in x.states}
    return replace(found, decays=frozenset(n for n, d in kept.items() if all(_proved(d, rec, sizes))))


def in_normal_form(rec: Recurrence, sizes: Mapping[str, int]) -> bool:
    """Whether every matrix state is a chain, or coupled with others like one."""
    try:
        structure = analyse(rec, sizes)
    except Refusal:
        return False
    found = {*structure.chains, *(n for c in structure.couplings.values() for n in c.names)}
    return all(s.name in found for s in rec.states if len(s.axes) > 1 and s.role not in ("hidden", "stabiliser"))


def domains(rec: Recurrence) -> dict[str, Domain]:
    return {i.name: i.domain for i in rec.inputs}


def check_decays(rec: Recurrence, chain: Chain, sizes: Mapping[str, int]) -> None:
    """Every decay is proved positive and at most one, so that products are sums of logs and no exponent is positive."""
    for step in chain.steps:
        for half in () if step.decay is None else chain.halves(step.decay):
            if half is not None:
                _check_decay(rec, chain, half, sizes)


def _check_decay(rec: Recurrence, chain: Chain, decay: Expr, sizes: Mapping[str, int]) -> None:
    positive, bounded = _proved(decay, rec, sizes)
    if not positive:
        helps = ("declare its input in (0, 1), or write it as exp(g) with `g in (-inf, 0)`",)
        raise Refusal(f"nothing shows that the decay of `{chain.state.name}` is positive", decay, helps)
    if not bounded:
        helps = ("declare `in (-inf, 0)` for a log decay, `in (0, 1)` for a decay",)
        raise Refusal(f"nothing bounds the decay of `{chain.state.name}` by 1", decay, helps)


def _proved(decay: Expr, rec: Recurrence, sizes: Mapping[str, int]) -> tuple[bool, bool]:
    """Whether a factor is positive, and at most one."""
    positive, bounded = is_decay(decay, domains(rec), sizes)
    return positive, bounded or (positive and never_positive(exponent(log_of(decay)), domains(rec), sizes))
