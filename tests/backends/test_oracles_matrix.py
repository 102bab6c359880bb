"""Layers with a matrix memory against oracles: loops from the papers' equations, sums over the past, functions of other libraries.

Loops keep the memory in columns, V x K, and know nothing of named axes. Functions of other libraries compute in float32.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from layers import interpreted
from oracles import Oracle, apart, case, close, column, compiled, each, each_of, outer, sloped, spoken, times, wanted
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.slow  # not part of `make check`

warnings.simplefilter("ignore")


# --- Sums over the past --------------------------------------------------------------------------------------------


def past(q: Tensor, k: Tensor) -> Tensor:
    """Every query with every key up to its own: [batch, heads, tokens, tokens]."""
    return torch.einsum("bthk,bshk->bhts", q, k)


def lower(x: Tensor) -> Tensor:
    return x.tril()


def mix(weights: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhts,bshv->bthv", weights, v)


def lightning_attention(q: Tensor, k: Tensor, v: Tensor, *, S: Tensor, depth: int = 0, depths: int = 1) -> Tensor:
    T, H = q.shape[1:3]
    rate = torch.tensor([8 / H * (1 - depth / depths) * h for h in range(H)], dtype=q.dtype)
    age = torch.arange(T)[:, None] - torch.arange(T)
    keep = torch.exp(-column(column(rate)) * age.clamp(min=0))
    first = torch.exp(-rate * (torch.arange(T)[:, None] + 1))
    return mix(lower(past(q, k) * keep), v) + torch.einsum("bthk,bhkv,th->bthv", q, S, first)


def based(q: Tensor, k: Tensor, v: Tensor, *, S: Tensor, z: Tensor) -> Tensor:
    K = q.shape[-1]
    s = past(q, k) / K**0.5
    w = lower(1 + s + s**2 / 2)
    fq = torch.cat((torch.ones_like(q[..., :1]), q / K**0.25, outer(q, q).flatten(-2) / (2 * K) ** 0.5), -1)
    top = mix(w, v) + torch.einsum("bthf,bhfv->bthv", fq, S)
    return top / (w.sum(-1).mT + torch.einsum("bthf,bhf->bth", fq, z) + 1e-12)[..., None]


def rebased(q: Tensor, k: Tensor, v: Tensor, *, S: Tensor, z: Tensor) -> Tensor:
    K = q.shape[-1]
    w = lower((past(q, k) / K**0.5) ** 2)
    fq = outer(q, q).flatten(-2) / K
    top = mix(w, v) + torch.einsum("bthf,bhfv->bthv", fq, S)
    return top / (w.sum(-1).mT + torch.einsum("bthf,bhf->bth", fq, z) + 1e-5)[..., None]


def jrt(ke: Tensor, ve: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The prefix counts as tokens that every query sees."""
    K = q.shape[-1]
    s, e = past(q, k) / K**0.5, torch.einsum("bthk,bhmk->bhtm", q, ke) / K**0.5
    w, we = lower(1 + s + s**2 / 2), 1 + e + e**2 / 2
    top = mix(w, v) + torch.einsum("bhtm,bhmv->bthv", we, ve)
    return top / ((w.sum(-1) + we.sum(-1)).mT + 1e-12)[..., None]


def jrt_later(ke: Tensor, ve: Tensor, q: Tensor, k: Tensor, v: Tensor, *, S: Tensor, z: Tensor) -> Tensor:
    """With states of its own the prefix is not read again."""
    return based(q, k, v, S=S, z=z) + 0 * (ke.sum() + ve.sum())


def abc(q: Tensor, k: Tensor, v: Tensor, s: Tensor, *, keys: Tensor, values: Tensor, den: Tensor) -> Tensor:
    """A softmax over time for every slot; the first states count as one more entry."""
    q, k, v, s = (x.transpose(1, 2) for x in (q, k, v, s))
    T, out = q.shape[2], []
    for t in range(T):
        logits = torch.cat((den.log()[:, :, None], s[:, :, : t + 1]), 2)
        w = logits.softmax(2)
        slots = [torch.einsum("bhtm,bhtmx->bhmx", w, torch.cat((first[:, :, None] / den[:, :, None, :, None], x[:, :, : t + 1, None].expand(
            *x.shape[:2], t + 1, den.shape[-1], x.shape[-1])), 2)) for first, x in ((keys, k), (values, v))]  # fmt: skip
        read = (times(slots[0], q[:, :, t]) / q.shape[-1] ** 0.5).softmax(-1)
        out.append(times(slots[1].mT, read))
    return torch.stack(out, 1)


