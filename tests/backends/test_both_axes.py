"""Decays, erases and reads along either axis of a memory: lengths, packed rows, steep decays and second derivatives of small specs.

What every text goes through is in test_every_text; here stand the calls that only some structures make delicate.
"""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT
from layers import Call, call, distance, gradients, interpreted, second_gradients

from seqc.compiler import check_file

pytestmark = pytest.mark.slow  # not part of `make check`

CHUNK = 8
SPECS = ROOT / "tests" / "backends" / "specs"
TEXTS = {
    **{n: SPECS / f"{n}.seq" for n in ("both_decays", "plain_decays", "two_sided", "windows_at_once", "denominators")},
    **{n: SPECS / f"{n}.seq" for n in ("vector_memory", "averages", "turning_memory", "three_axes")},
    **{n: ROOT / "specs" / f"{n}.seq" for n in ("gated_oja", "gateloop", "lightnet", "omega_linear")},
}
# Those with decays that have no lower end.
STEEP = ("both_decays", "two_sided", "windows_at_once", "vector_memory", "denominators", "turning_memory", "three_axes", "gated_oja")
# Denominators that random first states and keys could bring to zero.
POSITIVE = {"lightnet": "z"}


def made(name: str, T: int, **more: object) -> Call:
    checked = check_file(TEXTS[name])
    c = call(name, T, spec=checked, **more)  # type: ignore[arg-type]
    positive = POSITIVE.get(name)
    states = tuple(
        (x.detach().abs() + 1).requires_grad_(x.requires_grad) if s.name == positive else x
        for s, x in zip(checked.recurrence.states, c.states, strict=True)
    )
    return Call(c.checked, c.sizes, c.inputs, c.params, states, c.cu_seqlens)


PACKED = (0, 0, 1, 5, 5 + 2 * CHUNK, 30)


@pytest.mark.parametrize(("T", "ends"), [(1, None), (CHUNK - 1, None), (CHUNK, None), (30, None), (30, PACKED)])
@pytest.mark.parametrize("name", TEXTS)
def test_lengths_and_packed_rows(package, name: str, T: int, ends: tuple[int, ...] | None) -> None:
    p = package(str(TEXTS[name]))
    for extreme in (0.1, 20.0):
        c = made(name, T, ends=ends, extreme=extreme, seed=T)
        truth, loop = interpreted(c), c.run(p, "reference")
        wanted = gradients(loop, c.arguments)
        results = c.run(p, "chunkwise")
        for x, y in zip(results, truth, strict=True):
            assert distance(x, y) < 1e-9
        for x, y in zip(gradients(results, c.arguments), wanted, strict=True):
            assert distance(x, y) < 1e-9


@pytest.mark.parametrize("name", TEXTS)
def test_second_derivatives_of_packed_rows(package, name: str) -> None:
    """Those of autograd through the reference loop, twice."""
    c = made(name, 2 * CHUNK, ends=(0, 0, 3, CHUNK + 4, 2 * CHUNK), lengths=(3, 2, 2, 2, 2))
    p = package(str(TEXTS[name]))
    wanted = second_gradients(p, "reference", c)
    assert all(x.abs().max() > 1e-3 for x in wanted[sum(x.requires_grad for x in c.arguments) :])
    for x, y in zip(second_gradients(p, "chunkwise", c), wanted, strict=True):
        assert distance(x, y) < 1e-9


@pytest.mark.parametrize("name", TEXTS)
def test_causality(package, name: str) -> None:
    """A change at token t changes nothing before it, to the last bit."""
    c = made(name, 2 * CHUNK + 3, grad=False)
    p, t = package(str(TEXTS[name])), CHUNK + 2
    changed = tuple(torch.cat((x[:, :t], x[:, t:].flip(1) * 0.5), 1) for x in c.inputs)
    k = len(c.checked.recurrence.outputs)
    before, after = c.run(p, "chunkwise")[:k], c.run(p, "chunkwise", (*changed, *c.params, *c.states))[:k]
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[:, :t], y[:, :t])
    assert any(not torch.equal(x[:, t:], y[:, t:]) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("name", STEEP)
def test_decay_of_20_per_step_over_a_chunk_of_64_stays_exact(package, name: str) -> None:
    """Nothing overflows, and no exponent is positive: the float32 chunk form agrees with the float64 loop."""
    p = package(str(TEXTS[name]), 64)
    c = made(name, 130, extreme=20.0)
    wanted = c.run(p, "reference")
    grads = gradients(wanted, c.arguments)
    single = tuple(x.detach().to(torch.complex64 if x.is_complex() else torch.float32).requires_grad_() for x in c.arguments)
    found = c.run(p, "chunkwise", single)
    for x, y in zip(found, wanted, strict=True):
        assert distance(x, y) < 2e-4
    for x, y in zip(gradients(found, single), grads, strict=True):
        assert distance(x, y) < 2e-3
