"""A Map with many products of matrices as several, each with a few: all in one kernel would need more registers than there are.

What later parts need of earlier ones is written to memory, the rest is computed again. The cut is the least one (max-flow, min-cut) between
reading, and writing and reading, over the expressions of what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from seqc.backends.triton.cuts import decayed_kind, entries, is_heavy
from seqc.backends.triton.micro import is_leaf
from seqc.ir import ops
from seqc.ir.expr import Expr, make, rebuild, walk
from seqc.ir.program import Equation, Map

WORK = 12  # products of matrices in one kernel
APART = 2  # how many more one of several kernels may have than the others
DECAYED = 2  # for how many one with a decay per key counts: it goes by blocks of rows
EXCHANGES = 24  # of how many products one is tried in place of another: of more, only one more and one less
ALONE = 1  # products of weights and rows with decays in a kernel that has all of a Map: two need more registers than there are


@dataclass(frozen=True)
class _Graph:
    """The nodes of some equations. work: products of matrices. needs: for each node those that it is made of, a bit for each."""

    equations: tuple[Equation, ...]
    lead: tuple[str, ...]
    work: tuple[Expr, ...] = field(compare=False)
    needs: Mapping[Expr, int] = field(compare=False)

    def weight(self, some: int) -> int:
        """For how many products those of a set count."""
        return sum(DECAYED if n.op.name == "decayed" else 1 for i, n in enumerate(self.work) if some >> i & 1)

    @property
    def every(self) -> int:
        return (1 << len(self.work)) - 1


def parts(equations: tuple[Equation, ...], lead: tuple[str, ...], name: str) -> list[Map]:
    """As few Maps as have at most WORK products each, those with decays counted several times; two rather than one with many decays. name:
    what new values are named by."""
    graph = _graph(equations, lead)
    return _parts(graph, _count(graph), name)


def _count(graph: _Graph) -> int:
    decays = sum(n.op.name == "decayed" and decayed_kind(n, graph.lead) in ("rows", "columns") for n in graph.work)
    return max(-(-graph.weight(graph.every) // WORK), 1 + (decays > ALONE))


def _parts(graph: _Graph, kernels: int, name: str) -> list[Map]:
    equations = graph.equations
    if kernels == 1 or len(graph.work) == 1:
        return [Map(equations)]
    first, crossing = _best(graph, kernels)
    here = [e for e in equations if not graph.needs[e.value] & ~first]
    rest = [e for e in equations if e not in here]
    named = {e.value: e for e in here}
    for node in crossing:
        if node not in named:
            named[node] = Equation(f"{name}_{len(named)}", node)
            here.append(named[node])
    table = {n: ops.var(e.name, n.axes, n.type.dtype) for n, e in named.items()}

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        return table.get(node) or (node if args == node.args else make(node.op, args, node.attr))

    moved = tuple(replace(e, value=v) for e, v in zip(rest, rebuild((e.value for e in rest), rule), strict=True))
    return [Map(tuple(here)), *_parts(_graph(moved, graph.lead), kernels - 1, f"{name}'")]


def _graph(equations: tuple[Equation, ...], lead: tuple[str, ...]) -> _Graph:
    nodes = tuple(walk(*(e.value for e in equations)))
    work = tuple(n for n in nodes if is_heavy(n, lead))
    bits, needs = {n: 1 << i for i, n in enumerate(work)}, dict[Expr, int]()
    for n in nodes:
        needs[n] = bits.get(n, 0)
        for a in n.args:
            needs[n] |= needs[a]
    return _Graph(equations, lead, work, needs)


@lru_cache(maxsize=128)
def _best(graph: _Graph, kernels: int) -> tuple[int, tuple[Expr, ...]]:
    """The products of the first kernel and the values that it writes for the others: the cheapest beginning of the products' order, and
    from there the cheapest neighbour, while it is cheaper. What is left takes as few kernels as it can. One Map is asked for several times
    while a package is printed."""
    least, most = _bounds(graph, kernels)
    begins = [(1 << n) - 1 for n in range(1, len(graph.work))]
    fits = [first for first in begins if least <= graph.weight(first) <= most]
    fits = fits or [min(x for x in begins if graph.weight(x) >= least)]  # rather a little more than one kernel more
    found = [(_cost(graph, *cut), cut) for first in fits for cut in [_cut(graph, first)]]
    best = min(found, key=lambda x: x[0])
    seen = {first for _, (first, _) in found}
    while True:
        near = [first for first in _neighbours(graph, best[1][0]) if least <= graph.weight(first) <= most and first not in seen]
        seen |= {*near}
        found = [(_cost(graph, *cut), cut) for first in near for cut in [_cut(graph, first)]]
        if not found or (better := min(found, key=lambda x: x[0]))[0] >= best[0]:
            return best[1]
        best = better


def _bounds(graph: _Graph, kernels: int) -> tuple[int, int]:
    """The least and the most products of the first of some kernels."""
    total = graph.weight(graph.every)
    most = min(WORK, -(-total // kernels) + APART, total - 1)
    return max(total - (kernels - 1) * most, 1), most


def _neighbours(graph: _Graph, first: int) -> Iterator[int]:
    """Sets with one product more, one less, or another one, that need no product outside."""
    bits = [1 << i for i in range(len(graph.work))]
    needs = dict(zip(bits, (graph.needs[n] for n in graph.work), strict=True))

    def closed(some: int) -> bool:
        return all(not needs[b] & ~some for b in bits if b & some)

    without = [0, *(b for b in bits if b & first and closed(first & ~b))]
    added = [0, *(b for b in bits if not b & first and not needs[b] & ~(first | b))]
    for out in without:
        for more in added if len(bits) <= EXCHANGES or not out else [0]:
            if closed(some := (first & ~out) | more) and some != first:
                yield some


def _cut(graph: _Graph, first: int) -> tuple[int, tuple[Expr, ...]]:
    """The values to be written by a kernel with the products `first`, so that the others read and write least."""
    import networkx as nx  # where a kernel is cut, and nowhere before: a command that prints none should not wait for it
    from networkx.algorithms.flow import boykov_kolmogorov, build_residual_network

    flow, source, sink = nx.DiGraph(), "source", "sink"
    flow.add_nodes_from((source, sink))
    todo = [e.value for e in graph.equations if graph.needs[e.value] & ~first]
    written, seen = {e.value for e in graph.equations}, set(todo)
    while todo:
        node = todo.pop()
        inside = not graph.needs[node] & ~first
        leaf = is_leaf(node)
        if inside and (leaf or node.type.dtype == "real"):
            flow.add_edge((node, 0), (node, 1), capacity=entries(node, graph.lead) * (1 if leaf or node in written else 2))
        elif inside:
            flow.add_edge((node, 0), (node, 1))
        if leaf or (inside and node in graph.work):
            flow.add_edge(source, (node, 0))
            continue
        for a in dict.fromkeys(node.args):
            if not graph.needs[a] & ~first:
                flow.add_edge((a, 1), (node, 0) if inside else sink)  # what is not inside is where the results are
            if a not in seen:
                seen.add(a)
                todo.append(a)
    residual = build_residual_network(flow, "capacity")
    _, (reached, _) = nx.minimum_cut(flow, source, sink, flow_func=boykov_kolmogorov, residual=residual)
    for each in (flow, residual):
        each.clear()  # they refer to themselves, and nothing is collected while a spec is compiled: 22 GB for one layer
    cut = (n for n in seen if (n, 0) in reached and (n, 1) not in reached and not is_leaf(n))
    order = {n: i for i, n in enumerate(graph.needs)}
    return first, tuple(sorted(cut, key=order.__getitem__))


def _cost(graph: _Graph, first: int, crossing: tuple[Expr, ...]) -> int:
    """What two kernels read and write, apart from the results."""
    results = {e.value for e in graph.equations}
    here = [e.value for e in graph.equations if not graph.needs[e.value] & ~first]
    written = sum(entries(n, graph.lead) for n in crossing if n not in results)
    return written + _read(graph, (*here, *crossing), ()) + _read(graph, [v for v in results if v not in here], crossing)


def _read(graph: _Graph, values: Iterable[Expr], known: tuple[Expr, ...]) -> int:
    """What some values are made of: leaves, and values that are known."""
    todo, seen, total = list(values), set[Expr](), 0
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_leaf(node) or node in known:
            total += entries(node, graph.lead)
        else:
            todo += node.args
    return total
