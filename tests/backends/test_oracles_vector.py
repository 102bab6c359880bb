"""Layers with elementwise states, state spaces and convolutions against oracles: kernels, loops, functions of other libraries.

Time-invariant layers are compared with the convolution that they are, others with loops from the papers' equations.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from oracles import Oracle, close, column, compiled, each, outer, sloped, spoken, times
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.slow  # not part of `make check`

warnings.simplefilter("ignore")


# --- Convolutions --------------------------------------------------------------------------------------------------


def causal(x: Tensor, taps: Tensor, dilation: int = 1) -> Tensor:
    """Every channel of x [batch, tokens, heads, D] with its taps [heads, n, D], the last for the present."""
    n, rows = taps.shape[1], x.flatten(2).mT
    rows = F.pad(rows, ((n - 1) * dilation, 0))
    found = F.conv1d(rows, taps.transpose(1, 2).flatten(0, 1)[:, None], groups=rows.shape[1], dilation=dilation)
    return found.mT.unflatten(-1, x.shape[2:])


def short_conv(x: Tensor, a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return a * causal(b * x, w)


def dilated_conv(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
    return causal(x, w, 4).tanh() * causal(x, r, 4).sigmoid()


def fsmn(p: Tensor, a: Tensor) -> Tensor:
    return p + causal(p, a)


# --- Kernels of time-invariant layers ------------------------------------------------------------------------------


def spread(kernel: Tensor, u: Tensor) -> Tensor:
    """A causal convolution along tokens by the fast transform; kernel [tokens, ...], u [batch, tokens, ...]."""
    n = 2 * u.shape[1]
    return torch.fft.irfft(torch.fft.rfft(kernel, n, 0) * torch.fft.rfft(u, n, 1), n, 1)[:, : u.shape[1]]


def powers(x: Tensor, n: int) -> Tensor:
    """x^0 to x^(n - 1)."""
    return x ** torch.arange(n).reshape(-1, *[1] * x.dim())


def ema(x: Tensor, alpha: Tensor, delta: Tensor, beta: Tensor, gamma: Tensor, omega: Tensor, *, h: Tensor) -> Tensor:
    T, N = x.shape[1], alpha.shape[-1]
    p = delta.sigmoid()
    keep = powers(1 - alpha.sigmoid() * p, T + 1)
    kernel = torch.einsum("hdn,thdn->thd", p * beta * gamma, keep[:-1]) / N**0.5
    return spread(kernel, x) + torch.einsum("hdn,thdn,bhdn->bthd", gamma, keep[1:], h) / N**0.5 + omega * x


def diagonal(keep: Tensor, gain: Tensor, read: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Of h' = keep h + gain u, y = sum read h: the kernel, and what each token reads of the first state."""
    p = powers(keep, T + 1)
    return (p[:-1] * gain * read).sum(-1), p[1:] * read


def s4d(u: Tensor, log_dt: Tensor, a_re: Tensor, a_im: Tensor, c_re: Tensor, c_im: Tensor, D: Tensor, *, h: Tensor) -> Tensor:
    A, C = torch.complex(-a_re.exp(), a_im), torch.complex(c_re, c_im)
    keep = (column(log_dt.exp()) * A).exp()
    kernel, left = diagonal(keep, (keep - 1) / A, C, u.shape[1])
    return spread(2 * kernel.real, u) + 2 * torch.einsum("thn,bhn->bth", left, h).real + D * u


def bilinear(A: Tensor, B: Tensor, C: Tensor, dt: Tensor, u: Tensor, h: Tensor) -> Tensor:
    """A dense state space, one for each head, by powers of its discretised matrix."""
    eye, half = torch.eye(A.shape[-1], dtype=A.dtype), dt[:, None, None] / 2
    inverse = torch.linalg.inv(eye - half * A)
    step, gain = inverse @ (eye + half * A), times(inverse, column(dt) * B)
    kernel, left, row = [], [], C
    for _ in range(u.shape[1]):
        kernel.append((row * gain).sum(-1))
        row = (row[:, None] @ step)[:, 0]
        left.append(torch.einsum("hn,bhn->bh", row, h).real)
    return spread(torch.stack(kernel).real, u) + torch.stack(left, 1)


def lssl(u: Tensor, log_dt: Tensor, C: Tensor, D: Tensor, *, h: Tensor) -> Tensor:
    N = C.shape[-1]
    rows = [[-math.sqrt((2 * n + 1) * (2 * k + 1)) if n > k else -(n + 1.0) * (n == k) for k in range(N)] for n in range(N)]
    A = torch.tensor(rows, dtype=u.dtype)
    return bilinear(A, torch.sqrt(2 * torch.arange(N, dtype=u.dtype) + 1), C, log_dt.exp(), u, h) + D * u