def lightnet(q: Tensor, k: Tensor, v: Tensor, *, S: Tensor, z: Tensor) -> Tensor:
    """Every key channel is a softmax over time."""
    out = []
    for t in range(q.shape[1]):
        w = torch.cat((z.log()[:, None], k[:, : t + 1]), 1).softmax(1)
        entries = torch.cat(((S / column(z))[:, None], v[:, : t + 1, :, None].expand(-1, -1, -1, z.shape[-1], -1)), 1)
        out.append(torch.einsum("bhk,bshk,bshkv->bhv", q[:, t], w, entries))
    return torch.stack(out, 1)


def aaren(k: Tensor, v: Tensor, query: Tensor, *, num: Tensor, den: Tensor) -> Tensor:
    s = torch.einsum("hk,bthk->bth", query, k) / k.shape[-1] ** 0.5
    out = []
    for t in range(k.shape[1]):
        w = torch.cat((den.log()[:, None], s[:, : t + 1]), 1).softmax(1)
        out.append((column(w) * torch.cat(((num / column(den))[:, None], v[:, : t + 1]), 1)).sum(1))
    return torch.stack(out, 1)


def rotary(q: Tensor, k: Tensor, v: Tensor, *, S: Tensor) -> Tensor:
    """The memory itself turns: pairs of keys are complex numbers, and Z = e^(i angle) Z + conj(k) v."""
    qc, kc = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) for x in (q, k))
    P = qc.shape[-1]
    turn = torch.polar(torch.ones(P, dtype=q.dtype), 10000.0 ** (-torch.arange(P, dtype=q.dtype) / P))
    first = torch.view_as_complex(S.unflatten(-2, (-1, 2)).transpose(-1, -2).contiguous()).conj()
    Z, out = first / turn[:, None], []
    for qt, kt, vt in each(qc, kc, v):
        Z = turn[:, None] * Z + outer(kt.conj(), vt.to(kt.dtype))
        out.append((qt[..., None] * Z).real.sum(-2))
    return torch.stack(out, 1)


# --- Loops: decays -------------------------------------------------------------------------------------------------


def hgrn2(q: Tensor, v: Tensor, f: Tensor, *, S: Tensor) -> Tensor:
    S, out = S.mT, []
    for qt, vt, ft in each(q, v, f):
        S = S * ft[..., None, :] + outer(vt, 1 - ft)
        out.append(times(S, qt))
    return torch.stack(out, 1)


def mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *, C: Tensor, n: Tensor) -> Tensor:
    """With the paper's stabiliser, which starts at 0."""
    C, m, out = C.mT, torch.zeros_like(n[..., 0]), []
    for qt, kt, vt, it, ft in each(q, k, v, i, f):
        log_f = F.logsigmoid(ft)
        new = torch.maximum(log_f + m, it)
        keep, write, m = (log_f + m - new).exp(), (it - new).exp(), new
        C = keep[..., None, None] * C + write[..., None, None] * outer(vt, kt)
        n = keep[..., None] * n + write[..., None] * kt
        out.append(times(C, qt) / torch.maximum((n * qt).sum(-1).abs(), (-m).exp())[..., None])
    return torch.stack(out, 1)


def rwkv5(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, *, S: Tensor) -> Tensor:
    S, out = S.mT, []
    for rt, kt, vt in each(r, k, v):
        out.append(times(S + outer(vt, u * kt), rt))
        S = S * (-w.exp()).exp()[:, None, :] + outer(vt, kt)
    return torch.stack(out, 1)


def rwkv6(r: Tensor, k: Tensor, v: Tensor, g: Tensor, u: Tensor, *, S: Tensor) -> Tensor:
    S, out = S.mT, []
    for rt, kt, vt, gt in each(r, k, v, g):
        out.append(times(S + outer(vt, u * kt), rt))
        S = S * gt.exp()[..., None, :] + outer(vt, kt)
    return torch.stack(out, 1)


