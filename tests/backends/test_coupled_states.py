"""Matrices that depend on each other, in the chunkwise form: the recurrence at any length, split, decay and sign."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layers import Call, call, distance, gradients, interpreted

from seqc.compiler import check_file

pytestmark = pytest.mark.slow  # not part of `make check`

CHUNK = 8
TOLERANCE = 1e-9
SPECS = ("momentum_of_pairs", "momentum_in_turn", "two_memories", "two_momenta", "signed_decay")

lengths = st.sampled_from([0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 23])
extremes = st.sampled_from([0.0, 0.1, 1.0, 20.0])


def path(name: str) -> str:
    return str(ROOT / "tests/backends/specs" / f"{name}.seq")


def made(name: str, T: int, *, sizes: tuple[int, ...] = (3, 2, 4, 2, 3), **more: object) -> Call:
    spec = check_file(ROOT / "tests/backends/specs" / f"{name}.seq")
    return call(name, T, spec=spec, lengths=sizes, **more)  # type: ignore[arg-type]


def check(package: ModuleType, c: Call) -> None:
    """Values against the interpreter, gradients against autograd through the reference loop."""
    found = c.run(package, "chunkwise")
    for x, y in zip(found, interpreted(c), strict=True):
        assert distance(x, y) < TOLERANCE
    wanted = gradients(c.run(package, "reference"), c.arguments)
    for x, y in zip(gradients(found, c.arguments), wanted, strict=True):
        assert distance(x, y) < TOLERANCE


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(T=lengths, extreme=extremes, heads=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_lengths_and_decays(package, name: str, T: int, extreme: float, heads: int, seed: int) -> None:
    check(package(path(name)), made(name, T, extreme=extreme, heads=heads, seed=seed))


@pytest.mark.parametrize("name", SPECS)
def test_packed_rows(package, name: str) -> None:
    check(package(path(name)), made(name, 3 * CHUNK + 4, ends=(0, 0, 5, 6, CHUNK + 3, 3 * CHUNK + 4)))


@pytest.mark.parametrize("name", SPECS)
def test_more_tokens_than_a_slab(package, name: str) -> None:
    check(package(path(name)), made(name, 16 * CHUNK * 3 + 5, B=1, heads=2))


@pytest.mark.parametrize("name", SPECS)
def test_double_backward(package, name: str) -> None:
    c = made(name, CHUNK + 2, B=1, heads=2)
    assert torch.autograd.gradgradcheck(lambda *a: c.run(package(path(name)), "chunkwise", a), c.arguments, fast_mode=True)
    c = made(name, 2 * CHUNK, ends=(0, 0, 3, CHUNK + 4, 2 * CHUNK))
    assert torch.autograd.gradgradcheck(lambda *a: c.run(package(path(name)), "chunkwise", a), c.arguments, fast_mode=True)


@pytest.mark.parametrize("name", SPECS)
def test_hand_off_at_every_split(package, name: str) -> None:
    T, p = CHUNK + 3, package(path(name))
    c = made(name, T, grad=False)
    k, whole = len(c.checked.recurrence.outputs), c.run(p, "chunkwise")
    for t in range(T + 1):
        first = c.run(p, "chunkwise", (*(x[:, :t] for x in c.inputs), *c.params, *c.states))
        second = c.run(p, "chunkwise", (*(x[:, t:] for x in c.inputs), *c.params, *first[k:]))
        joined = (*(torch.cat((a, b), 1) for a, b in zip(first[:k], second[:k], strict=True)), *second[k:])
        for x, y in zip(joined, whole, strict=True):
            assert distance(x, y) < TOLERANCE


@pytest.mark.parametrize("name", SPECS)
def test_causality(package, name: str) -> None:
    """A change at token t changes nothing before it, to the last bit."""
    c, p, t = made(name, 2 * CHUNK + 3, grad=False), package(path(name)), CHUNK + 2
    changed = tuple(torch.cat((x[:, :t], x[:, t:].flip(1) * 0.5), 1) for x in c.inputs)
    k = len(c.checked.recurrence.outputs)
    before, after = c.run(p, "chunkwise")[:k], c.run(p, "chunkwise", (*changed, *c.params, *c.states))[:k]
    assert all(torch.equal(x[:, :t], y[:, :t]) for x, y in zip(before, after, strict=True))
    assert any(not torch.equal(x[:, t:], y[:, t:]) for x, y in zip(before, after, strict=True))


# input -> what a product of it over a chunk must survive
HARD = {"mu": (0.0, -0.9, 1e-30, 1.0), "a": (1e-30, 0.5)}


@pytest.mark.parametrize("single", (False, True), ids=("float64", "float32"))
def test_numbers_may_be_zero_negative_or_tiny(package, single: bool) -> None:
    """No product is divided by another: where a number vanishes, values and gradients are those of the loop."""
    p, T = package(path("momentum_of_pairs"), 64), 130
    c = made("momentum_of_pairs", T, B=1)
    names = [i.name for i in c.checked.recurrence.inputs]
    for name, values in HARD.items():
        x = c.inputs[names.index(name)].detach()
        x.copy_(torch.tensor(values, dtype=x.dtype).repeat(T)[:T, None].expand(1, T, x.shape[2]))
    wanted = c.run(p, "reference")
    grads = gradients(wanted, c.arguments)
    arguments = tuple(x.detach().float().requires_grad_() for x in c.arguments) if single else c.arguments
    found = c.run(p, "chunkwise", arguments)
    for x, y in zip(found, wanted, strict=True):
        assert distance(x, y) < (2e-4 if single else TOLERANCE)
    for x, y in zip(gradients(found, arguments), grads, strict=True):
        assert distance(x, y) < (2e-3 if single else TOLERANCE)


def test_a_decay_of_20_per_step_stays_exact_in_float32(package) -> None:
    p, c = package(path("momentum_in_turn"), 64), made("momentum_in_turn", 130, extreme=20.0)
    wanted = c.run(p, "reference")
    grads = gradients(wanted, c.arguments)
    single = tuple(x.detach().float().requires_grad_() for x in c.arguments)
    found = c.run(p, "chunkwise", single)
    for x, y in zip(found, wanted, strict=True):
        assert distance(x, y) < 2e-4
    for x, y in zip(gradients(found, single), grads, strict=True):
        assert distance(x, y) < 2e-3


def test_a_small_number_keeps_its_digits(package) -> None:
    """A first state that shrinks by 1e-4 in one token: float32 has seven digits of it."""
    c = made("signed_decay", 1, grad=False)
    q, k, v, a, b = (x.float() for x in c.inputs)
    inputs = (q, k, v, torch.full_like(a, 1e-4), torch.zeros_like(b))
    *_, last = c.run(package(path("signed_decay")), "chunkwise", (*inputs, c.states[0].float()))
    assert distance(last, c.states[0] * 1e-4) < 1e-6


def test_a_longer_chunk_has_no_more_operations(package) -> None:
    """Along a chunk there is one loop; everything else is there once, whatever the length."""
    texts = {(ROOT / n).read_text("utf-8") for n in (_kernel(package, 8), _kernel(package, 64))}
    assert len(texts) == 1


def _kernel(package, chunk: int) -> str:
    return str(package(path("momentum_of_pairs"), chunk).__file__).replace("__init__.py", "chunkwise.py")
