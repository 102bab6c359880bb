"""Matrix states that depend on each other through numbers and low-rank terms (a memory and its momentum) as one joint step.

A state alone is such a group too: where it is no chain since its decay may be negative, zero or above one.

    Z_t = D_t Z_{t-1} + sum over rows r of  alpha_r (x) write_r w_r         Z stacks the states, D_t is a small matrix of numbers
    w_r = value_r + sum of  query . (d Z_{t-1} + sum over earlier rows s of  g_s write_s w_s)

Every matrix that a token's step computes on its way is such a sum, `d` over the states before the token and `g` over the rows:
its coordinates. So decays, gradients and reads may stand in any order, and steps in turn need no micro-steps of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seqc.analysis.chain import Read, Refusal
from seqc.analysis.components import Component, leaf
from seqc.analysis.reader import Reader
from seqc.analysis.terms import factors, product, signed, without
from seqc.ir import ops
from seqc.ir.expr import Expr, walk


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A matrix as numbers times the states before the token, by name, plus numbers times the token's rows, by index."""

    states: dict[str, Expr]
    rows: dict[int, Expr]


@dataclass(frozen=True)
class Term:
    """query . matrix: a part of what a row holds."""

    query: Expr
    of: Coordinates


@dataclass(frozen=True)
class JointRow:
    """write: key axes; what it writes is value (None is zero) plus the terms."""

    write: Expr
    value: Expr | None
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Coupling:
    """The joint step. reads: what other expressions read of the states, with the coordinates of the matrix that each reads."""

    states: tuple[Expr, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    rows: tuple[JointRow, ...]
    next: dict[str, Coordinates]
    reads: tuple[tuple[Read, Coordinates], ...]
    fixed: tuple[str, ...]  # axes whose length it has compiled in
    decays: frozenset[str] = frozenset()  # the states that keep of themselves what is proved positive and at most one
    reason: str = ""  # of a state alone: why it is no chain

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.states)


def coupling(c: Component, users: tuple[Expr, ...], sizes: Mapping[str, int]) -> Coupling:
    """The joint step of a group of states. `users` are the other expressions that read them. Raises Refusal with the cause."""
    first, *others = c.states
    names = " and ".join(f"`{n}`" for n in c.names)
    for s in others:
        if set(s.axes) != set(first.axes):
            raise Refusal(f"{names} depend on each other and have unlike axes", s.next)
    roots = (*(s.next for s in others), *users)
    reader = Reader(leaf(first), first.next, roots, dict(sizes), tuple(leaf(s) for s in others))
    if not reader.key:
        raise Refusal(f"{names} depend on each other, and nothing reads them along a key axis", first.next)
    joint = _Joint(reader, names)
    next_ = {s.name: joint.matrix(s.next) for s in c.states}
    reads = tuple((read, joint.matrix(read.version)) for read in _reads(reader, users))
    return Coupling(reader.states, reader.key, reader.value, tuple(joint.rows), next_, reads, tuple(dict.fromkeys(reader.fixed)))


def _reads(reader: Reader, users: tuple[Expr, ...]) -> list[Read]:
    """The reads by other expressions, and not those that are parts of a read."""
    found: list[Read] = []
    met, stack = set[int](), list(reversed(users))
    while stack:
        node = stack.pop()
        if id(node) in met or id(node) not in reader.sees or id(node) in reader.carry:
            continue
        met.add(id(node))
        read = reader.read(node) if any(id(a) in reader.carry for a in node.args) else None
        if read is not None and read.over != reader.key:
            along = ", ".join(read.over)
            raise Refusal(f"`{reader.state.name}` depends on other states, and is read along `{along}`, not along its key axis", node)
        if read is not None:
            found.append(read)
        else:
            stack += reversed(node.args)
    return found


