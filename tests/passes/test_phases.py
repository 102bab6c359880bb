"""Cutting a Carry keeps every value, leaves in the loop only what depends on the state, and drops only what is dead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_programs import INPUTS, draw, program, run

from seqc.ir import ops
from seqc.ir.expr import Expr, variables, walk
from seqc.ir.ops import var
from seqc.ir.program import CHUNKS, Carry, Equation, Map, Program, body_roots
from seqc.passes.differentiate import differentiate
from seqc.passes.phases import CHEAP, prune, split

SEEDS = range(8)
POSTS = ((), (CHUNKS,))


def programs(seed: int) -> list[tuple[Program, dict[str, np.ndarray]]]:
    """A random program and its adjoint, with values for their inputs."""
    p = program(seed)
    adjoint = differentiate(p, [leaf.name for leaf in p.inputs])
    given = draw(INPUTS, seed)
    return [(p, given), (adjoint, given | draw(adjoint.inputs[len(INPUTS) :], seed))]


@pytest.mark.parametrize("post", POSTS, ids=("kept", "cut"))
@pytest.mark.parametrize("seed", SEEDS)
def test_split_keeps_every_output(seed: int, post: tuple[str, ...]) -> None:
    for p, given in programs(seed):
        want, found = run(p, given), run(split(p, {}, post=post), given)
        assert list(want) == list(found)
        for name in want:
            np.testing.assert_allclose(np.broadcast_to(found[name], np.shape(want[name])), want[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("post", POSTS, ids=("kept", "cut"))
@pytest.mark.parametrize("seed", SEEDS)
def test_split_may_be_differentiated_and_split_again(seed: int, post: tuple[str, ...]) -> None:
    p, given = programs(seed)[0]
    names = [leaf.name for leaf in p.inputs]
    whole, cut = differentiate(p, names), differentiate(split(p, {}, post=post), names)
    given |= draw(whole.inputs[len(p.inputs) :], seed)
    want, found = run(whole, given), run(split(cut, {}, post=post), given)
    for name in want:
        np.testing.assert_allclose(np.broadcast_to(found[name], np.shape(want[name])), want[name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_stays_in_a_carry_depends_on_its_state(seed: int) -> None:
    for p, _ in programs(seed):
        for stage in split(p, {}, post=(CHUNKS,)).stages:
            if isinstance(stage, Carry):
                state = {k.name for k in stage.carried}
                assert not [n for n in walk(*body_roots(stage)) if n.op.name not in CHEAP and not _sees(n, state)]


def _sees(e: Expr, names: set[str]) -> bool:
    return bool({v.name for v in variables(e)} & names)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_post_a_carry_emits_only_what_the_next_state_shares(seed: int) -> None:
    """Each equation left is a state, or a part of the next state: nothing is computed in the loop for the outside alone."""
    for p, _ in programs(seed):
        for stage in split(p, {}, post=(CHUNKS,)).stages:
            if isinstance(stage, Carry):
                needed = {id(n) for n in walk(*(k.next for k in stage.carried))}
                names = {k.name for k in stage.carried}
                for e in stage.equations:
                    assert id(e.value) in needed or (e.value.op.name == "var" and e.value.name in names)


# --- Pruning -------------------------------------------------------------------------------------------------------


def only(p: Program, *outputs: str) -> Program:
    return replace(p, outputs=tuple(e for e in p.outputs if e.name in outputs))


@pytest.mark.parametrize("outputs", [("y",), ("z",), ("p",), ("y", "p"), ()], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_prune_keeps_the_value_and_nothing_dead(seed: int, outputs: tuple[str, ...]) -> None:
    p, given = programs(seed)[0]
    small = prune(only(p, *outputs))
    want, found = run(p, given), run(small, given)
    for name in outputs:
        assert np.array_equal(found[name], want[name])
    assert not dead(small)
    assert prune(small) == small


def dead(p: Program) -> set[str]:
    """Names given by a stage that no later stage, no carried value and no output uses."""
    used = {v.name for v in variables(*(e.value for e in p.outputs))}
    lost: set[str] = set()
    for stage in reversed(p.stages):
        lost |= {e.name for e in stage.equations} - used
        used |= {v.name for e in stage.equations for v in variables(e.value)}
        if isinstance(stage, Carry):
            inner = used | {v.name for v in variables(*body_roots(stage))}
            lost |= {k.name for k in stage.carried if k.final not in used and k.name not in inner}
            used |= {v.name for v in variables(*body_roots(stage), *(k.init for k in stage.carried))}
    return lost


def test_prune_drops_a_state_that_only_feeds_itself() -> None:
    p = program(0)
    small = prune(only(p, "p"))
    assert not [k for s in small.stages if isinstance(s, Carry) for k in s.carried]


def test_hints_follow_their_nodes() -> None:
    """A hoisted value takes the name that its node was given."""
    x, s = var("x", (CHUNKS, "K")), var("s", ("K",))
    heavy = ops.exp(ops.mul(var("x", ("K",)), var("b", ("K",))))
    from seqc.ir.program import Carried

    stage = Carry(CHUNKS, False, (Carried("s", var("s0", ("K",)), ops.add(ops.mul(heavy, s), heavy), "last"),), ())
    p = Program("p", (x, var("b", ("K",)), var("s0", ("K",))), (stage,), (Equation("o", var("last", ("K",))),))
    first = split(p, {heavy: "keep"}, post=()).stages[0]
    assert isinstance(first, Map) and [e.name for e in first.equations] == ["keep"]
