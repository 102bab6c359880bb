"""An affine matrix state as a chain of micro-steps: the normal form that the chunkwise form stands on.

    S_t = D_t * S_{t-1} + sum of  write (value - read . S_{t-1})      D scalar, along the key axes or along the value axes

`seqc.analysis.reader` reads it off the text's updates. A fact that does not hold is a Refusal with the node that is the cause.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seqc.ir.expr import Expr


@dataclass(eq=False)
class Refusal(Exception):
    """Why a structure is not there. `cause` is the node to blame, if one is known."""

    reason: str
    cause: Expr | None = None
    helps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One rank of an update: S += write (value - read . S), `read` against the state before the micro-step.

    write, read: key axes; value: value axes. None stands for zero.
    """

    write: Expr
    value: Expr | None
    read: Expr | None


@dataclass(frozen=True)
class MicroStep:
    """A decay (None is one) and the rows that are added to the decayed state."""

    decay: Expr | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Version:
    """A node that is the state after some micro-steps, times a decay that the next micro-step begins with."""

    done: int
    decay: Expr | None


@dataclass(frozen=True)
class Chain:
    """A state's micro-steps at one token. `versions` finds where in the chain a node is the state."""

    state: Expr
    key: tuple[str, ...]
    value: tuple[str, ...]
    steps: tuple[MicroStep, ...]
    versions: dict[Expr, Version]


@dataclass(frozen=True)
class Read:
    """query . S at a version: what another expression takes from the state. `node` is the expression to replace."""

    node: Expr
    query: Expr
    version: Expr
    rest: tuple[Expr, ...] = ()


@dataclass
class Raw:
    """A step before merging: base and result are nodes; rows' reads are (coefficient * query, version node)."""

    base: Expr
    result: Expr
    decay: Expr | None = None
    rows: list[tuple[Expr, Expr | None, list[tuple[Expr, Expr]]]] = field(default_factory=list)