class _Joint:
    """Finds the coordinates of matrices, and collects the rows that they are made of."""

    def __init__(self, reader: Reader, names: str):
        self.reader, self.names = reader, names
        self.rows: list[JointRow] = []
        self.found: dict[Expr, Coordinates] = {s: Coordinates({s.name: ops.number(1)}, {}) for s in reader.states}
        self.index: dict[tuple[object, ...], int] = {}

    def matrix(self, node: Expr) -> Coordinates:
        """The coordinates of a node; those that it is made of come first, so that a long text needs no deep recursion."""
        if id(node) not in self.reader.carry:
            raise Refusal(f"the update of {self.names} is not affine in them: it passes through `{node.op.name}`", node)
        for inner in walk(node):
            if id(inner) in self.reader.carry and inner not in self.found:
                self.found[inner] = self._matrix(inner)
        return self.found[node]

    def _matrix(self, node: Expr) -> Coordinates:
        reader = self.reader
        match node.op.name:
            case "add" | "sub" | "neg":
                return self._sum(node)
            case "broadcast":
                return self.found[node.args[0]]
            case "mul" | "contract":
                parts = list(node.args)
            case "div":
                parts = [node.args[0], ops.div(ops.number(1), node.args[1])]
            case _:
                raise Refusal(f"the update of {self.names} is not affine in them: it passes through `{node.op.name}`", node)
        base = next(p for p in parts if id(p) in reader.carry)
        rest = without(parts, base)
        if sum(id(a) in reader.sees for a in node.args) > 1:
            raise Refusal(f"a factor of {self.names} depends on them", node)
        scale = product(rest)
        along = [a for a in scale.axes if a in (*reader.key, *reader.value)]
        if along:
            raise Refusal(f"{self.names} depend on each other, and a factor of them differs along `{', '.join(along)}`", node)
        return self._scaled(self.found[base], scale)

    def _scaled(self, x: Coordinates, scale: Expr) -> Coordinates:
        return Coordinates({n: ops.mul(scale, d) for n, d in x.states.items()}, {r: ops.mul(scale, g) for r, g in x.rows.items()})

    def _sum(self, node: Expr) -> Coordinates:
        signs = (1, -1) if node.op.name == "sub" else (-1,) if node.op.name == "neg" else (1, 1)
        total = Coordinates({}, {})
        for a, sign in zip(node.args, signs, strict=True):
            if id(a) in self.reader.carry:
                _add(total, self.found[a], sign)
                continue
            for write, value, reads in self.reader.rows(a, sign):
                r, alpha = self._row(write, value, reads)
                _add(total, Coordinates({}, {r: alpha}), 1)
        return total

    def _row(self, write: Expr, value: Expr | None, reads: list[tuple[Expr, Expr]]) -> tuple[int, Expr]:
        """The row's index and the number that it is written with. A row that is there already is not made again."""
        key, alpha = self._split(write)
        terms: dict[Expr, Coordinates] = {}
        for scaled, version in reads:
            query, scale = self._split(scaled)
            _add(terms.setdefault(query, Coordinates({}, {})), self._scaled(self.matrix(version), scale), 1)
        row = JointRow(key, value, tuple(Term(q, x) for q, x in terms.items()))
        same = (key, value, *((q, *x.states.items(), *x.rows.items()) for q, x in terms.items()))
        if same not in self.index:
            self.index[same] = len(self.rows)
            self.rows.append(row)
        return self.index[same], alpha

    def _split(self, e: Expr) -> tuple[Expr, Expr]:
        """A vector of the key axes, and the number before it."""
        parts, sign = factors(e)
        on_key = [p for p in parts if set(p.axes) & set(self.reader.key)]
        return product(on_key), signed(product(p for p in parts if p not in on_key), sign)


def _add(total: Coordinates, x: Coordinates, sign: int) -> None:
    parts: tuple[tuple[dict[Any, Expr], dict[Any, Expr]], ...] = ((total.states, x.states), (total.rows, x.rows))
    for into, more in parts:
        for k, e in more.items():
            into[k] = ops.add(into[k], signed(e, sign)) if k in into else signed(e, sign)
