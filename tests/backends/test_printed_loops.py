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


def check(p: Program, in_place: bool = False) -> str:
    order = axis_order(p, [v.axes for v in p.inputs])
    text = print_kernel(linearise(p, {}, order), "compute", ("A loop.",), in_place=in_place)
    rng = np.random.default_rng(0)
    given = {v.name: rng.standard_normal([SIZES[ops.base(x)] for x in v.axes]) for v in p.inputs}
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


@pytest.mark.parametrize("in_place", (False, True))
def test_a_value_without_heads_keeps_both_axes(in_place: bool) -> None:
    text = check(program(False, var("keep", (CHUNKS, BATCH))), in_place)
    assert "baddbmm" not in text and ".flatten(" not in text, text


@pytest.mark.parametrize("in_place", (False, True))
def test_a_sum_over_heads_keeps_both_axes(in_place: bool) -> None:
    text = check(program(False, heads=False), in_place)
    assert ".flatten(" not in text, text


def test_a_product_with_its_axes_exchanged_is_not_added_as_it_lies() -> None:
    pair = var("S", (BATCH, HEADS, "K", "K'"))
    first, again = var("S_0", pair.axes), var("b", (*ROW, "K"))
    product = ops.contract((inside(a, CHUNKS), ops.rename(inside(again, CHUNKS), {"K": "K'"})), pair.axes)
    new = ops.add(pair, ops.rename(product, {"K": "K'", "K'": "K"}))
    stage = Carry(CHUNKS, False, (Carried("S", first, new, "S_T"),), ())
    check(Program("loop", (a, again, first), (stage,), (Equation("last", var("S_T", pair.axes)),)))


# --- Values that are written where they end up ---------------------------------------------------------------------------


def carry(reverse: bool, new: ops.Expr, *emitted: Equation, more: tuple[Carried, ...] = ()) -> Program:
    """A loop over chunks that carries S; its results are all that it emits, and the last values."""
    carried = (Carried("S", S_0, new, "S_T"), *more)
    leaves = [var(e.name, (CHUNKS, *e.value.axes)) for e in emitted] + [var(k.final, k.init.axes) for k in carried]
    outputs = tuple(Equation(f"{leaf.name}_out", ops.mul(ops.number(2), leaf)) for leaf in leaves)
    return Program("loop", (W, a, u, keep, S_0), (Carry(CHUNKS, reverse, carried, emitted),), outputs)


def kept(name: str = "S") -> ops.Expr:
    return ops.mul(inside(keep, CHUNKS), var(name, S.axes))


WRITE = ops.contract((inside(a, CHUNKS), inside(u, CHUNKS)), S.axes)


@pytest.mark.parametrize("reverse", (False, True))
def test_states_and_values_go_to_rows_made_before_the_loop(reverse: bool) -> None:
    text = check(program(reverse), in_place=True)
    assert text.count("new_empty(") == 2 and "torch.stack" not in text and "append" not in text, text
    assert text.count("out=") == 2 and text.count("baddbmm_(") == 1, text


@pytest.mark.parametrize("reverse", (False, True))
def test_the_last_state_does_not_keep_all_rows_in_memory(reverse: bool) -> None:
    p = carry(reverse, ops.add(kept(), WRITE), Equation("first", S))
    assert "clone()" in check(p, in_place=True)
    p = carry(reverse, after := ops.add(kept(), WRITE), Equation("after", after))
    assert "S.clone()" in check(p, in_place=True)


@pytest.mark.parametrize("reverse", (False, True))
def test_a_state_before_and_after_each_step(reverse: bool) -> None:
    after = ops.add(kept(), WRITE)
    text = check(carry(reverse, after, Equation("first", S), Equation("after", after)), in_place=True)
    assert text.count("new_empty(") == 1 and text.count("torch.stack(") == 1, text


def test_a_value_under_two_names_is_stacked_once() -> None:
    value = ops.mul(S, S)
    p = carry(False, ops.add(kept(), value), Equation("one", value), Equation("other", value), Equation("first", S), Equation("again", S))
    assert check(p, in_place=True).count("new_empty(") == 2
    assert check(p).count("torch.stack(") == 2


def test_two_states_with_one_next_value_are_stacked() -> None:
    """Their rows would be the same, and their first values are not."""
    other = Carried("Z", ops.mul(S_0, S_0), ops.add(kept(), WRITE), "Z_T")
    p = carry(False, ops.add(kept(), WRITE), Equation("first", S), Equation("first_Z", var("Z", S.axes)), more=(other,))
    assert "new_empty(" not in check(p, in_place=True)


def test_states_that_exchange_their_values() -> None:
    Z = var("Z", S.axes)
    other = Carried("Z", ops.mul(S_0, S_0), ops.add(kept("S"), Z), "Z_T")
    p = carry(False, ops.sub(kept("Z"), S), Equation("first", S), Equation("first_Z", Z), more=(other,))
    assert check(p, in_place=True).count("new_empty(") == 2


def test_what_no_call_writes_is_stacked() -> None:
    text = check(carry(True, ops.unary("tanh", ops.add(kept(), WRITE)), Equation("first", S)), in_place=True)
    assert "torch.stack(" in text and "new_empty(" not in text, text


def test_axes_of_length_one_are_appended_once() -> None:
    text = check(carry(False, ops.add(kept(), WRITE), Equation("first", S)), in_place=True)
    assert "keep.flatten(1, 2)[..., None, None]" in text and "keep_i[" not in text, text
    thin = ops.sum_over(S, ("K", "V"))
    text = check(carry(False, ops.add(kept(), WRITE), Equation("thin", ops.mul(inside(keep, CHUNKS), thin))), in_place=True)
    assert "keep_i[" in text, text  # another reader takes it as it is


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
