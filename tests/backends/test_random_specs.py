"""Random layers: each is compiled with its proof or refused with a reason, and compared in float64; a wrong one is a short text."""

from __future__ import annotations

from pathlib import Path

import pytest
import random_runs
from random_runs import Wrong, examine_drawn

pytestmark = pytest.mark.slow

PARTS, EACH = 4, 25


@pytest.mark.parametrize("part", range(PARTS))
def test_layers_are_compiled_or_refused(part: int) -> None:
    tally = examine_drawn(part * EACH, EACH)
    assert tally.compiled + tally.refused.total() >= EACH  # with the simplest text, which each part looks at once
    assert tally.compiled > EACH // 2 and not tally.beyond
    assert min(tally.forms[f] for f in ("chunkwise", "scan", "recurrent")) >= EACH // 25, tally


def test_an_error_of_zero_has_a_slope() -> None:
    """What a random layer showed, as a shorter text: the slope of a norm was 0/0 where the error is."""
    text = (Path(__file__).parent / "drawn.seq").read_text("utf-8")
    random_runs.examine(text, tally := random_runs.Tally())
    assert tally.compiled == 1 and tally.forms["recurrent"] == 1


def test_a_wrong_layer_is_reported_as_a_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with a decay alone is shown with one memory, one decay, and as little else as can be."""
    whole = random_runs.check_source

    def faulty(source):
        if "by decay(sigmoid" in source.text:
            raise ZeroDivisionError("injected")
        return whole(source)

    monkeypatch.setattr(random_runs, "examine", lambda text, tally: faulty(random_runs.Source("drawn.seq", text)))
    with pytest.raises(Wrong, match="injected") as found:
        examine_drawn(0, 60)
    assert str(found.value).count("memory ") == 1 and len(str(found.value).splitlines()) < 18, str(found.value)
