"""Structure -> text: what was found out about each state."""

from __future__ import annotations

from seqc.analysis.affine import Transition
from seqc.analysis.chain import Chain, Row
from seqc.analysis.components import Component
from seqc.analysis.coupled import Coordinates, Coupling
from seqc.analysis.structure import Structure
from seqc.ir.expr import Expr
from seqc.ir.text import show


def structure(found: Structure) -> str:
    """The groups of states in the order of their dependence: chains with their micro-steps, others with their composed step."""
    lines = ["structure"]
    for c in (c for level in found.levels for c in level):
        if c.names[0] in found.chains:
            lines += _chain(c.names[0], found.chains[c.names[0]])
        elif c.names[0] in found.couplings:
            lines += _coupling(found.couplings[c.names[0]])
        elif c.names[0] in found.others:
            lines += _transition(c, found.others[c.names[0]])
        else:
            lines.append(f"  {c.kind} {', '.join(c.names)}{'' if c.newest is None else f': {show(c.newest)}'}")
    return "\n".join(lines) + "\n"


def _transition(c: Component, t: Transition) -> list[str]:
    mixed = [f", {n} mixes [{', '.join(axes)}]" for n, axes in t.mixed.items() if axes]
    lines = [f"  states {', '.join(c.names)}: affine{''.join(mixed)}"]
    return [*lines, *(f"    {i} of {j}: {show(e)}" for (i, j), e in {**t.fixed, **t.next}.items())]


def _chain(name: str, chain: Chain) -> list[str]:
    lines = [f"  state {name}: key axes [{', '.join(chain.key)}], value axes [{', '.join(chain.value)}]"]
    for i, step in enumerate(chain.steps):
        lines.append(f"    micro-step {i + 1}: decay {_or(step.decay, 'none')}")
        lines += [f"      {_row(row)}" for row in step.rows]
    return lines


def _coupling(c: Coupling) -> list[str]:
    """The rows by number, then each state's next value."""
    lines = [f"  states {', '.join(c.names)}: coupled, key axes [{', '.join(c.key)}], value axes [{', '.join(c.value)}]"]
    for i, r in enumerate(c.rows):
        reads = "".join(f", read {show(t.query)} of {_coordinates(t.of)}" for t in r.terms)
        lines.append(f"    row {i}: write {show(r.write)}, value {_or(r.value, 'none')}{reads}")
    return lines + [f"    next {n}: {_coordinates(x)}" for n, x in c.next.items()]


def _coordinates(x: Coordinates) -> str:
    parts = [f"({show(d)}) {n}" for n, d in x.states.items()] + [f"({show(g)}) row {r}" for r, g in x.rows.items()]
    return " + ".join(parts) or "0"


def _row(row: Row) -> str:
    rule = f", rule {show(row.rule.body)} given {', '.join(map(show, row.rule.given)) or 'nothing'}" if row.rule else ""
    return f"write {show(row.write)}, value {_or(row.value, 'none')}, read {_or(row.read, 'none')}{rule}"


def _or(e: Expr | None, word: str) -> str:
    return word if e is None else show(e)
