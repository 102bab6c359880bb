"""Random layers: each is compiled or refused with a reason; what applies is proved, and agrees in float64; texts survive `fmt`."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from conftest import import_package
from hypothesis import HealthCheck, Phase, given, settings
from layers import call, distance, gradients, interpreted
from random_specs import layers

from seqc.compiler import check_source, compile_checked, judge
from seqc.emit.write import write_package
from seqc.forms import Applies, Refuses
from seqc.frontend.format import format_file
from seqc.ir.text import recurrence
from seqc.options import Options
from seqc.source import Source

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("SEQC_RANDOM_SPECS", "200"))  # `make random` asks for 2,000
CHUNK = 4
QUIET = settings(
    max_examples=COUNT, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)  # fmt: skip


def test_layers_are_what_they_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Float64 agreement is looked at for every fourth: it needs a package, which takes longest."""
    root, seen, met = tmp_path_factory.mktemp("random"), Counter[str](), Counter[str]()

    @QUIET
    @given(layers())
    def check(text: str) -> None:
        c = check_source(Source("drawn.seq", text))
        formatted = format_file(c.source)
        assert format_file(Source("drawn.seq", formatted)) == formatted
        assert recurrence(check_source(Source("drawn.seq", formatted)).recurrence) == recurrence(c.recurrence)
        for name, verdict in judge(c).items():
            met[f"{name}: {'applies' if isinstance(verdict, Applies) else 'refused'}"] += 1
            if isinstance(verdict, Refuses):
                assert verdict.reason and verdict.span is not None, (name, verdict)
        result = compile_checked(c, Options(chunk_size=CHUNK))
        assert result.certificate.ok, (result.certificate.failures, result.certificate.gaps)
        seen["proved"] += 1
        if seen["proved"] % 4 == 0:
            agree(c, result, root / f"p{seen['proved']}")

    check()
    assert seen["proved"] >= COUNT and min(met[f"{f}: applies"] for f in ("chunkwise", "scan", "recurrent")) > COUNT // 20, met


def agree(c: object, result: object, folder: object) -> None:
    """Every form against the interpreter, and gradients against autograd through the reference loop."""
    write_package(result.files, folder)  # type: ignore[attr-defined, arg-type]
    p = import_package(folder, folder.name)  # type: ignore[attr-defined, arg-type]
    for ends in (None, (0, 0, 1, CHUNK + 2)):
        one = call("drawn", CHUNK + 2, spec=c, ends=ends, own_sizes=True)  # type: ignore[arg-type]
        truth, loop = interpreted(one), one.run(p, "reference")
        wanted = gradients(loop, one.arguments)
        for form in p.FORMS:
            results = one.run(p, form)
            assert all(torch.isfinite(x).all() for x in results)
            assert max(distance(x, y) for x, y in zip(results, truth, strict=True)) < 1e-9, form
            assert max((distance(x, y) for x, y in zip(gradients(results, one.arguments), wanted, strict=True)), default=0) < 1e-8, form
