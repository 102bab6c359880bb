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

from collections.abc import Callable, Mapping

from seqc.analysis.coupled import Coordinates, Coupling, Term
from seqc.forms.base import state_lead
from seqc.forms.composed import EARLIER, by_decays, in_a_loop, in_order, of_rows, own, per_token, total
from seqc.forms.series import Series
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.program import CHUNKS, TOKENS, inside


class Coupled:
    """One group of states. `i` and `j` are the axes of its rows, as what reads and as what is read.

    first: a chunk's first states, where they are not what the chunk before left.
    """

    def __init__(self, c: Coupling, series: Series, up: Callable[[Expr], Expr], hints: dict[Expr, str], first: Mapping[str, Expr]):
        self.c, self.up, self.hints, n = c, up, hints, len(c.rows)
        self.i, self.j = (f"@{x}{n}" if n > 1 else f"@{x}" for x in "rs")
        self.states = {s.name: first.get(s.name, ops.var(s.name, (*state_lead("head"), *s.axes))) for s in c.states}
        order = in_order(c)
        in_chunks = inside(series.valid, CHUNKS)
        self.numbers = in_a_loop(c, series, self.j) if order is None else by_decays(c, order, self.j, up, in_chunks)
        self._solve()

    @property
    def widths(self) -> list[tuple[str, str, int]]:
        n = len(self.c.rows)
        tokens = [(EARLIER, TOKENS, 1)]
        rows = [(self.i, TOKENS, n), (self.j, TOKENS, n)] if n else []
        return tokens + rows + ([(f"{self.i}#{n}", "", n), (f"{self.j}#{n}", "", n)] if n > 1 else [])

    # --- Inside a chunk ------------------------------------------------------------------------------------------------

    def _held(self, x: Coordinates) -> tuple[Expr, dict[str, Expr]]:
        """What a matrix of these coordinates holds at each token: of every row, [tokens, rows], and of every first state."""
        up, y, E = self.up, self.numbers.y, self.numbers.E
        state = next((n for n, joint in self.c.next.items() if joint is x), None)
        if state is not None:
            return y[state].after if state in y else ops.number(0), {o: e.after for (n, o), e in E.items() if n == state}
        d = {n: up(e) for n, e in x.states.items()}
        shares = [ops.mul(d[n], of.before) for n, of in y.items() if n in d]
        if x.rows:
            n = len(self.c.rows)
            shares.append(ops.mul(own(n, self.j), of_rows(x, n, self.j, up)))
        first: dict[str, list[Expr]] = {}
        for (m, o), e in E.items():
            if m in d:
                first.setdefault(o, []).append(ops.mul(d[m], e.before))
        return total(shares), {o: total(parts) for o, parts in first.items()}

    def _solve(self) -> None:
        """The rows' keys a and what they write, w."""
        up, rows, key, value = self.up, self.c.rows, self.c.key, self.c.value
        if not rows:
            return
        self.a = self._rows([up(r.write) for r in rows], key, self.j, "a")
        target = self._rows([ops.number(0) if r.value is None else up(r.value) for r in rows], value, self.i, "v")
        A: list[Expr] = []
        B: dict[str, list[Expr]] = {}
        for n in range(max(len(r.terms) for r in rows)):
            terms = [r.terms[n] if n < len(r.terms) else None for r in rows]
            b, inner, first = self._reads(terms)
            A.append(ops.mul(self._gram(b, self.i), inner))
            for o, e in first.items():
                B.setdefault(o, []).append(ops.mul(e, b))
        if not A:
            self.w = ops.rename(target, {self.i: self.j})
            return
        matrix = self.hint(ops.neg(total(A)), "A")
        T = self.hint(ops.unit_lower_inverse(matrix, self.i, self.j), "T")
        found = [self._with(self.states[o], self.hint(total(parts), f"b_{o}"), self.i) for o, parts in B.items()]
        rest = total([target, *found])
        self.w = self.hint(ops.rename(ops.apply_inverse(matrix, T, rest, self.i, self.j), {self.i: self.j}), "w")

    def _reads(self, terms: list[Term | None]) -> tuple[Expr, Expr, dict[str, Expr]]:
        """One term of every row of a token: queries, numbers of rows, numbers of first states, all along `i`."""
        b = self._rows([ops.number(0) if t is None else self.up(t.query) for t in terms], self.c.key, self.i, "b")
        found = [(ops.number(0), {}) if t is None else self._held(t.of) for t in terms]
        inner = per_token([ops.broadcast(y, (*(a for a in y.axes if a != self.j), self.j)) for y, _ in found], self.i)
        starts = dict.fromkeys(o for _, e in found for o in e)
        return b, inner, {o: per_token([e.get(o, ops.number(0)) for _, e in found], self.i) for o in starts}

    def _rows(self, items: list[Expr], axes: tuple[str, ...], axis: str, word: str) -> Expr:
        return self.hint(per_token([ops.broadcast(e, (*(a for a in e.axes if a not in axes), *axes)) for e in items], axis), word)

    def _gram(self, query: Expr, axis: str) -> Expr:
        lead = (a for a in dict.fromkeys((*query.axes, *self.a.axes)) if a not in (axis, self.j, *self.c.key))
        return ops.contract((query, self.a), (*lead, axis, self.j))

    def _with(self, state: Expr, query: Expr, axis: str) -> Expr:
        lead = (a for a in dict.fromkeys((*query.axes, *state.axes)) if a not in (axis, *self.c.key, *self.c.value))
        return ops.contract((query, state), (*lead, axis, *self.c.value))

    def read(self, query: Expr, x: Coordinates) -> Expr:
        """query . matrix at each token."""
        q = query if TOKENS in query.axes else ops.broadcast(query, (*query.axes, TOKENS))
        inner, first = self._held(x)
        shares = [self._with(self.states[o], ops.mul(e, q), TOKENS) for o, e in first.items()]
        if self.c.rows and not ops.is_zero(inner):
            P = self.hint(ops.mul(self._gram(q, TOKENS), inner), "P")
            lead = (a for a in dict.fromkeys((*P.axes, *self.w.axes)) if a not in (TOKENS, self.j, *self.c.value))
            shares.append(ops.contract((P, self.w), (*lead, TOKENS, *self.c.value)))
        return total(shares)

    def last(self, name: str) -> Expr:
        """A state at the chunk's end."""
        axes = self.states[name].axes
        shares = [ops.mul(e.end, self.states[o]) for (n, o), e in self.numbers.E.items() if n == name]
        if name in self.numbers.y:
            a = self.hint(ops.mul(self.numbers.y[name].end, self.a), f"a_{name}")
            shares.append(ops.contract((a, self.w), (x for x in axes if x in a.axes or x in self.w.axes)))
        return ops.broadcast(total(shares), axes)

    def hint(self, e: Expr, word: str) -> Expr:
        core = e
        while core.op.name in ("rename", "neg", "broadcast"):
            (core,) = core.args
        self.hints.setdefault(core, word)
        return e
