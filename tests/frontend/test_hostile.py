"""A sample of what `hostile.py` runs by the ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import answer, commands, texts


@pytest.mark.slow
def test_texts_are_answered_with_diagnostics_and_soon() -> None:
    said = [answer(name, text) for name, text in texts(1000, 7)]
    assert not [trouble for _, trouble in said if trouble is not None]
    verdicts = [verdict for verdict, _ in said]
    assert verdicts.count("refused") > 800 and verdicts.count("ok") > 5


@pytest.mark.slow
def test_commands_fail_cleanly(tmp_path: Path) -> None:
    assert not commands(12, 3, tmp_path)
