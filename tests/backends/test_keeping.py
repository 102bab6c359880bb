"""What a Triton forward keeps for its backward: the backward with it is the backward without, exactly. `test_triton.py` runs both."""

from __future__ import annotations

from functools import partial

import pytest
from conftest import SHIPPED

import seqc
from seqc.backends.triton.keeping import TILE, _crossing, keeping
from seqc.compiler import judge, prepared, programs
from seqc.forms import Applies
from seqc.forms.chunkwise import CHUNKWISE
from seqc.ir import ops
from seqc.ir.execute import execute
from seqc.ir.expr import Expr
from seqc.ir.program import LEAD, Carry, Equation, Map, Program, scope
from seqc.proof.arithmetic import Field
from seqc.proof.bench import Bench
from seqc.proof.trial import Trial, laid_out, small_axes

KEPT = {
    "gated_deltanet": {"P", "T", "S_start", "U"}, "gla": {"keep", "S_start"}, "mamba2": {"S_start"},
    "linear_attention": {"S@read0", "z@read0", "S_start", "z_start"},
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
    rec, lowered = prepared(checked), programs(checked, CHUNKWISE).lowered
    chunk = lowered.block or 3
    trial = Trial((7, 2), chunk, 2, 1, 4, small_axes(rec, set(lowered.fixed), checked.sizes), (0, 0) if lowered.block else ())
    bench = Bench(rec, trial, "kept")
    sizes = trial.sizes_of(again)
    seeds = {f"d_{n}": x for n, x in bench.draws.seeds.items()}

    def run(program: Program, given: dict[str, object]) -> dict[str, object]:
        field = Field(bench.oracles, sizes)
        own = laid_out(field, {**bench.draws.values, **seeds}, [i for i in program.inputs if i.name not in given], trial)
        return execute(program, partial(Field, bench.oracles), {**own, **given}, sizes)  # type: ignore[arg-type]

    first = run(giving, {})
    found, wanted = run(taking, {leaf.name: first[leaf.name] for leaf in kept}), run(again, {})
    assert [*found] == [*wanted]
    for n, x in found.items():
        assert (x.p == wanted[n].p).all(), n  # type: ignore[attr-defined]
    assert any(x.p.any() for x in found.values())  # type: ignore[attr-defined]


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


def test_a_state_of_every_token_is_not_kept() -> None:
    """Where a key is kept for every pair of its entries, it is larger than what it is computed from."""
    giving, taking, kept, again = kept_of("mesanet")
    leaves = scope(again)
    assert not kept and taking is again
    assert any(sum(a not in LEAD for a in leaves[n].axes) > TILE for n in _crossing(giving, again, LEAD))
