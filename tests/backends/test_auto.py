"""form="auto" in a package: the form that the compiler's estimate takes, for every kind of call."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import ROOT
from layers import call, checked

from seqc.compiler import programs
from seqc.emit import estimate as estimates
from seqc.explanation import known_sizes
from seqc.forms import FORMS

CHUNK = 8


def taken(p, c, name: str) -> str:
    return getattr(p, name)(*c.inputs, *c.params, cu_seqlens=c.cu_seqlens, return_info=True)[2].form


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gla", "rwkv7"])
def test_takes_what_the_compiler_says(package, name: str) -> None:
    p, layer = package(name), checked(name)
    sizes = known_sizes(layer.recurrence, layer)[1]
    found = [estimates.estimate(programs(layer, form), sizes, CHUNK) for form in FORMS if form.name in p.FORMS]
    assert {e.form: tuple((d.slab, d.step, d.token) for d in (e.forward, e.both)) for e in found} == p.ops.COSTS
    forms = set()
    for T in (1, 2, 5, 9, 17, 80):
        for B, heads in ((1, 2), (3, 4)):
            for gradient in (False, True):
                c = call(name, T, B=B, heads=heads, dtype=torch.float32, grad=gradient)
                assert taken(p, c, name) == estimates.fastest(found, T, B, heads, gradient)
                forms.add(taken(p, c, name))
    assert forms == set(p.FORMS)


@pytest.mark.slow
def test_packed_rows_count_as_rows(package) -> None:
    p = package("gla", 32)
    assert taken(p, call("gla", 64, ends=tuple(range(65)), dtype=torch.float32), "gla") == "recurrent"
    assert taken(p, call("gla", 64, ends=(0, 64), dtype=torch.float32), "gla") == "chunkwise"
    assert taken(p, call("gla", 0, ends=(0, 0, 0), dtype=torch.float32), "gla") in p.FORMS


def test_what_is_wrong_is_said_first(package) -> None:
    c = call("gla", 4, dtype=torch.float32)
    with pytest.raises(ValueError, match="has T = 3"):
        package("gla").gla(c.inputs[0][:, :3], *c.inputs[1:])


@pytest.mark.slow
def test_compiles_at_any_length(package) -> None:
    """The choice is one comparison of lengths: a compiled function makes it once for each side."""
    p = package("gla")
    compiled = torch.compile(lambda *a: p.gla(*a)[0], fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (1, 2, 40, 48):
        c = call("gla", T, dtype=torch.float32, grad=False)
        assert torch.allclose(compiled(*c.inputs, *c.params), p.gla(*c.inputs, *c.params)[0], atol=1e-5)


def test_slabs_are_those_of_the_packages() -> None:
    text = (ROOT / "backends/torch/sequence.py").read_text("utf-8")
    assert re.findall(r"^ROWS = (\d+)", text, re.MULTILINE) == [str(estimates.ROWS)]
    assert re.findall(r"^WRITTEN = 2\*\*(\d+)", text, re.MULTILINE) == [str(estimates.WRITTEN.bit_length() - 1)]
