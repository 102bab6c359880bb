"""Where a token's step chooses: random numbers alone would meet one side of some choices, and what no point takes is not examined.

So some whole numbers are drawn near those that the text names, and others anywhere; inputs are, now and then, what they are compared
with for equality; where real numbers stand behind residues, some are as large or as small as the text's. What is one-sided still is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import numpy as np

from seqc.analysis.structure import span_of
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.model import Domain
from seqc.ir.recurrence import Recurrence
from seqc.ir.text import show
from seqc.proof.arithmetic import Field
from seqc.proof.certificate import OneSided
from seqc.proof.field import MODULI, Integers, P, Residues, cosets
from seqc.proof.number import WHOLE_LIMIT, Number

SMALL = 8  # whole numbers are drawn below this, or in windows of this width
FAR = 15  # bits of those that are drawn anywhere
LARGEST = 2**30  # of a whole number that is drawn: a sequence goes on from there
LIMIT = 80  # characters of a choice that a certificate shows
COUNTED = Domain(0, open_low=False, integer=True)  # whole states, the position among them
# Ops of large real numbers that leave their range sooner than what is compared, or say the same of different ones.
GROWING = ("exp", "expm1", "softplus", "power", "sigmoid", "tanh", "erf")


# --- Choices -----------------------------------------------------------------------------------------------------


def choices(rec: Recurrence) -> dict[Expr, Expr]:
    """Every comparison by which a token's step chooses, with the node that does so; not those of numbers alone."""
    found: dict[Expr, Expr] = {}
    varying: set[Expr] = set()
    for node in walk(*_roots(rec)):
        if node.op.name in ("var", "iota", "size") or not varying.isdisjoint(node.args):
            varying.add(node)
            found |= {chosen: node for chosen in _chosen(node) if chosen not in found}
    return found


def _chosen(node: Expr) -> Iterator[Expr]:
    match node.op.name:
        case "compare":
            yield node
        case "relu" | "abs" | "sign":
            yield ops.compare("gt", node.args[0], ops.number(0))
        case "maximum":
            yield ops.compare("ge", *node.args)
        case "max_over":
            first = node.args[0]
            for axis in node.attr:
                first = ops.select(first, str(axis), 0)
            yield ops.compare("ge", first, node)
        case "floor" | "ceil":
            yield ops.compare("eq", node, node.args[0])
        case "modulo":
            yield ops.compare("eq", node, ops.broadcast(node.args[0], node.axes))


def one_sided(rec: Recurrence, outcomes: Mapping[Expr, set[bool]]) -> tuple[OneSided, ...]:
    """The choices that came out in one way only. That something is always rounded, or always wraps around, is no such."""
    found = []
    for chosen, node in choices(rec).items():
        ways = outcomes.get(chosen, set())
        if len(ways) == 1 and (True in ways or node.op.name not in ("floor", "ceil", "modulo")):
            found.append(OneSided(show(chosen, limit=LIMIT), True in ways, span_of(rec, node, rec.span).line))
    return tuple(found)


def _roots(rec: Recurrence) -> tuple[Expr, ...]:
    return (*(s.next for s in rec.states), *(o.value for o in rec.outputs))


# --- Draws -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """whole: large whole numbers of the text. equal: what is compared for equality, by name. scales: sizes of real numbers."""

    whole: tuple[int, ...] = ()
    equal: Mapping[str, tuple[Fraction, ...]] | None = None
    scales: tuple[float, ...] = ()


NOWHERE = Reach()


def reach(rec: Recurrence, ordered: bool) -> Reach:
    """ordered: whether comparisons go by real numbers."""
    nodes = tuple(walk(*_roots(rec)))
    numbers = sorted({abs(Fraction(n.attr)) for n in nodes if n.op.name == "const"})
    whole = tuple(int(x) for x in numbers if x.denominator == 1 and SMALL <= x < LARGEST)
    equal: dict[str, tuple[Fraction, ...]] = {}
    for one, other in (pair for n in nodes if n.op.name == "compare" and n.attr == "eq" for pair in (n.args, n.args[::-1])):
        if one.op.name == "var" and other.op.name == "const":
            equal[one.name] = (*equal.get(one.name, ()), Fraction(other.attr))
    steady = ordered and not any(n.op.name in GROWING for n in nodes)
    return Reach(whole, equal, tuple(float(x) for x in numbers if x and not 1 / 4 < x <= 2) if steady else ())


