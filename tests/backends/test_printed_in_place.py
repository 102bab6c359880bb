"""Kernels that write over what nothing reads any more: they compute the same, and leave what others hold as it is."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from seqc.backends.torch import runtime
from seqc.backends.torch.printer import Printer
from seqc.backends.torch.reuse import spent
from seqc.backends.torch.statements import print_kernel
from seqc.ir import ops
from seqc.ir.execute import execute
from seqc.ir.expr import Expr, Mask
from seqc.ir.interp import Reals
from seqc.ir.ops import var
from seqc.ir.program import BATCH, CHUNKS, HEADS, TOKENS, Carried, Carry, Equation, Map, Program, Stage, inside
from seqc.schedule.linear import axis_order, linearise

SIZES = {BATCH: 2, HEADS: 3, CHUNKS: 4, TOKENS: 5, "K": 3, "V": 2}
ROW = (CHUNKS, BATCH, HEADS, TOKENS)
q, k, v, w = var("q", (*ROW, "K")), var("k", (*ROW, "K")), var("v", (*ROW, "V")), var("w", ROW)
S_0 = var("S_0", (BATCH, HEADS, "K", "V"))
INPUTS = (q, k, v, w, S_0)


def check(stages: tuple[Stage, ...], *outputs: Expr) -> str:
    """The text of a kernel that computes what the interpreter does, and changes no input."""
    program = Program("kernel", INPUTS, stages, tuple(Equation(f"out_{i}", x) for i, x in enumerate(outputs)), (("@s", TOKENS, 1),))
    order = axis_order(program, [x.axes for x in INPUTS])
    text = print_kernel(linearise(program, {}, order), "compute", ("Values.",), in_place=True)
    rng = np.random.default_rng(0)
    given = {x.name: rng.standard_normal([SIZES[a] for a in x.axes]) for x in INPUTS}
    want = execute(program, Reals, given, SIZES)
    space: dict[str, object] = {"torch": torch, "runtime": runtime}
    exec(compile(text, "<kernel>", "exec"), space)
    tensors = [torch.from_numpy(given[x.name].copy()) for x in INPUTS]
    found = space["compute"](*tensors)  # type: ignore[operator]
    for e, x in zip(program.outputs, found, strict=True):
        np.testing.assert_allclose(x.numpy(), want[e.name], rtol=1e-9, atol=1e-9, err_msg=text)
    for leaf, x in zip(INPUTS, tensors, strict=True):
        np.testing.assert_array_equal(x.numpy(), given[leaf.name], err_msg=text)
    return text


def named(*values: Expr) -> tuple[Map, ...]:
    """Values with names x0, x1, ... in this order."""
    return tuple(Map((Equation(f"x{i}", value),)) for i, value in enumerate(values))


def x(i: int, *axes: str) -> Expr:
    return var(f"x{i}", axes or q.axes)


def attended(a: Expr, b: Expr) -> Expr:
    """(a b^T) b, inside every chunk."""
    other = ops.rename(b, {TOKENS: "@s"})
    return ops.contract((ops.contract((a, other), (*ROW, "@s")), other), a.axes)


def test_the_last_reader_writes_over_a_value() -> None:
    stages = named(ops.mul(q, k), ops.mul(x(0), w), ops.unary("exp", x(1)))
    text = check(stages, x(2))
    assert "x1 = x0.mul_(w[..., None])" in text and "x2 = x1.exp_()" in text, text


def test_a_value_that_is_read_again_is_kept() -> None:
    stages = named(ops.mul(q, k), ops.mul(x(0), w), ops.add(x(1), x(0)))
    text = check(stages, x(2))
    assert "x1 = x0 * w[..., None]" in text and "x2 = x1.add_(x0)" in text, text


def test_results_and_inputs_are_kept() -> None:
    stages = named(ops.mul(q, k), ops.mul(x(0), w), ops.mul(q, w))
    text = check(stages, x(0), x(1), x(2))
    assert "_(" not in text, text


def test_a_value_that_stands_twice_in_a_line_is_kept() -> None:
    stages = named(ops.mul(q, k), ops.mul(x(0), ops.unary("exp", x(0))))
    text = check(stages, x(1))
    assert "x0.mul_" not in text and "x0.exp_" not in text, text


def test_a_value_that_stands_in_both_halves_of_a_long_line_is_kept() -> None:
    long = [var(f"a_value_with_a_name_that_fills_half_a_line_{i}", q.axes) for i in range(3)]
    stages = [Map((Equation(e.name, ops.mul(q, k if i else q)),)) for i, e in enumerate(long)]
    value = ops.add(ops.mul(ops.mul(long[0], w), long[1]), ops.mul(long[0], long[2]))
    text = check((*stages, Map((Equation("x0", value),))), x(0))
    assert "x0_part = " in text, text


def test_what_another_name_may_share_is_kept() -> None:
    """A row of a value is a view of it: while that is read, the value is not written over."""
    row = ops.select(x(0), "K", 0)
    stages = named(ops.mul(q, k), row, ops.unary("exp", x(0)), ops.add(x(1, *ROW), ops.select(x(2), "K", 1)))
    text = check(stages, x(3))
    assert "x0.exp_" not in text, text


def test_a_value_inside_a_line_is_written_over() -> None:
    text = check((), ops.neg(ops.mul(ops.mul(q, k), w)), ops.sum_over(ops.mul(ops.unary("exp", q), k), ("K",)))
    assert "(q * k).mul_(w[..., None]).neg_()" in text and "torch.exp(q).mul_(k).sum(-1)" in text, text


def test_what_is_narrower_than_the_result_is_not_written_over() -> None:
    text = check((), ops.mul(ops.unary("exp", w), q))
    assert "mul_" not in text, text


def test_a_triangle_of_a_product() -> None:
    square = ops.contract((q, ops.rename(k, {TOKENS: "@s"})), (*ROW, "@s"))
    assert "(q @ k.mT).tril_(-1)" in check((), ops.masked(square, Mask(TOKENS, "@s", 1, 1, 0, 1)))
    assert "masked_fill_(~mask_1" in check((), ops.masked(square, Mask(TOKENS, "@s", 2, 1, 0, 1)))


@pytest.mark.parametrize("sign", (1, -1))
def test_products_are_added_in_one_call(sign: int) -> None:
    total, product = ops.mul(q, w), attended(q, k)
    text = check((), ops.add(total, product) if sign > 0 else ops.sub(total, product))
    assert f"runtime.add_product(q * w[..., None], q @ k.mT, k{'' if sign > 0 else ', -1'})" in text, text
    assert "runtime.add_product(x" not in check((), ops.sub(k, product))  # an input is added to in memory of its own


def test_the_memory_of_a_total_need_not_be_contiguous() -> None:
    a, b = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    total = torch.randn(3, 2, 4, 6, dtype=torch.float64).transpose(0, 1)
    want = total - a @ b
    torch.testing.assert_close(runtime.add_product(total, a, b, -1), want)


def test_a_deep_expression_is_printed_once() -> None:
    """Every operand is looked at before it is printed, and printed once: twice would be 2^60 times at the bottom."""
    deep = q
    for _ in range(60):
        deep = ops.neg(ops.add(ops.unary("exp", deep), k))
    program = Program("kernel", INPUTS, (), (Equation("out", q),))
    printer = Printer(linearise(program, {}, axis_order(program, [x.axes for x in INPUTS])))
    printer.in_place = True
    assert printer.expr(deep)[0].count("neg_()") == 60


# --- Products that go to a loop's rows before it begins ------------------------------------------------------------------


def carry(reverse: bool, first: Expr, *more: Equation) -> tuple[Stage, ...]:
    """S = S e^w + first, with every step's start; `pre` is a product."""
    pre = ops.contract((k, v), (CHUNKS, BATCH, HEADS, "K", "V"))
    keep = ops.unary("exp", ops.neg(ops.sum_over(ops.mul(w, w), (TOKENS,))))
    S = var("S", S_0.axes)
    new = ops.add(ops.mul(inside(var("keep", keep.axes), CHUNKS), S), first)
    loop = Carry(CHUNKS, reverse, (Carried("S", S_0, new, "S_T"),), (Equation("starts", S), *more))
    return Map((Equation("pre", pre), Equation("keep", keep))), loop


