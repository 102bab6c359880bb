"""Layers with exponentials that have no bound, in float32, at keys whose exponentials are far outside of float32's range."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from layers import Call, call, distance, gradients, interpreted

from seqc.compiler import check_file, prepared

pytestmark = pytest.mark.slow

# Layer or text, and the input that is exponentiated.
TEXTS = (("aaren", "k"), ("lightnet", "k"), ("mlstm", "i"), ("rwkv4", "k"), ("scaled_keys", "k"), ("scaled_slots", "s"), ("slstm", "zi"))
FOLDERS = ("specs", "tests/backends/specs", "tests/language")


def path(name: str) -> str:
    return str(next(p for f in FOLDERS if (p := ROOT / f / f"{name}.seq").exists()))


def far(name: str, key: str, T: int, ends: tuple[int, ...] | None, shift: float, spread: float) -> tuple[Call, Call]:
    """The same call in float32 and float64, its keys spread out and shifted; float64 still holds their exponentials.

    All else is positive, so that no denominator cancels, which float32 could not compute in any order.
    """
    spec = check_file(Path(path(name)))
    c = call(name, T, ends=ends, dtype=torch.float32, spec=spec, grad=False)
    at = [i.name for i in spec.recurrence.inputs].index(key)
    inputs = [x.abs() if i.domain.low < 0 < i.domain.high else x for i, x in zip(spec.recurrence.inputs, c.inputs, strict=True)]
    inputs[at] = c.inputs[at] * spread + shift
    narrow = Call(c.checked, c.sizes, tuple(inputs), c.params, (), c.cu_seqlens)
    wide = Call(c.checked, c.sizes, *(tuple(x.double() for x in xs) for xs in (narrow.inputs, c.params)), (), c.cu_seqlens)
    for x in (*narrow.arguments, *wide.arguments):
        x.requires_grad_(True)
    return narrow, wide


def moved(c: Call, key: str) -> Call:
    """The call moved by what float32 may lose: 3e-5 of an exponent of a few hundred, a few units in the last place of all else."""
    g = torch.Generator().manual_seed(3)
    names = [i.name for i in c.checked.recurrence.inputs]
    inputs = []
    for name, x in zip(names, c.inputs, strict=True):
        noise = torch.randn(x.shape, generator=g, dtype=torch.float64)
        inputs.append(x.detach() + 3e-5 * noise if name == key else x.detach() * (1 + 5e-7 * noise))
    new = Call(c.checked, c.sizes, tuple(inputs), tuple(x.detach().clone() for x in c.params), (), c.cu_seqlens)
    for x in new.arguments:
        x.requires_grad_(True)
    return new


@pytest.mark.parametrize("shift, spread", [(200.0, 1.0), (-200.0, 1.0), (0.0, 50.0)])
@pytest.mark.parametrize("T, ends", [(37, None), (40, (0, 0, 1, 9, 40))])
@pytest.mark.parametrize("name, key", TEXTS)
def test_far_keys(package, name: str, key: str, T: int, ends: tuple[int, ...] | None, shift: float, spread: float) -> None:
    """As near to float64 as exponents of a few hundred, which float32 rounds by 3e-5, allow: a few times what that changes."""
    p = package(path(name))
    narrow, wide = far(name, key, T, ends, shift, spread)
    outputs = len(wide.checked.recurrence.outputs)
    truth = interpreted(wide)[:outputs]
    near = moved(wide, key)
    rounded = near.run(p, "recurrent")[:outputs]
    wanted, about = gradients(wide.run(p, "recurrent")[:outputs], wide.arguments), gradients(rounded, near.arguments)
    largest = max(float(x.abs().max()) for x in wanted)  # gradients that cancel to nothing are as exact as those that do not
    for form in ("reference", *p.FORMS):
        found = narrow.run(p, form)[:outputs]
        for x, y, z in zip(found, truth, rounded, strict=True):
            assert distance(x, y) < 8 * distance(z, y) + 1e-5, form
        for x, y, z in zip(gradients(found, narrow.arguments), wanted, about, strict=True):
            assert (x - y).abs().max() < 8 * (z - y).abs().max() + 1e-5 * largest + 1e-30, form


@pytest.mark.parametrize("name, key", TEXTS)
def test_a_state_is_handed_over_with_its_stabiliser(package, name: str, key: str) -> None:
    """What a call returns, the next call takes; and a stabiliser has no gradient."""
    p = package(path(name))
    _, c = far(name, key, 21, None, 200.0, 1.0)
    rec = prepared(c.checked)
    function = getattr(p, rec.name)
    n = len(rec.inputs)
    whole, last = function(*c.inputs, *c.arguments[n:], output_final_state=True)
    for form in p.FORMS:
        for cut in (1, 8, 13):
            first, state = function(*(x[:, :cut] for x in c.inputs), *c.arguments[n:], output_final_state=True, form=form)
            rest = (*(x[:, cut:] for x in c.inputs), *c.arguments[n:])
            second, end = function(*rest, initial_state=state, output_final_state=True, form=form)
            for x, y, z in zip(*(r if isinstance(r, tuple) else (r,) for r in (first, second, whole)), strict=True):
                assert distance(torch.cat((x, y), 1), z) < 1e-10, form
            for x, y in zip(c.in_text_units(end), c.in_text_units(last), strict=True):
                assert distance(x, y) < 1e-10, form
            assert all(x.grad_fn is None or not torch.autograd.grad(x.sum(), c.inputs[0], allow_unused=True, retain_graph=True)[0].any()
                       for s, x in zip(rec.states, end, strict=True) if s.role == "stabiliser")  # fmt: skip
