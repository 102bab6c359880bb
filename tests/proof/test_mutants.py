"""A sample of mutants; `make mutants` draws hundreds."""

from __future__ import annotations

import random

import pytest
from mutants import Numbers, fate, mutants, subjects

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layer", ("gla", "gated_deltanet", "rg_lru", "mlstm", "yaad_linear", "paragru"))
def test_the_proof_rejects_what_float64_tells_apart(layer: str) -> None:
    rng, seen = random.Random(5), 0
    for subject in subjects((layer,)):
        numbers = Numbers(subject)
        for m in mutants(subject, 2, rng):
            found = fate(m, numbers)
            seen += found.differs
            assert found.proof or not found.differs, (subject.name, m.which, m.what)
    assert seen >= 5


def test_originals_are_accepted() -> None:
    """What is counted as rejected is rejected for the change, not for how it is run."""
    for subject in subjects(("gla",)):
        numbers = Numbers(subject)
        for m in mutants(subject, 1, random.Random(0)):
            same = type(m)(m.subject, m.which, "nothing", getattr(subject.built, m.which))
            found = fate(same, numbers)
            assert not found.differs and not found.proof
