"""The states of a recurrence as groups that depend on each other, in an order in which each group reads only earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seqc.analysis.terms import carriers, dependent
from seqc.ir import ops
from seqc.ir.expr import Expr, variables, walk
from seqc.ir.recurrence import Recurrence, State

BELOW_ALL = -(10**30)  # what a running maximum starts from where nothing came before
WINDOW = 16  # the longest window whose entries are written out one by one


@dataclass(frozen=True)
class Component:
    """States that depend on each other. kind: how they depend on themselves.

    `delay`: not at all, the state is a value of the token before. `counter`: one more at each token. `window`: the last values
    of something, oldest first. `peak`: a running maximum, which a stabiliser is. `coupled`: in any other way.
    """

    kind: str
    states: tuple[State, ...]
    newest: Expr | None = None  # of a delay or a window: the value that enters

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.states)


def leaf(state: State) -> Expr:
    return ops.var(state.name, state.axes, state.dtype)


def components(rec: Recurrence, sizes: Mapping[str, int], joined: Iterable[tuple[str, str]] = ()) -> tuple[Component, ...]:
    """Strongly connected groups in topological order; inside a group, and among groups that are ready, in the order of the text.

    joined: pairs of states that stand in one group, as if each read the other.
    """
    reads = {s.name: {v.name for v in variables(s.next)} & {o.name for o in rec.states} for s in rec.states}
    for a, b in joined:
        reads[a], reads[b] = reads[a] | {b}, reads[b] | {a}
    closed = {n: set(r) for n, r in reads.items()}
    for _ in rec.states:
        closed = {n: r.union(*(closed[m] for m in r)) for n, r in closed.items()}
    order: list[Component] = []
    done: set[str] = set()
    while len(done) < len(rec.states):
        for s in rec.states:
            group = [o for o in rec.states if o is s or (o.name in closed[s.name] and s.name in closed[o.name])]
            names = {o.name for o in group}
            if s.name not in done and all(closed[n] <= done | names for n in names):
                order.append(_component(tuple(group), reads, sizes))
                done |= names
    return tuple(order)


def added_whole(rec: Recurrence) -> tuple[tuple[str, str], ...]:
    """Pairs of matrices of which one enters the next value of the other as a whole, not through a read."""
    matrices = [s for s in rec.states if len(s.axes) > 1]
    pairs = [(s, o) for s in matrices for o in matrices if o is not s and set(o.axes) == set(s.axes)]
    return tuple((s.name, o.name) for s, o in pairs if id(s.next) in carriers((s.next,), leaf(o)))


def in_levels(
    rec: Recurrence, sizes: Mapping[str, int], joined: Iterable[tuple[str, str]] = ()
) -> tuple[tuple[Component, ...], ...]:
    """The groups, each in the first level behind all levels that it reads."""
    level: dict[str, int] = {}
    found: dict[int, list[Component]] = {}
    for c in components(rec, sizes, joined):
        read = {v.name for s in c.states for v in variables(s.next)} & set(level)
        at = 1 + max((level[n] for n in read), default=-1)
        level |= dict.fromkeys(c.names, at)
        found.setdefault(at, []).append(c)
    return tuple(tuple(found[n]) for n in sorted(found))


def _component(group: tuple[State, ...], reads: Mapping[str, set[str]], sizes: Mapping[str, int]) -> Component:
    s, *others = group
    if others:
        return Component("coupled", group)
    if s.name not in reads[s.name]:
        return Component("delay", group, s.next)
    if s.integer and s.next is ops.add(leaf(s), ops.number(1)):
        return Component("counter", group)
    newest = _newest(s)
    if newest is not None and int(sizes.get(s.axes[0], WINDOW + 1)) <= WINDOW:
        return Component("window", group, newest)
    if s.role == "stabiliser" and peak(s) is not None:
        return Component("peak", group)
    return Component("coupled", group)


def _newest(s: State) -> Expr | None:
    """What enters a window: a state that moves one place to the front and takes a value at its end."""
    if s.next.op.name != "add" or not s.axes:
        return None
    moved, placed = s.next.args
    if moved is not ops.shift(leaf(s), s.axes[0], -1) or placed.op.name != "place" or placed.attr != (s.axes[0], -1):
        return None
    return None if id(placed.args[0]) in dependent((placed.args[0],), (leaf(s),)) else placed.args[0]


Peak = tuple[Expr | None, Expr | None]  # max(m + first, second); None stands for a part that is not there


def peak(s: State) -> Peak | None:
    """A running maximum as max(m + fall, value), if the state's next value is one."""
    found: dict[int, Peak | None] = {id(leaf(s)): (ops.number(0), None)}
    sees = dependent((s.next,), (leaf(s),))
    for node in walk(s.next):
        if id(node) not in found:
            found[id(node)] = _peak(node, [found[id(a)] for a in node.args]) if id(node) in sees else (None, node)
    whole = found[id(s.next)]
    return whole if whole is not None and whole[0] is not None else None


def _peak(node: Expr, args: list[Peak | None]) -> Peak | None:
    known = [a for a in args if a is not None]
    if len(known) < len(args):
        return None
    match node.op.name:
        case "stop_gradient" | "broadcast":
            return known[0]
        case "maximum":
            return tuple(_either(x, y) for x, y in zip(*known, strict=True))  # type: ignore[return-value]
        case "add" | "sub":
            (fall, value), (other, by) = known if known[1][0] is None or node.op.name == "sub" else known[::-1]
            if other is None and by is not None:
                apply = ops.add if node.op.name == "add" else ops.sub
                return None if fall is None else apply(fall, by), None if value is None else apply(value, by)
    return None


def _either(x: Expr | None, y: Expr | None) -> Expr | None:
    return y if x is None else x if y is None else ops.maximum(x, y)
