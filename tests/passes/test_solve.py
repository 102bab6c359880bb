"""A Solve stage: what it means, its derivatives of every order, what a cut keeps, and the linearised step that it is made of."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from random_programs import INPUTS, Grower, draw
from random_programs import SIZES as EXPRESSION_SIZES

from seqc.compiler import Checked, check_file, prepared
from seqc.forms.base import VALID
from seqc.forms.newton import NEWTON
from seqc.forms.recurrent import RECURRENT
from seqc.ir import ops, text
from seqc.ir.execute import execute
from seqc.ir.expr import substitute, variables
from seqc.ir.interp import Reals, evaluate
from seqc.ir.ops import var
from seqc.ir.program import BATCH, CHUNKS, GROUPS, HEADS, TOKENS, Map, Program, Solve, names, roots
from seqc.ir.rules import extent
from seqc.passes.differentiate import differentiate
from seqc.passes.jacobian import tangents
from seqc.passes.phases import split
from seqc.proof.trial import Trial, laid_out
from seqc.proof.trial import flat as laid_flat

TEXTS = sorted((ROOT / "tests/backends/specs").glob("cell_*.seq"))
TRIAL = Trial((7,), 3, 2, 1, 1, (("N", 2),))
Array = np.ndarray


@cache
def lowered(path: Path, name: str) -> Program:
    c = checked(path)
    form = {"newton": NEWTON, "recurrent": RECURRENT}[name]
    return form.lower(prepared(c), c.sizes).program


@cache
def checked(path: Path) -> Checked:
    return check_file(path)


def given(p: Program) -> list[Array]:
    """Random values for a program's inputs, with time as tokens alone: two programs whose inputs mean the same get the same."""
    sizes = TRIAL.sizes(chunked=False)
    rng = np.random.default_rng(0)
    found = []
    for leaf in p.inputs:
        axes = ordered(leaf.axes)
        shape = [extent(sizes, a) for a in axes]
        x = rng.uniform(0.1, 0.9, shape) if leaf.name == "keep" else 0.7 * rng.standard_normal(shape)
        if leaf.name.startswith("d_") and TOKENS in axes:
            x[:, :, 7:] = 0  # in the padding
        found.append((np.arange(sizes[TOKENS]) < 7).astype(float)[None] if leaf.name == VALID else x)
    return found


def ordered(axes: tuple[str, ...]) -> tuple[str, ...]:
    lead = tuple(a for a in (BATCH, HEADS, GROUPS, TOKENS) if a in axes)
    return (*lead, *(a for a in axes if not a.startswith("@")))


def run(p: Program, values: list[Array]) -> list[Array]:
    """The program's results with time as tokens alone."""
    sizes = TRIAL.sizes(any(CHUNKS in leaf.axes for leaf in p.inputs))
    fitted = laid_out(Reals(sizes), {leaf.name: x[None] for leaf, x in zip(p.inputs, values, strict=True)}, p.inputs, TRIAL)
    found = execute(p, Reals, {n: x[0] for n, x in fitted.items()}, sizes)
    wide = [np.broadcast_to(found[e.name], [extent(sizes, a) for a in e.value.axes]) for e in p.outputs]
    return [alive(laid_flat(x[None], e.value.axes, TRIAL)[0]) for e, x in zip(p.outputs, wide, strict=True)]  # type: ignore[arg-type]


def alive(x: Array) -> Array:
    """Without the padding, of a value at every token."""
    return x[:, :, :7] if x.ndim > 2 and x.shape[2] == TRIAL.sizes(chunked=False)[TOKENS] else x


@pytest.mark.slow
@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_every_derivative_is_that_of_the_recurrence(path: Path) -> None:
    """Values and adjoints, each of the one before: the stage is closed under differentiation."""
    mine, theirs = lowered(path, "newton"), lowered(path, "recurrent")
    assert any(isinstance(s, Solve) for s in mine.stages)
    for _ in range(4 if path.stem == "cell_channels" else 3):
        values = given(theirs)
        found, wanted = run(mine, values), run(theirs, values)
        for e, x, y in zip(mine.outputs, found, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11, err_msg=e.name)
        mine, theirs = (differentiate(p, [leaf.name for leaf in p.inputs if leaf.name != VALID]) for p in (mine, theirs))


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_the_adjoint_is_one_pass_of_the_linearised_equations(path: Path) -> None:
    """Cut, it solves once, and nothing of it but the Solve reads what is left of the equations: that is zero at the solution."""
    p = lowered(path, "newton")
    back = split(differentiate(split(p, {}, post=(CHUNKS,)), [leaf.name for leaf in p.inputs if leaf.name != VALID]), {}, post=(CHUNKS,))
    solves = [s for s in back.stages if isinstance(s, Solve)]
    assert len(solves) == 1
    outside = [s for s in back.stages if not isinstance(s, Solve)]
    read = {v.name for s in outside for v in variables(*roots(s))} | {v.name for v in variables(*(e.value for e in back.outputs))}
    assert not [n for n in read if "@residual" in n and not n.startswith("d_")]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_a_cut_keeps_every_value_and_name(path: Path) -> None:
    p = lowered(path, "newton")
    cut = split(p, {}, post=(CHUNKS,))
    values = given(lowered(path, "recurrent"))
    for x, y in zip(run(p, values), run(cut, values), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)
    named = names(cut)
    assert len(set(named)) == len(named) and "solve" in text.program(cut)


def test_what_no_unknown_needs_is_dropped() -> None:
    p = lowered(TEXTS[0], "newton")
    (solve,) = [s for s in p.stages if isinstance(s, Solve)]
    more = Map((*solve.residuals[0].equations, solve.residuals[0].equations[0].__class__("unused", ops.number(2))))
    spoiled = Solve(solve.unknowns, (more, *solve.residuals[1:]), solve.steps)
    cut = split(Program(p.name, p.inputs, tuple(spoiled if s is solve else s for s in p.stages), p.outputs), {}, post=(CHUNKS,))
    assert "unused" in names(Program(p.name, p.inputs, (spoiled,), ())) and "unused" not in names(cut)


@pytest.mark.parametrize("seed", range(12))
def test_tangents_are_directional_derivatives(seed: int) -> None:
    """Forward mode, made of two adjoints, against central differences; nothing of the adjoints' seeds is left in it."""
    g = Grower(np.random.default_rng(seed))
    x, u = INPUTS[0], INPUTS[1]
    values = [ops.broadcast(e, (CHUNKS, "K")) for e in g.grow(INPUTS[:3], 6)[-2:]]
    d = (var("dx", x.axes), var("du", u.axes))
    found = tangents(values, (x, u), d)
    assert not [v for v in variables(*found) if v.name.startswith("@seed")]
    data = draw((*INPUTS, *d), seed)
    A = Reals(EXPRESSION_SIZES)
    got = evaluate(A, [ops.broadcast(f, (CHUNKS, "K")) for f in found], data)
    ends = []
    for sign in (1, -1):
        moved = substitute(values, {x: ops.add(x, ops.mul(var("e"), d[0])), u: ops.add(u, ops.mul(var("e"), d[1]))})
        ends.append(evaluate(A, moved, {**data, "e": np.asarray(sign * 1e-5)}))
    shape = [EXPRESSION_SIZES[a] for a in (CHUNKS, "K")]
    for a, up, down in zip(got, *ends, strict=True):
        np.testing.assert_allclose(np.broadcast_to(a, shape), np.broadcast_to((up - down) / 2e-5, shape), rtol=1e-5, atol=1e-7)
