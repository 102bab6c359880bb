"""Memories that a block of tokens shares: calls that begin and end inside a block, packed rows, and how much a longer block costs.

What every layer meets, hand-off at every split included, is in test_equivalence.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from layers import call, distance, gradients

from seqc.compiler import check_file, judge, prepared, with_short_blocks
from seqc.forms import FORMS, Applies, Refuses
from seqc.ir.expr import walk
from seqc.ir.program import Map, Program, body_roots
from seqc.options import Options

LAYERS = ("titans", "ttt_linear", "ttt_mlp", "memora", "omeganet")
BLOCK = 16
CHUNKWISE = next(f for f in FORMS if f.name == "chunkwise")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in LAYERS])
@pytest.mark.parametrize("ends", (None, (0, 5, 5, 6, 2 * BLOCK + 3)))
@pytest.mark.parametrize("positions", ((3, BLOCK - 1, 0, 7), (BLOCK + 2, 2 * BLOCK, 5, 1)))
def test_a_call_may_begin_anywhere_in_a_block(package, name: str, ends: tuple[int, ...] | None, positions: tuple[int, ...]) -> None:
    p = package(name)
    c = call(name, 2 * BLOCK + 3, ends=ends)
    states = list(c.states)
    at = next(i for i, s in enumerate(c.checked.recurrence.states) if s.name == "position")
    states[at] = torch.tensor(positions[: len(states[at])], dtype=states[at].dtype)
    c = replace(c, states=tuple(states))
    truth = c.run(p, "reference")
    wanted = gradients(truth, c.arguments)
    found = c.run(p, "chunkwise")
    assert all(distance(x, y) < 1e-9 for x, y in zip(found, truth, strict=True))
    assert all(distance(x, y) < 1e-9 for x, y in zip(gradients(found, c.arguments), wanted, strict=True))


def lowered(path: Path, **sizes: int) -> Program:
    return CHUNKWISE.lower(prepared(c := check_file(path, Options(sizes=tuple(sizes.items())))), c.sizes).program


@pytest.mark.parametrize("name", ("titans", "ttt_mlp"))
def test_a_longer_block_has_no_more_operations(name: str) -> None:
    counts = []
    for C in (4, 64):
        program = lowered(ROOT / f"specs/{name}.seq", C=C)
        roots = [r for s in program.stages for r in ([e.value for e in s.equations] if isinstance(s, Map) else body_roots(s))]
        counts.append(sum(1 for _ in walk(*roots)))
    assert counts[0] == counts[1]


def test_the_proof_takes_short_blocks() -> None:
    checked = check_file(ROOT / "specs/titans.seq")
    small = with_short_blocks(checked, Options())
    assert {s.clock.every for s in checked.recurrence.states} == {None, BLOCK}
    assert {s.clock.every for s in small.recurrence.states} == {None, 3}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("learn M by descent(rate = r) on l2(M(k), v + start(M, 8)(k)) at start(M, 4)", "blocks of another length"),
        ("retain M by sphere()\n  learn M by descent(rate = r) on l2(M(k), v) at start(M, 4)", "a factor of `M` depends on it"),
    ],
)
def test_what_a_chunk_cannot_share_is_refused(tmp_path: Path, body: str, reason: str) -> None:
    lines = ("input q[K], k[K], v[V], r in (0, 1)", "memory M[K, V] = 0", body, "output o[V] = M(q)")
    (tmp_path / "shared.seq").write_text("seqc 1\n\nlayer shared(K = 3, V = 2)\n  " + "\n  ".join(lines) + "\n")
    verdicts = judge(check_file(tmp_path / "shared.seq"))
    assert isinstance(verdicts["chunkwise"], Refuses) and reason in verdicts["chunkwise"].reason, verdicts["chunkwise"]
    assert isinstance(verdicts["recurrent"], Applies)
