"""`seqc bench`: the table, its JSON, what `auto` takes, and what goes wrong."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import commands
import pytest

import seqc
from seqc.bench import Run, draw
from seqc.proof.certificate import Certificate

pytestmark = pytest.mark.slow  # not part of `make check`

run, document = partial(commands.run, "bench"), partial(commands.document, "bench")
ROOT = Path(__file__).parents[2]
SMALL = ("--tokens", "40", "--repeat", "1", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return os.environ.get("SEQC_TEST_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQC_CACHE_DIR", cache)
    return tmp_path


def test_the_table_has_every_form() -> None:
    result = run("gla", *SMALL)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("gla: 40 tokens, batch 1, heads 4, K = 64, V = 128") and lines[0].endswith("float32, 1 thread")
    assert lines[1].split()[:2] == ["form", "forward"] and lines[1].endswith("auto")
    assert [line.split()[0] for line in lines[2:-1]] == list(seqc.load("gla").FORMS)
    assert sum("both" in line for line in lines[2:-1]) == 1 and "Medians of 1 run" in lines[-1]


def test_json_and_auto() -> None:
    data = document("gla", *SMALL, "--heads", "2", "--batch", "3")
    assert (data["tokens"], data["heads"], data["batch"], data["threads"], data["ok"]) == (40, 2, 3, 1, True)
    assert (data["device"], data["gpu"], data["auto_backend"]) == ("cpu", None, "torch")
    package = seqc.load("gla")
    assert [f["form"] for f in data["forms"]] == list(package.FORMS)
    for f in data["forms"]:
        assert all(f[key] > 0 for key in ("forward_ms", "forward_estimate_ms", "both_ms", "both_estimate_ms", "both_speedup"))
        assert f["backend"] == "torch" and f["forward_mib"] is f["both_mib"] is None
    arguments = draw(package, {"K": 64, "V": 128}, Run(tokens=40, batch=3), 2)
    for key, gradient in (("auto_forward", False), ("auto_both", True)):
        info = package.gla(*(x.requires_grad_(gradient) for x in arguments), return_info=True)[2]
        least = min(data["forms"], key=lambda f: f[f"{key.removeprefix('auto_')}_estimate_ms"])
        assert info.form == data[key] == least["form"]
    token = document("gla", "--tokens", "1", "--repeat", "1", "--no-backward", "--device", "cpu")
    assert token["auto_forward"] == "recurrent" and token["auto_both"] is None and token["forms"][0]["both_ms"] is None


def test_a_layer_with_sizes_that_no_input_shows() -> None:
    data = document("jrt", *SMALL)
    assert "recurrent" in [f["form"] for f in data["forms"]] and data["auto_forward"] in [f["form"] for f in data["forms"]]


def test_inputs_keep_their_domains() -> None:
    for name in ("gla", "deltaproduct"):
        package = seqc.load(name)
        arguments = draw(package, package.MANIFEST["sizes"], Run(tokens=9, batch=2), 4)
        getattr(package, name)(*arguments, check=True)


def test_sizes_and_types() -> None:
    data = document("deltaproduct", *SMALL, "-s", "n=1", "--chunk-size", "8", "--dtype", "bfloat16", "--no-backward")
    assert data["sizes"]["n"] == 1 and data["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "arguments", [(), ("gla", "--tokens", "0"), ("gla", "--dtype", "int8"), ("gla", "-s", "K"), ("gla", "--repeat", "x")], ids=str
)
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2
    if arguments:
        assert json.loads(run(*arguments, "--json").stdout)["exit"] == 2


def test_a_wrong_spec(own_folder: Path) -> None:
    (own_folder / "wrong.seq").write_text("seqc 1\nlayer (\n")
    result = run("wrong.seq")
    assert result.exit_code == 1 and "error[" in result.stderr and "wrong.seq:2" in result.stderr and not result.stdout
    assert run(str(ROOT / "tests/language/softmax_attention.seq")).exit_code == 1


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqc.bench.find_spec", lambda name: None)
    result = run("gla")
    assert result.exit_code == 2 and "PyTorch is not installed" in result.stderr


def test_a_failed_proof(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQC_CACHE_DIR", str(own_folder / "empty"))
    text = (ROOT / "specs/gla.seq").read_text("utf-8").replace("layer gla", "layer unproved")
    (own_folder / "unproved.seq").write_text(text, "utf-8")
    monkeypatch.setattr("seqc.package_cache.compile_checked", lambda *a: Unproved())
    result = run("unproved.seq")
    assert result.exit_code == 4 and "is not proved" in result.stderr


class Unproved:
    """A compilation that proves nothing."""

    certificate = Certificate("unproved", "0", 16, (), (), (), 0, -50.0, (), ())
