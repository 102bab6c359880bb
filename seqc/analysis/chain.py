"""An affine matrix state as a chain of micro-steps: the normal form that the chunkwise form stands on.

    S_t = D_t * S_{t-1} + sum of  write (value - read . S_{t-1})      D scalar, along the key axes, along the value axes, or a product

`seqc.analysis.reader` reads it off the text's updates. A fact that does not hold is a Refusal with the node that is the cause.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seqc.analysis.exponents import Exponent, exponent
from seqc.analysis.terms import factors, product, signed
from seqc.ir import ops
from seqc.ir.expr import Expr


@dataclass(eq=False)
class Refusal(Exception):
    """Why a structure is not there. `cause` is the node to blame, if one is known."""

    reason: str
    cause: Expr | None = None
    helps: tuple[str, ...] = ()


Halves = tuple[Expr | None, Expr | None]  # along the key axes or none, along the value axes


@dataclass(frozen=True)
class Rule:
    """What a row writes as a function of what it finds: an expression over formal leaves, the first for what it finds.

    given: what the others stand for. Rows that do the same have the same body, whatever is given to each.
    """

    body: Expr
    leaves: tuple[Expr, ...]
    given: tuple[Expr, ...]


@dataclass(frozen=True)
class Row:
    """One rank of an update: S += write (value - read . S), `read` against the state before the micro-step.

    write, read: key axes; value: value axes. None stands for zero. With a rule it is S += write rule(value - read . S).
    """

    write: Expr
    value: Expr | None
    read: Expr | None
    rule: Rule | None = None


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

    def halves(self, decay: Expr) -> Halves:
        return halves(decay, self.key, self.value)


def halves(decay: Expr, key: tuple[str, ...], value: tuple[str, ...]) -> Halves:
    """A decay as its factors along the key axes and along the value axes. Those along none stand with the key axes', if there are any."""
    on_key, on_value = ({*axes} & {*decay.axes} for axes in (key, value))
    if not on_key or not on_value:
        return (None, decay) if on_value else (decay, None)
    factored, sign = factors(decay)
    parts = [p for e in factored for p in _parted(e)]
    whole = next((p for p in parts if {*p.axes} & on_key and {*p.axes} & on_value), None)
    if whole is not None:
        raise Refusal(f"a decay along both `{key[0]}` and `{value[0]}` is no product of two", whole)
    return signed(product(p for p in parts if not {*p.axes} & on_value), sign), product(p for p in parts if {*p.axes} & on_value)


def _parted(factor: Expr) -> list[Expr]:
    """An exponential as one for each part of its exponent."""
    terms = exponent(factor.args[0]).terms if factor.op.name == "exp" else ()
    return [ops.exp(Exponent((term,)).value) for term in terms] if len(terms) > 1 else [factor]


@dataclass(frozen=True)
class Read:
    """query . S at a version, summed over the axes `over`: what another expression takes from the state. `node` is the one to replace."""

    node: Expr
    query: Expr
    version: Expr
    over: tuple[str, ...]
    rest: tuple[Expr, ...] = ()


@dataclass
class Raw:
    """A step before merging: base and result are nodes; rows are write, value, reads as (coefficient * query, version node), rule."""

    base: Expr
    result: Expr
    decay: Expr | None = None
    rules: bool = True  # whether a row may write any function of what it reads
    rows: list[tuple[Expr, Expr | None, list[tuple[Expr, Expr]], Rule | None]] = field(default_factory=list)
