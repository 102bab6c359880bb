"""One matrix state inside a chunk: its rows as tensors over the chunk's tokens, and the formulas of the chunkwise form over them.

With G the running sum of log decays over the chunk's micro-steps, S_0 the chunk's first state, and per erase row
(write a, read b, value v), per plain row (write k, value w):

    U   = (I + A)^-1 (v - B w - (b e^G') S_0)
          A_ij = b_i . e^(G'_i - G_j) a_j, B_ij = b_i . e^(G'_i - G_j) k_j, earlier micro-steps only
    o   = (q e^G) S_0 + P U + R w                 P_ij = q_i . e^(G_i - G_j) a_j,  R_ij = q_i . e^(G_i - G_j) k_j
    S_C = e^(G_C) S_0 + (a e^(G_C - G))^T U + (k e^(G_C - G))^T w

A decay along the value axes scales the sums over rows instead, entry by entry (in P U, and in the solve for U); a product of decays
along both is one of each. A read along the value axes takes the other side of every row: o = S_0 q + (q . U) a + (q . w) k.

where G' is G before the micro-step (a shift of G, never G - g). Every exponent is at most zero. The derivation is the
WY representation of products of diagonal-plus-low-rank factors: Yang et al. 2024, arXiv:2406.06484; 2412.06464.
Matrices that depend on each other are in `seqc.forms.coupled`.
"""

from __future__ import annotations

from collections.abc import Callable

from seqc.analysis.chain import Chain, Halves, Refusal, Row
from seqc.analysis.components import leaf
from seqc.analysis.exponents import Exponent, exponent, log_of
from seqc.forms.base import state_lead
from seqc.ir import ops
from seqc.ir.expr import Expr, Mask
from seqc.ir.program import TOKENS
from seqc.ir.recurrence import State


def _joined(e: Expr, axes: tuple[str, ...]) -> Expr:
    """A value along all of the axes, several of them as one: decayed sums have a single axis of that kind."""
    missing = [a for a in axes if a not in e.axes]
    wide = ops.broadcast(e, (*e.axes, *missing)) if missing else e
    return wide if len(axes) == 1 else ops.flatten(wide, axes, "*".join(axes))


def _apart(e: Expr, axes: tuple[str, ...]) -> Expr:
    return e if len(axes) == 1 else ops.unflatten(e, axes, "*".join(axes))


