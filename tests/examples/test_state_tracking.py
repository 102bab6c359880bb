"""The state tracking example: its groups are groups, an exact state is one it can learn, and it prints a row per case."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # not part of `make check`

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example's files can be imported, as when it runs."""
    pytest.importorskip("torch")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield
    for name in set(sys.modules) - before:
        if name in ("permutation_words", "state_tracking"):
            del sys.modules[name]


def test_letters_generate_the_groups() -> None:
    from permutation_words import TASKS

    assert {name: task.elements for name, task in TASKS.items()} == {"parity": 2, "S3": 6, "S5 swaps": 120, "A5": 60, "S5": 120}


def test_answers_are_products() -> None:
    """Elements are numbered so that a word's answers name equal permutations by equal numbers, and the identity by 0."""
    import torch
    from permutation_words import TASKS

    task = TASKS["S5"]
    words, answers = task.words(16, 40, torch.Generator().manual_seed(0))
    seen: dict[int, tuple[int, ...]] = {0: (0, 1, 2, 3, 4)}
    for word, row in zip(words.tolist(), answers.tolist(), strict=True):
        product = seen[0]
        for letter, answer in zip(word, row, strict=True):
            product = tuple(task.letters[letter][i] for i in product)
            assert seen.setdefault(answer, product) == product
    assert len(set(seen.values())) == len(seen)


def test_parity_needs_a_negative_eigenvalue() -> None:
    import torch
    from state_tracking import Budget, Case, run

    budget = Budget(steps=120, seeds=1, tokens=512, length=64, words=64)
    threads = torch.get_num_threads()
    try:
        negative, positive = (run(Case("parity", 1, lowest), budget) for lowest in (-1, 0))
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    assert negative.solved
    assert not positive.solved


def test_it_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    import state_tracking

    picture = tmp_path / "parity.svg"
    state_tracking.main(["--quick", "--tasks", "parity", "--jobs", "1", "--plot", str(picture)])
    printed = capsys.readouterr().out
    assert "(-1, 1)" in printed and "chance" in printed
    assert picture.stat().st_size > 1000
