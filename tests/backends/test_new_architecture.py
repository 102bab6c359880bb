"""An architecture of no library, written as a text alone: compiled, proved, and the same in every form with its gradients."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from layers import Call, call, distance, gradients, interpreted

from seqc.compiler import check_file

SPEC = Path(__file__).with_name("invented.seq")
CHECKED = check_file(SPEC)
CHUNK = 8
FORMS = ("chunkwise", "recurrent")


@pytest.fixture(scope="module")
def invented(package) -> ModuleType:
    """The package; the fixture asserts that its certificate is good."""
    return package(str(SPEC))


def random_call(T: int, **options: object) -> Call:
    return call("invented", T, spec=CHECKED, **options)  # type: ignore[arg-type]


def test_every_form_applies_and_is_proved(invented: ModuleType) -> None:
    assert set(FORMS) == set(invented.FORMS)
    assert set(invented.REFUSED) == {"conv", "newton", "scan"}
    assert invented.MANIFEST["certificate"]["ok"]
    assert "diagonal along K" in " ".join(invented.MANIFEST["forms"]["chunkwise"])


@pytest.mark.parametrize("extreme", (0.1, 1.0, 20.0))
@pytest.mark.parametrize("T", (0, 1, CHUNK, 2 * CHUNK + 3))
def test_forms_are_the_recurrence(invented: ModuleType, T: int, extreme: float) -> None:
    c = random_call(T, extreme=extreme, seed=T)
    truth, loop = interpreted(c), c.run(invented, "reference")
    wanted = gradients(loop, c.arguments)
    for form in ("reference", *FORMS):
        results = c.run(invented, form)
        for x, y in zip(results, truth, strict=True):
            assert distance(x, y) < 1e-9, form
        for x, y in zip(gradients(results, c.arguments), wanted, strict=True):
            assert distance(x, y) < 1e-8, form


def test_packed_rows(invented: ModuleType) -> None:
    c = random_call(2 * CHUNK + 4, ends=(0, 0, 1, CHUNK + 2, 2 * CHUNK + 4))
    truth = interpreted(c)
    for form in FORMS:
        for x, y in zip(c.run(invented, form), truth, strict=True):
            assert distance(x, y) < 1e-9, form


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives(invented: ModuleType, form: str) -> None:
    c = random_call(CHUNK + 1, B=1, heads=1, lengths=(3, 2, 2, 2, 2))
    assert torch.autograd.gradgradcheck(lambda *a: c.run(invented, form, a), c.arguments, fast_mode=True)
