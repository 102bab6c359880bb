"""Who may import whom, and what may not be named: rules about the source, read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from seqc.backends.torch.package import COPIED as FILES

ROOT = Path(__file__).parents[1]
FOLDERS = {"seqc": ROOT / "seqc", "seqc.backends": ROOT / "backends", "seqc.grammar": ROOT / "grammar", "seqc.specs": ROOT / "specs"}

# Low to high. A module imports its own layer and lower ones. The empty package modules on the way count as nothing.
LAYERS = (
    ("seqc.source", "seqc.diagnostics", "seqc.options"),
    ("seqc.grammar", "seqc.specs"),
    ("seqc.ir",),
    ("seqc.analysis",),
    ("seqc.passes",),
    ("seqc.frontend",),
    ("seqc.forms",),
    ("seqc.proof",),
    ("seqc.schedule",),
    ("seqc.emit",),
    ("seqc.backends",),
    ("seqc.compiler",),
    ("seqc",),  # the version; what else it offers, it imports when it is called
    ("seqc.locate",),
    ("seqc.console",),
    ("seqc.catalog", "seqc.doctor", "seqc.outcome", "seqc.package_cache", "seqc.reading", "seqc.starter"),
    ("seqc.explanation",),
    ("seqc.stages",),
    ("seqc.terminal", "seqc.timing"),
    ("seqc.arguments", "seqc.bench", "seqc.destination", "seqc.layout"),
    ("seqc.inspection",),
    ("seqc.tuning",),
    ("seqc.cli",),
    ("seqc.__main__",),
)

# Files that are copied into packages, and run there.
COPIED = (*(name.removesuffix(".py") for name in FILES), "triton_rows")
RUNTIME = tuple(f"seqc.backends.torch.{name}" for name in COPIED)
DRY = tuple(f"seqc.backends.triton.{name}" for name in ("binaries", "dry", "operations"))  # it runs host code without a GPU
COPIES = ("seqc.backends.triton.tiles", "seqc.backends.triton.launching")
TORCH = (*RUNTIME, *DRY, *COPIES, "seqc.bench", "seqc.timing", "seqc.tuning")  # which time what the packages compute
HEAVY = ("torch", "triton", "sympy", "networkx")
GRAPHS = ("seqc.backends.triton.parts",)  # which imports networkx where it cuts a kernel
# One form may build on another where it takes over its refusals; what stages forms share.
SHARED_FORMS = {
    "seqc.forms.recurrent": ("seqc.forms.chunkwise", "seqc.forms.conv", "seqc.forms.newton", "seqc.forms.scan"),
    "seqc.forms.groups": ("seqc.forms.newton", "seqc.forms.scan"),
    "seqc.forms.monoid": ("seqc.forms.groups",),
    "seqc.forms.blocks": ("seqc.forms.chunkwise",),
    "seqc.forms.memory": ("seqc.forms.chunkwise",),
    "seqc.forms.series": (
        "seqc.forms.blocks",
        "seqc.forms.chunkwise",
        "seqc.forms.composed",
        "seqc.forms.conv",
        "seqc.forms.coupled",
        "seqc.forms.groups",
        "seqc.forms.monoid",
        "seqc.forms.newton",
        "seqc.forms.scan",
        "seqc.forms.transitions",
    ),
    "seqc.forms.composed": ("seqc.forms.coupled",),
    "seqc.forms.coupled": ("seqc.forms.chunkwise",),
    "seqc.forms.transitions": ("seqc.forms.chunkwise", "seqc.forms.conv", "seqc.forms.groups", "seqc.forms.newton"),
}
ARCHITECTURES = re.compile(
    r"delta_?net|delta_?product|mamba|rwkv|ret_?net|\bgla\b|\bkda\b|comba|titans|mlstm|slstm|xlstm|hgrn|lightning|ttt_|atlas|moneta|yaad|memora|hyena",
    re.IGNORECASE,
)


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def layer(module: str) -> int:
    """The layer of a module: that of its longest prefix."""
    prefix = module
    while not any(prefix in names for names in LAYERS):
        prefix, dot, _ = prefix.rpartition(".")
        assert dot and prefix != "seqc", f"{module} is in no layer"
    return next(i for i, names in enumerate(LAYERS) if prefix in names)


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, at its head or later; names taken from a package count as modules where they are ones."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parts[-2] == "torch", f"{path} imports relatively"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module or ""


@pytest.mark.parametrize("module", MODULES)
def test_layers(module: str) -> None:
    if module in RUNTIME:
        return
    own = layer(module) if module != "seqc" else len(LAYERS)
    for name in imports(MODULES[module]):
        if name == "seqc" or name.startswith("seqc."):
            assert layer(name) <= own, f"{module} imports {name}, which is above it"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_stay_out(module: str) -> None:
    allowed = HEAVY[:2] if module in TORCH else ("networkx",) if module in GRAPHS else ()
    found = {name.partition(".")[0] for name in imports(MODULES[module])} & set(HEAVY)
    assert found <= set(allowed)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("seqc.forms.")])
def test_forms_stand_alone(module: str) -> None:
    others = {m for m in MODULES if m.startswith("seqc.forms.")} - {module, "seqc.forms.base"}
    for name in imports(MODULES[module]):
        if name in others:
            assert module in SHARED_FORMS.get(name, ()), f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("seqc.backends.")])
def test_backends_know_no_front_end(module: str) -> None:
    # The module's printer reads the checked project section and the formulas of sizes, which are the front end's.
    allowed = tuple(f"seqc.frontend.{name}" for name in ("ast", "project", "project_types", "project_names", "intervals", "check_sizes"))
    assert not [n for n in imports(MODULES[module]) if n.startswith("seqc.frontend") and n not in allowed]


@pytest.mark.parametrize("module", MODULES)
def test_no_architecture_is_named(module: str) -> None:
    """A layer is a text in specs/, never a case in the compiler. Papers are cited by number."""
    found = [line.strip() for line in MODULES[module].read_text("utf-8").splitlines() if ARCHITECTURES.search(line)]
    assert not found


def test_the_project_speaks_of_itself() -> None:
    registry = "pypi" + ".org"
    own = [ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt")]
    texts = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *own, *MODULES.values()]
    assert not [str(path) for path in texts if registry in path.read_text("utf-8")]