class Memory:
    """One state inside a chunk: its rows as tensors over the chunk, and what the formulas of the module need of them.

    Axes, each with its count per token if that is more than one: @r and @s erase rows (as rows and as columns), @s plain
    rows, @m micro-steps. Memories with equal counts share axes, and with them what is computed from the same inputs.
    """

    def __init__(
        self,
        chain: Chain,
        name: str,
        up: Callable[[Expr], Expr],
        valid: Expr,
        hints: dict[Expr, str],
        alone: bool,
        unit: State | None,
        first: Expr | None = None,
        padded: bool = False,
    ):
        self.alone, self.unit, self.padded = alone, unit, padded
        self.chain, self.name, self.up, self.valid, self.hints = chain, name, up, valid, hints
        self.n = max(len(chain.steps), 1)
        self.erase = [[r for r in s.rows if r.read is not None] for s in chain.steps]
        self.plain = [[r for r in s.rows if r.read is None] for s in chain.steps]
        self.ruled = any(r.rule for rows in self.erase for r in rows)
        self.ranks = (max(map(len, self.erase), default=0), max(map(len, self.plain), default=0))
        counts = (self.n * self.ranks[0], self.n * self.ranks[0], self.n * self.ranks[1], self.n)
        self.i, self.j, self.w, self.micro = (f"@{x}{n}" if n > 1 else f"@{x}" for x, n in zip("rssm", counts, strict=True))
        self.decays = any(s.decay is not None for s in chain.steps)
        along = {a for s in chain.steps if s.decay is not None for a in s.decay.axes}
        self.along = along & {*chain.key}, along & {*chain.value}
        self.by_value = bool(self.along[1])
        self.S = ops.var(name, (*state_lead("head"), *chain.state.axes)) if first is None else first
        self.first: list[Expr | None] = [None, None]  # what G is short of, where it is kept relative to the state's units
        self.G: Halves = self._running(0), self._running(1)

    def halves(self, decay: Expr | None) -> Halves:
        """A decay's two factors. Where no decay runs along the key axes, those along none stand with the value axes'."""
        if decay is None:
            return None, None
        return self.chain.halves(decay) if self.along[0] or not self.by_value else (None, decay)

    def parted(self, e: Halves, over: tuple[str, ...]) -> Halves:
        """The factor that belongs inside a sum over `over`, and the one along the axes that stay."""
        key, value = e
        on_key, on_value = ({*self._kept(over)} & along for along in self.along)
        return (value, key) if on_key else (key, value) if on_value else (value if key is None else key, None)

    def _kept(self, over: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(a for a in self.chain.state.axes if a not in over)

    def hint(self, e: Expr, word: str) -> Expr:
        core = e
        while core.op.name in ("rename", "neg", "broadcast"):
            (core,) = core.args
        self.hints.setdefault(core, word if self.alone else f"{word}_{self.name}")
        return e

    # --- Rows ----------------------------------------------------------------------------------------------------

    def _per_micro(self, items: list[Expr], axis: str) -> Expr:
        """One value per token and entry of the list, as rows along `axis`."""
        if len(items) == 1:
            (only,) = items
            wide = ops.broadcast(only, (*only.axes, TOKENS)) if TOKENS not in only.axes else only
            return ops.rename(wide, {TOKENS: axis})
        full = [ops.broadcast(e, (*(a for a in e.axes if a != TOKENS), TOKENS)) for e in items]
        return ops.flatten(ops.stack(full, f"{axis}#{len(items)}"), (TOKENS, f"{axis}#{len(items)}"), axis)

    def _running(self, half: int) -> Expr | None:
        """G: the running sum of log decays over the micro-steps of the chunk; padding does not decay."""
        decays = [self.halves(s.decay)[half] for s in self.chain.steps]
        if all(d is None for d in decays):
            return None
        units, found = self._without_units([Exponent() if d is None else exponent(log_of(d)) for d in decays], half)
        logs = [self.up(x.value) for x in found]
        axes = tuple(dict.fromkeys(a for e in logs for a in e.axes))
        logs = [ops.mul(ops.broadcast(e, axes), self.valid) if not ops.is_zero(e) else ops.broadcast(e, axes) for e in logs]
        wide = tuple(dict.fromkeys(a for e in logs for a in e.axes))
        rows = self._per_micro([ops.broadcast(e, wide) for e in logs], self.micro)
        G = rows if ops.is_zero(rows) else ops.cumsum(rows, self.micro)
        if units:
            G = ops.sub(G, self._per_micro(units, self.micro))
        return self.hint(G, "G")

    def _without_units(self, found: list[Exponent], half: int) -> tuple[list[Expr], list[Exponent]]:
        """The decays without what a change of the state's units takes part in, and the units after each micro-step.

        With units m the log decays hold m_(t-1) - m_t, whose sum is m_first - m_t at once: nothing is added up that could
        round. G is kept less m_first, and differences of it need no more; at the chunk's start G is -m_first.
        """
        m = self.unit
        if m is None:
            return [], found
        change = exponent(ops.stop_gradient(leaf(m))).minus(exponent(m.next))
        changes = [all(term in x.terms for term in change.terms) for x in found]
        if not any(changes):
            return [], found
        before, after = self.up(ops.stop_gradient(leaf(m))), self.up(m.next)
        self.first[half] = ops.select(before, TOKENS, 0)
        units = [after if any(changes[: i + 1]) else before for i in range(len(found))]
        return units, [x.minus(change) if changed else x for x, changed in zip(found, changes, strict=True)]

    def _before(self, G: Expr, first: Expr | None) -> Expr:
        """G before each micro-step: a shift of G, never G less a decay."""
        moved = ops.shift(G, self.micro, 1)
        return moved if first is None else ops.sub(moved, ops.place(first, self.micro, 0))

    def since_start(self, exponent: Halves) -> Halves:
        """An exponent counted from the chunk's first state."""
        key, value = (x if x is None or first is None else ops.add(x, first) for x, first in zip(exponent, self.first, strict=True))
        return key, value

    def rows(self, table: list[list[Row]], rank: int, pick: Callable[[Row], Expr | None], axes: tuple[str, ...], axis: str) -> Expr:
        """A part of the rows as a tensor along `axis`; missing rows and parts are zero."""
        items: list[Expr] = []
        for step in table:
            for r in range(rank):
                part = pick(step[r]) if r < len(step) else None
                items.append(ops.number(0) if part is None else self.up(part))
        lead = tuple(dict.fromkeys(a for e in items for a in e.axes if a not in axes))
        return self._per_micro([ops.broadcast(e, (*lead, *axes)) for e in items], axis)

    def _written_by(self, keys: Expr, rank: int, axis: str) -> Expr:
        """The keys of rows. Padding before a chunk's tokens must write nothing; what stands behind them is masked at the chunk's end.

        With rules no padding writes: what a row behind the end would find, and make of it, could grow without bound.
        """
        return ops.mul(keys, self._per_micro([self.valid] * (rank * self.n), axis)) if self.padded or self.ruled else keys

    def exponent(self, axis: str, rank: int, before: bool) -> Halves:
        """G at each row: after its micro-step, or before it (what a read sees)."""
        return self._each(lambda G, first: self._at_row(self._before(G, first) if before else G, axis, rank))

    def at_token(self, done: int) -> Halves:
        """G at each token after `done` of its micro-steps."""
        return self._each(lambda G, first: self._at_token(G if done else self._before(G, first), max(done - 1, 0)))

    def _each(self, f: Callable[[Expr, Expr | None], Expr]) -> Halves:
        key, value = (None if G is None else f(G, first) for G, first in zip(self.G, self.first, strict=True))
        return key, value

    def _at_row(self, G: Expr, axis: str, rank: int) -> Expr:
        if rank == 1:
            return ops.rename(G, {self.micro: axis})
        return ops.flatten(ops.broadcast(G, (*G.axes, f"{axis}#{rank}")), (self.micro, f"{axis}#{rank}"), axis)

    def _at_token(self, G: Expr, index: int) -> Expr:
        if self.n == 1:
            return ops.rename(G, {self.micro: TOKENS})
        axis = f"{self.micro}#{self.n}"
        return ops.select(ops.unflatten(G, (TOKENS, axis), self.micro), axis, index)

    # --- The formulas --------------------------------------------------------------------------------------------

    def weights(self, x: Expr, y: Expr, upper: Halves, lower: Halves, mask: Mask, over: tuple[str, ...]) -> Expr:
        """x_i . e^(upper_i - lower_j) y_j summed over `over` under the mask, without what decays along the axes that stay."""
        out = (*(a for a in dict.fromkeys((*x.axes, *y.axes)) if a not in (mask.row, mask.column, *over)), mask.row, mask.column)
        up, low = self.parted(upper, over)[0], self.parted(lower, over)[0]
        if up is not None and low is not None and {*over} & (self.along[0] | self.along[1]):
            x, y, up, low = (_joined(e, over) for e in (x, y, up, low))
            return ops.decayed(x, y, up, low, out, mask)
        plain = ops.contract((x, y), out)
        return ops.masked(plain, mask) if up is None or low is None else ops.mul(plain, ops.decay(up, low, mask))

    def apply(self, P: Expr, U: Expr, upper: Halves, lower: Halves, mask: Mask, over: tuple[str, ...]) -> Expr:
        """Sum over rows j of P_ij U_j for weights over `over`, decayed along the axes that stay."""
        kept = self._kept(over)
        out = (*(a for a in dict.fromkeys((*P.axes, *U.axes)) if a not in (mask.row, mask.column, *kept)), mask.row, *kept)
        up, low = self.parted(upper, over)[1], self.parted(lower, over)[1]
        if up is None or low is None:
            return ops.contract((P, U), out)
        one = (*(a for a in out if a not in kept), "*".join(kept))
        U, up, low = (_joined(e, kept) for e in (U, up, low))
        return _apart(ops.decayed(P, U, up, low, one, mask), kept)

    def from_state(self, x: Expr, exponent: Halves, axis: str, over: tuple[str, ...], word: str = "q_in") -> Expr:
        """(x e^exponent) S_0 summed over `over`, row by row."""
        lead = tuple(a for a in dict.fromkeys((*x.axes, *self.S.axes)) if a not in (axis, *self.chain.state.axes))
        within, behind = self.parted(self.since_start(exponent), over)
        if within is not None:
            x = self.hint(ops.mul(ops.exp(within), x), word)
        found = ops.contract((x, self.S), (*lead, axis, *self._kept(over)))
        return found if behind is None else ops.mul(ops.exp(behind), found)

    def solve(self) -> None:
        """The rows' tensors and U."""
        chain, (re, rp) = self.chain, self.ranks
        value, over = chain.value, chain.key
        if rp:
            self.k = self.hint(self._written_by(self.rows(self.plain, rp, lambda r: r.write, chain.key, self.w), rp, self.w), "k")
            self.v = self.hint(self.rows(self.plain, rp, lambda r: r.value, value, self.w), "v")
            self.G_w = self.exponent(self.w, rp, False)
        if not re:
            return
        self.a = self.hint(self._written_by(self.rows(self.erase, re, lambda r: r.write, chain.key, self.j), re, self.j), "a")
        b = self.hint(self.rows(self.erase, re, lambda r: r.read, chain.key, self.i), "b")
        self.G_j = self.exponent(self.j, re, False)
        before = self.exponent(self.i, re, True)
        strict = Mask(self.i, self.j, re, 1, 0, re)
        A = self.weights(b, self.a, before, self.G_j, strict, over)
        up, low = before[1], self.G_j[1]
        if self.ruled:
            self.U = self.hint(ops.rename(self._ruled(A, b, before, strict), {self.i: self.j}), "U")
            return
        if up is not None and low is not None:
            target = ops.sub(self._target(b, before), self.from_state(b, before, self.i, over))
            target, up, low = (_joined(e, value) for e in (target, up, low))
            solved = ops.decayed_solve(self.hint(A, "A"), target, up, low, strict)
            self.U = self.hint(ops.rename(_apart(solved, value), {self.i: self.j}), "U")
            return
        T = self.hint(ops.unit_lower_inverse(self.hint(A, "A"), self.i, self.j), "T")
        # One product between chunks more than with (I + A)^-1 (b e^G') made before, but nothing as large to write, and to read again.
        rest = ops.sub(self._target(b, before), self.from_state(b, before, self.i, over, "b_in"))
        self.U = self.hint(ops.rename(ops.apply_inverse(A, T, rest, self.i, self.j), {self.i: self.j}), "U")

    def _ruled(self, A: Expr, b: Expr, before: Halves, strict: Mask) -> Expr:
        """U of rows that write a rule of what they find: a triangular solve that is not linear, in each chunk anew."""
        re, rows, name = self.ranks[0], [r for rows in self.erase for r in rows], self.chain.state.name
        last = next(e for e, v in self.chain.versions.items() if v.done == self.n and v.decay is None)
        rules = [r.rule for r in rows if r.rule]
        body, leaves = rules[0].body, rules[0].leaves
        if len(rules) < re * self.n or any(r.body is not body for r in rules):
            raise Refusal(f"what `{name}` writes is not one function of its reads", last)
        if before[1] is not None:
            along = ", ".join(self.chain.value)
            raise Refusal(f"`{name}` decays along `{along}`, and what it writes is no affine function of its reads", last)

        def given(n: int, leaf: Expr) -> Expr:
            return self.rows(self.erase, re, lambda r: r.rule.given[n] if r.rule else None, leaf.axes, self.i)

        found = ops.sub(self._target(b, before), self.from_state(b, before, self.i, self.chain.key))
        return ops.strict_solve(A, found, [given(n, leaf) for n, leaf in enumerate(leaves[1:])], strict, body, leaves)

    def _target(self, b: Expr, before: Halves) -> Expr:
        """v - B w: what the erase rows write, less what they read of the plain rows before them."""
        re, rp = self.ranks
        if not rp and all(r.value is None for rows in self.erase for r in rows):
            return ops.number(0)
        target = self.rows(self.erase, re, lambda r: r.value, self.chain.value, self.i)
        if not rp:
            return target
        mask, over = Mask(self.i, self.w, re, 1, 0, rp), self.chain.key
        B = self.hint(self.weights(b, self.k, before, self.G_w, mask, over), "B")
        return ops.sub(target, self.apply(B, self.v, before, self.G_w, mask, over))

    def read(self, query: Expr, done: int, over: tuple[str, ...]) -> Expr:
        """query . S summed over the key axes or over the value axes, at each token after `done` micro-steps."""
        q = query if TOKENS in query.axes else ops.broadcast(query, (*query.axes, TOKENS))
        exponent = self.at_token(done)
        out = self.from_state(q, exponent, TOKENS, over)
        re, rp = self.ranks
        if re:
            mask = Mask(TOKENS, self.j, 1, self.n, done, re)
            x, y = (self.a, self.U) if over == self.chain.key else (self.U, self.a)
            P = self.hint(self.weights(q, x, exponent, self.G_j, mask, over), "P")
            out = ops.add(out, self.apply(P, y, exponent, self.G_j, mask, over))
        if rp:
            mask = Mask(TOKENS, self.w, 1, self.n, done, rp)
            x, y = (self.k, self.v) if over == self.chain.key else (self.v, self.k)
            R = self.hint(self.weights(q, x, exponent, self.G_w, mask, over), "R")
            out = ops.add(out, self.apply(R, y, exponent, self.G_w, mask, over))
        return out

    def last(self) -> Expr:
        """The chunk's last state."""
        total = self.S
        for end in self.since_start(self._each(lambda G, _: ops.select(G, self.micro, -1))):
            if end is not None:
                total = ops.mul(self.hint(ops.exp(end), "keep"), total)
        re, rp = self.ranks
        if re:
            total = ops.add(total, self._written(self.a, self.U, self.G_j, self.j, re, "a_out"))
        if rp:
            total = ops.add(total, self._written(self.k, self.v, self.G_w, self.w, rp, "k_out"))
        return total

    def _written(self, key: Expr, value: Expr, exponent: Halves, axis: str, rank: int, word: str) -> Expr:
        """Sum of key_j e^(G_C - G_j) value_j: what the rows leave in the state. Padding writes nothing."""
        valid = self._per_micro([self.valid] * (rank * self.n), axis)
        on_key, on_value = (
            None if G is None or x is None else ops.exp(ops.sub(ops.select(G, self.micro, -1), x))
            for G, x in zip(self.G, exponent, strict=True)
        )
        if on_key is None and on_value is not None:
            value = ops.mul(ops.mul(on_value, valid), value)
        else:
            key = self.hint(ops.mul(valid if on_key is None else ops.mul(on_key, valid), key), word)
            value = value if on_value is None else ops.mul(on_value, value)
        have = {*key.axes, *value.axes}
        return ops.broadcast(ops.contract((key, value), (a for a in self.S.axes if a in have)), self.S.axes)