PRE = var("pre", (CHUNKS, BATCH, HEADS, "K", "V"))
STARTS, LAST = var("starts", PRE.axes), var("S_T", S_0.axes)


@pytest.mark.parametrize("reverse", (False, True))
def test_a_product_goes_to_the_rows_that_a_loop_adds_to(reverse: bool) -> None:
    text = check(carry(reverse, inside(PRE, CHUNKS)), STARTS, LAST)
    assert f"runtime.product(k.mT, v, out=starts[{':-1' if reverse else '1:'}])" in text and "pre" not in text.replace("pre, ", ""), text


def test_a_product_with_another_reader_stays_where_it_is() -> None:
    assert "runtime.product(" not in check(carry(False, inside(PRE, CHUNKS)), STARTS, LAST, PRE)
    twice = ops.mul(inside(PRE, CHUNKS), inside(PRE, CHUNKS))
    assert "runtime.product(" not in check(carry(False, twice), STARTS, LAST)
    thin = Equation("thin", ops.sum_over(inside(PRE, CHUNKS), ("K",)))
    assert "runtime.product(" not in check(carry(False, inside(PRE, CHUNKS), thin), STARTS, LAST, var("thin", (CHUNKS, BATCH, HEADS, "V")))


# --- Random kernels -----------------------------------------------------------------------------------------------------


def anything(rng: random.Random, known: list[Expr]) -> Expr:
    """A value of one or two known ones: written over, looked at in part, multiplied, summed."""
    a, b = rng.choice(known), rng.choice(known)
    wide = [e for e in known if e.axes == q.axes]
    c, d = rng.choice(wide), rng.choice(wide)
    return rng.choice(
        (
            lambda: ops.add(a, b),
            lambda: ops.sub(a, b),
            lambda: ops.mul(a, b),
            lambda: ops.neg(a),
            lambda: ops.unary("tanh", a),
            lambda: ops.mul(ops.add(c, d), ops.select(d, "K", 1)),
            lambda: ops.select(c, "K", 0),
            lambda: ops.sum_over(ops.mul(c, d), ("K",)),
            lambda: ops.sub(c, attended(c, d)),
            lambda: ops.cumsum(c, TOKENS),
        )
    )()


@pytest.mark.parametrize("seed", range(60))
def test_random_kernels(seed: int) -> None:
    rng = random.Random(seed)
    known, stages = [q, k, w], []
    for i in range(14):
        value = ops.unary("tanh", anything(rng, known)) if rng.random() < 0.3 else anything(rng, known)
        if value.op.name == "var":
            continue
        stages.append(Map((Equation(f"x{i}", value),)))
        known.append(var(f"x{i}", value.axes))
    check(tuple(stages), *rng.sample(known[3:], 3), known[-1])


def test_what_is_spent_was_made_here() -> None:
    program = Program("kernel", INPUTS, named(ops.mul(q, k), ops.mul(x(0), w)), (Equation("out", x(1)),))
    kernel = linearise(program, {}, axis_order(program, [y.axes for y in INPUTS]))
    free = spent(kernel.body, {"x1"})
    assert [sorted(names) for names in free] == [[], ["x0"]]
