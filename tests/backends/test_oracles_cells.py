"""Cells against oracles: loops from the papers' equations in columns, h' = R h, and the recurrent networks of PyTorch itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from oracles import Oracle, close, column, compiled, each, outer, sloped, spoken, times
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.slow  # not part of `make check`

warnings.simplefilter("ignore")


# --- Loops ---------------------------------------------------------------------------------------------------------


def elman(z: Tensor, R: Tensor, *, h: Tensor) -> Tensor:
    out = []
    for (zt,) in each(z):
        h = torch.tanh(zt + times(R.mT, h))
        out.append(h)
    return torch.stack(out, 1)


def lstm(
    zi: Tensor, zf: Tensor, zo: Tensor, zc: Tensor, Ri: Tensor, Rf: Tensor, Ro: Tensor, Rc: Tensor, *, c: Tensor, h: Tensor
) -> Tensor:  # fmt: skip
    """All four gates by one matrix."""
    R, out = torch.cat((Ri, Rf, Ro, Rc), -1).mT, []
    for now in each(zi, zf, zo, zc):
        i, f, o, new = (torch.cat(now, -1) + times(R, h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * new.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1)


def gru(zz: Tensor, zr: Tensor, zn: Tensor, Rz: Tensor, Rr: Tensor, Rn: Tensor, b: Tensor, *, h: Tensor) -> Tensor:
    out = []
    for at, rt, nt in each(zz, zr, zn):
        new = torch.tanh(nt + (rt + times(Rr.mT, h)).sigmoid() * (times(Rn.mT, h) + b))
        h = new + (at + times(Rz.mT, h)).sigmoid() * (h - new)
        out.append(h)
    return torch.stack(out, 1)


def slstm(
    zi: Tensor, zf: Tensor, zo: Tensor, zc: Tensor, Ri: Tensor, Rf: Tensor, Ro: Tensor, Rc: Tensor, bf: Tensor,
    *, c: Tensor, n: Tensor, h: Tensor,
) -> Tensor:  # fmt: skip
    """With the paper's running maximum m of the exponents; the first states are in units of e^0."""
    m, out = torch.zeros_like(c), []
    for it, ft, ot, ct in each(zi, zf, zo, zc):
        i, f = it + times(Ri.mT, h), F.logsigmoid(ft + bf + times(Rf.mT, h))
        new = torch.maximum(i, f + m)
        keep, write, m = (f + m - new).exp(), (i - new).exp(), new
        c, n = keep * c + write * (ct + times(Rc.mT, h)).tanh(), keep * n + write
        h = (ot + times(Ro.mT, h)).sigmoid() * c / n
        out.append(h)
    return torch.stack(out, 1)


def paragru(zz: Tensor, zr: Tensor, zn: Tensor, az: Tensor, ar: Tensor, an: Tensor, *, h: Tensor) -> Tensor:
    out = []
    for bz, br, bn in each(zz, zr, zn):
        z, r = (az * h + bz).sigmoid(), (ar * h + br).sigmoid()
        h = (1 - z) * h + z * (an * (h * r) + bn).tanh()
        out.append(h)
    return torch.stack(out, 1)


def paralstm(
    zf: Tensor, zc: Tensor, zo: Tensor, af: Tensor, ac: Tensor, ao: Tensor, cf: Tensor, co: Tensor, *, c: Tensor, h: Tensor
) -> Tensor:  # fmt: skip
    out = []
    for bf, bc, bo in each(zf, zc, zo):
        f, new = (af * h + cf * c + bf).sigmoid(), (ac * h + bc).tanh()
        c = f * c + (1 - f) * new
        h = (ao * h + co * c + bo).sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1)


def elstm(zf: Tensor, zc: Tensor, wf: Tensor, wc: Tensor, *, c: Tensor) -> Tensor:
    out = []
    for ft, zt in each(zf, zc):
        f, z = (ft + wf * c).sigmoid(), (zt + wc * c).tanh()
        c = f * c + (1 - f) * z
        out.append(c)
    return torch.stack(out, 1)


def sru(x: Tensor, u: Tensor, f: Tensor, r: Tensor, vf: Tensor, vr: Tensor, *, c: Tensor) -> Tensor:
    out = []
    for xt, ut, ft, rt in each(x, u, f, r):
        keep, carry = (ft + vf * c).sigmoid(), (rt + vr * c).sigmoid()
        c = keep * c + (1 - keep) * ut
        out.append(carry * c + (1 - carry) * math.sqrt(3) * xt)
    return torch.stack(out, 1)