def gsa(q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, A: Tensor, B: Tensor) -> Tensor:
    A, out = A.mT, []
    for qt, kt, vt, gt in each(q, k, v, g):
        keep = gt.exp()
        A = keep[..., None] * A + outer(1 - keep, kt)
        B = keep[..., None] * B + outer(1 - keep, vt)
        out.append(times(B.mT, times(A, qt).softmax(-1)))
    return torch.stack(out, 1)


def mamba3(
    x: Tensor, B: Tensor, C: Tensor, dt: Tensor, a: Tensor, lam: Tensor, angle: Tensor, B_bias: Tensor, C_bias: Tensor, D: Tensor,
    *, theta: Tensor, S: Tensor,
) -> Tensor:  # fmt: skip
    """Complex keys turn; the trapezoid weighs the last token's write with its own time's rotation."""

    def turned(y: Tensor, bias: Tensor, by: Tensor) -> Tensor:
        pairs = torch.view_as_complex((y + bias).unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(by), by)
        return torch.view_as_real(pairs).flatten(-2)

    S, out, write = S.mT, [], torch.zeros_like(S.mT)
    for xt, Bt, Ct, dtt, at, lamt, turn in each(x, B, C, dt, a, lam, angle):
        theta = theta + math.pi * column(dtt) * turn[:, None].tanh()
        before, write = write, outer(xt, turned(Bt, B_bias, theta))
        keep, step, share = ((at * dtt).exp()[..., None, None], dtt[..., None, None], lamt[..., None, None])
        S = keep * S + (1 - share) * step * keep * before + share * step * write
        out.append(times(S, turned(Ct, C_bias, theta)) + column(D) * xt)
    return torch.stack(out, 1)


def swla(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, gamma: Tensor, *, M: Tensor) -> Tensor:
    M, out, c = M.mT, [], gamma.shape[-1]
    for t in range(q.shape[1]):
        M = alpha[:, t, :, None, None] * M
        for j in range(max(0, t - c + 1), t + 1):
            M = M + gamma[:, t, :, j - t + c - 1, None, None] * outer(v[:, j], k[:, j])
        out.append(times(M, q[:, t]))
    return torch.stack(out, 1)


def log_linear(q: Tensor, k: Tensor, v: Tensor, level: Tensor, g: Tensor, *, S: Tensor) -> Tensor:
    """The Fenwick tree: at token t the levels below its lowest one bit are emptied into the next."""
    levels, out = list(S.mT.unbind(2)), []
    for t, (qt, kt, vt, lt, gt) in enumerate(each(q, k, v, level, g)):
        low = (t & -t).bit_length() - 1 if t else len(levels)
        total = sum(levels[: low + 1])
        levels = [torch.zeros_like(x) if i <= low else x + total if i == low + 1 else x for i, x in enumerate(levels)]
        levels = [gt.exp()[..., None, None] * x for x in levels]
        levels[0] = levels[0] + outer(vt, kt)
        out.append(sum(lt[..., i, None] * times(x, qt) for i, x in enumerate(levels)))
    return torch.stack(out, 1)


# --- Loops: corrections --------------------------------------------------------------------------------------------


def gdn2(q: Tensor, k: Tensor, v: Tensor, e: Tensor, w: Tensor, g: Tensor, *, S: Tensor) -> Tensor:
    S, out = S.mT, []
    for qt, kt, vt, et, wt, gt in each(q, k, v, e, w, g):
        S = S * gt.exp()[..., None, :]
        S = S - outer(times(S, et * kt), kt) + outer(wt * vt, kt)
        out.append(times(S, qt))
    return torch.stack(out, 1)


def preconditioned(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, b: Tensor, g: Tensor, h: Tensor, c: Tensor, *, a: Tensor, S: Tensor
) -> Tensor:
    S, out = S.mT, []
    for qt, kt, vt, beta_t, bt, gt, ht in each(q, k, v, beta, b, g, h):
        a = column(ht.exp()) * a + column(bt) * kt**2
        r = (a + 1e-6).log() - column(c)
        key = kt * 1.5 ** (-r / (1 + r.abs()))
        S = S * (gt if gt.dim() == kt.dim() else gt[..., None]).exp()[..., None, :]
        S = S + outer(column(beta_t) * (vt - times(S, kt)), key)
        out.append(times(S, qt))
    return torch.stack(out, 1)


