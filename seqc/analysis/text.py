"""Structure -> text: what was found out about each state."""

from __future__ import annotations

from seqc.analysis.chain import Chain, Row
from seqc.analysis.structure import Structure
from seqc.ir.expr import Expr
from seqc.ir.text import show


def structure(found: Structure) -> str:
    """The states in the order of their dependence, each with its micro-steps."""
    lines = ["structure"]
    for state in found.order:
        lines += _chain(state.name, found.chains[state.name])
    return "\n".join(lines) + "\n"


def _chain(name: str, chain: Chain) -> list[str]:
    lines = [f"  state {name}: key axes [{', '.join(chain.key)}], value axes [{', '.join(chain.value)}]"]
    for i, step in enumerate(chain.steps):
        lines.append(f"    micro-step {i + 1}: decay {_or(step.decay, 'none')}")
        lines += [f"      {_row(row)}" for row in step.rows]
    return lines


def _row(row: Row) -> str:
    return f"write {show(row.write)}, value {_or(row.value, 'none')}, read {_or(row.read, 'none')}"


def _or(e: Expr | None, word: str) -> str:
    return word if e is None else show(e)