def written(W: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """The delta rule on a matrix of columns."""
    return W + column(column(rate)) * outer(v - times(W, k), k)


def delta_rnn(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, kr: Tensor, vr: Tensor, br: Tensor, *, W: Tensor, R: Tensor, y: Tensor
) -> Tensor:  # fmt: skip
    slow, fast, out = W.mT, R.mT, []
    for qt, kt, vt, bt, krt, vrt, brt in each(q, k, v, beta, kr, vr, br):
        slow, fast = written(slow, kt, vt, bt), written(fast, krt, vrt, brt)
        y = times(slow, qt) + times(fast, y.softmax(-1))
        out.append(y)
    return torch.stack(out, 1)


def recurrent_delta_net(
    q: Tensor, k: Tensor, v: Tensor, b: Tensor, Rq: Tensor, Rk: Tensor, Rv: Tensor, rb: Tensor, *, S: Tensor, y: Tensor
) -> Tensor:  # fmt: skip
    W, out = S.mT, []
    for qt, kt, vt, bt in each(q, k, v, b):
        last = y.tanh()
        query, key = (qt + times(Rq.mT, last)).softmax(-1), (kt + times(Rk.mT, last)).softmax(-1)
        W = written(W, key, vt + times(Rv.mT, last), (bt + (rb * last).sum(-1)).sigmoid())
        y = times(W, query)
        out.append(y)
    return torch.stack(out, 1)


def srwm(
    x: Tensor, B: Tensor, Wy_init: Tensor, Wq_init: Tensor, Wk_init: Tensor, *, Wy: Tensor, Wq: Tensor, Wk: Tensor, Wb: Tensor
) -> Tensor:  # fmt: skip
    """One matrix of all rows; a block of rows is written with a rate of its own."""
    sizes, out = [w.shape[-1] for w in (Wy, Wq, Wk, Wb)], []
    W = torch.cat((Wy, Wq, Wk, Wb), -1).mT
    for (xt,) in each(x):
        y, q, k, b = times(W, xt).split(sizes, -1)
        q, k = q.softmax(-1), k.softmax(-1)
        rate = torch.cat([r.expand(*r.shape[:-1], n) for r, n in zip(b.sigmoid().split(1, -1), sizes, strict=True)], -1)
        W = W + outer(rate * times(W, q - k), k)
        out.append(y)
    return torch.stack(out, 1)


def srwm_from_its_params(x: Tensor, B: Tensor, Wy_init: Tensor, Wq_init: Tensor, Wk_init: Tensor) -> Tensor:
    first = (w.expand(len(x), -1, -1, -1) for w in (Wy_init, Wq_init, Wk_init, B))
    return srwm(x, B, Wy_init, Wq_init, Wk_init, **dict(zip(("Wy", "Wq", "Wk", "Wb"), first, strict=True)))


def m2rnn(q: Tensor, k: Tensor, v: Tensor, f: Tensor, W: Tensor, D: Tensor, *, H: Tensor) -> Tensor:
    out = []
    for qt, kt, vt, ft in each(q, k, v, f):
        keep = column(column(ft))
        H = keep * H + (1 - keep) * torch.tanh(H @ W + outer(kt, vt))
        out.append(times(H.mT, qt) + D * vt)
    return torch.stack(out, 1)


def fernn(u: Tensor, a: Tensor, b: Tensor, *, h: Tensor) -> Tensor:
    """Circular convolutions with three taps by padding; a velocity moves its field by whole places."""
    speeds, heads = range(-2, 3), range(u.shape[2])

    def ring(x: Tensor, taps: Tensor) -> Tensor:
        rows = F.pad(x.flatten(0, -2)[:, None], (1, 1), mode="circular")
        return F.conv1d(rows, taps.flip(0)[None, None])[:, 0].unflatten(0, x.shape[:-1])

    out = []
    for (ut,) in each(u):
        moved = torch.stack([torch.cat((h[:, :, n, -s:], h[:, :, n, :-s]), -1) if s else h[:, :, n] for n, s in enumerate(speeds)], 2)
        drive = torch.stack([ring(ut[:, i], a[i]) for i in heads], 1)
        h = F.relu(drive[:, :, None] + torch.stack([ring(moved[:, i], b[i]) for i in heads], 1))
        out.append(h.mean(2))
    return torch.stack(out, 1)


def homeostat(z: Tensor, g: Tensor, R: Tensor, rate: Tensor, *, h: Tensor, bar: Tensor) -> Tensor:
    out, share = [], rate.sigmoid()
    for zt, gt in each(z, g):
        h = (1 - gt) * h + gt * torch.tanh(zt + times(R.mT, h) - bar)
        bar = (1 - share) * bar + share * h
        out.append(h)
    return torch.stack(out, 1)


# --- PyTorch's own -------------------------------------------------------------------------------------------------


def by_torch(kind: type[nn.RNNBase], z: Tensor, R: Tensor, bias: Tensor, *first: Tensor) -> Tensor:
    """A network of PyTorch per head, on inputs that are pre-activations already: its own input matrix is one."""
    out = []
    for head in range(z.shape[2]):
        net = kind(z.shape[-1], first[0].shape[-1], batch_first=True, dtype=z.dtype)
        weights = {"weight_ih_l0": torch.eye(z.shape[-1], dtype=z.dtype), "weight_hh_l0": R[head].mT}
        weights |= {"bias_ih_l0": torch.zeros_like(bias[head]), "bias_hh_l0": bias[head]}
        states = tuple(s[:, head][None] for s in first)
        out.append(torch.func.functional_call(net, weights, (z[:, :, head], states if len(states) > 1 else states[0]))[0])
    return torch.stack(out, 2)


def torch_rnn(z: Tensor, R: Tensor, *, h: Tensor) -> Tensor:
    return by_torch(nn.RNN, z, R, torch.zeros_like(R[:, 0]), h)


def torch_lstm(
    zi: Tensor, zf: Tensor, zo: Tensor, zc: Tensor, Ri: Tensor, Rf: Tensor, Ro: Tensor, Rc: Tensor, *, c: Tensor, h: Tensor
) -> Tensor:  # fmt: skip
    R = torch.cat((Ri, Rf, Rc, Ro), -1)
    return by_torch(nn.LSTM, torch.cat((zi, zf, zc, zo), -1), R, torch.zeros_like(R[:, 0]), h, c)


def torch_gru(zz: Tensor, zr: Tensor, zn: Tensor, Rz: Tensor, Rr: Tensor, Rn: Tensor, b: Tensor, *, h: Tensor) -> Tensor:
    bias = torch.cat((torch.zeros_like(b), torch.zeros_like(b), b), -1)
    return by_torch(nn.GRU, torch.cat((zr, zz, zn), -1), torch.cat((Rr, Rz, Rn), -1), bias, h)


ORACLES = (
    *(Oracle(f) for f in (elman, lstm, gru, paragru, paralstm, elstm, sru, delta_rnn, recurrent_delta_net, srwm, m2rnn, homeostat)),
    Oracle(slstm, positive=("n",)), Oracle(srwm_from_its_params, "srwm", fresh=True), Oracle(fernn, sizes={"X": 7, "N": 5, "W": 3}),
    Oracle(torch_rnn, "elman"), Oracle(torch_lstm, "lstm"), Oracle(torch_gru, "gru"),
)  # fmt: skip


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_the_text_means_it(oracle: Oracle) -> None:
    close(oracle, spoken(oracle))


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_its_gradients_are_the_texts(oracle: Oracle) -> None:
    assert sloped(oracle) < 1e-6


@pytest.mark.parametrize("oracle", ORACLES, ids=str)
def test_every_form_computes_it(package: Callable[[str], ModuleType], oracle: Oracle) -> None:
    close(oracle, compiled(package, oracle))


# --- Layers with the weights of PyTorch's ----------------------------------------------------------------------------

# Layer, PyTorch's module, and our gates in its order: the targets of the project section, and the params of the op.
NETWORKS = (
    ("elman", nn.RNN, ("z",), ("R",)),
    ("lstm", nn.LSTM, ("zi", "zf", "zc", "zo"), ("Ri", "Rf", "Rc", "Ro")),
    ("gru", nn.GRU, ("zr", "zz", "zn"), ("Rr", "Rz", "Rn")),
)


@pytest.mark.parametrize("name, kind, targets, params", NETWORKS, ids=[n[0] for n in NETWORKS])
def test_layers_are_pytorchs_with_its_weights(package, name: str, kind: type[nn.RNNBase], targets, params) -> None:
    """Outputs, the gradient of the input and of every weight; PyTorch's second bias is 0 where it only adds to the first."""
    torch.manual_seed(0)
    layer, net = package(name).Layer(6).double(), kind(6, 6, batch_first=True).double()
    ours, theirs = dict(layer.named_parameters()), dict(net.named_parameters())
    pairs = []  # of a weight of ours, one of PyTorch's, and its rows
    for i, (target, param) in enumerate(zip(targets, params, strict=True)):
        rows = slice(6 * i, 6 * i + 6)
        pairs += [(f"{target}.linear.weight", "weight_ih_l0", rows), (f"{target}.linear.bias", "bias_ih_l0", rows)]
        pairs += [(param, "weight_hh_l0", rows)]
        if target == "zn":  # its second bias stands inside the reset gate
            pairs += [("b", "bias_hh_l0", rows)]
        else:
            theirs["bias_hh_l0"].data[rows] = 0
    for mine, other, rows in pairs:
        value = theirs[other].data[rows]
        ours[mine].data.copy_((value.mT if mine in params else value).reshape(ours[mine].shape))
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, _ = layer(a)
    wanted, _ = net(b)
    assert (y - wanted).abs().max() < 1e-12
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert (a.grad - b.grad).abs().max() < 1e-12
    assert {p[0] for p in pairs} == set(ours)
    for mine, other, rows in pairs:
        want = theirs[other].grad[rows].mT if mine in params else theirs[other].grad[rows]
        assert (ours[mine].grad.reshape(want.shape) - want).abs().max() < 1e-11 and want.abs().max() > 1e-3, mine
