"""Recurrence -> Program, chunk by chunk: inside a chunk all tokens at once, between chunks the state.

The formulas of one memory are in `seqc.forms.memory`, those of matrices that depend on each other in `seqc.forms.coupled`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from seqc.analysis.chain import Chain, Read, Refusal
from seqc.analysis.coupled import Coordinates, Coupling
from seqc.analysis.reader import Reader
from seqc.analysis.structure import Structure, analyse, span_of
from seqc.analysis.terms import signed
from seqc.forms import recurrent
from seqc.forms.base import Applies, Form, Lowered, Refuses, final, initial
from seqc.forms.blocks import Block
from seqc.forms.coupled import Coupled
from seqc.forms.memory import Memory
from seqc.forms.series import Series
from seqc.forms.transitions import scan
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.lift import lift
from seqc.ir.program import BATCH, CHUNKS, HEADS, TOKENS, Carried, Carry, Equation, Program, inside, outer_of
from seqc.ir.recurrence import Recurrence, State
from seqc.passes.blocks import Blocks, in_blocks
from seqc.passes.turns import without_turns


def applies(rec: Recurrence, sizes: Mapping[str, int]) -> Applies | Refuses:
    """Every matrix state affine, in the normal form of analysis.chain, with decays in (0, 1]; at least one state so."""
    verdict = recurrent.regrouped(rec, sizes)
    if isinstance(verdict, Refuses):
        return verdict
    if not rec.states:
        return Refuses("the layer carries no state", rec.span)
    try:
        blocks = in_blocks(rec)
        structure = analyse(without_turns(rec, sizes).rec if blocks is None else blocks.live, sizes)
        if not structure.chains and not structure.couplings:
            return Refuses("no state is a sum of decayed writes", span_of(rec, rec.states[0].next, rec.span))
        lower(rec, sizes)
    except Refusal as r:
        return Refuses(r.reason, span_of(rec, r.cause, rec.states[0].span), r.helps)
    coupled = (_coupled_words(c) for c in structure.couplings.values())
    return Applies((*(_words(structure.chains[s.name]) for s in structure.order), *coupled))


def _coupled_words(c: Coupling) -> str:
    """What a group of coupled states is, in words."""
    names, rank = " and ".join(f"`{n}`" for n in c.names), sum(bool(r.terms) for r in c.rows)
    low = f" plus rank {rank}" if rank else ""
    if c.reason:
        return f"{names} is affine in itself: a number of any sign{low} ({c.reason})"
    return f"{names} are affine together: {len(c.names)} by {len(c.names)} numbers{low}"


def _words(chain: Chain) -> str:
    """What a chain is, in words."""
    along = dict.fromkeys(a for s in chain.steps if s.decay is not None for a in s.decay.axes if a in chain.state.axes)
    rank = sum(r.read is not None for s in chain.steps for r in s.rows)
    decays = any(s.decay is not None for s in chain.steps)
    kind = f"diagonal along {', '.join(along)}" if along else "scalar" if decays else "identity"
    low = f" plus rank {rank}" if rank else ""
    steps = f" in {len(chain.steps)} micro-steps" if len(chain.steps) > 1 else ""
    if any(r.rule for s in chain.steps for r in s.rows):
        return f"`{chain.state.name}` keeps of itself: {kind}; and writes{low.removeprefix(' plus')}, a function of what it reads{steps}"
    return f"`{chain.state.name}` is affine in itself: {kind}{low}{steps}"


def lower(rec: Recurrence, sizes: Mapping[str, int]) -> Lowered:
    """Level by level: earlier values and small transitions as in a scan; chains as one Carry along c, which `seqc.passes.phases` cuts.

    Where values are shared by blocks of tokens a chunk is a block, and all chains stand in one Carry with what the blocks hand on.
    """
    blocks = in_blocks(rec)
    if blocks is None:
        found = without_turns(rec, sizes)
        structure = analyse(found.rec, sizes)
        series = Series(found.rec, sizes, found.made, found.back)
    else:
        structure = analyse(blocks.live, sizes)
        series = Series(blocks.rec, sizes, block=blocks.every)
    hints: dict[Expr, str] = {}
    widths: list[tuple[str, str, int]] = []
    inside_blocks: list[tuple[list[State], list[Coupling]]] = []
    for level in structure.levels:
        chains, couplings = [], []
        for c in level:
            if c.kind != "coupled":
                series.add(c)
            elif c.names[0] in structure.others and blocks is not None:
                raise Refusal(f"`{c.names[0]}` is composed from a chunk's start, and a call may begin inside a block", c.states[0].next)
            elif c.names[0] in structure.others:
                scan(series, c, structure.others[c.names[0]])
            elif c.names[0] in structure.couplings:
                couplings.append(structure.couplings[c.names[0]])
            else:
                chains.append(c.states[0])
        if blocks is not None:
            inside_blocks.append((chains, couplings))
        elif chains or couplings:
            widths += _chunks(series, structure, [(chains, couplings)], hints)
    if blocks is not None:
        widths += _chunks(series, structure, inside_blocks, hints, blocks)
    fixed = [a for s in structure.order for a in structure.readers[s.name].fixed]
    fixed += [a for c in structure.couplings.values() for a in c.fixed]
    lengths = tuple({**dict(rec.values), **{a: sizes[a] for a in fixed}}.items())
    program = Program("chunkwise", series.inputs, tuple(series.stages), series.outputs(), tuple(dict.fromkeys(widths)), lengths)
    every = None if blocks is None else blocks.every
    return Lowered(program, hints, tuple(fixed), every)


def _chunks(
    series: Series,
    structure: Structure,
    levels: list[tuple[list[State], list[Coupling]]],
    hints: dict[Expr, str],
    blocks: Blocks | None = None,
) -> list[tuple[str, str, int]]:
    """One Carry along c for the chains of some levels; afterwards what anything reads of them stands at every token."""
    rec, table = series.rec, series.inner(CHUNKS)
    carried, emitted, found, widths = [], [], {}, []
    units: dict[str | None, State] = {s.name: s for s in rec.states if s.role == "stabiliser"}
    block = None if blocks is None else Block(blocks, series, table)
    first = {} if block is None else block.first
    if block is not None:
        table |= block.table
    ends: dict[Expr, Expr] = {}

    def up(e: Expr) -> Expr:
        return series.checked(lift((e,), table)[0], e)

    users = [o.value for o in rec.outputs] + [t.next for t in rec.states]
    place = {id(node): n for n, node in enumerate(walk(*users))}
    later = {id(node) for chains, _ in levels[1:] for s in chains for node in walk(s.next)}
    later |= {id(node) for _, some in levels[1:] for c in some for n in c.names for node in walk(_state(rec, n).next)}
    asked: list[tuple[str, Read, Callable[[], Expr]]] = []

    def answer(now: Callable[[Read], bool]) -> None:
        for name, read, value_of in sorted(asked, key=lambda ask: place[id(ask[1].node)]):  # a query may hold other reads
            if read.node in found or not now(read):
                continue
            value = value_of()
            shown = next((o for o in rec.outputs if o.value is read.node), None)
            name, note = (f"{shown.name}@c", shown.span.where) if shown else (name, "")
            e = Equation(name, ops.broadcast(value, (BATCH, HEADS, TOKENS, *read.node.axes)), note)
            emitted.append(e)
            found[read.node] = outer_of(e, CHUNKS)
            table[read.node] = value

    for chains, couplings in levels:
        for s in chains:
            chain, alone = structure.chains[s.name], len(structure.order) == 1
            valid, unit = inside(series.valid, CHUNKS), units.get(s.stabiliser)
            memory = Memory(chain, s.name, up, valid, hints, alone, unit, first.get(s.name), block is not None)
            memory.solve()
            widths += _widths(memory)
            others = [o.value for o in rec.outputs] + [t.next for t in rec.states if t is not s]
            reader = structure.readers[s.name]
            for n, read in enumerate(reader.reads(others, memory.chain.versions)):
                asked.append((f"{s.name}@read{n}", read, partial(_read, memory, read, reader, up)))
            ends[s.next] = ops.broadcast(memory.last(), memory.S.axes)
            carried.append(Carried(s.name, series.first(s), ends[s.next], series.last(s)))
        for c in couplings:
            group = Coupled(c, series, up, hints, first)
            widths += group.widths
            asked += [(f"{c.names[0]}@read{n}", read, partial(_read_coupled, group, read, of, up)) for n, (read, of) in enumerate(c.reads)]
            for name in group.states:
                ends[_state(rec, name).next] = group.last(name)
                carried.append(Carried(name, series.outer[initial(name)], group.last(name), final(name)))
        answer(lambda read: id(read.node) in later)
    answer(lambda read: True)
    if block is not None:
        kept, equations, more = block.frozen()
        carried += [*kept, *block.copies(ends, table)]
        emitted += equations
        found |= more
        block.check({k.name for k in carried})
    for k in carried:
        series.finals[k.name] = ops.var(k.final, k.init.axes)
    series.stages.append(Carry(CHUNKS, False, tuple(carried), tuple(emitted)))
    series.table |= found
    return widths


def _state(rec: Recurrence, name: str) -> State:
    return next(s for s in rec.states if s.name == name)


def _read(memory: Memory, read: Read, reader: Reader, up: Callable[[Expr], Expr]) -> Expr:
    """query . S at every token of a chunk, what is added to S before it is read, and what else the read multiplies it with."""
    versions = {id(e): v for e, v in memory.chain.versions.items()}
    held, terms = reader.parts(read.version, versions)
    total: Expr = ops.number(0)
    for core, scale, sign in held:
        version, query, behind = versions[id(core)], read.query, []
        for factor in (version.decay, scale):
            halves = (None, None) if factor is None or ops.is_number(factor, 1) else memory.chain.halves(factor)
            within, after = halves if read.over == memory.chain.key else halves[::-1]
            query = query if within is None else ops.mul(within, query)
            behind += [] if after is None else [up(after)]
        value = memory.read(up(query), version.done, read.over)
        for factor in behind:
            value = ops.mul(factor, value)
        total = ops.add(total, signed(value, sign))
    for term, sign in terms:
        total = ops.add(total, signed(up(reader.asked(read, term)), sign))
    return _rest(total, read, up)


def _read_coupled(group: Coupled, read: Read, of: Coordinates, up: Callable[[Expr], Expr]) -> Expr:
    return _rest(group.read(up(read.query), of), read, up)


def _rest(value: Expr, read: Read, up: Callable[[Expr], Expr]) -> Expr:
    """A read times what else it is multiplied with."""
    return ops.contract((value, *map(up, read.rest)), (BATCH, HEADS, TOKENS, *read.node.axes)) if read.rest else value


def _widths(m: Memory) -> list[tuple[str, str, int]]:
    re, rp = m.ranks
    rows = [(m.micro, m.n, m.n)] if m.decays else []
    rows += [(m.i, m.n * re, re), (m.j, m.n * re, re)] if re else []
    rows += [(m.w, m.n * rp, rp)] if rp else []
    own = [(f"{axis}#{k}", "", k) for axis, *counts in rows for k in dict.fromkeys(counts) if k > 1]
    return [(axis, TOKENS, n) for axis, n, _ in rows] + own


NOTES = (
    "The chunkwise form: all tokens of a chunk at once, the state from chunk to chunk. Values lie as [chunks, B, H, tokens, ...].",
    "A state's update is a chain of micro-steps S = D S + a (v - b . S) + k w. With G the running sum of log D inside the chunk,",
    "G' its value before a micro-step, S_0 the chunk's first state and the sums over earlier micro-steps only:",
    "  U = T (v - B w - (b e^G') S_0),  T = (I + A)^-1       A_ij = b_i . e^(G'_i - G_j) a_j, B_ij = b_i . e^(G'_i - G_j) k_j",
    "  o = (q e^G) S_0 + P U + R w                          P_ij = q_i . e^(G_i - G_j) a_j,  R_ij = q_i . e^(G_i - G_j) k_j",
    "  S_C = e^(G_C) S_0 + (a e^(G_C - G))^T U + (k e^(G_C - G))^T w",
    "Matrices coupled by numbers (a memory and its momentum) have those numbers, composed along the chunk, in place of e^G.",
)

CHUNKWISE = Form("chunkwise", applies, lower, (CHUNKS, TOKENS), NOTES)
