"""States that are coupled through numbers and rows (`seqc.analysis.coupled`), inside a chunk and from chunk to chunk.

With Z the stack of states, D_t the matrix of numbers between them, R rows per token (write a, numbers alpha, value v, read b):

    y_tj = D_t ... D_(j+1) alpha_j     what of row j stands in each state after token t, composed along the tokens of all chunks at once
    E_t  = D_t ... D_1                 the same of the chunk's first states
    w    = (I - A)^-1 (v + B Z_0)      A_ij = (b_i . a_j) (d_i . y_(i-1)j),  B_i = (d_i E_(i-1)) b_i
    o    = (q E) Z_0 + P w             P_ij = (q_i . a_j) y_ij in the state that is read
    Z_C  = E_C Z_0 + sum of (y_Cj (x) a_j) w_j

No product of D is ever divided by another, so a D may be small, zero or negative. Only numbers are composed: one Gram matrix of
keys serves all states.
"""

from __future__ import annotations

from collections.abc import Callable

from seqc.analysis.coupled import Coordinates, Coupling, Term
from seqc.forms.base import state_lead
from seqc.forms.series import Series
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.program import BATCH, CHUNKS, HEADS, TOKENS, Carried, Carry, Equation, inside
from seqc.passes.lift import lift

LEAD = (CHUNKS, BATCH, HEADS)


def _along(items: list[Expr], axis: str) -> Expr:
    """One value per token and entry of the list, as rows along `axis`."""
    lead = tuple(dict.fromkeys(a for e in items for a in e.axes if a != TOKENS))
    full = [ops.broadcast(e, (*lead, TOKENS)) for e in items]
    if len(full) == 1:
        return ops.rename(full[0], {TOKENS: axis})
    each = f"{axis}#{len(full)}"
    return ops.flatten(ops.stack(full, each), (TOKENS, each), axis)


