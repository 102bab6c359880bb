"""What is installed: every package on disk is in pyproject.toml, and every file that is read at run time is in the wheel."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import seqc

ROOT = Path(__file__).parents[1]
FOLDERS = {"seqc": "seqc", "backends": "seqc.backends", "grammar": "seqc.grammar", "specs": "seqc.specs"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def on_disk() -> set[str]:
    found = set()
    for folder, package in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    return found


def test_packages_are_listed() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk()


def test_versions_agree() -> None:
    from seqc.backends.torch.package import VERSION as printed
    from seqc.compiler import VERSION as compiled

    assert seqc.__version__ == PROJECT["project"]["version"] == compiled == printed
    assert f"## [{seqc.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_constraints_pin_what_is_needed() -> None:
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]
    specs = [*PROJECT["project"]["dependencies"], *(s for extra in extras.values() for s in extra)]
    wanted = {spec.partition(">=")[0].partition("==")[0] for spec in specs}
    assert wanted <= pinned


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    build = ROOT / "build"
    there = build.exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert there == build.exists() or not there
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"seqc/py.typed", "seqc/cli.py", "seqc/grammar/seq.lark", "seqc/grammar/syntax_errors.toml", "seqc/backends/torch/runtime.py"}
    wanted |= {f"seqc/specs/{path.relative_to(ROOT / 'specs').as_posix()}" for path in (ROOT / "specs").rglob("*.seq")}
    wanted |= {f"seqc/{path.relative_to(ROOT / 'seqc').as_posix()}" for path in (ROOT / "seqc").rglob("*.py")}
    assert wanted <= names
    assert not [n for n in names if n.startswith(("backends/", "grammar/", "specs/", "tests/"))]
