"""What stays in a loop over tokens, forward and backward: products with the state and what depends on them. All else is batched."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqc.compiler import Checked, check_file, check_source, programs
from seqc.forms import FORMS
from seqc.ir.expr import walk
from seqc.ir.program import BATCH, HEADS, TOKENS, Carry, Map, Program, body_roots
from seqc.source import Source

ROOT = Path(__file__).parents[2]
RECURRENT = next(f for f in FORMS if f.name == "recurrent")
CELL = """seqc 1

layer cell(M = 4, N = 3)
  input   x[M], u[N]
  param   W[M, N] = 0, U[N, N] = 0, R[N, N] = 0, b[N] = 0
  state   h[N] = 0
  let     gate = sigmoid(x @ W + b)
  let     a = tanh(u @ U)
  update  h = gate * tanh(h @ R + exp(x @ W) * a) + (1 - gate) * h
  output  o[N] = h * a + sigmoid(gate)
"""


def cell() -> Checked:
    return check_source(Source("cell.seq", CELL))


def inside(p: Program, op: str) -> list[int]:
    """How many nodes of an op each loop over tokens has, in the order of the loops."""
    return [sum(n.op.name == op for n in walk(*body_roots(s))) for s in p.stages if isinstance(s, Carry) and s.axis == TOKENS]


def test_what_inputs_give_is_computed_before_the_loop() -> None:
    built = programs(cell(), RECURRENT)
    assert inside(built.forward, "contract") == [1] and inside(built.forward, "tanh") == [1]
    assert inside(built.forward, "exp") == inside(built.forward, "sigmoid") == [0]


def test_gradients_of_weights_are_summed_after_the_loop() -> None:
    """The backward runs the cell again and then backwards: one product each, with R and with its transpose."""
    built = programs(cell(), RECURRENT)
    assert inside(built.backward, "contract") == [1, 1]
    assert not written_per_token(built.backward)


@pytest.mark.parametrize("name, forward", [("elman", 1), ("lstm", 4), ("gru", 3), ("slstm", 4), ("homeostat", 1)])
def test_cells_keep_their_recurrent_products_alone(name: str, forward: int) -> None:
    built = programs(check_file(ROOT / "specs" / f"{name}.seq"), RECURRENT)
    assert inside(built.forward, "contract") == [forward]
    assert inside(built.backward, "contract") == [forward, forward]
    assert not written_per_token(built.backward)


def written_per_token(p: Program) -> list[str]:
    """Weights' gradients that a stage names for every token: as many matrices as tokens."""
    named = [e for s in p.stages if isinstance(s, Map) for e in s.equations if TOKENS in e.value.axes]
    named += [e for s in p.stages if isinstance(s, Carry) for e in s.equations]
    return [e.name for e in named if BATCH not in e.value.axes and HEADS in e.value.axes and len(set(e.value.axes) - {TOKENS, HEADS}) > 1]
