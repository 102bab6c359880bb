"""Options and fixtures of all tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, and one worker per core

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = tuple(sorted(p.stem for p in (ROOT / "specs").glob("*.seq")))
# The layers that `make check` runs through everything; `make test` runs all of them.
LAYERS = ("deltaproduct", "gated_deltanet", "gla", "linear_attention", "mamba2", "rwkv7")
EVERY = (*LAYERS, *(pytest.param(n, marks=pytest.mark.slow) for n in SHIPPED if n not in LAYERS))
every = pytest.mark.parametrize("name", EVERY)
# What takes long, and whose subject layers share: torch's own checks of operators and modules, kernels in an interpreter. `make test` takes
# a few layers, which have every form, learn, iterate or convolve; `make layers` and `make kernels` take all.
ALL = bool(os.environ.get("SEQC_EVERY_LAYER"))
SAMPLE = SHIPPED if ALL else ("gated_deltanet", "lstm", "mamba2", "s5", "ttt_linear")
sampled = pytest.mark.parametrize("name", [n if n == "gated_deltanet" else pytest.param(n, marks=pytest.mark.slow) for n in SAMPLE])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` all tests of one name run in one worker, so that it is compiled and imported once."""
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")  # type: ignore[attr-defined]
        if isinstance(name, str):
            item.add_marker(pytest.mark.xdist_group(name))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing with them")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with a golden file, or writes the file if `--update-golden` is given."""

    def compare(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        assert path.exists(), f"{path} is missing; run pytest with --update-golden"
        assert text == path.read_text("utf-8")

    return compare


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModuleType]:
    """Compiles a spec (a shipped layer's name or a path) and imports its package; chunk_size 8 keeps tests small.

    All workers share one folder, so that a layer is compiled by whichever needs it first.
    """
    from seqc.compiler import check_file, compile_checked, fingerprint
    from seqc.emit.write import write_package
    from seqc.options import Options

    base, worker = tmp_path_factory.getbasetemp(), os.environ.get("PYTEST_XDIST_WORKER", "alone")
    root = (base.parent if worker != "alone" else base) / "packages"

    @cache
    def compiled(spec: str, chunk_size: int) -> ModuleType:
        options = Options(chunk_size=chunk_size)
        path = Path(spec) if spec.endswith(".seq") else ROOT / "specs" / f"{spec}.seq"
        checked = check_file(path, options)
        name = f"{path.stem}_{chunk_size}_{fingerprint(checked, options)[:8]}"
        if not (root / name).exists():
            result = compile_checked(checked, options)
            assert result.certificate.ok, result.certificate.failures
            own = root / worker / name
            write_package(result.files, own)
            with suppress(OSError):  # another worker was first
                own.rename(root / name)
        return sys.modules.get(name) or import_package(root / name, name)  # a layer may be asked for by name and by path

    return lambda spec, chunk_size=8: compiled(spec, chunk_size)


def import_package(folder: Path, name: str) -> ModuleType:
    """A package from a folder under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
