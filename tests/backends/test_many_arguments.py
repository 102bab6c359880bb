"""Layers with more tensors than PyTorch lets an operator have by name: they get them as a list."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from conftest import import_package
from layers import call, distance, gradients, interpreted

from seqc.compiler import check_source, compile_checked
from seqc.emit.write import write_package
from seqc.options import Options
from seqc.source import Source

INPUTS = 30  # the operator of the second derivative takes two of each, and the adjoints
NAMES = [f"x{i}" for i in range(INPUTS)]
LINES = "\n".join(f"  update  h = h * a + {n}" if i % 10 == 0 else f"  update  h = h + {n} * b" for i, n in enumerate(NAMES))
GIVEN = ", ".join(f"{n}[V]" for n in NAMES)
TEXT = f"seqc 1\n\nlayer many(V = 2)\n\n  input a in (0, 1), b, {GIVEN}\n  state h[V] = 0\n{LINES}\n  output h\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("many") / "many"
    write_package(compile_checked(check_source(Source("many.seq", TEXT)), Options(chunk_size=4)).files, folder)
    return import_package(folder, "many_arguments")


@pytest.mark.slow
@pytest.mark.parametrize("ends", [None, (0, 2, 2, 7)])
def test_values_and_two_derivatives(package: ModuleType, ends: tuple[int, ...] | None) -> None:
    c = call("", 7, spec=check_source(Source("many.seq", TEXT)), ends=ends)
    truth, loop = interpreted(c), c.run(package, "reference")

    def second(form: str) -> tuple[torch.Tensor, ...]:
        return gradients(gradients(c.run(package, form), c.arguments, create_graph=True), c.arguments, seed=2)

    for form in package.FORMS:
        found = c.run(package, form)
        assert all(distance(x, y) < 1e-12 for x, y in zip(found, truth, strict=True)), form
        assert all(distance(x, y) < 1e-12 for x, y in zip(gradients(found, c.arguments), gradients(loop, c.arguments), strict=True)), form
        assert all(distance(x, y) < 1e-11 for x, y in zip(second(form), second("reference"), strict=True)), form


@pytest.mark.slow
def test_transforms_and_shapes_alone(package: ModuleType) -> None:
    """vmap, torch.func.grad and the meta device."""
    c = call("", 7, spec=check_source(Source("many.seq", TEXT)), grad=False)
    stacked = tuple(torch.stack([x, 0.5 * x]) for x in c.inputs)
    mapped = torch.vmap(lambda *a: package.many(*a, form="scan")[0])(*stacked)
    for i in range(2):
        assert torch.equal(mapped[i], package.many(*(x[i] for x in stacked), form="scan")[0])
    slope = torch.func.grad(lambda x: package.many(x, *c.inputs[1:], form="scan")[0].sum())(c.inputs[0])
    x = c.inputs[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(package.many(x, *c.inputs[1:], form="scan")[0].sum(), x)
    assert distance(slope, wanted) < 1e-12
    found = package.many(*(x.to("meta") for x in c.inputs), form="scan")[0]
    assert found.shape == mapped.shape[1:] and found.device.type == "meta"
