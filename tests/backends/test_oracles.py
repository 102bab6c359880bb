"""Generated layers against the naive functions of an independent library: outputs and gradients to 1e-5 in float32.

Test-only dependency: flash-linear-attention 0.6.0. Functions that scale the query themselves get it multiplied back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from layers import call, distance, gradients
from torch import Tensor

# Not part of `make check`; and importing the library takes seconds, which is left to the tests.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("fla") is None, reason="flash-linear-attention is not installed")]

warnings.simplefilter("ignore")

T, K, V = 37, 8, 6


def heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in tensors)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, *, S: Tensor, z: Tensor) -> Tensor:
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn

    return naive_recurrent_linear_attn(q, k, v, scale=1.0, normalize=True, initial_state=(S, z[:, None]))[0]


def retnet(q: Tensor, k: Tensor, v: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.retention.naive import naive_retention

    (o,) = heads_first(naive_retention(*heads_first(q * K**0.5, k, v)))
    keep = (1 - 2.0 ** (-5 - torch.arange(q.shape[2]))) ** torch.arange(1, T + 1)[:, None]  # the first state, which it does not take
    return o + torch.einsum("bthk,bhkv,th->bthv", q, S, keep)


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.gla.naive import naive_recurrent_gla

    return naive_recurrent_gla(q * K**0.5, k, v, g, initial_state=S)[0]


def mamba2(x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A_log: Tensor, D: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    each = x.shape[2] // B.shape[2]
    k, q = (y.repeat_interleave(each, 2) for y in (B, C))
    return naive_recurrent_simple_gla(q, k, x * dt[..., None], -A_log.exp() * dt, scale=1.0, initial_state=S)[0] + D[:, None] * x


def deltanet(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.delta_rule.naive import delta_rule_recurrence

    return delta_rule_recurrence(*heads_first(q * K**0.5, k, v, beta), initial_state=S)[0].transpose(1, 2)


def gated_deltanet(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    each = v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(each, 2) for x in (q, k))
    return naive_recurrent_gated_delta_rule(q, k, v, beta, g, scale=1.0, initial_state=S)[0]


def deltaproduct(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, S: Tensor) -> Tensor:
    return gated_deltaproduct(q, k, v, beta, torch.zeros(q.shape[:3]), S=S)


def gated_deltaproduct(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product

    n = k.shape[3]
    steps = (x.movedim(3, 2).flatten(1, 2) for x in (k, v, beta))  # [B, T, H, n, ..] -> [B, T n, H, ..]
    k, v, beta = steps
    return naive_recurrent_gated_delta_product(q, k, v, g, beta, scale=1.0, initial_state=S, num_householder=n)[0]


def kda(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.kda.naive import naive_recurrent_kda

    return naive_recurrent_kda(q, k, v, g, beta, scale=1.0, initial_state=S)[0]


def rwkv7(r: Tensor, k: Tensor, v: Tensor, g: Tensor, e: Tensor, a: Tensor, bonus: Tensor, *, S: Tensor) -> tuple[Tensor, Tensor]:
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    o = dplr_recurrence(*heads_first(r * K**0.5, k, v, -e, a * e, g), initial_state=S)[0].transpose(1, 2)
    return o, (r * k * bonus).sum(-1, keepdim=True) * v


def comba(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, psi: Tensor, D: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.comba.naive import naive_chunk_comba

    p = psi.sigmoid()[:, None] * k
    return naive_chunk_comba(q - D[:, None] * p, k, v, p, g, beta, scale=1.0, initial_state=S)[0]


ORACLES: tuple[Callable[..., Tensor | tuple[Tensor, ...]], ...] = (
    linear_attention, retnet, gla, mamba2, deltanet, gated_deltanet, deltaproduct, gated_deltaproduct, kda, rwkv7, comba,
)  # fmt: skip


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_equals_an_independent_implementation(package, oracle: Callable, form: str) -> None:
    name = oracle.__name__
    c = call(name, T, dtype=torch.float32, lengths=_lengths(name))
    p = package(name)
    k = len(c.checked.recurrence.outputs)
    states = {s.name: x for s, x in zip(c.checked.recurrence.states, c.states, strict=True)}
    wanted = oracle(*_arguments(name, c), **states)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found = c.run(p, form)[:k]
    for x, y in zip(found, wanted, strict=True):
        assert distance(x, y) < 1e-5
    for x, y in zip(gradients(found, c.arguments), gradients(wanted, c.arguments), strict=True):
        assert distance(x, y) < 1e-5


def _arguments(name: str, c) -> tuple[Tensor, ...]:
    return (*c.inputs, *c.params)


def _lengths(name: str) -> tuple[int, ...]:
    """Axis lengths in the order in which the layer's inputs name them: K is 8, which the query's scale needs."""
    from layers import checked

    rec = checked(name).recurrence
    axes = dict.fromkeys(a for x in (*rec.inputs, *rec.params, *rec.states, *rec.outputs) for a in x.axes)
    return tuple({"K": K, "N": K}.get(a, V) for a in axes) + (V,) * 5


def test_every_layer_has_an_oracle() -> None:
    from conftest import SHIPPED
    from test_oracles_cells import ORACLES as CELLS
    from test_oracles_learned import LOOPS as LEARNED
    from test_oracles_matrix import ORACLES as MATRIX
    from test_oracles_vector import ORACLES as VECTOR

    assert {f.__name__ for f in ORACLES} | {o.layer for o in (*CELLS, *LEARNED, *MATRIX, *VECTOR)} == set(SHIPPED)