def gated_oja(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, *, S: Tensor) -> Tensor:
    S, out = S.mT, []
    for qt, kt, vt, beta_t, gt in each(q, k, v, beta, g):
        S = gt.exp()[..., None] * S
        S = S + outer(vt, column(beta_t) * (kt - times(S.mT, vt)))
        out.append(times(S, qt))
    return torch.stack(out, 1)


def longhorn(x: Tensor, q: Tensor, k: Tensor, eta: Tensor, skip: Tensor, *, S: Tensor) -> Tensor:
    """The minimiser of |S - S_before|^2 + eta (s k - x)^2, row by row, from its normal equations."""
    S, out = S.mT, []
    for xt, qt, kt, et in each(x, q, k, eta):
        left = torch.eye(kt.shape[-1], dtype=kt.dtype) + et[..., None, None] * outer(kt, kt)[..., None, :, :]
        S = torch.linalg.solve(left, S + (et * xt)[..., None] * kt[..., None, :])
        out.append(times(S, qt) + skip * xt)
    return torch.stack(out, 1)


def longhorn_diagonal(x: Tensor, q: Tensor, k: Tensor, eta: Tensor, skip: Tensor, *, S: Tensor) -> Tensor:
    out = []
    for xt, qt, kt, et in each(x, q, k, eta):
        e = et / (1 + et * (kt**2).sum(-1, keepdim=True))
        S = (1 - outer(e, kt**2)) * S + outer(e * xt, kt)
        out.append(times(S, qt) + skip * xt)
    return torch.stack(out, 1)


def titans_linear(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, eta: Tensor, alpha: Tensor, *, M: Tensor, M_m: Tensor) -> Tensor:
    """Surprise by autograd of the squared error. A step is taken along it, so the carried sum has the other sign here."""
    W, surprise, out = M.mT, -M_m.mT, []
    for qt, kt, vt, tt, et, at in each(q, k, v, theta, eta, alpha):
        with torch.enable_grad():
            here = W if W.requires_grad else W.detach().requires_grad_()
            loss = ((times(here, kt) - vt) ** 2).sum()
            (slope,) = torch.autograd.grad(loss, here, create_graph=True)
        surprise = et[..., None, None] * surprise - tt[..., None, None] * slope
        W = (1 - at)[..., None, None] * W + surprise
        out.append(times(W, qt))
    return torch.stack(out, 1)


def yaad_linear(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, delta: Tensor, *, M: Tensor) -> Tensor:
    """One step along the gradient of the loss by autograd: the square inside the ball; outside delta times what slopes like tanh(10 r)."""
    W, out = M.mT, []
    for qt, kt, vt, et, at, dt in each(q, k, v, eta, alpha, delta):
        with torch.enable_grad():
            here = W if W.requires_grad else W.detach().requires_grad_()
            r = times(here, kt) - vt
            loss = torch.where(r.norm(dim=-1) <= dt, (r**2).sum(-1), dt * (10 * r).cosh().log().sum(-1) / 10).sum()
            (slope,) = torch.autograd.grad(loss, here, create_graph=True)
        W = at[..., None, None] * W - et[..., None, None] * slope
        out.append(times(W, qt))
    return torch.stack(out, 1)


def moneta_linear(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, *, M: Tensor) -> Tensor:
    """The paper smooths the slope 3 sign(r) r^2, not the loss; autograd takes it from the read to the memory."""
    W, out = M.mT, []
    for qt, kt, vt, et, at in each(q, k, v, eta, alpha):
        with torch.enable_grad():
            here = W if W.requires_grad else W.detach().requires_grad_()
            read = times(here, kt)
            r = read - vt
            (slope,) = torch.autograd.grad(read, here, 3 * torch.tanh(10 * r) * (r**2 + 1e-6), create_graph=True)
        W = at[..., None, None] * W - et[..., None, None] * slope
        out.append(times(W, qt))
    return torch.stack(out, 1)


