"""The table of all forms: a line per form with its ratios, and nothing is left out silently."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # not part of `make check`

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("SEQC_CACHE_DIR", str(tmp_path))
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("time_forms", None)


def test_a_line_per_form_and_ratios_to_the_recurrent_one() -> None:
    from time_forms import rows

    lines = rows("some", {"scan": (2.0, 50.0), "recurrent": (10.0, 40.0), "conv": (500.0, 8.0)})
    assert lines == [
        "| some | conv | 500 | 0.02 | 8 | 5 |",
        "|  | recurrent | 10 |  | 40 |  |",
        "|  | scan | 2 | 5 | 50 | 0.8 |",
    ]


def test_every_form_is_timed_and_what_fails_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import time_forms

    wrong = tmp_path / "wrong.seq"
    wrong.write_text("seqc 1\n")
    specs = [str(ROOT / "specs" / "ema.seq"), str(wrong), str(ROOT / "specs/slstm.seq")]
    monkeypatch.setattr(sys, "argv", ["time_forms.py", *specs, "--tokens", "40", "--repeat", "1"])
    assert time_forms.main() == 1
    out, err = capsys.readouterr()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")][2:]
    assert {row[1] for row in table[:3]} == {"conv", "scan", "recurrent"} and table[3][:2] == ["slstm", "recurrent"] and len(table) == 4
    assert all(float(row[2]) > 0 and float(row[4]) > 0 for row in table)
    assert "3 layers; 1 have a form beside the recurrent one" in out and "could not be timed: wrong: SpecError" in err
