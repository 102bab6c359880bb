"""Where a Map with many products is cut in two: the products of each part, and that no cut has less to write and read."""

from __future__ import annotations

from itertools import combinations

import pytest

import seqc
from seqc.backends.triton import parts
from seqc.backends.triton.cuts import LONG, is_heavy
from seqc.backends.triton.launches import launches
from seqc.compiler import programs
from seqc.forms.chunkwise import CHUNKWISE
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import LEAD, Equation, Map

TILE = LONG**2
x, y, z, u = (ops.var(n, ("@c", *axes)) for n, axes in (("x", "tK"), ("y", "sK"), ("z", "ts"), ("u", "sV")))
scores = ops.contract((x, y), ("@c", "t", "s"))


def cut(*values: Expr) -> list[Map]:
    return parts.parts(tuple(Equation(f"out{i}", v) for i, v in enumerate(values)), LEAD, "part")


def made(found: Map) -> list[tuple[str, tuple[str, ...]]]:
    return [(e.name, e.value.axes) for e in found.equations]


@pytest.fixture
def one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "WORK", 1)


def test_few_products_stay_together() -> None:
    found = cut(scores, ops.contract((scores, u), ("@c", "t", "V")))
    assert [made(m) for m in found] == [[("out0", scores.axes), ("out1", ("@c", "t", "V"))]]


def test_sums_along_rows_are_no_products() -> None:
    rows = ops.contract((scores, z), ("@c", "t"))
    assert is_heavy(scores, LEAD) and not is_heavy(rows, LEAD) and not is_heavy(ops.exp(scores), LEAD)


@pytest.mark.usefixtures("one_product")
def test_what_is_small_crosses() -> None:
    """Of a product only its sums along rows are needed later: they are written, and not the product."""
    rows = ops.contract((scores, z), ("@c", "t"))
    first, second = cut(ops.mul(ops.broadcast(rows, ("@c", "t", "V")), ops.contract((z, u), ("@c", "t", "V"))))
    assert made(first) == [("part_0", ("@c", "t"))]
    assert made(second) == [("out0", ("@c", "t", "V"))]


@pytest.mark.usefixtures("one_product")
def test_a_sum_of_products_crosses_as_one_value() -> None:
    """Two values of one size, of which later the sum alone is needed, are written as their sum."""
    weighted = ops.add(ops.mul(scores, z), scores)
    first, second = cut(ops.contract((weighted, u), ("@c", "t", "V")))
    assert made(first) == [("part_0", ("@c", "t", "s"))] and first.equations[0].value in (weighted, scores)
    assert first.equations[0].value is weighted  # else the second part would read z too
    assert made(second) == [("out0", ("@c", "t", "V"))]


@pytest.mark.usefixtures("one_product")
def test_a_result_that_is_written_anyway_is_read() -> None:
    first, second = cut(ops.exp(scores), ops.contract((ops.exp(scores), u), ("@c", "t", "V")))
    assert made(first) == [("out0", scores.axes)]
    assert {n.name for n in walk(*(e.value for e in second.equations)) if n.op.name == "var"} == {"out0", "u"}


@pytest.mark.parametrize("name", ("momentum_deltanet", "rwkv7"))
def test_no_cut_has_less_to_write_and_read(name: str) -> None:
    """Of the last kernels of a backward: neither other values for the same products, one left out, nor one product exchanged."""
    graph = _of_backward(name)
    kernels = parts._count(graph)
    first, crossing = parts._best(graph, kernels)
    (fewest, most), tried = parts._bounds(graph, kernels), 0
    least = parts._cost(graph, first, crossing)
    for other in parts._neighbours(graph, first):
        if fewest <= graph.weight(other) <= most:
            tried += 1
            assert parts._cost(graph, *parts._cut(graph, other)) >= least
    needed = _met(graph, first, crossing)
    assert kernels > 1 and tried > 1
    assert needed is not None and all(_met(graph, first, tuple(few)) is None for few in combinations(crossing, len(crossing) - 1))


def _of_backward(name: str) -> parts._Graph:
    """The Map with most products of a layer's backward."""
    found: list[parts._Graph] = []
    real = parts._best

    def noted(graph: parts._Graph, kernels: int) -> tuple[int, tuple[Expr, ...]]:
        found.append(graph)
        return real(graph, kernels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_best", noted)
        launches(programs(seqc.check(name), CHUNKWISE).backward, LEAD)
    return max(found, key=lambda g: len(g.work))


def _met(graph: parts._Graph, first: int, known: tuple[Expr, ...]) -> set[Expr] | None:
    """What the second part is made of, or None if it would need a product of the first."""
    todo, seen = [e.value for e in graph.equations if graph.needs[e.value] & ~first], set[Expr]()
    written = {e.value for e in graph.equations if not graph.needs[e.value] & ~first}
    while todo:
        node = todo.pop()
        if node in seen or node in known or node in written:
            continue
        if node in graph.work and not graph.needs[node] & ~first:
            return None
        seen.add(node)
        todo += node.args
    return seen


def test_products_of_each_kernel() -> None:
    """As few kernels as there can be, each with about as many products as the others; those with decays count twice."""
    graph = _of_backward("rwkv7")
    found = parts.parts(graph.equations, graph.lead, "part")
    heavy = [[n for n in walk(*(e.value for e in m.equations)) if is_heavy(n, graph.lead)] for m in found]
    counts = [sum(parts.DECAYED if n.op.name == "decayed" else 1 for n in some) for some in heavy]
    assert len(found) == -(-graph.weight(graph.every) // parts.WORK) == 3
    assert max(counts) <= parts.WORK and max(counts) - min(counts) <= 2 * parts.APART + 1
