"""A generated package needs torch and nothing of seqc: it runs in a process in which seqc cannot be imported."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LAYERS, SHIPPED
from layers import checked
from modules import MODULES, build, inputs, small_sizes

pytestmark = pytest.mark.slow  # not part of `make check`

BLOCKED = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("seqc", "lark", "pydantic"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import json
import torch

for line in sys.stdin:
    folder, name, sizes, shapes = json.loads(line)
    package = __import__(folder)
    names = set(package.__all__)
    assert {name, "reference", "FORMS", "REFUSED", "MANIFEST"} <= names, names
    assert package.MANIFEST["certificate"]["ok"] and "recurrent" in package.FORMS
    if "Layer" in names:
        layer = package.Layer(16, **sizes)
        x = [torch.rand(s) if i else torch.randn(s) for i, s in enumerate(shapes)]
        y, state = layer(*x)
        y.sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
    print(name, flush=True)
"""


@pytest.mark.parametrize("few", [LAYERS, tuple(n for n in SHIPPED if n not in LAYERS)], ids=["layers", "others"])
def test_run_without_seqc(package, few: tuple[str, ...]) -> None:
    """One process imports them all."""
    lines = []
    for name in few:
        layer, sizes = build(package, name), small_sizes(checked(name).model)
        shapes = [tuple(x.shape) for x in inputs(layer, name)] if name in MODULES else []
        lines.append(json.dumps([Path(package(name).__file__).parent.name, name, sizes, shapes]))
    root = Path(package(few[0]).__file__).parent.parent
    run = [sys.executable, "-c", BLOCKED, str(root)]
    found = subprocess.run(run, input="\n".join(lines), capture_output=True, text=True, cwd=root)
    assert found.stdout.split() == list(few), found.stderr


@pytest.mark.parametrize("name", SHIPPED)
def test_imports_torch_and_the_standard_library_only(package, name: str) -> None:
    for path in Path(package(name).__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert all(n.split(".")[0] == "torch" or n.split(".")[0] in sys.stdlib_module_names for n in names), (path, names)
