"""Every layer of the language runs, and every form of it applies or says why not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from test_zoo import EXTRA, PATHS, inputs_of, layer

from seqc.compiler import Checked, check_file
from seqc.forms import FORMS, Applies, Refuses
from seqc.frontend.derive import derive
from seqc.ir import interp
from seqc.ir.ops import base

# What the chunkwise form must take: nothing that once applied may be lost unseen.
CHUNKWISE = (
    "comba", "deltanet", "deltaproduct", "gated_deltanet", "gated_deltaproduct", "gla", "kda", "linear_attention", "mamba2", "retnet",
    "rwkv7", "mlstm", "rwkv6", "gdn2", "hgrn2", "gsa", "based", "rebased", "jrt", "aaren", "rwkv4", "rwkv5", "precond_gdn", "precond_kda",
    "hgrn", "mingru", "qrnn", "sru1",
)  # fmt: skip


@cache
def checked(name: str) -> Checked:
    return check_file(PATHS[name])


@pytest.mark.parametrize("name", PATHS)
def test_runs_with_finite_results(name: str) -> None:
    found = layer(name)
    sizes = {s.name: int(s.default) for s in found.sizes if s.default is not None} | EXTRA
    rng = np.random.default_rng(5)
    params = {p.name: rng.normal(size=[sizes[base(a)] for a in p.axes]) * 0.5 for p in found.params}
    inputs = {n: x[:4] if len(x) == 9 and _timed(found, n) else x for n, x in inputs_of(found, sizes, rng).items()}
    outputs, states = interp.run(derive(found), inputs, params, sizes)
    assert outputs and all(len(v) == 4 for v in outputs.values())
    for value in outputs.values():
        assert np.isfinite(value).all()
    for value in states.values():
        assert not np.isnan(value).any()


def _timed(found: object, name: str) -> bool:
    return next(i.scope for i in found.inputs if i.name == name) != "sequence"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PATHS)
def test_forms_apply_or_refuse_with_a_reason_and_a_place(name: str) -> None:
    found = checked(name)
    for form in FORMS:
        verdict = form.applies(found.recurrence, found.sizes)
        if isinstance(verdict, Applies):
            assert verdict.evidence and all(verdict.evidence)
            assert form.lower(found.recurrence, found.sizes).program.outputs
        else:
            assert isinstance(verdict, Refuses) and verdict.reason
            assert "`" in verdict.reason or "line" in verdict.reason or "state" in verdict.reason
            assert verdict.span is not None and verdict.span.text.strip()


@pytest.mark.parametrize("name", CHUNKWISE)
def test_the_chunkwise_form_takes_it(name: str) -> None:
    chunkwise = next(f for f in FORMS if f.name == "chunkwise")
    verdict = chunkwise.applies(checked(name).recurrence, checked(name).sizes)
    assert isinstance(verdict, Applies), verdict
