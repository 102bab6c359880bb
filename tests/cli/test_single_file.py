"""`seqc compile --single-file`: what is written, what is said, and what is not replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import commands
import pytest

SPEC = Path(__file__).parents[2] / "specs" / "retnet.seq"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEQC_CACHE_DIR", os.environ.get("SEQC_TEST_CACHE", str(tmp_path / "cache")))
    return tmp_path


def run(*arguments: str) -> Any:
    return commands.run("compile", *arguments, "--single-file")


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.slow
def test_one_file_that_is_imported_as_it_says(own_folder: Path) -> None:
    result = run("retnet")
    assert result.exit_code == 0 and result.stdout.splitlines()[0] == "generated/retnet.py"
    line = result.stdout.splitlines()[1].strip()
    assert line == "from generated.retnet import retnet, Retnet" and entries(own_folder / "generated") == ["retnet.py"]
    code = f"import torch\n{line}\nx = torch.rand(1, 5, 2, 3)\nprint(retnet(x, x, x)[0].shape, Retnet.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "torch.Size([1, 5, 2, 3]) generated.retnet\n", done.stderr


@pytest.mark.slow
def test_its_own_file_is_replaced_and_named_by_its_path(own_folder: Path) -> None:
    for size in ("16", "8"):
        result = run(str(SPEC), "-o", str(own_folder / "made" / "memory.py"), "--chunk-size", size, "--json")
        data = json.loads(result.stdout)
        assert data["file"] == str(own_folder / "made" / "memory.py") and data["folder"] is None and result.exit_code == 0
        assert data["import"] == f"from memory import retnet, Retnet    # with {own_folder / 'made'} on sys.path"
        assert f"CHUNK_SIZE = {size}\n" in (own_folder / "made/memory.py").read_text("utf-8")
    assert entries(own_folder / "made") == ["memory.py"]
    assert commands.document("compile", "retnet")["file"] is None


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("there", "error: `there` is a folder; with --single-file, -o names the file: -o there/retnet.py\n"),
        ("memory", "error: `memory` is no name that Python can import; with --single-file, -o names a file such as retnet.py\n"),
        ("a-b.py", "error: `a-b.py` is no name that Python can import; with --single-file, -o names a file such as retnet.py\n"),
        ("mine.py", "error: seqc did not write `mine.py`: move it away, or choose another place with -o\n"),
        ("mine.py/x.py", "error: cannot write `mine.py/x.py`: not a directory\n"),
    ],
)
def test_what_is_not_written(own_folder: Path, output: str, said: str) -> None:
    (own_folder / "there").mkdir()
    (own_folder / "mine.py").write_text("years = 3\n", "utf-8")
    result = run("retnet", "-o", output)
    assert (result.exit_code, result.stderr, result.stdout) == (2, said, "")
    assert (own_folder / "mine.py").read_text("utf-8") == "years = 3\n" and not list((own_folder / "there").iterdir())
    assert [n for n in entries(own_folder) if n != "cache"] == ["mine.py", "there"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(own_folder: Path) -> None:
    (own_folder / "closed").mkdir(mode=0o500)
    result = run("retnet", "-o", "closed/retnet.py")
    assert result.exit_code == 2 and "cannot write `closed/retnet.py`: permission denied" in result.stderr


@pytest.mark.slow
def test_a_failure_leaves_what_was_there(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("retnet").exit_code == 0
    before = (own_folder / "generated/retnet.py").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    result = run("retnet", "--chunk-size", "8")
    assert result.exit_code == 2 and "no space left on device" in result.stderr
    assert (own_folder / "generated/retnet.py").read_bytes() == before and entries(own_folder / "generated") == ["retnet.py"]
