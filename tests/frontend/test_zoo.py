"""Each layer's recurrence against a plain loop that was written from the paper's equations: float64, to 1e-12."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from zoo_deep import DEEP
from zoo_matrix import MATRIX, Array
from zoo_other import OTHER

from seqc.frontend.check import check
from seqc.frontend.derive import derive
from seqc.frontend.parser import parse, read_source
from seqc.ir import interp, model
from seqc.ir.ops import base

ROOT = Path(__file__).parents[2]
PATHS = {p.stem: p for folder in ("specs", "tests/language") for p in sorted((ROOT / folder).glob("*.seq"))}
LOOPS = MATRIX | OTHER | DEEP
TOKENS = 9
# No two axes of a layer share a length unless their text says so.
SMALL = {
    "heads": 2, "groups": 1, "K": 4, "V": 3, "D": 4, "E": 5, "N": 6, "P": 3, "C": 4, "c": 3, "m": 5, "M": 7, "L": 6, "G": 8, "model": 6,
    "n": 3, "X": 5, "steps": 4,
}  # fmt: skip
EXTRA = {"1": 1, "2": 2, "depth": 1, "depths": 4}


def layer(name: str) -> model.Model:
    file = parse(read_source(PATHS[name]))
    text = PATHS[name].read_text()
    header = text[text.index("(") : text.index("\n", text.index("("))]
    # A size that is a formula of others keeps it.
    given = {n: v for n, v in SMALL.items() if f"{n} = " in header and f"{n} = K\n" not in header}
    return check(file, sizes={"model": 6} | {n: v for n, v in given.items() if _free(header, n)}, beside=None)[0]


def _free(header: str, name: str) -> bool:
    """Whether a size's default is a number."""
    for item in header.strip("()").split(","):
        left, _, right = item.partition("=")
        if left.strip() == name:
            return right.strip().isdigit() or right.strip() == "model"
    return False


def inputs_of(layer: model.Model, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, Array]:
    """Inputs inside their declared domains."""
    made: dict[str, Array] = {}
    for i in layer.inputs:
        shape = [*([] if i.scope == "sequence" else [TOKENS]), *(sizes[base(a)] for a in i.axes)]
        x, d = rng.normal(size=shape), i.domain
        if d.unit:
            x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        if d.integer:
            x = rng.integers(0, 3, size=shape).astype(float)
        if np.isfinite(d.low) and np.isfinite(d.high):
            x = d.low + (d.high - d.low) / (1 + np.exp(-x))
        elif np.isfinite(d.high):
            x = d.high - np.abs(x)
        elif np.isfinite(d.low):
            x = d.low + np.abs(x)
        made[i.name] = x
    return made


@pytest.mark.parametrize("seed", (0, 1))
@pytest.mark.parametrize("name", sorted(LOOPS))
def test_layer_equals_its_loop(name: str, seed: int) -> None:
    found = layer(name)
    sizes = {s.name: int(s.default) for s in found.sizes if s.default is not None} | EXTRA
    rng = np.random.default_rng(seed)
    inputs = inputs_of(found, sizes, rng)
    params = {p.name: rng.normal(size=[sizes[base(a)] for a in p.axes]) * 0.5 for p in found.params}
    outputs, _ = interp.run(derive(found), inputs, params, sizes, head=1)
    loop = list(LOOPS[name](inputs, params, sizes, 1))
    assert {o.name for o in found.steps if isinstance(o, model.Output)} == set(loop[0])
    for output, value in outputs.items():
        want = np.stack([token[output] for token in loop])
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-12 * scale, err_msg=output)


def test_every_draft_has_a_loop() -> None:
    """Shipped layers have oracles as well, whose gradients are compared too: tests/backends/test_oracles.py."""
    drafts = {p.stem for p in (ROOT / "tests/language").glob("*.seq")}
    assert drafts <= set(LOOPS) <= set(PATHS)