def whole_numbers(drawn: Residues, domain: Domain, met: Reach) -> Integers:
    """Small ones; at every second point those around a number of the text, each in its turn, and anywhere."""
    low, high = _ends(domain)
    first = low if domain.low > float("-inf") else min(-SMALL // 2, high - SMALL)
    window = (drawn % np.uint64(SMALL)).astype(np.int64)
    small = first + window % min(SMALL, high - first + 1)
    length = np.minimum(np.uint64(1) << (drawn >> np.uint64(8)) % np.uint64(FAR + 1), np.uint64(high - first + 1))
    anywhere = ((drawn >> np.uint64(16)) % length).astype(np.int64)
    anywhere = first + np.where(first - anywhere < low, anywhere, anywhere * (1 - 2 * (drawn >> np.uint64(60)).astype(np.int64)))
    numbers = sorted({m for n in met.whole for m in (n, -n) if low <= m <= high})
    places = [place for n in numbers for place in (n - SMALL // 2 + window, anywhere)] or [anywhere]
    turns = np.arange(small[1::2].size).reshape(small[1::2].shape) % len(places)
    moved = np.take_along_axis(np.stack(places)[:, 1::2], turns[None], 0)[0]
    small[1::2] = np.where((low <= moved) & (moved <= high), moved, small[1::2])
    return small


def _ends(domain: Domain) -> tuple[int, int]:
    """The least and the largest whole number of the domain, as far as numbers are drawn; of one without any, one near it."""
    low, high = (min(max(x, -LARGEST), LARGEST) for x in (domain.low, domain.high))
    least = ceil(low) + (domain.open_low and ceil(low) == domain.low)
    return least, max(least, floor(high) - (domain.open_high and floor(high) == domain.high))


def scaled(real: np.ndarray, met: Reach) -> np.ndarray:
    """Real numbers, at every second point as large or as small as a number of the text, in turn."""
    by = np.array([met.scales[i // 2 % len(met.scales)] if met.scales and i % 2 else 1.0 for i in range(len(real))])
    return np.asarray(real * by.reshape((-1, *(1 for _ in real.shape[1:]))))


def equalled(field: Field, x: Number, domain: Domain, others: tuple[Fraction, ...], drawn: Residues) -> Number:
    """The value; at every second point one entry in four is one of the others, if it may be. drawn: what says which.

    The first point, and every second one after it, is random in all entries: of these the certificate's bound speaks.
    """
    second = (np.arange(len(drawn)) % 2 == 1).reshape((-1, *(1 for _ in drawn.shape[1:])))
    for i, other in enumerate(o for o in others if _inside(domain, o) and _of_sort(domain, o)):
        at = second & (drawn >> np.uint64(8 * i % 56) & np.uint64(3) == 0)
        if x.whole is not None:
            x = field.whole(np.where(at, int(other), x.whole))
        else:
            x = field.given([np.where(at, m.residue(other), x.residue(level)) for level, m in enumerate(MODULI)])
    return x


def _of_sort(domain: Domain, x: Fraction) -> bool:
    """Whether it is what such values are in the field: small whole numbers; zero and powers of the generator, or their negatives."""
    if domain.integer:
        return abs(x) < WHOLE_LIMIT
    sign = 1 if domain.low >= 0 else -1 if domain.high <= 0 else 0
    return not sign or int(cosets(P.residue(sign * x)[None])[0]) <= 0


def _inside(domain: Domain, x: Fraction) -> bool:
    low = domain.low < x or (domain.low == x and not domain.open_low)
    high = x < domain.high or (domain.high == x and not domain.open_high)
    return low and high and (not domain.integer or x.denominator == 1)
