"""Recurrence -> Program, chunk by chunk: inside a chunk all tokens at once, between chunks the state.

With G the running sum of log decays over the chunk's micro-steps, S_0 the chunk's first state, and per erase row
(write a, read b, value v), per plain row (write k, value w):

    U   = (I + A)^-1 (v - B w) - W S_0,  W = (I + A)^-1 (b e^G')
          A_ij = b_i . e^(G'_i - G_j) a_j, B_ij = b_i . e^(G'_i - G_j) k_j, earlier micro-steps only
    o   = (q e^G) S_0 + P U + R w                 P_ij = q_i . e^(G_i - G_j) a_j,  R_ij = q_i . e^(G_i - G_j) k_j
    S_C = e^(G_C) S_0 + (a e^(G_C - G))^T U + (k e^(G_C - G))^T w

where G' is G before the micro-step (a shift of G, never G - g). Every exponent is at most zero. The derivation is the
WY representation of products of diagonal-plus-low-rank factors: Yang et al. 2024, arXiv:2406.06484; 2412.06464.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from seqc.analysis.chain import Chain, Read, Refusal, Row
from seqc.analysis.components import leaf
from seqc.analysis.exponents import Exponent, exponent, log_of
from seqc.analysis.structure import Structure, analyse, span_of
from seqc.forms import recurrent
from seqc.forms.base import Applies, Form, Lowered, Refuses, final, state_lead
from seqc.forms.series import Series
from seqc.forms.transitions import scan
from seqc.ir import ops
from seqc.ir.expr import Expr, Mask, walk
from seqc.ir.program import BATCH, CHUNKS, HEADS, TOKENS, Carried, Carry, Equation, Program, inside, outer_of
from seqc.ir.recurrence import Recurrence, State
from seqc.passes.lift import lift


class _Memory:
    """One state inside a chunk: its rows as tensors over the chunk, and what the formulas of the module need of them.

    Axes, each with its count per token if that is more than one: @r and @s erase rows (as rows and as columns), @s plain
    rows, @m micro-steps. Memories with equal counts share axes, and with them what is computed from the same inputs.
    """

    def __init__(
        self, chain: Chain, name: str, up: Callable[[Expr], Expr], valid: Expr, hints: dict[Expr, str], alone: bool, unit: State | None
    ):
        self.alone, self.unit = alone, unit
        self.chain, self.name, self.up, self.valid, self.hints = chain, name, up, valid, hints
        self.n = max(len(chain.steps), 1)
        self.erase = [[r for r in s.rows if r.read is not None] for s in chain.steps]
        self.plain = [[r for r in s.rows if r.read is None] for s in chain.steps]
        self.ranks = (max(map(len, self.erase), default=0), max(map(len, self.plain), default=0))
        counts = (self.n * self.ranks[0], self.n * self.ranks[0], self.n * self.ranks[1], self.n)
        self.i, self.j, self.w, self.micro = (f"@{x}{n}" if n > 1 else f"@{x}" for x, n in zip("rssm", counts, strict=True))
        self.decays = any(s.decay is not None for s in chain.steps)
        self.along = tuple(dict.fromkeys(a for s in chain.steps if s.decay is not None for a in s.decay.axes if a in chain.state.axes))
        self.by_value = bool(set(self.along) & set(chain.value))
        self.S = ops.var(name, (*state_lead("head"), *chain.state.axes))
        self.first: Expr | None = None  # what G is short of, where it is kept relative to the state's units
        self.G = self._running() if self.decays else None

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

    def _running(self) -> Expr:
        """G: the running sum of log decays over the micro-steps of the chunk; padding does not decay."""
        found = [Exponent() if s.decay is None else exponent(log_of(s.decay)) for s in self.chain.steps]
        units, found = self._without_units(found)
        logs = [self.up(x.value) for x in found]
        axes = tuple(dict.fromkeys(a for e in logs for a in e.axes))
        logs = [ops.mul(ops.broadcast(e, axes), self.valid) if not ops.is_zero(e) else ops.broadcast(e, axes) for e in logs]
        wide = tuple(dict.fromkeys(a for e in logs for a in e.axes))
        rows = self._per_micro([ops.broadcast(e, wide) for e in logs], self.micro)
        G = rows if ops.is_zero(rows) else ops.cumsum(rows, self.micro)
        if self.first is not None:
            G = ops.sub(G, self._per_micro(units, self.micro))
        return self.hint(G, "G")

    def _without_units(self, found: list[Exponent]) -> tuple[list[Expr], list[Exponent]]:
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
        self.first = ops.select(before, TOKENS, 0)
        units = [after if any(changes[: i + 1]) else before for i in range(len(found))]
        return units, [x.minus(change) if changed else x for x, changed in zip(found, changes, strict=True)]

    def _before(self) -> Expr:
        """G before each micro-step: a shift of G, never G less a decay."""
        assert self.G is not None
        moved = ops.shift(self.G, self.micro, 1)
        return moved if self.first is None else ops.sub(moved, ops.place(self.first, self.micro, 0))

    def since_start(self, exponent: Expr) -> Expr:
        """An exponent counted from the chunk's first state."""
        return exponent if self.first is None else ops.add(exponent, self.first)

    def rows(self, table: list[list[Row]], rank: int, pick: Callable[[Row], Expr | None], axes: tuple[str, ...], axis: str) -> Expr:
        """A part of the rows as a tensor along `axis`; missing rows and parts are zero."""
        items: list[Expr] = []
        for step in table:
            for r in range(rank):
                part = pick(step[r]) if r < len(step) else None
                items.append(ops.number(0) if part is None else self.up(part))
        lead = tuple(dict.fromkeys(a for e in items for a in e.axes if a not in axes))
        return self._per_micro([ops.broadcast(e, (*lead, *axes)) for e in items], axis)

    def exponent(self, axis: str, rank: int, before: bool) -> Expr:
        """G at each row: after its micro-step, or before it (what a read sees)."""
        assert self.G is not None
        G = self._before() if before else self.G
        if rank == 1:
            return ops.rename(G, {self.micro: axis})
        return ops.flatten(ops.broadcast(G, (*G.axes, f"{axis}#{rank}")), (self.micro, f"{axis}#{rank}"), axis)

    def at_token(self, done: int) -> Expr:
        """G at each token after `done` of its micro-steps."""
        assert self.G is not None
        G = self.G if done else self._before()
        index = done - 1 if done else 0
        if self.n == 1:
            return ops.rename(G, {self.micro: TOKENS})
        axis = f"{self.micro}#{self.n}"
        return ops.select(ops.unflatten(G, (TOKENS, axis), self.micro), axis, index)

    # --- The formulas --------------------------------------------------------------------------------------------

    def weights(self, x: Expr, y: Expr, upper: Expr | None, lower: Expr | None, mask: Mask) -> Expr:
        """x_i . e^(upper_i - lower_j) y_j under the mask; without the exponential if the decay is along the value axes."""
        key = self.chain.key
        out = (*(a for a in dict.fromkeys((*x.axes, *y.axes)) if a not in (mask.row, mask.column, *key)), mask.row, mask.column)
        if upper is not None and lower is not None and set(self.along) & set(key):
            return ops.decayed(x, y, upper, lower, out, mask)
        plain = ops.contract((x, y), out)
        if upper is None or lower is None or self.by_value:
            return ops.masked(plain, mask)
        return ops.mul(plain, ops.decay(upper, lower, mask))

    def apply(self, P: Expr, U: Expr, upper: Expr | None, lower: Expr | None, mask: Mask) -> Expr:
        """Sum over rows j of P_ij U_j, decayed along the value axes if that is where the decay is."""
        lead = (a for a in dict.fromkeys((*P.axes, *U.axes)) if a not in (mask.row, mask.column, *self.chain.value))
        out = (*lead, mask.row, *self.chain.value)
        if self.by_value and upper is not None and lower is not None:
            return ops.decayed(P, U, upper, lower, out, mask)
        return ops.contract((P, U), out)

    def from_state(self, x: Expr, exponent: Expr | None, axis: str) -> Expr:
        """(x e^exponent) S_0, row by row."""
        lead = tuple(a for a in dict.fromkeys((*x.axes, *self.S.axes)) if a not in (axis, *self.chain.key, *self.chain.value))
        out = (*lead, axis, *self.chain.value)
        if exponent is None:
            return ops.contract((x, self.S), out)
        scale = ops.exp(self.since_start(exponent))
        if self.by_value:
            return ops.mul(scale, ops.contract((x, self.S), out))
        return ops.contract((self.hint(ops.mul(scale, x), "q_in"), self.S), out)

    def solve(self) -> None:
        """The rows' tensors and U."""
        chain, (re, rp) = self.chain, self.ranks
        value = chain.value
        G = self.decays
        if rp:
            self.k = self.hint(self.rows(self.plain, rp, lambda r: r.write, chain.key, self.w), "k")
            self.v = self.hint(self.rows(self.plain, rp, lambda r: r.value, value, self.w), "v")
            self.G_w = self.exponent(self.w, rp, False) if G else None
        if not re:
            return
        self.a = self.hint(self.rows(self.erase, re, lambda r: r.write, chain.key, self.j), "a")
        b = self.hint(self.rows(self.erase, re, lambda r: r.read, chain.key, self.i), "b")
        self.G_j = self.exponent(self.j, re, False) if G else None
        before = self.exponent(self.i, re, True) if G else None
        strict = Mask(self.i, self.j, re, 1, 0, re)
        A = self.weights(b, self.a, before, self.G_j, strict)
        if self.by_value:
            assert before is not None and self.G_j is not None
            target = ops.sub(self._target(b, before), self.from_state(b, before, self.i))
            solved = ops.decayed_solve(self.hint(A, "A"), target, before, self.G_j, strict)
            self.U = self.hint(ops.rename(solved, {self.i: self.j}), "U")
            return
        T = self.hint(ops.unit_lower_inverse(self.hint(A, "A"), self.i, self.j), "T")
        target = self._target(b, before)
        # (I + A)^-1 is applied to both terms, so that between chunks only two products with the state remain.
        W = self.hint(self._solved(T, b if before is None else ops.mul(ops.exp(self.since_start(before)), b), chain.key), "W")
        from_state = ops.contract((W, self.S), (*(a for a in self.S.axes if a not in (*chain.key, *value)), self.i, *value))
        u = ops.number(0) if ops.is_zero(target) else self.hint(self._solved(T, target, value), "u")
        self.U = self.hint(ops.rename(ops.sub(u, from_state), {self.i: self.j}), "U")

    def _target(self, b: Expr, before: Expr | None) -> Expr:
        """v - B w: what the erase rows write, less what they read of the plain rows before them."""
        re, rp = self.ranks
        if not rp and all(r.value is None for rows in self.erase for r in rows):
            return ops.number(0)
        target = self.rows(self.erase, re, lambda r: r.value, self.chain.value, self.i)
        if not rp:
            return target
        mask = Mask(self.i, self.w, re, 1, 0, rp)
        B = self.hint(self.weights(b, self.k, before, self.G_w, mask), "B")
        return ops.sub(target, self.apply(B, self.v, before, self.G_w, mask))

    def _solved(self, T: Expr, right: Expr, last: tuple[str, ...]) -> Expr:
        """T applied to rows, as rows."""
        lead = tuple(a for a in dict.fromkeys((*T.axes, *right.axes)) if a not in (self.i, self.j, *last))
        return ops.contract((T, ops.rename(right, {self.i: self.j})), (*lead, self.i, *last))

    def read(self, query: Expr, done: int) -> Expr:
        """query . S at each token after `done` micro-steps."""
        q = query if TOKENS in query.axes else ops.broadcast(query, (*query.axes, TOKENS))
        exponent = self.at_token(done) if self.decays else None
        out = self.from_state(q, exponent, TOKENS)
        re, rp = self.ranks
        if re:
            mask = Mask(TOKENS, self.j, 1, self.n, done, re)
            P = self.hint(self.weights(q, self.a, exponent, self.G_j, mask), "P")
            out = ops.add(out, self.apply(P, self.U, exponent, self.G_j, mask))
        if rp:
            mask = Mask(TOKENS, self.w, 1, self.n, done, rp)
            R = self.hint(self.weights(q, self.k, exponent, self.G_w, mask), "R")
            out = ops.add(out, self.apply(R, self.v, exponent, self.G_w, mask))
        return out

    def last(self) -> Expr:
        """The chunk's last state."""
        total = self.S
        if self.decays:
            assert self.G is not None
            end = ops.select(self.G, self.micro, -1)
            total = ops.mul(self.hint(ops.exp(self.since_start(end)), "keep"), self.S)
        re, rp = self.ranks
        if re:
            total = ops.add(total, self._written(self.a, self.U, self.G_j, self.j, re, "a_out"))
        if rp:
            total = ops.add(total, self._written(self.k, self.v, self.G_w, self.w, rp, "k_out"))
        return total

    def _written(self, key: Expr, value: Expr, exponent: Expr | None, axis: str, rank: int, word: str) -> Expr:
        """Sum of key_j e^(G_C - G_j) value_j: what the rows leave in the state. Padding writes nothing."""
        scale = self._per_micro([self.valid] * (rank * self.n), axis)
        if exponent is not None:
            assert self.G is not None
            scale = ops.mul(ops.exp(ops.sub(ops.select(self.G, self.micro, -1), exponent)), scale)
        if self.by_value:
            value = ops.mul(scale, value)
        else:
            key = self.hint(ops.mul(scale, key), word)
        have = {*key.axes, *value.axes}
        return ops.broadcast(ops.contract((key, value), (a for a in self.S.axes if a in have)), self.S.axes)


