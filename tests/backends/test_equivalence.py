"""Every form of every layer is the recurrence: outputs, last states and all gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layers import Call, call, distance, gradients, interpreted

FORMS = ("chunkwise", "recurrent")
CHUNK = 8  # the chunk size of the `package` fixture
TOLERANCE = 1e-9

lengths = st.sampled_from([0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 23])
odd_sizes = st.sampled_from([(5, 3, 4, 2, 6), (1, 1, 1, 1, 1), (3, 7, 2, 5, 1), (8, 4, 3, 2, 2)])
extremes = st.sampled_from([0.0, 0.1, 1.0, 20.0])


def packed(rows: list[int]) -> tuple[int, ...]:
    ends = [0]
    for n in rows:
        ends.append(ends[-1] + n)
    return tuple(ends)


def check(package, c: Call) -> None:
    """Values against the interpreter, gradients against autograd through the reference loop."""
    truth = interpreted(c)
    loop = c.run(package, "reference")
    wanted = gradients(loop, c.arguments)
    for form in ("reference", *FORMS):
        results = loop if form == "reference" else c.run(package, form)
        for x, y in zip(results, truth, strict=True):
            assert distance(x, y) < TOLERANCE, form
        for x, y in zip(gradients(results, c.arguments), wanted, strict=True):
            assert distance(x, y) < TOLERANCE, form


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(T=lengths, sizes=odd_sizes, extreme=extremes, heads=st.sampled_from([1, 2, 3]), seed=st.integers(0, 99))
def test_lengths_sizes_and_decays(package, name: str, T: int, sizes: tuple[int, ...], extreme: float, heads: int, seed: int) -> None:
    check(package(name), call(name, T, lengths=sizes, extreme=extreme, heads=heads, seed=seed))


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(rows=st.lists(st.sampled_from([0, 1, 2, CHUNK, CHUNK + 3, 19]), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_packed_rows(package, name: str, rows: list[int], seed: int) -> None:
    c = call(name, sum(rows), ends=packed(rows), seed=seed)
    check(package(name), c)


@pytest.mark.parametrize("name", LAYERS)
def test_more_tokens_than_a_slab(package, name: str) -> None:
    """The states kept between slabs are those that the backward starts from."""
    c = call(name, 16 * CHUNK * 3 + 5, B=2, heads=2)
    p = package(name)
    wanted = c.run(p, "recurrent")
    found = c.run(p, "chunkwise")
    for x, y in zip(found, wanted, strict=True):
        assert distance(x, y) < TOLERANCE
    for x, y in zip(gradients(found, c.arguments), gradients(wanted, c.arguments), strict=True):
        assert distance(x, y) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck_and_gradgradcheck(package, name: str, form: str) -> None:
    c = call(name, CHUNK + 2, B=1, heads=2, lengths=(3, 2, 2, 2, 2))
    p = package(name)

    def run(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return c.run(p, form, arguments)

    assert torch.autograd.gradcheck(run, c.arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, c.arguments, fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_double_backward_of_packed_rows(package, name: str, form: str) -> None:
    c = call(name, 2 * CHUNK, ends=(0, 0, 3, CHUNK + 4, 2 * CHUNK), lengths=(3, 2, 2, 2, 2))
    p = package(name)
    assert torch.autograd.gradgradcheck(lambda *a: c.run(p, form, a), c.arguments, fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_causality(package, name: str, form: str) -> None:
    """A change at token t changes nothing before it, to the last bit."""
    c = call(name, 2 * CHUNK + 3, grad=False)
    p, t = package(name), CHUNK + 2
    changed = tuple(torch.cat((x[:, :t], x[:, t:].flip(1) * 0.5), 1) for x in c.inputs)
    k = len(c.checked.recurrence.outputs)
    before = c.run(p, form)[:k]
    after = c.run(p, form, (*changed, *c.params, *c.states))[:k]
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[:, :t], y[:, :t])
    assert any(not torch.equal(x[:, t:], y[:, t:]) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_hand_off_at_every_split(package, name: str, form: str) -> None:
    T = CHUNK + 3
    c = call(name, T, grad=False)
    p, k = package(name), len(c.checked.recurrence.outputs)
    whole = c.run(p, form)
    for t in range(T + 1):
        first = c.run(p, form, (*(x[:, :t] for x in c.inputs), *c.params, *c.states))
        second = c.run(p, form, (*(x[:, t:] for x in c.inputs), *c.params, *first[k:]))
        joined = (*(torch.cat((a, b), 1) for a, b in zip(first[:k], second[:k], strict=True)), *second[k:])
        for x, y in zip(joined, whole, strict=True):
            assert distance(x, y) < TOLERANCE


@pytest.mark.parametrize("name", LAYERS)
def test_decay_of_20_per_step_over_a_chunk_of_64_stays_exact(package, name: str) -> None:
    """Nothing overflows, and no exponent is positive: the float32 chunk form agrees with the float64 loop."""
    p = package(name, 64)
    c = call(name, 130, extreme=20.0, grad=True)
    wanted = c.run(p, "reference")
    grads = gradients(wanted, c.arguments)
    single = tuple(x.detach().float().requires_grad_() for x in c.arguments)
    found = c.run(p, "chunkwise", single)
    for x, y in zip(found, wanted, strict=True):
        assert distance(x, y) < 2e-4
    for x, y in zip(gradients(found, single), grads, strict=True):
        assert distance(x, y) < 2e-3
