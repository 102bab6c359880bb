"""seqc compiles a short text spec of a sequence-model layer into a standalone PyTorch package."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING

from seqc.diagnostics import SpecError

if TYPE_CHECKING:
    from seqc.compiler import Checked, Compiled
    from seqc.explanation import Explanation
    from seqc.options import Backend

__version__ = "0.1.0"

__all__ = ["SpecError", "__version__", "check", "compile", "explain", "load"]

# The compiler is imported by the first call that needs it, so that `import seqc` costs nothing.


def load(
    spec: str | PathLike[str], *, sizes: Mapping[str, int] | None = None, chunk_size: int = 32, backend: Backend = "torch"
) -> ModuleType:
    """The generated package of a spec, compiled into the user's cache unless it is there, and imported (which imports torch).

    Args:
        spec: the path of a `.seq` file, or the name of a layer that comes with seqc.
        sizes: values in place of the layer's defaults, by name.
        chunk_size: tokens per chunk of the chunkwise form.
        backend: "triton" for a package with Triton kernels beside those in PyTorch.

    Raises:
        SpecError: the spec is wrong, or no form computes it.
        seqc.package_cache.NotProved: the forms could not be proved equal; nothing is imported.
    """
    from seqc.package_cache import load_package

    return load_package(spec, dict(sizes or {}), chunk_size, backend)


def compile(
    spec: str | PathLike[str], *, sizes: Mapping[str, int] | None = None, chunk_size: int = 32, backend: Backend = "torch"
) -> Compiled:
    """The forms, the proof and the files of a spec's package, in memory. Look at `certificate.ok` before you use the files.

    Takes and raises what `load` does, but for NotProved.
    """
    from seqc.compiler import compile_checked
    from seqc.locate import checked, options

    chosen = options(dict(sizes or {}), chunk_size, backend)
    return compile_checked(checked(spec, chosen), chosen)


def check(spec: str | PathLike[str], *, sizes: Mapping[str, int] | None = None) -> Checked:
    """The spec as a model and a recurrence, with warnings. Raises SpecError with everything that is wrong."""
    from seqc.locate import checked, options

    return checked(spec, options(dict(sizes or {})))


def explain(spec: str | PathLike[str], *, sizes: Mapping[str, int] | None = None, chunk_size: int = 32) -> Explanation:
    """How a spec is understood: memory and objective, transition matrices, forms with reasons, costs. Print it, or take `as_json()`."""
    from seqc.explanation import explained
    from seqc.locate import checked, options

    chosen = options(dict(sizes or {}), chunk_size)
    return explained(checked(spec, chosen), chosen)
