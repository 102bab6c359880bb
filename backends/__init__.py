"""The table of backends: a name and the function that turns a layer into files."""

from seqc.backends.torch.package import emit as torch_package
from seqc.emit.layer import Backend

BACKENDS: dict[str, Backend] = {"torch": torch_package}

__all__ = ["BACKENDS"]
