"""The byte-level training example: it learns, goes on from a checkpoint, steps as it trained, and its baseline is a distribution."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SPEC = str(ROOT / "specs" / "deltaproduct.seq")
TINY = [
    "--model",
    "32",
    "--heads",
    "2",
    "-s",
    "K=8",
    "-s",
    "V=8",
    "--layers",
    "2",
    "--mlp",
    "32",
    "--table-bits",
    "8",
    "--table-width",
    "8",
]
SMALL = [*TINY, "--batch", "4", "--segment", "24", "--precision", "float32", "--sample", "0", "--threads", "1"]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example's files can be imported, as when it runs."""
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("byte_", "train_bytes")):
            del sys.modules[name]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A few kilobytes with something to learn."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"def f{i % 7}(x):\n    return x + {i % 5}\n\n" for i in range(200)), encoding="utf-8")
    return path


def run(text: Path, out: Path, *more: str, small: list[str] = SMALL) -> None:
    import train_bytes

    train_bytes.main(["--spec", SPEC, "--data", str(text), "--out", str(out), *small, *more])


def test_the_loss_falls(text: Path, tmp_path: Path) -> None:
    import json

    run(text, tmp_path / "run", "--steps", "30", "--baseline", "--sample", "5")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[0]["bits"] == pytest.approx(8.0, abs=1e-3)
    assert lines[-1]["bits"] < 5.5


def test_a_resumed_run_ends_with_the_same_parameters(text: Path, tmp_path: Path) -> None:
    import torch
    from byte_checkpoint import load_checkpoint
    from byte_data import load_split
    from byte_training import Trainer, saved_config

    whole = tmp_path / "whole"
    run(text, whole, "--steps", "3")
    config = saved_config(whole / "checkpoint.safetensors")
    halted = Trainer(config, load_split(text).train)
    halted.train_step(0 / 3)
    halted.save(tmp_path / "halted" / "checkpoint.safetensors")
    run(text, tmp_path / "halted", "--resume", "--steps", "3")
    first, second = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (whole, tmp_path / "halted"))
    assert first["step"] == second["step"] == 3
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())


def test_step_gives_the_logits_of_forward(text: Path, tmp_path: Path) -> None:
    import torch
    from byte_data import load_split
    from byte_training import Trainer, saved_config

    run(text, tmp_path / "run", "--steps", "5")
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    trainer = Trainer(saved_config(checkpoint), load_split(text).train)
    trainer.load(checkpoint)
    tokens = torch.from_numpy(load_split(text).heldout[:80].astype(np.int64)).view(2, 40)
    with torch.no_grad():
        wanted, _ = trainer.model(tokens, trainer.model.init_state(2))
        state = trainer.model.init_state(2)
        for at in range(40):
            logits, state = trainer.model.step(tokens[:, at], state)
            torch.testing.assert_close(logits, wanted[:, at], rtol=1e-4, atol=1e-4)


def test_the_measure_counts_every_byte_once() -> None:
    import torch
    from byte_training import Config, evaluate

    class Uniform(torch.nn.Module):
        def init_state(self, batch: int) -> None:
            return None

        def forward(self, tokens: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
            return torch.zeros(*tokens.shape, 256), None

    assert evaluate(Uniform(), np.arange(203, dtype=np.uint8), Config("none", segment=5), rows=4) == pytest.approx(8.0)


def test_a_layer_with_more_inputs_is_refused() -> None:
    from byte_training import load_layer

    with pytest.raises(SystemExit, match="v1"):
        load_layer(str(ROOT / "specs" / "rwkv7.seq"), {}, 32)


def test_baseline_by_hand() -> None:
    from byte_baseline import fit, probabilities

    text = np.frombuffer(b"abab", np.uint8)
    p = probabilities(fit(text, 1), np.array([ord("a"), ord("z")]), np.array([ord("b"), ord("b")]))
    alone = (2 + 2 / 256) / (4 + 2)
    assert p == pytest.approx([(2 + 1 * alone) / (2 + 1), alone])


@pytest.mark.slow
def test_baseline_sums_to_one() -> None:
    from byte_baseline import bits_per_byte, fit, probabilities, windows

    rng = np.random.default_rng(0)
    text = rng.choice(np.frombuffer(b"abcde \n", np.uint8), 3000)
    tables = fit(text)
    contexts = np.concatenate((windows(text, 4)[:200], rng.integers(0, 1 << 32, 200)))
    for context in contexts:
        p = probabilities(tables, np.full(256, context), np.arange(256))
        assert p.min() > 0
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert bits_per_byte(text, text) < np.log2(7)