def applies(rec: Recurrence, sizes: Mapping[str, int]) -> Applies | Refuses:
    """Every matrix state affine, in the normal form of analysis.chain, with decays in (0, 1]; at least one state so."""
    verdict = recurrent.regrouped(rec, sizes)
    if isinstance(verdict, Refuses):
        return verdict
    if not rec.states:
        return Refuses("the layer carries no state", rec.span)
    try:
        structure = analyse(rec, sizes)
        if not structure.chains:
            return Refuses("no state is a sum of decayed writes", span_of(rec, rec.states[0].next, rec.span))
        lower(rec, sizes)
    except Refusal as r:
        return Refuses(r.reason, span_of(rec, r.cause, rec.states[0].span), r.helps)
    return Applies(tuple(_words(structure.chains[s.name]) for s in structure.order))


def _words(chain: Chain) -> str:
    """What a chain is, in words."""
    along = dict.fromkeys(a for s in chain.steps if s.decay is not None for a in s.decay.axes if a in chain.state.axes)
    rank = sum(r.read is not None for s in chain.steps for r in s.rows)
    decays = any(s.decay is not None for s in chain.steps)
    kind = f"diagonal along {', '.join(along)}" if along else "scalar" if decays else "identity"
    low = f" plus rank {rank}" if rank else ""
    steps = f" in {len(chain.steps)} micro-steps" if len(chain.steps) > 1 else ""
    return f"`{chain.state.name}` is affine in itself: {kind}{low}{steps}"


