"""Loops as they are printed: sequences and heads as one axis, products that are added in one call, and what is let go of."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from seqc.backends.torch import runtime
from seqc.backends.torch.statements import DEAD, print_kernel
from seqc.ir import ops
from seqc.ir.execute import execute
from seqc.ir.interp import Reals
from seqc.ir.ops import var
from seqc.ir.program import BATCH, CHUNKS, HEADS, TOKENS, Carried, Carry, Equation, Map, Program, inside
from seqc.schedule.linear import axis_order, linearise

SIZES = {BATCH: 2, HEADS: 3, CHUNKS: 4, TOKENS: 5, "K": 3, "V": 2}
ROW = (CHUNKS, BATCH, HEADS, TOKENS)
W, a, u, keep = var("W", (*ROW, "K")), var("a", (*ROW, "K")), var("u", (*ROW, "V")), var("keep", (CHUNKS, BATCH, HEADS))
S_0 = var("S_0", (BATCH, HEADS, "K", "V"))
S = var("S", S_0.axes)


def program(reverse: bool, kept: ops.Expr = keep, heads: bool = True) -> Program:
    """A chunk's loop: U = u - W S, then S = keep S + a^T U."""
    W_i, a_i, u_i, keep_i = (inside(x, CHUNKS) for x in (W, a, u, kept))
    U = ops.sub(u_i, ops.contract((W_i, S), u_i.axes))
    new = ops.add(ops.mul(keep_i, S), ops.contract((a_i, U), S.axes))
    if not heads:
        new = ops.add(new, ops.broadcast(ops.sum_over(S, (HEADS,)), S.axes))
    stage = Carry(CHUNKS, reverse, (Carried("S", S_0, new, "S_T"),), (Equation("U", U), Equation("first", S)))
    U_all, first = var("U", u.axes), var("first", (CHUNKS, *S.axes))
    outputs = (Equation("out", ops.add(U_all, ops.contract((W, first), u.axes))), Equation("last", var("S_T", S.axes)))
    return Program("loop", (W, a, u, kept, S_0), (stage,), outputs)


def check(p: Program) -> str:
    order = axis_order(p, [v.axes for v in p.inputs])
    text = print_kernel(linearise(p, {}, order), "compute", ("A loop.",))
    rng = np.random.default_rng(0)
    given = {v.name: rng.standard_normal([SIZES[x] for x in v.axes]) for v in p.inputs}
    want = execute(p, Reals, given, SIZES)
    space: dict[str, object] = {"torch": torch, "runtime": runtime}
    exec(compile(text, "<kernel>", "exec"), space)
    found = space["compute"](*(torch.from_numpy(given[v.name]) for v in p.inputs))  # type: ignore[operator]
    for e, x in zip(p.outputs, found, strict=True):
        np.testing.assert_allclose(x.numpy(), want[e.name], rtol=1e-12, atol=1e-12, err_msg=text)
    return text


@pytest.mark.parametrize("reverse", (False, True))
def test_batches_of_matrices_are_multiplied_and_added_in_one_call(reverse: bool) -> None:
    text = check(program(reverse))
    assert text.count("torch.baddbmm(") == 2 and "alpha=-1" in text, text


def test_a_value_without_heads_keeps_both_axes() -> None:
    text = check(program(False, var("keep", (CHUNKS, BATCH))))
    assert "baddbmm" not in text and ".flatten(" not in text, text


def test_a_sum_over_heads_keeps_both_axes() -> None:
    text = check(program(False, heads=False))
    assert ".flatten(" not in text, text


def test_values_are_let_go_of() -> None:
    """No name is deleted twice, none is read afterwards (the program ran), and few are kept for nothing."""
    stages, x = [], u
    for i in range(4 * DEAD):
        stages.append(Map((Equation(f"x{i}", ops.mul(ops.unary("tanh", x), x)),)))
        x = var(f"x{i}", u.axes)
    p = Program("long", (u,), tuple(stages), (Equation("out", x), Equation("early", var("x0", u.axes))))
    deleted = [name for line in re.findall(r"^    del (.*)$", check(p), re.M) for name in line.split(", ")]
    assert len(deleted) == len(set(deleted)) >= 2 * DEAD and not {"x0", f"x{4 * DEAD - 1}", "out"} & set(deleted)


def test_a_loop_over_many_values_fits_its_lines() -> None:
    many = [var(f"a_value_with_a_long_name_{i}", (CHUNKS, BATCH, HEADS, "K", "V")) for i in range(12)]
    total = S
    for x in many:
        total = ops.add(total, inside(x, CHUNKS))
    stage = Carry(CHUNKS, True, (Carried("S", S_0, total, "S_T"),), ())
    text = check(Program("many", (*many, S_0), (stage,), (Equation("last", var("S_T", S.axes)),)))
    assert max(map(len, text.splitlines())) <= 140, text
