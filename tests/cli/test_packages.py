"""Writing packages whole or not at all, and loading them from the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import seqc
from seqc.emit.layer import GeneratedFile
from seqc.emit.write import NotOurs, write_package

ROOT = Path(__file__).parents[2]


def package(text: str) -> tuple[GeneratedFile, ...]:
    hashes = {"a.py": hashlib.sha256(text.encode()).hexdigest()}
    return GeneratedFile("a.py", text), GeneratedFile("manifest.json", json.dumps({"digest": "0", "files": hashes}))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_replaces_its_own(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_package(package(text), tmp_path / "p")
        assert (tmp_path / "p/a.py").read_text() == text
    assert names(tmp_path) == ["p"] and names(tmp_path / "p") == ["a.py", "manifest.json"]


def test_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    write_package(package("one"), tmp_path / "p")
    assert names(tmp_path / "p") == ["a.py", "manifest.json"]


@pytest.mark.parametrize("manifest", [None, "{}", "[", '{"digest": 1, "files": {}}', '{"manifest_version": 3}'])
def test_leaves_what_is_not_its_own(tmp_path: Path, manifest: str | None) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(NotOurs, match=r"thesis|manifest"):
        write_package(package("one"), folder)
    assert (folder / "thesis.tex").read_text() == "years" and names(tmp_path) == ["p"]


def test_leaves_files_that_were_added(tmp_path: Path) -> None:
    write_package(package("one"), tmp_path / "p")
    (tmp_path / "p/__pycache__").mkdir()
    write_package(package("two"), tmp_path / "p")
    (tmp_path / "p/notes.txt").write_text("mine")
    with pytest.raises(NotOurs, match=r"notes\.txt"):
        write_package(package("three"), tmp_path / "p")
    assert (tmp_path / "p/a.py").read_text() == "two"


@pytest.mark.parametrize("fails_at", ["write_text", "rename"])
def test_a_failure_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
    write_package(package("one"), tmp_path / "p")
    rename = os.rename

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    def fails_second(source: Path, target: Path) -> None:
        full() if target == tmp_path / "p" and "package" not in source.name else rename(source, target)

    with monkeypatch.context() as patched:
        if fails_at == "write_text":
            patched.setattr(Path, "write_text", full)
        else:
            patched.setattr(os, "rename", fails_second)
        with pytest.raises(OSError, match="No space"):
            write_package(package("two"), tmp_path / "p")
    assert (tmp_path / "p/a.py").read_text() == "one" and names(tmp_path) == ["p"]


def test_what_a_killed_compile_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".p-abcdefgh"
    left.mkdir()
    fresh = tmp_path / ".p-ijklmnop"
    fresh.mkdir()
    os.utime(left, (time.time() - 9999,) * 2)
    write_package(package("one"), tmp_path / "p")
    assert names(tmp_path) == [".p-ijklmnop", "p"]


def test_many_writers(tmp_path: Path) -> None:
    def write(i: int) -> None:
        write_package(package(str(i) * 10_000), tmp_path / "p")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert names(tmp_path) == ["p"]
    text = (tmp_path / "p/a.py").read_text()
    assert json.loads((tmp_path / "p/manifest.json").read_text())["files"]["a.py"] == hashlib.sha256(text.encode()).hexdigest()


# --- load ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEQC_CACHE_DIR", str(tmp_path))
    yield tmp_path / "packages"  # type: ignore[misc]
    for name in [n for n in sys.modules if n.startswith("seqc_generated_")]:
        del sys.modules[name]


LOAD = """
import seqc
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    modules = set(pool.map(lambda i: seqc.load("deltaproduct"), range(8)))
(module,) = modules
assert module is seqc.load({path!r})
print(module.__name__, module.FORMS)
"""


def load_in_a_process() -> subprocess.CompletedProcess[str]:
    code = LOAD.format(path=str(ROOT / "specs/deltaproduct.seq"))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.slow
def test_load_in_processes_and_threads(cache: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: load_in_a_process(), range(3)))
    assert [d.returncode for d in done] == [0] * 3, [d.stderr for d in done]
    assert len({d.stdout for d in done}) == 1 and len(names(cache)) == 1


@pytest.mark.slow
def test_a_damaged_package_is_written_again(cache: Path) -> None:
    seqc.load("deltanet")
    (folder,) = cache.iterdir()
    whole = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for damage in (
        lambda: (folder / "chunkwise.py").write_text("raise SystemExit"),
        lambda: (folder / "ops.py").unlink(),
        lambda: (folder / "manifest.json").write_text("{"),
        lambda: (folder / "manifest.json").unlink(),
    ):
        damage()
        from seqc.package_cache import is_whole, load_package

        assert not is_whole(folder, json.loads(whole["manifest.json"])["digest"])
        for name in [n for n in sys.modules if n.startswith("seqc_generated_")]:
            del sys.modules[name]
        # Operators are registered once per process, so the package is only written here, and imported elsewhere.
        with contextlib.suppress(RuntimeError):
            load_package("deltanet", {}, 32)
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == whole


@pytest.mark.slow
def test_options_make_other_packages(cache: Path) -> None:
    """Options that nothing else here loads: a process keeps what it has loaded, wherever the cache is by then."""
    first, second = seqc.load("deltaproduct", chunk_size=12), seqc.load("deltaproduct", sizes={"n": 3}, chunk_size=16)
    assert first is not second and len(names(cache)) == 2
    assert first is seqc.load("deltaproduct", sizes={}, chunk_size=12)
    assert second.MANIFEST["options"]["chunk_size"] == 16


def test_python_entry() -> None:
    assert seqc.compile("gla").certificate.ok
    assert seqc.check("gla").model.name == "gla"
    assert "S_t = A_t S_{t-1} + B_t" in str(seqc.explain("gla"))
    with pytest.raises(seqc.SpecError, match="unreadable-file"):
        seqc.load("nowhere.seq")
    with pytest.raises(ValueError, match="chunk_size"):
        seqc.compile("gla", chunk_size=0)


def test_load_says_what_is_wrong() -> None:
    with pytest.raises(seqc.SpecError) as unknown:
        seqc.load("nope")
    assert any("deltanet, deltaproduct" in note for note in unknown.value.__notes__)
    with pytest.raises(ValueError) as wrong:
        seqc.load("gla", chunk_size=0)
    assert str(wrong.value) == "chunk_size is a whole number from 1 to 1024, not 0"


SAVED = """
import copy, pickle, sys, torch, seqc
layer = seqc.load("gated_deltanet", chunk_size=8).Layer(8, heads=2, K=4, V=4)
x = torch.randn(1, 5, 8)
twin = copy.deepcopy(layer)
assert type(twin) is type(layer) and torch.equal(twin(x)[0], layer(x)[0])
model = torch.nn.Sequential(layer)
torch.save((model, x, model[0](x)[0]), sys.argv[1])
"""
LOADED = """
import sys, torch
model, x, y = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(model[0](x)[0], y) and all(p.requires_grad for p in model.parameters())
"""


@pytest.mark.slow
def test_a_loaded_layer_is_pickled(tmp_path: Path) -> None:
    """A fresh process finds the package in the cache; without it, the pickle says what to do."""
    environment = {**os.environ, "SEQC_CACHE_DIR": str(tmp_path / "cache")}

    def run(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(tmp_path / "layer.pt")]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    for code in (SAVED, LOADED):
        done = run(code)
        assert done.returncode == 0, done.stderr
    environment["SEQC_CACHE_DIR"] = str(tmp_path / "another")
    done = run(LOADED)
    assert "UnpicklingError: a layer `gated_deltanet` of a package that is not in the cache" in done.stderr
    assert "First call seqc.load on its spec" in done.stderr
