"""The cost model: what it counts, and that it depends on a program alone."""

from __future__ import annotations

import pytest
from conftest import LAYERS, ROOT

from seqc.analysis.cost import CORE, Machine, duration
from seqc.compiler import check_file, judge, programs
from seqc.emit.estimate import LONG, Estimate, estimate, fastest, settled
from seqc.explanation import explained, known_sizes
from seqc.forms import FORMS, Applies
from seqc.ir import ops
from seqc.ir.program import BATCH, CHUNKS, HEADS, TOKENS, Carried, Carry, Equation, Map, Program
from seqc.options import Options

ONLY_CALLS = Machine(call=1.0, rate=1e30, bandwidth=1e30)
ONLY_BYTES = Machine(call=0.0, rate=1e30, bandwidth=1.0)


def estimates(name: str) -> tuple[Estimate, ...]:
    checked = check_file(ROOT / "specs" / f"{name}.seq")
    sizes = known_sizes(checked.recurrence, checked)[1]
    return tuple(estimate(programs(checked, form), sizes, 32) for form in FORMS if isinstance(judge(checked)[form.name], Applies))


def walk_along(axis: str, inner: str) -> Program:
    """y = exp(2 x), outside; then S = S + y along `axis`. The input has the axes `axis` and `inner`."""
    x = ops.var("x", (axis, BATCH, HEADS, inner))
    y = Equation("y", ops.unary("exp", ops.mul(ops.number(2), x)))
    first, state = ops.var("S@0", (BATCH, HEADS, inner)), ops.var("S", (BATCH, HEADS, inner))
    carry = Carry(axis, False, (Carried("S", first, ops.add(state, ops.var("y", (BATCH, HEADS, inner))), "S@T"),), ())
    return Program("p", (x, first), (Map((y,)), carry), (Equation("S@T", ops.var("S@T", (BATCH, HEADS, inner))),))


def test_calls_are_counted_where_they_are_made() -> None:
    tokens = duration(walk_along(TOKENS, "K"), {"K": 8}, 0, ONLY_CALLS)
    arguments = duration(Program("p", walk_along(TOKENS, "K").inputs, (), walk_along(TOKENS, "K").outputs), {"K": 8}, 0, ONLY_CALLS).slab
    assert (tokens.slab - arguments, tokens.step) == (2, 1)
    chunks = duration(walk_along(CHUNKS, TOKENS), {}, 16, ONLY_CALLS)
    assert (chunks.slab - arguments, chunks.step) == (2, 1)
    # Token by token inside of chunks that are computed side by side: every slab makes as many steps as a chunk has tokens.
    inside = duration(walk_along(TOKENS, CHUNKS), {}, 16, ONLY_CALLS)
    assert (inside.slab - arguments, inside.step) == (2 + 16, 0)


def test_bytes_are_counted_per_token() -> None:
    """Three passes of an operand and a result, of two operands and a result: seven numbers per entry; the number 2 is one more."""
    assert duration(walk_along(TOKENS, "K"), {"K": 8}, 0, ONLY_BYTES).token == 4 * (7 * 8 + 1)
    assert duration(walk_along(CHUNKS, TOKENS), {}, 16, ONLY_BYTES).token == 4 * (7 * 16 + 1) / 16


@pytest.mark.parametrize("name", LAYERS)
def test_one_token_is_a_step_and_many_are_chunks(name: str) -> None:
    """Of every shipped layer: a chunk is not filled for one token, and a long call takes the form that makes the fewest steps."""
    found = estimates(name)
    for gradient in (False, True):
        assert fastest(found, 1, 1, 4, gradient) == "recurrent" and fastest(found, LONG, 1, 4, gradient) == "chunkwise"
        turn = settled(found, 1, 4, gradient)
        assert 1 < turn < 128
        assert fastest(found, turn - 1, 1, 4, gradient) == "recurrent" and fastest(found, turn, 1, 4, gradient) == "chunkwise"


def test_more_work_takes_longer() -> None:
    for e in estimates("gla"):
        for gradient in (False, True):
            assert sorted(lengths := [e.time(T, 1, 4, gradient) for T in (1, 32, 33, 64, 2048)]) == lengths
            assert sorted(batches := [e.time(64, B, 4, gradient) for B in (1, 2, 8)]) == batches
        assert e.time(64, 1, 4, True) > e.time(64, 1, 4, False)


def test_explain_says_what_auto_takes() -> None:
    found = explained(check_file(ROOT / "specs/gla.seq"), Options())
    every = estimates("gla")
    for a in found.auto:
        assert a.takes == tuple((t, fastest(every, t, 1, found.sizes["heads"], a.gradient)) for t in (1, 64, 2048))
        assert f"from {a.settled} on {a.takes[-1][1]}" in str(found)
    assert all(0 < f.microseconds < f.microseconds_both for f in found.forms)
    assert CORE.call > 0
