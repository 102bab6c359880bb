"""Random layers: texts survive `fmt`, and every form applies or is refused with a reason."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from random_specs import layers

from seqc.compiler import check_source, judge
from seqc.forms import Applies, Refuses
from seqc.frontend.format import format_file
from seqc.ir.text import recurrence
from seqc.source import Source

pytestmark = pytest.mark.slow

COUNT = 200
QUIET = settings(
    max_examples=COUNT, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip


def test_layers_are_what_they_say() -> None:
    met = Counter[str]()

    @QUIET
    @given(layers())
    def check(text: str) -> None:
        c = check_source(Source("drawn.seq", text))
        formatted = format_file(c.source)
        assert format_file(Source("drawn.seq", formatted)) == formatted
        assert recurrence(check_source(Source("drawn.seq", formatted)).recurrence) == recurrence(c.recurrence)
        for name, verdict in judge(c).items():
            met[f"{name}: {'applies' if isinstance(verdict, Applies) else 'refused'}"] += 1
            assert isinstance(verdict, Applies) or (isinstance(verdict, Refuses) and verdict.reason)

    check()
    assert min(met[f"{f}: applies"] for f in ("chunkwise", "scan", "recurrent")) > COUNT // 20, met
