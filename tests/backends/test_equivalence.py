"""Every form of every shipped layer is the recurrence: outputs, last states, gradients and their gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import LAYERS, every, sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import Call, call, changed, checked, distance, gradients, interpreted, second_gradients, split, steady

CHUNK = 8  # the chunk size of the `package` fixture
SMALL = (3, 2, 2, 2, 2)
TOLERANCE = 1e-9

lengths = st.sampled_from([0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 23])
odd_sizes = st.sampled_from([(5, 3, 4, 2, 6), (1, 1, 1, 1, 1), (3, 7, 2, 5, 1), (8, 4, 3, 2, 2)])
extremes = st.sampled_from([0.0, 0.1, 1.0, 20.0])


def examples(name: str, many: int, few: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The layers of `make check` meet many examples, the others a few: they share the code that could be wrong."""
    return settings(max_examples=many if name in LAYERS else few, deadline=None, derandomize=True)


def packed(rows: list[int]) -> tuple[int, ...]:
    ends = [0]
    for n in rows:
        ends.append(ends[-1] + n)
    return tuple(ends)


def same(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], *what: object, bound: float = TOLERANCE) -> None:
    for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
        assert distance(x, y) < bound, (i, *what)


def check(package, c: Call) -> None:
    """Values against the interpreter, gradients against autograd through the reference loop."""
    truth = interpreted(c)
    loop = c.run(package, "reference")
    wanted = gradients(loop, c.arguments)
    same(loop, truth, "reference")
    for form in package.FORMS:
        results = c.run(package, form)
        same(results, truth, form)
        same(gradients(results, c.arguments), wanted, form, "gradient")


@every
def test_lengths_sizes_and_decays(package, name: str) -> None:
    @examples(name, 12, 5)
    @given(T=lengths, sizes=odd_sizes, extreme=extremes, heads=st.sampled_from([1, 2, 3]), seed=st.integers(0, 99))
    def run(T: int, sizes: tuple[int, ...], extreme: float, heads: int, seed: int) -> None:
        check(package(name), call(name, T, lengths=sizes, extreme=extreme, heads=heads, seed=seed))

    run()


@every
def test_packed_rows(package, name: str) -> None:
    """Rows without tokens and rows of one among them."""
    check(package(name), call(name, CHUNK + 5, ends=packed([0, 1, CHUNK + 3, 0, 1]), seed=1))

    @examples(name, 8, 3)
    @given(rows=st.lists(st.sampled_from([0, 1, 2, CHUNK, CHUNK + 3, 19]), min_size=1, max_size=5), seed=st.integers(0, 99))
    def run(rows: list[int], seed: int) -> None:
        check(package(name), call(name, sum(rows), ends=packed(rows), seed=seed))

    run()


