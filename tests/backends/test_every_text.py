"""Every text beyond the shipped ones for which a form applies compiles, imports, runs and equals the interpreter, gradients and packed
rows included. The shipped ones meet more, in test_equivalence.py.

The proof is of Programs over named axes; this is the check of what it cannot see: layouts, padding, names, printing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT
from layers import call, distance, gradients, interpreted

from seqc.compiler import check_file, judge
from seqc.forms import Applies

pytestmark = pytest.mark.slow  # not part of `make check`

FOLDERS = ("tests/language", "tests/backends/specs")
TEXTS = [p for folder in FOLDERS for p in sorted((ROOT / folder).glob("*.seq"))]
CHUNK = 8
UNSUITED = {"mesanet_cg": "conjugate gradients divide by what they have made small: rounding grows beyond any tolerance on random numbers"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_equals_the_interpreter(package, path: Path) -> None:
    checked = check_file(path)
    forms = [name for name, verdict in judge(checked).items() if isinstance(verdict, Applies)]
    if not forms or path.stem in UNSUITED:
        return
    p = package(str(path))
    assert set(p.FORMS) == set(forms)
    for ends in (None, (0, 0, 5, 6, CHUNK + 3)):
        c = call(checked.recurrence.name, CHUNK + 3, spec=checked, ends=ends, lengths=(3, 2, 4, 2, 3))
        truth = interpreted(c)
        wanted = gradients(c.run(p, "reference"), c.arguments)
        for form in ("reference", *forms):
            results = c.run(p, form)
            for x, y in zip(results, truth, strict=True):
                assert distance(x, y) < 1e-9, form
            for x, y in zip(gradients(results, c.arguments), wanted, strict=True):
                assert distance(x, y) < 1e-9, form