def lower(rec: Recurrence, sizes: Mapping[str, int]) -> Lowered:
    """Level by level: earlier values and small transitions as in a scan; chains as one Carry along c, which `seqc.passes.phases` cuts."""
    structure = analyse(rec, sizes)
    series = Series(rec, sizes)
    hints: dict[Expr, str] = {}
    widths: list[tuple[str, str, int]] = []
    for level in structure.levels:
        chains = []
        for c in level:
            if c.kind != "coupled":
                series.add(c)
            elif c.names[0] in structure.others:
                scan(series, c, structure.others[c.names[0]])
            else:
                chains.append(c.states[0])
        if chains:
            widths += _chunks(series, structure, chains, hints)
    program = Program("chunkwise", series.inputs, tuple(series.stages), series.outputs(), tuple(dict.fromkeys(widths)))
    return Lowered(program, hints, tuple(a for s in structure.order for a in structure.readers[s.name].fixed))


def _chunks(series: Series, structure: Structure, chains: list[State], hints: dict[Expr, str]) -> list[tuple[str, str, int]]:
    """One Carry along c for the chains of a level; afterwards what anything reads of them stands at every token."""
    rec, table = series.rec, series.inner(CHUNKS)
    carried, emitted, found, widths = [], [], {}, []
    units: dict[str | None, State] = {s.name: s for s in rec.states if s.role == "stabiliser"}

    def up(e: Expr) -> Expr:
        return series.checked(lift((e,), table)[0], e)

    for s in chains:
        chain = structure.chains[s.name]
        memory = _Memory(chain, s.name, up, inside(series.valid, CHUNKS), hints, len(structure.order) == 1, units.get(s.stabiliser))
        memory.solve()
        widths += _widths(memory)
        users = [o.value for o in rec.outputs] + [t.next for t in rec.states if t is not s]
        for n, read in enumerate(_needed(users, _reads(structure, s.name, users))):
            value = _read(series, memory, read, up)
            shown = next((o for o in rec.outputs if o.value is read.node), None)
            name, note = (f"{shown.name}@c", shown.span.where) if shown else (f"{s.name}@read{n}", "")
            e = Equation(name, ops.broadcast(value, (BATCH, HEADS, TOKENS, *read.node.axes)), note)
            emitted.append(e)
            found[read.node] = outer_of(e, CHUNKS)
            table[read.node] = value
        carried.append(Carried(s.name, series.first(s), ops.broadcast(memory.last(), memory.S.axes), final(s.name)))
        series.finals[s.name] = ops.var(final(s.name), memory.S.axes)
    series.stages.append(Carry(CHUNKS, False, tuple(carried), tuple(emitted)))
    series.table |= found
    return widths


