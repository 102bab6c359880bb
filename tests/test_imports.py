"""What a command costs: none imports torch, and none that does not compile imports the proof."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
import sys
sys.argv = ["seqc", *{arguments}]
from seqc.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
print("LOADED", *sorted(m for m in sys.modules if "." not in m or m.startswith("seqc.")))
"""
HEAVY = {"torch", "triton", "sympy", "networkx", "transformers", "fla"}


def loaded(tmp_path: Path, code: str) -> set[str]:
    environment = {**os.environ, "SEQC_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(next(line for line in done.stdout.splitlines() if line.startswith("LOADED")).split()[1:])


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "deltaproduct"], ["compile", "deltaproduct"], ["explain", "kda"], ["prove", "gla"], ["list", "--kind", "objectives"],
        ["ir", "gla", "--after", "kernel"], ["doctor"], ["new", "mine"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    assert not loaded(tmp_path, SHOW.format(arguments=arguments)) & HEAVY


def test_check_needs_no_proof(tmp_path: Path) -> None:
    modules = loaded(tmp_path, SHOW.format(arguments=["check", "deltaproduct"]))
    assert not [m for m in modules if m.startswith(("seqc.proof", "seqc.backends", "seqc.forms", "seqc.options"))]


def test_import_costs_nothing(tmp_path: Path) -> None:
    modules = loaded(tmp_path, "import sys, seqc; print('LOADED', *sys.modules)")
    assert {m for m in modules if m.startswith("seqc")} == {"seqc", "seqc.diagnostics", "seqc.source"}
    assert not modules & {*HEAVY, "numpy", "lark", "pydantic", "typer", "rich"}