@every
def test_more_tokens_than_a_slab(package, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states kept between slabs are those that the backward starts from. Slabs are made small, of every kind of form."""
    p = package(name)
    longest = max(signature.chunk for signature, _ in p.ops.OPERATOR.forms.values())  # a block of the text may be longer than a chunk
    T = 3 * max(CHUNK, longest) + 5
    c = steady(call(name, T, B=2, heads=2, lengths=SMALL))
    wanted = c.run(p, "recurrent")
    slopes = gradients(wanted, c.arguments)
    monkeypatch.setattr(p.sequence, "ROWS", CHUNK)
    monkeypatch.setattr(p.sequence, "WRITTEN", 1)
    for form, (signature, _) in p.ops.OPERATOR.forms.items():
        assert p.sequence.slab_tokens(signature, {**c.sizes, "@B": 2, "@H": 2}) < T
        found = c.run(p, form)
        same(found, wanted, form)
        same(gradients(found, c.arguments), slopes, form, "gradient")


@sampled
def test_gradcheck_and_gradgradcheck(package, name: str) -> None:
    """First and second derivatives of every form against differences."""
    c, p = call(name, CHUNK + 2, B=1, heads=2, lengths=SMALL), package(name)
    for form in p.FORMS:

        def run(*arguments: torch.Tensor, form: str = form) -> tuple[torch.Tensor, ...]:
            return c.run(p, form, arguments)

        assert torch.autograd.gradcheck(run, c.arguments, fast_mode=True), form
        assert torch.autograd.gradgradcheck(run, c.arguments, fast_mode=True), form


@every
def test_double_backward_of_packed_rows(package, name: str) -> None:
    """Those of autograd through the reference loop, twice."""
    c, p = call(name, 2 * CHUNK, ends=(0, 0, 3, 4, CHUNK + 4, 2 * CHUNK)), package(name)
    wanted = second_gradients(p, "reference", c)
    assert all(x.abs().max() > 1e-3 for x in wanted[sum(x.requires_grad for x in c.arguments) :])
    for form in p.FORMS:
        same(second_gradients(p, form, c), wanted, form)


@every
def test_causality(package, name: str) -> None:
    """A change at token t changes nothing before it, to the last bit: in a form with transforms, nothing of earlier chunks, to the last
    bit, and what stands in its chunk by no more than rounding; in one that iterates, which all tokens decide when to end, the same."""
    c, p, t = call(name, 2 * CHUNK + 3, grad=False), package(name), CHUNK + 2
    k = len(c.checked.recurrence.outputs)
    other = changed(c, slice(t, None))
    for form in p.FORMS:
        before, after = (c.run(p, form, a)[:k] for a in (c.arguments, other))
        exact = t - t % CHUNK if transforms(p, form) else 0 if iterates(p, form) else t
        for x, y in zip(before, after, strict=True):
            assert torch.equal(x[:, :exact], y[:, :exact]), form
            assert distance(x[:, :t], y[:, :t]) < 1e-13, form
        assert any(not torch.equal(x[:, t:], y[:, t:]) for x, y in zip(before, after, strict=True)), form


def iterates(package, form: str) -> bool:
    """Whether a form solves for all tokens together."""
    return "solver.goes_on()" in (Path(package.__file__).parent / f"{form}.py").read_text("utf-8")


def transforms(package, form: str) -> bool:
    """Whether a form convolves by Fourier transforms, which round all tokens of a chunk together."""
    return "runtime.convolve(" in (Path(package.__file__).parent / f"{form}.py").read_text("utf-8")


@every
def test_each_input_is_felt_when_the_recurrence_says(package, name: str) -> None:
    """An input changed at one token alone: the first output to change is the recurrence's. A read before a write feels it one later."""
    c, p, t = call(name, 2 * CHUNK, B=1, grad=False), package(name), CHUNK + 2
    k = len(c.checked.recurrence.outputs)
    rec = c.checked.recurrence
    plain = {form: c.run(p, form)[:k] for form in ("reference", *p.FORMS)}
    for i in range(len(rec.inputs)):
        if rec.inputs[i].scope == "sequence":
            continue
        felt = {}
        for form, before in plain.items():
            after = c.run(p, form, changed(c, slice(t, t + 1), only=i))[:k]
            far = [(x - y).abs().flatten(2).amax((0, 2)) > 1e-12 for x, y in zip(before, after, strict=True)]
            felt[form] = [int(moved.nonzero()[0]) if moved.any() else None for moved in far]
        assert all(f == felt["reference"] for f in felt.values()), (rec.inputs[i].name, felt)
        assert all(f is None or f >= t for f in felt["reference"])


@every
def test_hand_off_at_every_split(package, name: str) -> None:
    """The first tokens by one form, the others by any: the states between them are the layer's, not the form's."""
    T = CHUNK + 3
    c, p = call(name, T, grad=False), package(name)
    k = len(c.checked.recurrence.outputs)
    whole = c.run(p, "recurrent")
    for t in range(T + 1):
        first, second = split(c, t)
        for form in p.FORMS:
            a = c.run(p, form, (*first, *c.params, *c.states))
            for other in p.FORMS:
                b = c.run(p, other, (*second, *c.params, *a[k:]))
                joined = (*(torch.cat(xy, 1) for xy in zip(a[:k], b[:k], strict=True)), *b[k:])
                same(joined, whole, t, form, other)


def decays(name: str) -> bool:
    """Whether an input is a log decay, without a bound."""
    return any(i.domain.low == -float("inf") and i.domain.high == 0 for i in checked(name).recurrence.inputs)


@pytest.mark.slow
@every
def test_decay_of_20_per_step_over_a_chunk_of_64_stays_exact(package, name: str) -> None:
    """Nothing overflows, and no exponent is positive: every form in float32 agrees with the float64 loop."""
    if name not in LAYERS and not decays(name):
        return
    p = package(name, 64)
    c = call(name, 130, extreme=20.0, grad=True)
    wanted = c.run(p, "reference")
    grads = gradients(wanted, c.arguments)
    single = tuple(x.detach().float().requires_grad_() if x.is_floating_point() else x for x in c.arguments)
    for form in p.FORMS:
        if form == "recurrent":
            continue
        found = c.run(p, form, single)
        same(found, wanted, form, bound=2e-4)
        same(gradients(found, single), grads, form, "gradient", bound=2e-3)