class Coupled:
    """One group of states. `i` and `j` are the axes of its rows, as what reads and as what is read."""

    def __init__(self, c: Coupling, series: Series, hints: dict[Expr, str]):
        self.c, self.hints, n = c, hints, len(c.rows)
        self.i, self.j = (f"@{x}{n}" if n > 1 else f"@{x}" for x in "rs")
        self.states = {s.name: ops.var(s.name, (*state_lead("head"), *s.axes)) for s in c.states}
        self.y: dict[str, Expr] = {}  # what is composed: per state, over the rows; per state and state at the chunk's start
        self.E: dict[tuple[str, str], Expr] = {}
        self._compose(series)

    @property
    def widths(self) -> list[tuple[str, str, int]]:
        n = len(self.c.rows)
        rows = [(self.i, TOKENS, n), (self.j, TOKENS, n)] if n else []
        return rows + ([("@s", TOKENS, 1), (f"{self.i}#{n}", "", n), (f"{self.j}#{n}", "", n)] if n > 1 else [])

    # --- Numbers along the tokens ---------------------------------------------------------------------------------

    def _compose(self, series: Series) -> None:
        """The Carry along tokens that names y and E before and after each token, and at the chunk's end. Padding changes nothing."""
        next_, table, valid = self.c.next, series.inner(TOKENS), inside(series.valid, TOKENS)
        D = {(n, m): self._padded(n == m, lift((d,), table)[0], valid) for n, x in next_.items() for m, d in x.states.items()}
        self.y = {n: ops.var(f"{n}@y", (*LEAD, self.j)) for n in self._reached({n for n, x in next_.items() if x.rows})}
        self.E = {(n, o): ops.var(f"{n}.of.{o}@E", LEAD) for o in next_ for n in self._reached({o})}
        new = self._new(series)
        carried = [(leaf, ops.number(0), self._step(n, D, self.y, new.get(n))) for n, leaf in self.y.items()]
        for (n, o), leaf in self.E.items():
            column = {m: e for (m, start), e in self.E.items() if start == o}
            carried.append((leaf, ops.number(int(n == o)), self._step(n, D, column, None)))
        carry = tuple(Carried(x.name, ops.broadcast(a, x.axes), ops.broadcast(b, x.axes), f"{x.name}.end") for x, a, b in carried)
        before = [Equation(f"{x.name}.before", x) for x, _, _ in carried]
        after = [Equation(f"{k.name}.after", k.next) for k in carry]
        series.stages.append(Carry(TOKENS, False, carry, (*before, *after)))

    def _padded(self, diagonal: bool, d: Expr, valid: Expr) -> Expr:
        if diagonal:
            return d if ops.is_number(d, 1) else ops.add(ops.mul(valid, d), ops.sub(ops.number(1), valid))
        return ops.mul(valid, d)

    def _step(self, n: str, D: dict[tuple[str, str], Expr], before: dict[str, Expr], new: Expr | None) -> Expr:
        """State n after one token more: the row of D for it, and what the token adds."""
        shares = [ops.mul(D[n, m], x) for m, x in before.items() if (n, m) in D] + ([] if new is None else [new])
        return _sum(shares)

    def _new(self, series: Series) -> dict[str, Expr]:
        """Per state, at each token: the numbers with which the token's own rows enter."""
        found = {}
        own = _along([series.valid] * len(self.c.rows), self.j)
        for n, x in self.c.next.items():
            if x.rows:
                alpha = ops.mul(own, self._numbers(x, series.up))
                value = ops.broadcast(ops.mul(self._same(), alpha), (TOKENS, *LEAD, self.j))
                (named,) = series.map([Equation(f"{n}@new", value)])
                found[n] = inside(named, TOKENS)
        return found

    def _numbers(self, x: Coordinates, up: Callable[[Expr], Expr]) -> Expr:
        return _along([up(x.rows[r]) if r in x.rows else ops.number(0) for r in range(len(self.c.rows))], self.j)

    def _same(self) -> Expr:
        """1 where a row is one of the token's own."""
        n = len(self.c.rows)
        if n == 1:
            return ops.eye(TOKENS, self.j)
        each = f"{self.j}#{n}"
        return ops.flatten(ops.broadcast(ops.eye(TOKENS, "@s"), (TOKENS, "@s", each)), ("@s", each), self.j)

    def _reached(self, start: set[str]) -> list[str]:
        """The states that hold something of what stands in the given ones, in time."""
        found = set(start)
        for _ in self.c.names:
            found |= {n for n in self.c.names if found & set(self.c.next[n].states)}
        return [n for n in self.c.names if n in found]

    # --- Inside a chunk ------------------------------------------------------------------------------------------------

    def _at(self, leaf: Expr, when: str) -> Expr:
        return inside(ops.var(f"{leaf.name}.{when}", (TOKENS, *leaf.axes)), CHUNKS)

    def _end(self, leaf: Expr) -> Expr:
        return inside(ops.var(f"{leaf.name}.end", leaf.axes), CHUNKS)

    def numbers(self, x: Coordinates, up: Callable[[Expr], Expr]) -> tuple[Expr, dict[str, Expr]]:
        """What a matrix of these coordinates holds at each token: of every row, [tokens, rows], and of every first state."""
        state = next((n for n, own in self.c.next.items() if own is x), None)
        if state is not None:
            rows = self._at(self.y[state], "after") if state in self.y else ops.number(0)
            return rows, {o: self._at(e, "after") for (n, o), e in self.E.items() if n == state}
        d = {n: up(e) for n, e in x.states.items()}
        shares = [ops.mul(d[n], self._at(leaf, "before")) for n, leaf in self.y.items() if n in d]
        if x.rows:
            shares.append(ops.mul(self._same(), self._numbers(x, up)))
        first: dict[str, list[Expr]] = {}
        for (n, o), e in self.E.items():
            if n in d:
                first.setdefault(o, []).append(ops.mul(d[n], self._at(e, "before")))
        return _sum(shares), {o: _sum(s) for o, s in first.items()}

    def solve(self, up: Callable[[Expr], Expr]) -> None:
        """The rows' keys a and what they write, w."""
        rows, key, value = self.c.rows, self.c.key, self.c.value
        if not rows:
            return
        self.a = self._rows([up(r.write) for r in rows], key, self.j, "a")
        target = self._rows([ops.number(0) if r.value is None else up(r.value) for r in rows], value, self.i, "v")
        A: list[Expr] = []
        B: dict[str, list[Expr]] = {}
        for n in range(max(len(r.terms) for r in rows)):
            terms = [r.terms[n] if n < len(r.terms) else None for r in rows]
            b, inner, first = self._reads(terms, up)
            A.append(ops.mul(self._gram(b, self.i), inner))
            for o, e in first.items():
                B.setdefault(o, []).append(ops.mul(e, b))
        if not A:
            self.w = ops.rename(target, {self.i: self.j})
            return
        T = self.hint(ops.unit_lower_inverse(self.hint(ops.neg(_sum(A)), "A"), self.i, self.j), "T")
        shares = [] if ops.is_zero(target) else [self.hint(self._solved(T, target, value), "u")]
        for o, parts in B.items():
            W = self.hint(self._solved(T, _sum(parts), key), f"W_{o}")
            shares.append(self._with(self.states[o], W, self.i))
        self.w = self.hint(ops.rename(_sum(shares), {self.i: self.j}), "w")

    def _reads(self, terms: list[Term | None], up: Callable[[Expr], Expr]) -> tuple[Expr, Expr, dict[str, Expr]]:
        """One term of every row of a token: queries, numbers of rows, numbers of first states, all along `i`."""
        b = self._rows([ops.number(0) if t is None else up(t.query) for t in terms], self.c.key, self.i, "b")
        found = [(ops.number(0), {}) if t is None else self.numbers(t.of, up) for t in terms]
        inner = _along([ops.broadcast(y, (*(a for a in y.axes if a != self.j), self.j)) for y, _ in found], self.i)
        starts = dict.fromkeys(o for _, e in found for o in e)
        return b, inner, {o: _along([e.get(o, ops.number(0)) for _, e in found], self.i) for o in starts}

    def _rows(self, items: list[Expr], axes: tuple[str, ...], axis: str, word: str) -> Expr:
        return self.hint(_along([ops.broadcast(e, (*(a for a in e.axes if a not in axes), *axes)) for e in items], axis), word)

    def _gram(self, query: Expr, axis: str) -> Expr:
        lead = (a for a in dict.fromkeys((*query.axes, *self.a.axes)) if a not in (axis, self.j, *self.c.key))
        return ops.contract((query, self.a), (*lead, axis, self.j))

    def _solved(self, T: Expr, right: Expr, last: tuple[str, ...]) -> Expr:
        """T applied to rows, as rows."""
        lead = (a for a in dict.fromkeys((*T.axes, *right.axes)) if a not in (self.i, self.j, *last))
        return ops.contract((T, ops.rename(right, {self.i: self.j})), (*lead, self.i, *last))

    def _with(self, state: Expr, query: Expr, axis: str) -> Expr:
        lead = (a for a in dict.fromkeys((*query.axes, *state.axes)) if a not in (axis, *self.c.key, *self.c.value))
        return ops.contract((query, state), (*lead, axis, *self.c.value))

    def read(self, query: Expr, x: Coordinates, up: Callable[[Expr], Expr]) -> Expr:
        """query . matrix at each token."""
        q = query if TOKENS in query.axes else ops.broadcast(query, (*query.axes, TOKENS))
        inner, first = self.numbers(x, up)
        shares = [self._with(self.states[o], ops.mul(e, q), TOKENS) for o, e in first.items()]
        if self.c.rows and not ops.is_zero(inner):
            P = self.hint(ops.mul(self._gram(q, TOKENS), inner), "P")
            lead = (a for a in dict.fromkeys((*P.axes, *self.w.axes)) if a not in (TOKENS, self.j, *self.c.value))
            shares.append(ops.contract((P, self.w), (*lead, TOKENS, *self.c.value)))
        return _sum(shares)

    def last(self, name: str) -> Expr:
        """A state at the chunk's end."""
        axes = self.states[name].axes
        shares = [ops.mul(self._end(e), self.states[o]) for (n, o), e in self.E.items() if n == name]
        if name in self.y:
            a = self.hint(ops.mul(self._end(self.y[name]), self.a), f"a_{name}")
            shares.append(ops.contract((a, self.w), (x for x in axes if x in a.axes or x in self.w.axes)))
        return ops.broadcast(_sum(shares), axes)

    def hint(self, e: Expr, word: str) -> Expr:
        core = e
        while core.op.name in ("rename", "neg", "broadcast"):
            (core,) = core.args
        self.hints.setdefault(core, word)
        return e


def _sum(items: list[Expr]) -> Expr:
    total: Expr = ops.number(0)
    for e in items:
        total = ops.add(total, e)
    return total
