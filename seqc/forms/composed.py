"""The numbers D_t of coupled states (`seqc.forms.coupled`) composed along the tokens of a chunk: y, what of each row stands in each
state, and E, what of each first state. No product of D is ever divided by another.

Where the states can be put in order, each taking from itself by a decay and else only from earlier ones (a momentum, then the
memory), y is a few products of matrices of decays: with Gamma_il = e^(L_i - L_l), L the running sum of log D_nn,

    y_n = Gamma_n (new_n + sum over earlier states m of  D_nm y_m one token before)          E_n alike

Else a loop along the tokens composes them in all chunks at once: y_t = D_t y_(t-1) + new_t, E_t = D_t E_(t-1). It takes numbers of
any sign, and zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from seqc.analysis.coupled import Coordinates, Coupling
from seqc.analysis.exponents import log_of
from seqc.forms.series import Series
from seqc.ir import ops
from seqc.ir.expr import Expr, Mask
from seqc.ir.lift import lift
from seqc.ir.program import BATCH, CHUNKS, HEADS, TOKENS, Carried, Carry, Equation, inside

LEAD = (CHUNKS, BATCH, HEADS)
EARLIER = "@l"  # tokens, as what is taken from


@dataclass(frozen=True)
class Composed:
    """A number before and after every token of a chunk, and at its end, as the Carry along chunks sees it."""

    before: Expr
    after: Expr
    end: Expr


@dataclass(frozen=True)
class Numbers:
    """y by state; E by state and first state. What is not there is zero."""

    y: dict[str, Composed]
    E: dict[tuple[str, str], Composed]


def per_token(items: list[Expr], axis: str) -> Expr:
    """One value per token and entry of the list, as rows along `axis`."""
    lead = tuple(dict.fromkeys(a for e in items for a in e.axes if a != TOKENS))
    full = [ops.broadcast(e, (*lead, TOKENS)) for e in items]
    if len(full) == 1:
        return ops.rename(full[0], {TOKENS: axis})
    each = f"{axis}#{len(full)}"
    return ops.flatten(ops.stack(full, each), (TOKENS, each), axis)


def total(items: list[Expr]) -> Expr:
    result: Expr = ops.number(0)
    for e in items:
        result = ops.add(result, e)
    return result


def own(n: int, axis: str) -> Expr:
    """1 where a row, n per token along the axis, is one of the token's."""
    return _each(ops.eye(TOKENS, EARLIER), n, axis)


def _each(x: Expr, n: int, axis: str) -> Expr:
    """What is given for every earlier token, for its n rows."""
    if n == 1:
        return ops.rename(x, {EARLIER: axis})
    each = f"{axis}#{n}"
    return ops.flatten(ops.broadcast(x, (*x.axes, each)), (EARLIER, each), axis)


def of_rows(x: Coordinates, n: int, axis: str, up: Callable[[Expr], Expr]) -> Expr:
    """The numbers of a matrix's rows along their axis."""
    return per_token([up(x.rows[r]) if r in x.rows else ops.number(0) for r in range(n)], axis)


def _reached(c: Coupling, start: set[str]) -> list[str]:
    """The states that hold something of what stands in the given ones, in time."""
    found = set(start)
    for _ in c.names:
        found |= {n for n in c.names if found & set(c.next[n].states)}
    return [n for n in c.names if n in found]


def _kept(diagonal: bool, d: Expr, valid: Expr) -> Expr:
    """An entry of D that padding leaves as it is."""
    if not diagonal or ops.is_number(d, 1):
        return d if diagonal else ops.mul(valid, d)
    return ops.add(ops.mul(valid, d), ops.sub(ops.number(1), valid))


# --- By a loop along the tokens ------------------------------------------------------------------------------------------


def in_a_loop(c: Coupling, series: Series, axis: str) -> Numbers:
    """Any D: a Carry along tokens. axis: that of the rows."""
    table, valid = series.inner(TOKENS), inside(series.valid, TOKENS)
    D = {(n, m): _kept(n == m, lift((d,), table)[0], valid) for n, x in c.next.items() for m, d in x.states.items()}
    y = {n: ops.var(f"{n}@y", (*LEAD, axis)) for n in _reached(c, {n for n, x in c.next.items() if x.rows})}
    E = {(n, o): ops.var(f"{n}.of.{o}@E", LEAD) for o in c.names for n in _reached(c, {o})}
    new = _named_new(c, series, axis)
    carried = [_carried(leaf, 0, _row(n, D, y), new.get(n)) for n, leaf in y.items()]
    for (n, o), leaf in E.items():
        column = {m: e for (m, start), e in E.items() if start == o}
        carried.append(_carried(leaf, int(n == o), _row(n, D, column), None))
    before = [Equation(f"{k.name}.before", ops.var(k.name, k.init.axes)) for k in carried]
    after = [Equation(f"{k.name}.after", k.next) for k in carried]
    series.stages.append(Carry(TOKENS, False, tuple(carried), (*before, *after)))
    return Numbers({n: _leaves(x) for n, x in y.items()}, {no: _leaves(x) for no, x in E.items()})