def _read(series: Series, memory: _Memory, read: Read, up: Callable[[Expr], Expr]) -> Expr:
    """query . S at every token of a chunk, and what else the read multiplies it with."""
    name, version = memory.name, memory.chain.versions.get(read.version)
    if version is None:
        raise Refusal(f"`{name}` is read in the middle of an update", read.node)
    query = read.query if version.decay is None else ops.mul(version.decay, read.query)
    if version.decay is not None and set(version.decay.axes) & set(memory.chain.value):
        raise Refusal(f"`{name}` is read between a decay along its value axis and the update", read.node)
    value = memory.read(up(query), version.done)
    return ops.contract((value, *map(up, read.rest)), (BATCH, HEADS, TOKENS, *read.node.axes)) if read.rest else value


def _widths(m: _Memory) -> list[tuple[str, str, int]]:
    re, rp = m.ranks
    rows = [(m.micro, m.n, m.n)] if m.decays else []
    rows += [(m.i, m.n * re, re), (m.j, m.n * re, re)] if re else []
    rows += [(m.w, m.n * rp, rp)] if rp else []
    own = [(f"{axis}#{k}", "", k) for axis, *counts in rows for k in dict.fromkeys(counts) if k > 1]
    return [(axis, TOKENS, n) for axis, n, _ in rows] + own


