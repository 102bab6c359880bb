"""Printed modules around plain token loops that stand for the generated op."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from conftest import ROOT

from seqc.backends.torch.module import print_module
from seqc.forms.base import unseen
from seqc.frontend.check import check
from seqc.frontend.derive import derive
from seqc.frontend.parser import parse
from seqc.ir.model import Model
from seqc.source import Source

DELTA = """
layer tiny_delta(heads = 2, K = 4, V = 3, n = 2)
  "A tiny layer."
  input   q[K], k[n, K] in unit, v[n, V], beta[n] in (0, 2)
  input   g in (-inf, 0)
  memory  S[K, V] = 0
  retain  S by decay(exp(g))
  for i in n
    learn   S by descent(rate = beta[i]) on l2(S(k[i]), v[i])
  end
  output  o[V] = S(q)
  project x -> y
    param   A_log = log(uniform(0, 16)), dt_bias = softplus_inverse(log_uniform(1e-3, 0.1))
    q = l2norm(silu(conv(linear(x), 4))) / sqrt(K)
    k = l2norm[K](silu(conv(linear(x), 4)))
    v = silu(conv(linear(x), 4, bias = true))
    beta = 2 * sigmoid(linear(x))
    g = -exp(A_log) * softplus(linear(x) + dt_bias)
    y = linear(rmsnorm(o) * silu(linear(x)))
"""

# The op of DELTA, as the package has it: [B, T, H, ...] in, (o, state) out.
DELTA_OP = """
import torch

def rows(q, cu_seqlens):
    cuts = cu_seqlens.tolist()
    return [(0, slice(a, b)) for a, b in zip(cuts, cuts[1:])]

def tiny_delta(q, k, v, beta, g, *, initial_state=None, output_final_state=False, cu_seqlens=None, form="auto"):
    B, T, H, K = q.shape
    parts = [(b, slice(0, T)) for b in range(B)] if cu_seqlens is None else rows(q, cu_seqlens)
    o = [[None] * T for _ in range(B)]
    states = []
    for i, (b, where) in enumerate(parts):
        S = q.new_zeros(H, K, v.shape[-1]) if initial_state is None else initial_state[i]
        for t in range(where.start, where.stop):
            S = g[b, t].exp()[:, None, None] * S
            for j in range(k.shape[3]):
                error = v[b, t, :, j] - torch.einsum("hk,hkv->hv", k[b, t, :, j], S)
                S = S + torch.einsum("h,hk,hv->hkv", beta[b, t, :, j], k[b, t, :, j], error)
            o[b][t] = torch.einsum("hk,hkv->hv", q[b, t], S)
        states.append(S)
    return torch.stack([torch.stack(r) for r in o]), torch.stack(states)
""".replace("k.shape[3]", "k.shape[-2]")

SHIFTED = """
layer tiny_shift(heads = 2, K = 4)
  input   q[K], k[K] per group, v[K], w[K] in (0, 1), level per sequence
  state   z[K] = 0
  update  z = z + q * w * v + k * level
  output  o[K] = z
  project x, low[K] in (0, 1) per sequence -> y
    param   m[model] = 0.5, f_bias = 3 + 3 * head / 2
    let     d[model] = shift(x) - x
    q = rope(linear(x + d * m)) + f_bias
    k = rope(linear(x))
    let     c[heads, K] = rope(linear(shift(shift(d))))
    v = headwise(c, bias = true)
    w = lerp(sigmoid(linear(linear[3](x))), 1, low)
    level = sum[K](low)
    y = linear(groupnorm(o) * layernorm(q)) + reshape(q) * m
"""

# Reads everything: o_t = sum_{s <= t} q_s w_s v_s + k_s level.
SHIFTED_OP = """
import torch

def tiny_shift(q, k, v, w, level, *, initial_state=None, output_final_state=False, cu_seqlens=None, form="auto"):
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    cuts = None if cu_seqlens is None else cu_seqlens.tolist()
    parts = [(b, slice(0, q.shape[1])) for b in range(q.shape[0])] if cuts is None else [(0, slice(*c)) for c in zip(cuts, cuts[1:])]
    o, states = torch.zeros_like(q), []
    for i, (b, t) in enumerate(parts):
        start = 0 if initial_state is None else initial_state[i]
        sums = start + (q * w * v + k * level[i][..., None])[b, t].cumsum(0) if cuts is None else None
        if sums is None:
            sums = start + (q[b, t] * w[b, t] * v[b, t] + k[b, t] * level[i][:, None]).cumsum(0)
        o[b, t] = sums
        states.append(sums[-1])
    return o, torch.stack(states)
"""


def model_of(text: str, name: str = "<string>", **sizes: int) -> Model:
    text = text if text.startswith("seqc") else "seqc 1\n" + text
    return check(parse(Source(name, text)), sizes=sizes, beside=None)[0]


def printed(model: Model) -> str:
    """The text of a module."""
    rec = derive(model)
    return print_module(model, unseen(rec), rec)


def package(tmp_path: Path, text: str, op: str, name: str = "<string>") -> ModuleType:
    """The printed module beside a hand-written op, imported as a package."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "ops.py").write_text(op)
    for shared in ("base.py", "rtrl.py"):
        (folder / shared).write_text((ROOT / "backends/torch" / shared).read_text())
    (folder / "module.py").write_text(printed(model_of(text, name)))
    for name in [n for n in sys.modules if n.split(".")[0] == "made"]:
        del sys.modules[name]
    for name in ("made", "made.module"):
        file = folder / ("__init__.py" if name == "made" else "module.py")
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)] if name == "made" else None)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules["made.module"]
