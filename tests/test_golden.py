"""Every intermediate text of four layers, and what holds for all generated files: the same bytes everywhere, clean to a linter."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conftest import LAYERS, ROOT

from seqc.analysis.structure import analyse
from seqc.analysis.text import structure
from seqc.compiler import Compiled, check_file, compile_checked, programs
from seqc.forms.chunkwise import CHUNKWISE
from seqc.ir import text
from seqc.schedule.linear import axis_order, linearise

GOLDEN = ("gated_deltanet", "rwkv7", "deltaproduct", "linear_attention")
FOLDER = Path(__file__).parent / "golden"
RULES = ("--select", "E,F,I", "--line-length", "140")
HASHES = """
import hashlib, sys
from pathlib import Path
from seqc.compiler import check_file, compile_checked
for name in sys.argv[1:]:
    for f in compile_checked(check_file(Path(name))).files:
        print(name, f.name, hashlib.sha256(f.text.encode()).hexdigest())
"""


@cache
def compiled(name: str) -> Compiled:
    return compile_checked(check_file(ROOT / "specs" / f"{name}.seq"))


@cache
def stages(name: str) -> dict[str, str]:
    """A layer's texts from the checked model to the kernel of the chunkwise form."""
    checked = compiled(name).checked
    rec = checked.recurrence
    built = programs(checked, CHUNKWISE)
    order = axis_order(built.forward, [x.axes for x in (*rec.inputs, *rec.params, *rec.states, *rec.outputs)])
    return {
        "model.txt": text.model(checked.model),
        "recurrence.txt": text.recurrence(rec),
        "structure.txt": structure(analyse(rec, checked.sizes)),
        "program.txt": text.program(built.forward),
        "adjoint.txt": text.program(built.backward),
        "kernel.txt": text.kernel(linearise(built.forward, built.hints, order)),
    }


@pytest.mark.parametrize("stage", ("model.txt", "recurrence.txt", "structure.txt", "program.txt", "adjoint.txt", "kernel.txt"))
@pytest.mark.parametrize("name", GOLDEN)
def test_stage(golden: Callable[[Path, str], None], name: str, stage: str) -> None:
    golden(FOLDER / name / stage, stages(name)[stage])


@pytest.mark.parametrize("file", ("chunkwise.py", "ops.py"))
@pytest.mark.parametrize("name", GOLDEN)
def test_generated_file(golden: Callable[[Path, str], None], name: str, file: str) -> None:
    """Without the digest, which changes with every line of the compiler."""
    found = compiled(name)
    golden(FOLDER / name / file, next(f.text for f in found.files if f.name == file).replace(found.digest[:12], "DIGEST"))


def test_no_golden_file_is_left_over() -> None:
    wanted = {f"{n}/{s}" for n in GOLDEN for s in (*stages(n), "chunkwise.py", "ops.py")}
    assert {p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*") if p.is_file()} == wanted


# --- All generated files -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_process_writes_the_same_bytes() -> None:
    """Whatever the order of hashes and wherever the compiler runs."""
    names = [str(ROOT / "specs" / f"{n}.seq") for n in GOLDEN[:2]]

    def run(seed: str, folder: Path) -> str:
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return subprocess.run(
            [sys.executable, "-c", HASHES, *names], env=env, cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    first = run("1", ROOT)
    assert first == run("4242", Path(__file__).parent)
    for name in GOLDEN[:2]:
        for f in compiled(name).files:
            assert f"{f.name} {hashlib.sha256(f.text.encode()).hexdigest()}" in first


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of all shipped layers."""
    root = tmp_path_factory.mktemp("generated")
    for name in LAYERS:
        (root / name).mkdir()
        for f in compiled(name).files:
            (root / name / f.name).write_text(f.text, "utf-8")
    return root


@pytest.mark.parametrize("command", (("format", "--check", "--diff", "--line-length", "140"), ("check", *RULES)), ids=("format", "lint"))
def test_generated_packages_are_clean(packages: Path, command: tuple[str, ...]) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", str(packages)], capture_output=True, text=True
    )
    assert found.returncode == 0, (found.stdout + found.stderr)[:6000]


def test_generated_packages_import_nothing_of_the_compiler(packages: Path) -> None:
    for path in packages.rglob("*.py"):
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.lstrip().startswith(("import ", "from "))]
        for words in lines:
            assert words[1].split(".")[0] in (
                "",
                "__future__",
                "torch",
                "math",
                "importlib",
                "json",
                "pathlib",
                "dataclasses",
                "typing",
                "collections",
                "functools",
                "itertools",
                "re",
                "sys",
                "types",
            ), (path, words)
