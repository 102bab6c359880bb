"""A spec -> its generated package as a module, by way of the user's cache folder."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import threading
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType

from seqc.compiler import Checked, compile_checked, fingerprint
from seqc.diagnostics import SpecError
from seqc.emit.write import MARK, write_package
from seqc.frontend.grammar import cache_folder
from seqc.locate import checked, options
from seqc.options import Options
from seqc.proof.certificate import Certificate

LARGEST_CHUNK = 1024  # as seqc.options has it

_lock = threading.RLock()


class NotProved(Exception):
    """A package whose forms were not proved equal to the recurrence: it is not made."""

    def __init__(self, certificate: Certificate):
        self.certificate = certificate
        said = [*map(str, certificate.failures), *(f"`{g.form}` was not examined: {g.reason}" for g in certificate.gaps)]
        super().__init__("; ".join(said) or "no form was examined")


def packages_folder() -> Path:
    """Where packages are kept, each in a folder named by the hash of all that it depends on."""
    return cache_folder() / "packages"


def load_package(spec: str | PathLike[str], sizes: Mapping[str, int], chunk_size: int) -> ModuleType:
    """The module of a spec: of this process, else from the cache, else compiled."""
    if not 1 <= chunk_size <= LARGEST_CHUNK:
        raise ValueError(f"chunk_size is a whole number from 1 to {LARGEST_CHUNK}, not {chunk_size}")
    chosen = options(sizes, chunk_size)
    layer = _found(spec, chosen)
    digest = fingerprint(layer, chosen)
    name = f"seqc_generated_{layer.model.name}_{digest[:24]}"
    with _lock:
        if (module := sys.modules.get(name)) is not None:
            return module
        folder = packages_folder() / f"{layer.model.name}-{digest[:24]}"
        if not is_whole(folder, digest):
            made = compile_checked(layer, chosen)
            if not made.certificate.ok:
                raise NotProved(made.certificate)
            write_package(made.files, folder, replace=True)
        return _imported(name, folder)


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
    return module