def momentum_deltanet(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, mu: Tensor, eta: Tensor, beta: Tensor, *, S: Tensor, S_m: Tensor
) -> Tensor:
    S, M, out = S.mT, S_m.mT, []
    for qt, kt, vt, at, mt, et, bt in each(q, k, v, alpha, mu, eta, beta):
        S = at[..., None, None] * S
        M = mt[..., None, None] * M - outer(column(et) * (vt - times(S, kt)), kt)
        S = S - bt[..., None, None] * M
        out.append(times(S, qt))
    return torch.stack(out, 1)


def omega_linear(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, gamma: Tensor, *, M: Tensor) -> Tensor:
    M, out, c = M.mT, [], gamma.shape[-1]
    for t in range(q.shape[1]):
        step = torch.zeros_like(M)
        for j in range(max(0, t - c + 1), t + 1):
            weight = gamma[:, t, :, j - t + c - 1, None, None]
            step = step + weight * outer(times(M, k[:, j]) - v[:, j], k[:, j])
        M = alpha[:, t, :, None, None] * M - step
        out.append(times(M, q[:, t]))
    return torch.stack(out, 1)


def mesanet(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, ridge: Tensor, *, H: Tensor, G: Tensor) -> Tensor:
    floor, out = torch.diag_embed(F.softplus(ridge) + 0.25), []
    for qt, kt, vt, bt, gt in each(q, k, v, beta, g):
        H = gt.exp()[..., None, None] * H + bt[..., None, None] * outer(kt, kt)
        G = gt.exp()[..., None, None] * G + bt[..., None, None] * outer(kt, vt)
        out.append(times(G.mT, times(torch.linalg.inv(H + floor), qt)))
    return torch.stack(out, 1)


# --- Functions of other libraries -----------------------------------------------------------------------------------


def heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in tensors)