def _needed(users: list[Expr], reads: list[Read]) -> list[Read]:
    """The reads that are not only part of another read: a state is read for its own update too."""
    nodes = {id(r.node) for r in reads}
    met, stack = set[int](), list(users)
    while stack:
        node = stack.pop()
        if id(node) not in met:
            met.add(id(node))
            stack += () if id(node) in nodes else node.args
    return [r for r in reads if id(r.node) in met]


def _reads(structure: Structure, name: str, users: list[Expr]) -> list[Read]:
    """Every read of a state outside its own update, each node once."""
    reader, versions = structure.readers[name], structure.chains[name].versions
    found: dict[Expr, Read] = {}
    if reader.key:
        for node in walk(*users):
            if id(node) not in reader.carry and any(id(a) in reader.carry for a in node.args) and (read := reader.read(node)):
                found[node] = read
        return list(found.values())
    stack = [e for e in users if id(e) in reader.sees]
    while stack:
        node = stack.pop()
        if node in versions:
            found[node] = Read(node, ops.number(1), node)
        else:
            stack += [a for a in node.args if id(a) in reader.sees]
    return list(found.values())


NOTES = (
    "The chunkwise form: all tokens of a chunk at once, the state from chunk to chunk. Values lie as [chunks, B, H, tokens, ...].",
    "A state's update is a chain of micro-steps S = D S + a (v - b . S) + k w. With G the running sum of log D inside the chunk,",
    "G' its value before a micro-step, S_0 the chunk's first state and the sums over earlier micro-steps only:",
    "  T = (I + A)^-1,  A_ij = b_i . e^(G'_i - G_j) a_j     U = T (v - B w) - W S_0,  B_ij = b_i . e^(G'_i - G_j) k_j,  W = T (b e^G')",
    "  o = (q e^G) S_0 + P U + R w                          P_ij = q_i . e^(G_i - G_j) a_j,  R_ij = q_i . e^(G_i - G_j) k_j",
    "  S_C = e^(G_C) S_0 + (a e^(G_C - G))^T U + (k e^(G_C - G))^T w",
)

CHUNKWISE = Form("chunkwise", applies, lower, (CHUNKS, TOKENS), NOTES)
