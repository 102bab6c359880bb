"""Program -> Program derivatives against finite differences, and again of the result."""

from __future__ import annotations

import numpy as np
import pytest
from random_programs import INPUTS, SIZES, draw, program, run, slope

from seqc.ir import ops
from seqc.ir.ops import var
from seqc.ir.program import CHUNKS, Carried, Carry, Equation, Map, Program, scope
from seqc.passes.differentiate import differentiate

SEEDS = range(8)
Array = np.ndarray


def agrees(p: Program, wrt: list[str], given: dict[str, Array], seed: int) -> tuple[Program, dict[str, Array]]:
    """The adjoint of every input against differences; returns it with the values of all its inputs."""
    adjoint = differentiate(p, wrt)
    new = adjoint.inputs[len(p.inputs) :]
    everything = {**given, **draw(new, seed + 50)}
    weights = {e.name: everything[s.name] for e, s in zip(p.outputs, new, strict=True)}
    found = run(adjoint, everything)
    rng = np.random.default_rng(seed + 90)
    for name in wrt:
        direction = rng.standard_normal(given[name].shape)
        want = slope(p, given, weights, name, direction)
        got = float((np.broadcast_to(found[f"d_{name}"], direction.shape) * direction).sum())
        assert abs(want - got) <= 1e-6 * max(1.0, abs(want)), (name, want, got)
    return adjoint, everything


@pytest.mark.parametrize("seed", SEEDS)
def test_adjoint_and_its_adjoint(seed: int) -> None:
    p = program(seed)
    adjoint, given = agrees(p, [leaf.name for leaf in p.inputs], draw(INPUTS, seed), seed)
    agrees(adjoint, [leaf.name for leaf in adjoint.inputs], given, seed + 1)


@pytest.mark.parametrize("seed", (0, 1))
def test_third_derivative(seed: int) -> None:
    """Closed under differentiation: the adjoint of the adjoint of the adjoint."""
    p, given = program(seed), draw(INPUTS, seed)
    for order in range(2):
        p = differentiate(p, [leaf.name for leaf in p.inputs])
        given |= draw(p.inputs[len(given) :], seed + order)
    agrees(p, ["x", "s0", "W"], given, seed)


def test_the_forward_outputs_stay_available() -> None:
    """The adjoint runs the same forward stages: every name of the forward keeps its leaf."""
    p = program(3)
    before, after = scope(p), scope(differentiate(p, ["x"]))
    assert all(after[n] is leaf for n, leaf in before.items())


def test_an_input_that_nothing_reads_has_a_zero_gradient() -> None:
    x, y = var("x", ("K",)), var("y", ("K",))
    p = Program("p", (x, y), (Map((Equation("a", ops.exp(x)),)),), (Equation("o", var("a", ("K",))),))
    adjoint = differentiate(p, ["x", "y"])
    found = run(adjoint, {**draw((x, y), 0), "d_o": np.ones(2)})
    assert (found["d_y"] == 0).all() and found["d_y"].shape == (2,)


def test_names_that_are_taken_are_not_used_again() -> None:
    """A program whose own names look like adjoints."""
    x, d = var("x", (CHUNKS,)), var("d_o", (CHUNKS,))
    s = var("d_s")
    stage = Carry(
        CHUNKS,
        False,
        (Carried("d_s", ops.number(0), ops.add(ops.mul(s, var("x")), var("d_o")), "s_start"),),
        (Equation("o", ops.mul(s, s)),),
    )
    p = Program("p", (x, d), (stage,), (Equation("o", ops.add(var("o", (CHUNKS,)), var("s_start"))),))
    agrees(p, ["x", "d_o"], draw((x, d), 0), 0)


def test_a_carry_without_steps() -> None:
    x, s = var("x", (CHUNKS,)), var("s")
    stage = Carry(CHUNKS, False, (Carried("s", var("s0"), ops.mul(s, var("x")), "last"),), ())
    p = Program("p", (x, var("s0")), (stage,), (Equation("o", var("last")),))
    from seqc.ir.execute import execute
    from seqc.ir.interp import Reals

    given = {"x": np.zeros(0), "s0": np.asarray(2.0), "d_o": np.asarray(3.0)}
    found = execute(differentiate(p, ["x", "s0"]), Reals, given, {**SIZES, CHUNKS: 0})
    assert found["d_s0"] == 3.0 and found["d_x"].shape == (0,)