def s4(
    u: Tensor, log_dt: Tensor, D: Tensor, a_re: Tensor, a_im: Tensor, p_re: Tensor, p_im: Tensor, b_re: Tensor, b_im: Tensor,
    c_re: Tensor, c_im: Tensor, *, h: Tensor,
) -> Tensor:  # fmt: skip
    p = torch.complex(p_re, p_im)
    A = torch.diag_embed(torch.complex(-a_re.exp(), a_im)) - outer(p, p.conj())
    return bilinear(A, torch.complex(b_re, b_im), torch.complex(c_re, c_im), log_dt.exp(), u, h) + D * u


def multi(keep: Tensor, gain: Tensor, B: Tensor, C: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """A diagonal state fed by all channels and read by all: powers of keep, one lag after the other."""
    p = powers(keep, x.shape[1] + 1)
    u = torch.einsum("hdn,bthd->bthn", B, x.to(B.dtype)) * gain
    out = []
    for t in range(x.shape[1]):
        state = (p[: t + 1].flip(0) * u[:, : t + 1]).sum(1) + p[t + 1] * h
        out.append(torch.einsum("hnd,bhn->bhd", C, state).real)
    return torch.stack(out, 1)


def s5(
    x: Tensor, log_dt: Tensor, a_re: Tensor, a_im: Tensor, b_re: Tensor, b_im: Tensor, c_re: Tensor, c_im: Tensor, skip: Tensor,
    *, h: Tensor,
) -> Tensor:  # fmt: skip
    A = torch.complex(a_re.clamp(max=-1e-4), a_im)
    keep = (log_dt.exp() * A).exp()
    return 2 * multi(keep, (keep - 1) / A, torch.complex(b_re, b_im), torch.complex(c_re, c_im), x, h) + skip * x


def lru(
    x: Tensor, nu: Tensor, theta: Tensor, gamma: Tensor, b_re: Tensor, b_im: Tensor, c_re: Tensor, c_im: Tensor, skip: Tensor,
    *, h: Tensor,
) -> Tensor:  # fmt: skip
    keep = torch.complex(-nu.exp(), theta.exp()).exp()
    return multi(keep, gamma.exp(), torch.complex(b_re, b_im), torch.complex(c_re, c_im), x, h) + skip * x


def linoss(u: Tensor, a: Tensor, d: Tensor, B: Tensor, C: Tensor, skip: Tensor, *, z: Tensor, y: Tensor) -> Tensor:
    """The two halves as one block matrix per oscillator."""
    A, dt = a.relu(), d.sigmoid()
    block = torch.stack((torch.stack((torch.ones_like(A), -dt * A), -1), torch.stack((dt, 1 - dt**2 * A), -1)), -2)
    both, out = torch.stack((z, y), -1), []
    for (ut,) in each(u):
        force = torch.einsum("hdn,bhd->bhn", B, ut)
        both = times(block, both) + torch.stack((dt * force, dt**2 * force), -1)
        out.append(torch.einsum("hnd,bhn->bhd", C, both[..., 1]) + skip * ut)
    return torch.stack(out, 1)


# --- Loops ---------------------------------------------------------------------------------------------------------


def rwkv4(k: Tensor, v: Tensor, w: Tensor, u: Tensor, *, num: Tensor, den: Tensor) -> Tensor:
    """Each channel: a softmax over the past with a bias linear in time, and a bonus for the present."""
    out = []
    for t in range(k.shape[1]):
        age = torch.arange(t - 1, -1, -1).reshape(-1, 1, 1)
        weights = torch.cat(((k[:, :t] - age * w.exp()).exp(), (u + k[:, t]).exp()[:, None]), 1)
        first = (-t * w.exp()).exp()
        out.append(((weights * v[:, : t + 1]).sum(1) + first * num) / (weights.sum(1) + first * den))
    return torch.stack(out, 1)


def mamba(x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A_log: Tensor, skip: Tensor, *, h: Tensor) -> Tensor:
    out = []
    for xt, Bt, Ct, dtt in each(x, B, C, dt):
        h = (-A_log.exp() * column(dtt)).exp() * h + outer(dtt * xt, Bt)
        out.append(times(h, Ct) + skip * xt)
    return torch.stack(out, 1)


def rg_lru(x: Tensor, r: Tensor, i: Tensor, a: Tensor, *, h: Tensor) -> Tensor:
    """The first token is taken whole."""
    out = []
    for t, (xt, rt, it) in enumerate(each(x, r, i)):
        keep = (-8 * rt * F.softplus(a)).exp()
        h = keep * h + ((1 - keep**2).sqrt() if t else 1.0) * it * xt
        out.append(h)
    return torch.stack(out, 1)


def filled(keep: Tensor, new: Tensor, h: Tensor) -> Tensor:
    """Every state as a mean of what came, by the weight that each token has left."""
    left = torch.cat((keep, torch.ones_like(keep[:, :1])), 1)
    out = []
    for t in range(keep.shape[1]):
        rest = left[:, 1 : t + 2].clone()
        rest[:, -1] = 1.0
        after = rest.flip(1).cumprod(1).flip(1)
        out.append(((1 - keep[:, : t + 1]) * new[:, : t + 1] * after).sum(1) + keep[:, : t + 1].prod(1) * h)
    return torch.stack(out, 1)


def hgrn(i: Tensor, f: Tensor, *, h: Tensor) -> Tensor:
    return filled(f, i, h)


def mingru(z: Tensor, c: Tensor, *, h: Tensor) -> Tensor:
    return filled(1 - z, c, h)


def minlstm(f: Tensor, i: Tensor, c: Tensor, *, h: Tensor) -> Tensor:
    return filled(f / (f + i), c, h)


def qrnn(z: Tensor, f: Tensor, o: Tensor, *, c: Tensor) -> Tensor:
    return o * filled(f, z, c)


def sru1(x: Tensor, u: Tensor, f: Tensor, r: Tensor, *, c: Tensor) -> Tensor:
    return r * filled(f, u, c).tanh() + (1 - r) * x


def gateloop(q: Tensor, k: Tensor, v: Tensor, a: Tensor, angle: Tensor, *, S: Tensor) -> Tensor:
    """Real and imaginary parts apart."""
    real, imag, out = S.real.mT, S.imag.mT, []
    for qt, kt, vt, at, turn in each(q, k, v, a, angle):
        c, s = (at * turn.cos())[..., None, :], (at * turn.sin())[..., None, :]
        real, imag = real * c - imag * s + outer(vt, kt), real * s + imag * c
        out.append(times(real, qt))
    return torch.stack(out, 1)


# --- Functions of other libraries ----------------------------------------------------------------------------------


def transformers_rwkv(k: Tensor, v: Tensor, w: Tensor, u: Tensor, *, num: Tensor, den: Tensor) -> Tensor:
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    start = [num.flatten(1), den.flatten(1), torch.zeros_like(num.flatten(1))]
    o = rwkv_linear_attention_cpu(w.flatten(), u.flatten(), k.flatten(2), v.flatten(2), start)[0]
    return o.unflatten(-1, k.shape[2:])


def transformers_mamba(x: Tensor, B: Tensor, C: Tensor, dt: Tensor, A_log: Tensor, skip: Tensor) -> Tensor:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    out = []
    for head in range(x.shape[2]):
        tokens = (y[:, :, head].mT for y in (x, dt))
        out.append(mamba_selective_scan(*tokens, -A_log[head].exp(), B[:, :, head].mT, C[:, :, head].mT, skip[head]).mT)
    return torch.stack(out, 2)


def transformers_rg_lru(x: Tensor, r: Tensor, i: Tensor, a: Tensor) -> Tensor:
    """Its scan, which forgets all before the first token; the gates are given."""
    from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    width = x.shape[2] * x.shape[3]
    module = RecurrentGemmaRglru(RecurrentGemmaConfig(lru_width=width, num_attention_heads=x.shape[2]))
    reset = torch.zeros(x.shape[0], x.shape[1], 1, dtype=torch.bool)
    reset[:, 0] = True
    keep = (-8 * r * F.softplus(a)).exp()
    given = torch.where(reset[..., None], torch.ones_like(keep), (1 - keep**2).sqrt()) * i * x
    return module._rnn_scan(given.flatten(2), keep.flatten(2), reset, None)[0].unflatten(-1, x.shape[2:])


def fla_hgrn(i: Tensor, f: Tensor, *, h: Tensor) -> Tensor:
    from fla.ops.hgrn.naive import naive_recurrent_hgrn

    return naive_recurrent_hgrn(((1 - f) * i).flatten(2), f.flatten(2).log(), h.flatten(1))[0].unflatten(-1, i.shape[2:])


LOOPS = (
    Oracle(dilated_conv, sizes={"n": 2, "d": 4}),
    *(Oracle(f) for f in (short_conv, fsmn, ema, s4d, lssl, s4, s5, lru, linoss, mamba, rg_lru, hgrn, mingru, minlstm, qrnn, sru1)),
    Oracle(rwkv4, positive=("den",)), Oracle(gateloop),
)  # fmt: skip
FLOAT = torch.float32
PEERS = (
    Oracle(transformers_rwkv, "rwkv4", FLOAT, positive=("den",)), Oracle(transformers_mamba, "mamba", FLOAT, fresh=True),
    Oracle(transformers_rg_lru, "rg_lru", FLOAT, fresh=True), Oracle(fla_hgrn, "hgrn", FLOAT),
)  # fmt: skip
ORACLES = (*LOOPS, *PEERS)


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_the_text_means_it(oracle: Oracle) -> None:
    need(oracle)
    close(oracle, spoken(oracle))


@pytest.mark.parametrize("oracle", LOOPS, ids=str)
def test_its_gradients_are_the_texts(oracle: Oracle) -> None:
    assert sloped(oracle) < 1e-6


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_every_form_computes_it(package: Callable[[str], ModuleType], oracle: Oracle) -> None:
    need(oracle)
    close(oracle, compiled(package, oracle))


def need(oracle: Oracle) -> None:
    """Functions of other libraries are there where the development extra is."""
    if oracle in PEERS:
        pytest.importorskip("transformers")
        pytest.importorskip("fla")