def _carried(leaf: Expr, first: int, shares: list[Expr], new: Expr | None) -> Carried:
    next_ = total(shares if new is None else [*shares, new])
    return Carried(leaf.name, ops.broadcast(ops.number(first), leaf.axes), ops.broadcast(next_, leaf.axes), f"{leaf.name}.end")


def _row(n: str, D: dict[tuple[str, str], Expr], before: dict[str, Expr]) -> list[Expr]:
    """What state n takes from the others: its row of D."""
    return [ops.mul(D[n, m], x) for m, x in before.items() if (n, m) in D]


def _leaves(leaf: Expr) -> Composed:
    before, after = (inside(ops.var(f"{leaf.name}.{when}", (TOKENS, *leaf.axes)), CHUNKS) for when in ("before", "after"))
    return Composed(before, after, inside(ops.var(f"{leaf.name}.end", leaf.axes), CHUNKS))


def _named_new(c: Coupling, series: Series, axis: str) -> dict[str, Expr]:
    """Per state, at each token: the numbers with which the token's own rows enter."""
    found, n = {}, len(c.rows)
    for name, x in c.next.items():
        if x.rows:
            alpha = ops.mul(per_token([series.valid] * n, axis), of_rows(x, n, axis, series.up))
            value = ops.broadcast(ops.mul(own(n, axis), alpha), (TOKENS, *LEAD, axis))
            (named,) = series.map([Equation(f"{name}@new", value)])
            found[name] = inside(named, TOKENS)
    return found


# --- By matrices of decays -------------------------------------------------------------------------------------------------


def in_order(c: Coupling) -> list[str] | None:
    """The states, each behind those that it takes from, if that is possible and what each keeps of itself is a decay."""
    done: list[str] = []
    while len(done) < len(c.names):
        ready = [n for n in c.names if n not in done and set(c.next[n].states) <= {n, *done}]
        if not ready or any(n in c.next[n].states and n not in c.decays for n in ready):
            return None
        done += ready
    return done


def by_decays(c: Coupling, order: list[str], axis: str, up: Callable[[Expr], Expr], valid: Expr) -> Numbers:
    """D with an order: one matrix of decays per state. valid: as the Carry along chunks sees it."""
    n = len(c.rows)
    y: dict[str, Composed] = {}
    E: dict[tuple[str, str], Composed] = {}
    for name in order:
        x = c.next[name]
        gamma = _Gamma(up(log_of(x.states[name])) if name in x.states else None, valid)
        D = {m: _kept(False, up(d), valid) for m, d in x.states.items() if m != name}
        shares = [gamma.taking(ops.mul(d, y[m].before)) for m, d in D.items() if m in y]
        if x.rows:
            shares.append(gamma.of_rows(ops.mul(per_token([valid] * n, axis), of_rows(x, n, axis, up)), n, axis))
        if shares:
            y[name] = _composed(total(shares), ops.number(0))
        for o in c.names:
            shares = [gamma.taking(ops.mul(d, E[m, o].before)) for m, d in D.items() if (m, o) in E]
            if name == o and gamma.L is not None:
                shares.append(ops.exp(gamma.L))
            if shares:
                E[name, o] = _composed(total(shares), ops.number(int(name == o)))
    return Numbers(y, E)


def _composed(after: Expr, first: Expr) -> Composed:
    if TOKENS not in after.axes:
        return Composed(after, after, after)
    before = ops.shift(after, TOKENS, 1)
    if not ops.is_zero(first):
        before = ops.add(before, ops.place(ops.broadcast(first, (a for a in after.axes if a != TOKENS)), TOKENS, 0))
    return Composed(before, after, ops.select(after, TOKENS, -1))


class _Gamma:
    """What a state keeps of itself from token to token: nothing, all (a log of zero), or decays."""

    def __init__(self, log: Expr | None, valid: Expr):
        self.L = None if log is None else ops.number(0) if ops.is_zero(log) else ops.cumsum(ops.mul(log, valid), TOKENS)
        mask = Mask(TOKENS, EARLIER, offset=1)
        if self.L is None:
            self.matrix = ops.eye(TOKENS, EARLIER)
        elif ops.is_zero(self.L):
            self.matrix = ops.masked(ops.broadcast(ops.number(1), (TOKENS, EARLIER)), mask)
        else:
            self.matrix = ops.decay(self.L, ops.rename(self.L, {TOKENS: EARLIER}), mask)

    def taking(self, inflow: Expr) -> Expr:
        """What is there at each token of what came in at each."""
        if self.L is None:
            return inflow
        if ops.is_zero(self.L):
            return ops.cumsum(inflow, TOKENS)
        lead = (a for a in dict.fromkeys((*self.matrix.axes, *inflow.axes)) if a not in (TOKENS, EARLIER))
        return ops.contract((self.matrix, ops.rename(inflow, {TOKENS: EARLIER})), (*lead, TOKENS))

    def of_rows(self, alpha: Expr, n: int, axis: str) -> Expr:
        """The same of the tokens' own rows."""
        return ops.mul(_each(self.matrix, n, axis), alpha)
