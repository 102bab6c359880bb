"""What a Triton forward keeps for its backward: the backward with it is the backward without, exactly. `test_triton.py` runs both."""

from __future__ import annotations

import pytest
from conftest import SHIPPED
from in_field import Points, assert_equal

import seqc
from seqc.backends.triton.keeping import TILE, _crossing, keeping
from seqc.compiler import judge, programs
from seqc.forms import Applies
from seqc.forms.chunkwise import CHUNKWISE
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.program import LEAD, Carry, Equation, Map, Program

KEPT = {
    "gated_deltanet": {"P", "T", "S_start", "U"}, "gla": {"keep", "S_start"}, "mamba2": {"S_start"},
    "linear_attention": {"S@read0", "z@read0", "S_start", "z_start"}, "mesanet": {"H_start", "G_start"},
}  # fmt: skip


def kept_of(name: str) -> tuple[Program, Program, tuple[Expr, ...], Program]:
    """The forward that gives, the backward that takes, what is kept, and the backward that computes it again."""
    made = programs(seqc.check(name), CHUNKWISE)
    return *keeping(made.forward, made.backward, LEAD), made.backward


@pytest.mark.parametrize("name", [n if n in KEPT else pytest.param(n, marks=pytest.mark.slow) for n in SHIPPED])
def test_the_backward_is_the_same_function(name: str) -> None:
    """Every adjoint, at random points of the prime field."""
    checked = seqc.check(name)
    if not isinstance(judge(checked)[CHUNKWISE.name], Applies):
        assert name not in KEPT
        pytest.skip("no chunkwise form")
    giving, taking, kept, again = kept_of(name)
    assert {leaf.name for leaf in kept} == KEPT.get(name, {leaf.name for leaf in kept})
    points = Points(checked, CHUNKWISE)
    first = points.run(giving, {})
    assert_equal(points.run(taking, {leaf.name: first[leaf.name] for leaf in kept}), points.run(again, {}))


@pytest.mark.parametrize("name", KEPT)
def test_nothing_that_is_kept_is_computed_again(name: str) -> None:
    giving, taking, kept, again = kept_of(name)
    names = {leaf.name for leaf in kept}
    defined = {n for s in taking.stages for n in _names(s)}
    assert not names & defined and names <= {i.name for i in taking.inputs}
    assert sum(isinstance(s, Carry) and not s.reverse for s in again.stages) == 1
    assert not any(isinstance(s, Carry) and not s.reverse for s in taking.stages)
    assert [e.name for e in giving.outputs][-len(kept) :] == [leaf.name for leaf in kept]
    assert all(sum(a not in LEAD for a in leaf.axes) <= TILE for leaf in kept)


def _names(stage: object) -> list[str]:
    assert isinstance(stage, (Map, Carry))
    return [e.name for e in stage.equations]


def test_what_is_not_what_the_forward_computes_is_not_kept() -> None:
    """The same name for another value, or for the same expression of another value."""
    made = programs(seqc.check("gated_deltanet"), CHUNKWISE)
    first = made.forward.stages[0]
    assert isinstance(first, Map)
    for changed in ("T", "keep"):
        own = tuple(Equation(e.name, ops.mul(e.value, ops.number(2))) if e.name == changed else e for e in first.equations)
        other = Program(made.forward.name, made.forward.inputs, (Map(own), *made.forward.stages[1:]), made.forward.outputs)
        assert keeping(other, made.backward, LEAD) == (other, made.backward, ())


@pytest.mark.parametrize("more", ((), ("V",)))
def test_what_is_larger_than_a_matrix_is_not_kept(more: tuple[str, ...]) -> None:
    """A product of arguments that two kernels of the backward read, of a matrix for each chunk or of one for each token."""
    k, w, d, e = (ops.var(n, ("@c", *axes)) for n, axes in (("k", "sK"), ("w", ("s", "t", *more)), ("d_o", "tL"), ("d_p", "tM")))
    x = Equation("x", ops.contract((k, w), ("@c", "t", "K", *more)))
    leaf = ops.var("x", x.value.axes)
    here, there = (Equation(f"d_{n}", ops.contract((leaf, y), ("@c", "K", n, *more))) for n, y in (("L", d), ("M", e)))
    results = [Equation(f.name, ops.var(f.name, f.value.axes)) for f in (here, there)]
    forward = Program("f", (k, w), (Map((x,)),), (Equation("o", ops.contract((leaf, leaf), ("@c", "t", *more))),))
    backward = Program("b", (k, w, d, e), (Map((x,)), Map((here,)), Map((there,))), tuple(results))
    assert _crossing(forward, backward, LEAD) == ["x"]
    giving, taking, kept = keeping(forward, backward, LEAD)
    assert kept == (() if more else (leaf,)) and len(x.value.axes) - 1 == TILE + len(more)
    assert (giving, taking) == (forward, backward) if more else [e.name for e in giving.outputs] == ["o", "x"]
