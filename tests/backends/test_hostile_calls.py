"""Calls that a caller should not make, or hardly ever does: a clear error, or the right answer."""

from __future__ import annotations

import itertools

import pytest
import torch
from layers import Call, call, distance

pytestmark = pytest.mark.slow

NAMES = ("gated_deltanet", "mamba2", "rg_lru", "mlstm", "s4d")
CHUNK = 8


def named(c: Call) -> dict[str, torch.Tensor]:
    rec = c.checked.recurrence
    return {x.name: v for x, v in zip((*rec.inputs, *rec.params), (*c.inputs, *c.params), strict=True)}


def needing(arguments: tuple[torch.Tensor, ...]) -> list[int]:
    return [i for i, x in enumerate(arguments) if x.requires_grad]


def gradients_of(results: tuple[torch.Tensor, ...], arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The gradients of the sum of all results; zero where none arrives."""
    wanted = [x for x in arguments if x.requires_grad]
    total = [(r.real.sum() + r.imag.sum() if r.is_complex() else r.sum()) for r in results if r.requires_grad]
    found = torch.autograd.grad(total, wanted, allow_unused=True) if total and wanted else [None] * len(wanted)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_any_arguments_may_need_gradients(package, name: str) -> None:
    """The gradients of some are those that they have when all are asked for."""
    p, c = package(name), call(name, CHUNK + 2)
    for form in p.FORMS:
        whole = dict(zip(needing(c.arguments), gradients_of(c.run(p, form), c.arguments), strict=True))
        for asked in itertools.islice(itertools.combinations(range(len(c.arguments)), 2), 0, None, 3):
            mixed = tuple(x.detach().requires_grad_(i in asked and i in whole) for i, x in enumerate(c.arguments))
            for i, x in zip(needing(mixed), gradients_of(c.run(p, form, mixed), mixed), strict=True):
                assert distance(x, whole[i]) < 1e-12, (form, i)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_needs_gradients(package, name: str) -> None:
    p, c = package(name), call(name, CHUNK + 2, grad=False)
    assert all(not r.requires_grad for form in p.FORMS for r in c.run(p, form))


@pytest.mark.parametrize("name", NAMES)
def test_expanded_arguments(package, name: str) -> None:
    """Tensors that repeat one entry without memory of their own, as arguments and as adjoints."""
    p, c = package(name), call(name, CHUNK + 2, grad=False)
    wide = tuple(x[:1].expand(x.shape) if x.shape[0] else x for x in c.inputs)
    copied = tuple(x.contiguous() for x in wide)
    for form in p.FORMS:
        one, two = (
            Call(c.checked, c.sizes, tuple(x.detach().requires_grad_() for x in xs), c.params, c.states, None) for xs in (wide, copied)
        )
        results = [x.run(p, form) for x in (one, two)]
        for x, y in zip(*results, strict=True):
            assert distance(x, y) < 1e-12
        grads = [gradients_of(r, x.inputs) for r, x in zip(results, (one, two), strict=True)]  # of a sum: adjoints that repeat a one
        assert all(distance(x, y) < 1e-12 for x, y in zip(*grads, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_no_number_stays_in_its_sequence_and_chunk(package, name: str) -> None:
    """Other sequences, and chunks before it, are what they were; token by token so are all tokens before it."""
    p, T, at = package(name), 3 * CHUNK, 2 * CHUNK - 3
    c = call(name, T, grad=False)
    spoilt = [x.clone() for x in c.inputs]
    per_token = [x for x, i in zip(spoilt, c.checked.recurrence.inputs, strict=True) if i.scope != "sequence"]
    per_token[0][0, at] = float("nan")
    bad = Call(c.checked, c.sizes, tuple(spoilt), c.params, c.states, None)
    outputs = len(c.checked.recurrence.outputs)
    for form in p.FORMS:
        before = at if form == "recurrent" else at // CHUNK * CHUNK
        for x, y in zip(bad.run(p, form)[:outputs], c.run(p, form)[:outputs], strict=True):
            assert torch.equal(x[1], y[1]) and torch.equal(x[0, :before], y[0, :before]), form
            assert torch.isnan(x[0, at]).any(), form


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x: x.to("meta"), "device|meta"),
        (lambda x: x.to_sparse(), "sparse|layout|strided"),
        (lambda x: x.to(torch.complex128), "complex"),
        (lambda x: x.bool(), "bool"),
        (lambda x: None, "None|required|tensor"),
        (lambda x: x.numpy(), "ndarray|tensor"),
        (lambda x: x[0], "has|shape"),
    ],
)
def test_arguments_of_the_wrong_kind(package, name: str, change, error: str) -> None:
    """Each argument in turn; the message says which."""
    p, c = package(name), call(name, CHUNK, grad=False)
    arguments = named(c)
    for wrong, x in arguments.items():
        if change.__code__.co_names == ("bool",) and x.dim() == 0:
            continue
        with pytest.raises((ValueError, TypeError, RuntimeError, NotImplementedError), match=error) as raised:
            getattr(p, name)(**{**arguments, wrong: change(x)})
        assert len(str(raised.value)) < 600, str(raised.value)[:200]


@pytest.mark.parametrize("name", NAMES)
def test_arguments_of_mixed_types(package, name: str) -> None:
    """One argument in float64 among float32: computed in the wider type, or refused by name."""
    p, c = package(name), call(name, CHUNK, grad=False, dtype=torch.float32)
    truth = getattr(p, name)(*c.inputs, *c.params)[0]
    for i in range(len(c.inputs)):
        mixed = [x.double() if n == i else x for n, x in enumerate(c.inputs)]
        try:
            found = getattr(p, name)(*mixed, *c.params)[0]
        except (TypeError, ValueError) as e:
            assert c.checked.recurrence.inputs[i].name in str(e) or "dtype" in str(e)
        else:
            assert distance(found.double(), truth.double()) < 1e-5
