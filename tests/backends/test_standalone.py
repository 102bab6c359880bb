"""A generated package needs torch and nothing of seqc: it runs in a process in which seqc cannot be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LAYERS

pytestmark = pytest.mark.slow  # not part of `make check`

BLOCKED = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("seqc", "lark", "pydantic"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import torch
package = __import__(sys.argv[2])
names = set(package.__all__)
assert {sys.argv[3], "reference", "FORMS", "REFUSED", "MANIFEST"} <= names, names
assert package.MANIFEST["certificate"]["ok"] and set(package.FORMS) == {"chunkwise", "recurrent"}
if "Layer" in names:
    sizes = {"heads": 2, "K": 4, "V": 4, "N": 4, "P": 4}
    layer = package.Layer(16, **{k: v for k, v in sizes.items() if k in package.Layer.__init__.__kwdefaults__})
    x = torch.randn(2, 9, 16)
    more = (torch.randn(2, 9, 2, 4),) if sys.argv[3] == "rwkv7" else ()
    y, state = layer(x, *more)
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    now = layer.init_state(2)
    for t in range(9):
        step, now = layer.step(x[:, t], *(m[:, t] for m in more), now)
        assert torch.allclose(step, y[:, t], atol=1e-4), t
print("ran")
"""


@pytest.mark.parametrize("name", LAYERS)
def test_runs_without_seqc(package, name: str) -> None:
    folder = Path(package(name).__file__).parent
    run = [sys.executable, "-c", BLOCKED, str(folder.parent), folder.name, name]
    found = subprocess.run(run, capture_output=True, text=True, cwd=folder.parent)
    assert found.stdout.strip() == "ran", found.stderr


@pytest.mark.parametrize("name", LAYERS)
def test_imports_torch_and_the_standard_library_only(package, name: str) -> None:
    for path in Path(package(name).__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert all(n.split(".")[0] == "torch" or n.split(".")[0] in sys.stdlib_module_names for n in names), (path, names)