def gla_of_hgrn2(q: Tensor, v: Tensor, f: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.gla.naive import naive_recurrent_gla

    return naive_recurrent_gla(q * q.shape[-1] ** 0.5, 1 - f, v, f.log(), initial_state=S)[0]


def fla_rwkv6(r: Tensor, k: Tensor, v: Tensor, g: Tensor, u: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6

    return naive_recurrent_rwkv6(*heads_first(r, k, v, g), u, scale=1.0, initial_state=S)[0].transpose(1, 2)


def fla_rwkv5(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, *, S: Tensor) -> Tensor:
    return fla_rwkv6(r, k, v, (-w.exp()).expand(k.shape), u, S=S)


def fla_gsa(q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, A: Tensor, B: Tensor) -> Tensor:
    from fla.ops.gsa.naive import naive_recurrent_gsa

    return naive_recurrent_gsa(q, k, v, 1 - g.exp(), g, scale=1.0, initial_state=(A, B))[0]


def fla_abc(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> Tensor:
    from fla.ops.abc.naive import naive_recurrent_abc

    return naive_recurrent_abc(*heads_first(q, k, v, s))[0].transpose(1, 2)


def fla_gdn2(q: Tensor, k: Tensor, v: Tensor, e: Tensor, w: Tensor, g: Tensor, *, S: Tensor) -> Tensor:
    from fla.ops.gdn2.naive import naive_recurrent_gdn2

    return naive_recurrent_gdn2(q, k, v, g, e, w, scale=1.0, initial_state=S)[0]


def fla_precond(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, b: Tensor, g: Tensor, h: Tensor, c: Tensor, *, a: Tensor, S: Tensor
) -> Tensor:
    from fla.ops.precond_kda.naive import naive_recurrent_precond_kda as naive

    g = g if g.dim() == q.dim() else g[..., None].expand(q.shape)
    return naive(q, k, v, g, h, b, beta, scale=1.0, initial_state=S, initial_A_state=a, log_atk_scale=c)[0]


def fla_momentum(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, mu: Tensor, eta: Tensor, beta: Tensor, *, S: Tensor, S_m: Tensor
) -> Tensor:
    from fla.ops.momentum_delta_rule.naive import recurrent_momentum_delta_rule_ref as naive

    return naive(q, k, v, alpha.log(), mu.log(), column(alpha) * k, beta, eta, scale=1.0, initial_S=S, initial_M=S_m)[0]


def fla_log_linear(q: Tensor, k: Tensor, v: Tensor, level: Tensor, g: Tensor) -> Tensor:
    from fla.ops.log_linear_attn.naive import naive_log_linear_attn

    return naive_log_linear_attn(q, k, v, g, level)


def fla_mesanet(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, ridge: Tensor, *, H: Tensor, G: Tensor) -> Tensor:
    from fla.ops.mesa_net.naive import naive_mesa_net_exact

    return naive_mesa_net_exact(q, k, v, g, F.softplus(ridge) + 0.25, beta, H, G)[0]


def xlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *, C: Tensor, n: Tensor) -> Tensor:
    """Takes its states in their own type, and an epsilon in the denominator, which the paper has not."""
    from transformers.models.xlstm.modeling_xlstm import mlstm_recurrent_sequence_native as native

    start = torch.zeros_like(n[..., :1])
    return native(*heads_first(q * q.shape[-1] ** 0.5, k, v, i, f), C, n, start, eps=0.0, dtype_state=torch.float64).transpose(1, 2)


LOOPS = (
    Oracle(lightning_attention), Oracle(based, sizes={"K": 3, "F": 13}), Oracle(rebased, sizes={"K": 3, "F": 9}, positive=("z",)),
    Oracle(jrt, sizes={"K": 3, "F": 13}, fresh=True), Oracle(jrt_later, of="jrt", sizes={"K": 3, "F": 13}),
    Oracle(abc, positive=("den",), scale={"s": 0.8}), Oracle(lightnet, positive=("z",)), Oracle(aaren, positive=("den",)),
    Oracle(rotary, sizes={"K": 6, "R": 3}),
    Oracle(hgrn2), Oracle(mlstm), Oracle(rwkv5), Oracle(rwkv6), Oracle(gsa), Oracle(mamba3), Oracle(swla), Oracle(log_linear), Oracle(gdn2),
    Oracle(preconditioned, of="precond_gdn", positive=("a",)), Oracle(preconditioned, of="precond_kda", positive=("a",)), Oracle(gated_oja),
    Oracle(longhorn), Oracle(longhorn_diagonal), Oracle(titans_linear), Oracle(momentum_deltanet), Oracle(yaad_linear),
    Oracle(moneta_linear), Oracle(omega_linear), Oracle(mesanet, positive=("H",)),
)  # fmt: skip


FLOAT = torch.float32
PEERS = (
    Oracle(gla_of_hgrn2, "hgrn2", FLOAT), Oracle(fla_rwkv6, "rwkv6", FLOAT), Oracle(fla_rwkv5, "rwkv5", FLOAT),
    Oracle(fla_gsa, "gsa", FLOAT), Oracle(fla_abc, "abc", FLOAT, scale={"s": 0.8}, fresh=True), Oracle(fla_gdn2, "gdn2", FLOAT),
    Oracle(fla_precond, "precond_gdn", FLOAT, positive=("a",)), Oracle(fla_precond, "precond_kda", FLOAT, positive=("a",)),
    Oracle(fla_momentum, "momentum_deltanet", FLOAT), Oracle(fla_log_linear, "log_linear", FLOAT, fresh=True),
    Oracle(fla_mesanet, "mesanet", FLOAT, sizes={"V": 4}, positive=("H",)), Oracle(xlstm, "mlstm"),
)  # fmt: skip
ORACLES = (*LOOPS, *PEERS)


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_the_text_means_it(oracle: Oracle) -> None:
    need(oracle)
    close(oracle, spoken(oracle))


@pytest.mark.parametrize("oracle", LOOPS, ids=str)
def test_its_gradients_are_the_texts(oracle: Oracle) -> None:
    assert sloped(oracle) < 1e-6


@pytest.mark.parametrize("oracle", each_of(*ORACLES))
def test_every_form_computes_it(package: Callable[[str], ModuleType], oracle: Oracle) -> None:
    need(oracle)
    close(oracle, compiled(package, oracle))


def need(oracle: Oracle) -> None:
    """Functions of other libraries are there where the development extra is."""
    if oracle in PEERS:
        pytest.importorskip("fla")


def test_lightning_attention_knows_its_depth() -> None:
    oracle = Oracle(lightning_attention)
    c = case(oracle, depth=3, depths=4)
    assert apart(interpreted(c)[0], wanted(oracle, c, depth=3, depths=4)[0]) < 1e-9
    assert apart(interpreted(c)[0], wanted(oracle, c)[0]) > 1e-3
