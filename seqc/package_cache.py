"""A spec -> its generated package as a module, by way of the user's cache folder."""

from __future__ import annotations

import copyreg
import hashlib
import importlib.util
import json
import pickle
import sys
import threading
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from seqc.compiler import Checked, compile_checked, fingerprint
from seqc.diagnostics import SpecError
from seqc.emit.write import MARK, write_package
from seqc.frontend.grammar import cache_folder
from seqc.locate import checked, options
from seqc.options import Backend, Options
from seqc.proof.certificate import Certificate

LARGEST_CHUNK = 1024  # as seqc.options has it

_lock = threading.RLock()


class NotProved(Exception):
    """A package whose forms were not proved equal to the recurrence: it is not made."""

    def __init__(self, certificate: Certificate):
        self.certificate = certificate
        said = [*(str(f) for f in certificate.facts if not f.holds), *map(str, certificate.failures)]
        said += [f"`{g.form}` was not examined: {g.reason}" for g in certificate.gaps]
        super().__init__("; ".join(said) or "no form was examined")


def packages_folder() -> Path:
    """Where packages are kept, each in a folder named by the hash of all that it depends on."""
    return cache_folder() / "packages"


def load_package(
    spec: str | PathLike[str], sizes: Mapping[str, int], chunk_size: int, backend: Backend = "torch"
) -> ModuleType:
    """The module of a spec: of this process, else from the cache, else compiled."""
    if not 1 <= chunk_size <= LARGEST_CHUNK:
        raise ValueError(f"chunk_size is a whole number from 1 to {LARGEST_CHUNK}, not {chunk_size}")
    if backend not in get_args(Backend):
        raise ValueError(f"backend is `torch` or `triton`, not {backend!r}")
    chosen = options(sizes, chunk_size, backend)
    layer = _found(spec, chosen)
    digest = fingerprint(layer, chosen)
    name, folder = _place(layer.model.name, digest)
    with _lock:
        if (module := sys.modules.get(name)) is not None:
            return module
        if not is_whole(folder, digest):
            made = compile_checked(layer, chosen)
            if not made.certificate.ok:
                raise NotProved(made.certificate)
            write_package(made.files, folder, replace=True)
        return _imported(name, folder)


def _place(layer: str, digest: str) -> tuple[str, Path]:
    """The module's name and the folder of a package."""
    return f"seqc_generated_{layer}_{digest[:24]}", packages_folder() / f"{layer}-{digest[:24]}"


def _found(spec: str | PathLike[str], chosen: Options) -> Checked:
    """The checked spec. A SpecError carries the notes of what it says, such as which layers there are."""
    try:
        return checked(spec, chosen)
    except SpecError as error:
        for note in dict.fromkeys(n for d in error.diagnostics for n in d.notes):
            error.add_note(note)
        raise


def is_whole(folder: Path, digest: str) -> bool:
    """Whether a package is there with every file as it was written."""
    try:
        manifest = json.loads((folder / MARK).read_bytes())
        hashes = manifest["files"]
        return manifest["digest"] == digest and all(
            hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha256 for file, sha256 in hashes.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _imported(name: str, folder: Path) -> ModuleType:
    """The package in a folder as a module of this name, which is registered only if it can be executed."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for key in [k for k in sys.modules if k == name or k.startswith(f"{name}.")]:
            del sys.modules[key]
        raise
    if hasattr(module, "Layer"):
        copyreg.pickle(module.Layer, _pickled)
    return module


# --- Pickles -----------------------------------------------------------------------------------------------------------


def _pickled(layer: Any) -> tuple[Callable[..., object], tuple[str, str], object]:
    """A layer as a call of `unpickled`, and its values: another process does not know its module by name."""
    manifest = sys.modules[type(layer).__module__.rpartition(".")[0]].MANIFEST
    return unpickled, (manifest["name"], manifest["digest"]), layer.__getstate__()


def unpickled(layer: str, digest: str) -> object:
    """A layer of a package in the cache, without values, which the pickle gives it. Raises UnpicklingError if the package is not there."""
    name, folder = _place(layer, digest)
    with _lock:
        module = sys.modules.get(name)
        if module is None and not is_whole(folder, digest):
            raise pickle.UnpicklingError(
                f"a layer `{layer}` of a package that is not in the cache: {folder}. First call seqc.load on its spec, "
                "with the sizes, the chunk_size and the version of seqc that it was made with; or save its state_dict instead"
            )
        module = module or _imported(name, folder)
    return module.Layer.__new__(module.Layer)
