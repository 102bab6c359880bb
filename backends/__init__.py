"""The table of backends: a name and the function that turns a layer into files."""

from seqc.backends.torch.package import Triton
from seqc.backends.torch.package import emit as torch_package
from seqc.backends.triton.package import emit as triton_kernels
from seqc.emit.layer import Backend, GeneratedFile, Layer


def with_triton(layer: Layer) -> tuple[GeneratedFile, ...]:
    """The PyTorch package, with Triton kernels for the forms that have them."""
    files, refused, kept = triton_kernels(layer)
    return torch_package(layer, Triton(files, tuple(kept), refused, kept))


BACKENDS: dict[str, Backend] = {"torch": torch_package, "triton": with_triton}

__all__ = ["BACKENDS"]
