"""Run by test_triton.py in a process of its own: one layer's Triton kernels in Triton's interpreter, against float64.

Prints one line of JSON for each form: the largest distances of results and gradients, or why the form has no kernels.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its own functions are decorated then
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "backends")]

import torch  # noqa: E402
from conftest import import_package  # noqa: E402
from layers import Call, call, distance, gradients, interpreted, steady  # noqa: E402

from seqc import compiler  # noqa: E402
from seqc.emit.write import write_package  # noqa: E402
from seqc.options import Options  # noqa: E402
from seqc.proof.certificate import Certificate  # noqa: E402

CHUNK = 8
SIZES = (3, 5, 4, 2, 6)


def package(name: str, folder: Path) -> ModuleType:
    """The layer's package with Triton kernels. Its proof is other tests' business, and takes longer than all else here."""
    compiler.prove = lambda *_, **__: Certificate(name, "", 0, (), (), (), 0, 0.0, (), ())  # type: ignore[assignment]
    options = Options(chunk_size=CHUNK, backend="triton")
    checked = compiler.check_file(ROOT.parent / "specs" / f"{name}.seq", options)
    write_package(compiler.compile_checked(checked, options).files, folder / name)
    return import_package(folder / name, f"triton_{name}")


def in_float32(c: Call) -> Call:
    def narrow(xs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kinds = {torch.float64: torch.float32, torch.complex128: torch.complex64}
        return tuple(x.detach().to(kinds.get(x.dtype, x.dtype)).requires_grad_(x.requires_grad) for x in xs)

    return replace(c, inputs=narrow(c.inputs), params=narrow(c.params), states=narrow(c.states))


def in_float64(c: Call) -> Call:
    def wide(xs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kinds = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        return tuple(x.detach().to(kinds.get(x.dtype, x.dtype)).requires_grad_(x.requires_grad) for x in xs)

    return replace(c, inputs=wide(c.inputs), params=wide(c.params), states=wide(c.states))


def worst(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> float:
    return max((distance(x, y) for x, y in zip(found, wanted, strict=True)), default=0.0)


def compared(p: ModuleType, c: Call, forms: list[str]) -> dict[str, tuple[float, float, float, float]]:
    """For each form the distances from float64: results and gradients in Triton, results and gradients in PyTorch's float32."""
    c = in_float32(c)
    exact = in_float64(c)
    loop = exact.run(p, "reference")
    assert worst(loop, tuple(torch.as_tensor(x) for x in interpreted(exact))) < 1e-9
    slopes = gradients(loop, exact.arguments)
    found = {}
    for form in forms:
        both = []
        for backend in ("triton", "torch"):
            results = c.run(chosen(p, backend), form)
            both += [worst(results, loop), worst(gradients(results, c.arguments), slopes)]
        found[form] = tuple(both)
    return found


class _Chosen:
    """A package whose function runs by one backend."""

    def __init__(self, p: ModuleType, backend: str):
        self.p, self.backend = p, backend

    def __getattr__(self, name: str) -> object:
        function = getattr(self.p, name)
        return (lambda *a, **k: function(*a, backend=self.backend, **k)) if callable(function) else function


def chosen(p: ModuleType, backend: str) -> ModuleType:
    return _Chosen(p, backend)  # type: ignore[return-value]


def main(name: str, folder: Path, lengths: list[int], rows: list[int], only: str) -> None:
    p = package(name, folder)
    about = p.MANIFEST["triton"]
    for form, reason in about["refused"].items():
        print(json.dumps({"form": form, "refused": reason}), flush=True)
    forms = [f for f in about["forms"] if f in (only or f).split(",")]
    calls = {f"T={T}": {"T": T} for T in lengths}
    if rows:
        calls[f"rows {rows}"] = {"T": rows[-1], "ends": tuple(rows)}
    for what, arguments in calls.items():
        c = steady(call(name, B=1, heads=2, lengths=SIZES, **arguments))  # type: ignore[arg-type]
        for form, numbers in compared(p, c, forms).items():
            print(json.dumps({"form": form, "call": what, "distances": numbers}), flush=True)


if __name__ == "__main__":
    layer, place, tokens, ends, wanted = (sys.argv[1:] + [""] * 5)[:5]
    main(layer, Path(place), [int(x) for x in tokens.split(",") if x], [int(x) for x in ends.split(",") if x], wanted)
