"""Memories trained at test time against a plain loop that asks autograd for the gradient of the inner objective at every token.

The loop is written from the papers' equations and shares no code with the compiler. It keeps every graph, so that the outer
gradients go through the inner ones.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from oracles import Oracle, apart, case, close, compiled, forms, sloped, spoken
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.slow  # not part of `make check`

CHUNK = 16  # tokens of a mini-batch, as the texts have it
Weights = dict[str, Tensor]
Model = Callable[[Tensor, Weights], Tensor]


def mm(x: Tensor, W: Tensor) -> Tensor:
    """Vectors [batch, heads, D] through matrices [batch, heads, D, E]."""
    return torch.einsum("bhd,bhde->bhe", x, W)


def gradients_at(W: Weights, loss: Callable[[Weights], Tensor]) -> Weights:
    """The gradient of a sum over batch and heads, which is that of each; differentiable again."""
    return dict(zip(W, torch.autograd.grad(loss(W), list(W.values()), create_graph=True), strict=True))


def online(
    model: Model, W: Weights, q: Tensor, loss: Callable[[Weights, int], Tensor], step: Callable[[Weights, Weights, Weights, int], Weights],
    *, every: int = CHUNK, late: bool = False, link: Callable[[Weights], Weights] = dict,
) -> Tensor:  # fmt: skip
    """step(first, weights, gradient, t) at every token; gradients are taken at the mini-batch's first weights. late: so are reads."""
    first, out = W, []
    for t in range(q.shape[1]):
        if t % every == 0:
            first = W
        W = step(first, W, gradients_at(link(first), lambda x, t=t: loss(x, t)), t)
        out.append(model(q[:, t], link(first if late else W)))
    return torch.stack(out, 1)


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


def wide(x: Tensor) -> Tensor:
    """A number per batch and head, beside a matrix."""
    return x[..., None, None]


# --- TTT ------------------------------------------------------------------------------------------------------------


def ttt(model: Model, W: Weights, q: Tensor, k: Tensor, v: Tensor, lr: Tensor, nu: Tensor) -> Tensor:
    """W_t = W_first - max(0, 1 / i + nu_i) sum of lr G, with i counting the mini-batch's tokens from 1."""
    total: Weights = {}

    def step(first: Weights, _: Weights, G: Weights, t: int) -> Weights:
        i = t % CHUNK
        for n, g in G.items():
            by = lr[:, t].reshape(*lr.shape[:1], lr.shape[2], *[1] * (g.dim() - 2))
            total[n] = by * g + (total[n] if i else 0)
        weight = (1 / (i + 1) + nu[:, i]).relu()
        return {n: x - weight.reshape(1, -1, *[1] * (x.dim() - 2)) * total[n] for n, x in first.items()}

    return online(model, W, q, lambda W, t: ((model(k[:, t], W) - v[:, t]) ** 2).sum() / 2, step)


def ttt_linear(q: Tensor, k: Tensor, v: Tensor, lr: Tensor, scale: Tensor, bias: Tensor, nu: Tensor, *more: Tensor, **S: Tensor) -> Tensor:
    return ttt(lambda z, W: z + normed(mm(z, W["W"]) + W["b"]) * scale + bias, {"W": S["M_W"], "b": S["M_b"]}, q, k, v, lr, nu)


def ttt_mlp(q: Tensor, k: Tensor, v: Tensor, lr: Tensor, scale: Tensor, bias: Tensor, nu: Tensor, *more: Tensor, **S: Tensor) -> Tensor:
    def model(z: Tensor, W: Weights) -> Tensor:
        return z + normed(mm(F.gelu(mm(z, W["W1"]) + W["b1"]), W["W2"]) + W["b2"]) * scale + bias

    return ttt(model, {n: S[f"M_{n}"] for n in ("W1", "b1", "W2", "b2")}, q, k, v, lr, nu)


# --- Momentum and decay -----------------------------------------------------------------------------------------------


def two_layers(S: dict[str, Tensor]) -> Weights:
    return {n: S[f"M_{n}"] for n in ("W1", "W2")}


def titans(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, eta: Tensor, alpha: Tensor, *more: Tensor, **S: Tensor) -> Tensor:
    """S_t = eta S - theta G, W_t = (1 - alpha) W + S_t."""
    speed = {n: -S[f"M_{n}_m"] for n in ("W1", "W2")}  # the layer keeps what is taken away

    def model(z: Tensor, W: Weights) -> Tensor:
        return mm(F.silu(mm(z, W["W1"])), W["W2"])

    def step(_: Weights, W: Weights, G: Weights, t: int) -> Weights:
        for n, g in G.items():
            speed[n] = wide(eta[:, t]) * speed[n] - wide(theta[:, t]) * g
        return {n: wide(1 - alpha[:, t]) * x + speed[n] for n, x in W.items()}

    return online(model, two_layers(S), q, lambda W, t: ((model(k[:, t], W) - v[:, t]) ** 2).sum(), step)


def gated_memory(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor, slow: Tensor, quick: Tensor, keep: Tensor, *more: Tensor, **S: Tensor
) -> Tensor:
    names = ("W1", "W2", "W3")
    sums = {(n, s): S[f"M_{n}_{s}"] for n in names for s in "ab"}

    def model(z: Tensor, W: Weights) -> Tensor:
        return z + mm(F.silu(mm(z, W["W1"])) * mm(z, W["W2"]), W["W3"])

    def step(_: Weights, W: Weights, G: Weights, t: int) -> Weights:
        for (n, s), x in sums.items():
            sums[n, s] = wide((slow if s == "a" else quick)[:, t]) * x + wide(rate[:, t]) * G[n]
        return {n: wide(keep[:, t]) * x - sums[n, "a"] - sums[n, "b"] for n, x in W.items()}

    def loss(W: Weights, t: int) -> Tensor:
        return (model(k[:, t], W) - v[:, t]).cosh().log().sum()

    return online(model, {n: S[f"M_{n}"] for n in names}, q, loss, step)


# --- Miras ------------------------------------------------------------------------------------------------------------


def residual(z: Tensor, W: Weights) -> Tensor:
    return z + normed(mm(F.gelu(mm(z, W["W2"])), W["W1"]))


class Sloped(torch.autograd.Function):
    """A loss by its slope; the second derivative is the slope's."""

    @staticmethod
    def forward(ctx, r: Tensor, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(slope)
        return r.new_zeros(())

    @staticmethod
    def backward(ctx, d: Tensor):  # type: ignore[no-untyped-def]
        return d * ctx.saved_tensors[0], None


def yaad(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, delta: Tensor, *more: Tensor, **S: Tensor) -> Tensor:
    """The gradient of the squared error where its norm is at most delta, else delta times the smoothed absolute one's."""

    def loss(W: Weights, t: int) -> Tensor:
        r = residual(k[:, t], W) - v[:, t]
        d = delta[:, t, :, None]
        small = r.norm(dim=-1, keepdim=True) <= d
        # log cosh(10 r) / 10 has the slope tanh(10 r)
        return torch.where(small, r**2, d * ((10 * r).abs() + F.softplus(-2 * (10 * r).abs())) / 10).sum()

    def step(_: Weights, W: Weights, G: Weights, t: int) -> Weights:
        a, e = alpha[:, t], eta[:, t]
        return {"W1": a[:, :, None] * W["W1"] - e[:, :, None] * G["W1"], "W2": a[..., None] * W["W2"] - e[..., None] * G["W2"]}

    return online(residual, two_layers(S), q, loss, step)


def moneta(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, *more: Tensor, **S: Tensor) -> Tensor:
    """A_t = alpha A - eta G, read as A / |A|_4^2; |r|^3 with the smoothed slope 3 tanh(10 r) (r^2 + 1e-6)."""

    def loss(W: Weights, t: int) -> Tensor:
        r = residual(k[:, t], W) - v[:, t]
        return Sloped.apply(r, 3 * torch.tanh(10 * r) * (r**2 + 1e-6))

    def step(_: Weights, W: Weights, G: Weights, t: int) -> Weights:
        a, e = alpha[:, t], eta[:, t]
        return {"W1": a[:, :, None] * W["W1"] - e[:, :, None] * G["W1"], "W2": a[..., None] * W["W2"] - e[..., None] * G["W2"]}

    def link(A: Weights) -> Weights:
        return {n: x / wide((x**4).sum((-2, -1)).sqrt()) for n, x in A.items()}

    return online(residual, two_layers(S), q, loss, step, late=True, link=link)


def memora(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor, *more: Tensor, **S: Tensor) -> Tensor:
    """W_t = softmax(alpha log W - eta G), row by row."""

    def step(_: Weights, A: Weights, G: Weights, t: int) -> Weights:
        e = eta[:, t]
        logs = {n: wide(alpha[:, t]) * F.log_softmax(x, -1) for n, x in A.items()}
        return {"W1": logs["W1"] - e[:, :, None] * G["W1"], "W2": logs["W2"] - e[..., None] * G["W2"]}

    def loss(W: Weights, t: int) -> Tensor:
        return ((residual(k[:, t], W) - v[:, t]) ** 2).sum()

    return online(residual, two_layers(S), q, loss, step, late=True, link=lambda A: {n: x.softmax(-1) for n, x in A.items()})


# --- Windows ----------------------------------------------------------------------------------------------------------


def last(x: Tensor, t: int, c: int) -> list[Tensor | None]:
    """The last c tokens, oldest first; None before the first token."""
    return [x[:, s] if s >= 0 else None for s in range(t - c + 1, t + 1)]


def omega(model: Model, k: Tensor, v: Tensor, gamma: Tensor) -> Callable[[Weights, int], Tensor]:
    c = gamma.shape[-1]

    def loss(W: Weights, t: int) -> Tensor:
        pairs = zip(last(k, t, c), last(v, t, c), strict=True)
        errors = [(gamma[:, t, :, j] * ((model(x, W) - y) ** 2).sum(-1)).sum() / 2 for j, (x, y) in enumerate(pairs) if x is not None]
        return torch.stack(errors).sum()

    return loss


def omeganet(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, gamma: Tensor, a: Tensor, b: Tensor, *more: Tensor, **S: Tensor) -> Tensor:
    def model(z: Tensor, W: Weights) -> Tensor:
        return z + mm(F.gelu(mm(a * z + b * z**2, W["W2"])), W["W1"])

    def step(_: Weights, W: Weights, G: Weights, t: int) -> Weights:
        return {n: wide(alpha[:, t]) * x - G[n] for n, x in W.items()}

    return online(model, two_layers(S), q, omega(model, k, v, gamma), step)


def orthogonal(G: Tensor) -> Tensor:
    X = G / (wide((G**2).sum((-2, -1)).sqrt()) + 1e-7)
    for _ in range(5):
        A = X @ X.mT
        X = 3.4445 * X - 4.7750 * A @ X + 2.0315 * A @ A @ X
    return X


def atlas(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, theta: Tensor, eta: Tensor, gamma: Tensor, *more: Tensor, **S: Tensor) -> Tensor:
    momentum = {n: S[f"M_{n}_m"] for n in ("W1", "W2")}

    def model(z: Tensor, W: Weights) -> Tensor:
        return z + mm(F.gelu(mm(z, W["W2"])), W["W1"])

    def step(_: Weights, W: Weights, G: Weights, t: int) -> Weights:
        for n, g in G.items():
            momentum[n] = wide(theta[:, t]) * momentum[n] + g
        return {n: wide(alpha[:, t]) * x - wide(eta[:, t]) * orthogonal(momentum[n]) for n, x in W.items()}

    return online(model, two_layers(S), q, omega(model, k, v, gamma), step)


def lattice(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, *more: Tensor, **S: Tensor) -> Tensor:
    """A gradient step on every slot, then back to the sphere; the gradient goes through the direction of the slot."""

    def model(z: Tensor, W: Weights) -> Tensor:
        return mm(z, W["S"] / W["S"].norm(dim=-1, keepdim=True))

    def step(_: Weights, W: Weights, G: Weights, t: int) -> Weights:
        x = W["S"] - wide(rate[:, t]) * G["S"]
        return {"S": x / x.norm(dim=-1, keepdim=True)}

    def loss(W: Weights, t: int) -> Tensor:
        return ((model(k[:, t], W) - v[:, t]) ** 2).sum() / 2

    return online(model, {"S": S["M_S"]}, q, loss, step, every=1)


E, STEPS = {"E": 7}, {"lr": 0.1, "eta": 0.1, "theta": 0.1, "rate": 0.1}
LOOPS = (
    Oracle(ttt_linear, scale=STEPS), Oracle(ttt_mlp, sizes=E, scale=STEPS), Oracle(titans, sizes=E, scale={"theta": 0.1}),
    Oracle(gated_memory, sizes=E, scale=STEPS), Oracle(yaad, sizes=E, scale={"eta": 0.1}), Oracle(moneta, sizes=E, scale={"eta": 0.01}),
    Oracle(memora, sizes=E), Oracle(omeganet, sizes=E, scale={"gamma": 0.1}), Oracle(atlas, sizes=E, scale=STEPS), Oracle(lattice),
)  # fmt: skip


@pytest.mark.parametrize("oracle", LOOPS, ids=str)
def test_the_text_means_it(oracle: Oracle) -> None:
    close(oracle, spoken(oracle))


@pytest.mark.parametrize("oracle", LOOPS, ids=str)
def test_its_gradients_are_the_texts(oracle: Oracle) -> None:
    # The smoothed sign turns within 0.1, and a loop of 37 steps sharpens it: a difference has to be smaller than that.
    assert sloped(oracle, 1e-8 if oracle.layer in ("yaad", "moneta") else 1e-6) < 1e-6


@pytest.mark.parametrize("oracle", [pytest.param(o, marks=pytest.mark.xdist_group(o.layer)) for o in LOOPS], ids=str)
def test_every_form_computes_it(package: Callable[[str], ModuleType], oracle: Oracle) -> None:
    close(oracle, compiled(package, oracle))


def test_a_reference_of_another_library(package: Callable[[str], ModuleType]) -> None:
    """With one rate for all tokens, since that reference scales the rows of the running sum and not its terms. It adds what it has read to
    its norm where the paper adds the query: from its output o = f + norm(f), less ours, f is found, and its norm is ours. float32."""
    naive = pytest.importorskip("fla.ops.ttt.naive")
    c = case(Oracle(ttt_linear, dtype=torch.float32))
    T = 2 * CHUNK
    q, k, v, lr = (x.detach()[:, :T] for x in c.inputs)
    scale, bias, nu = (x.detach() for x in c.params[:3])
    lr = torch.full_like(lr, 0.05)
    weight = (1 / torch.arange(1, CHUNK + 1) + nu).relu()[:, torch.arange(T) % CHUNK]  # [heads, T]
    names = [s.name for s in c.checked.recurrence.states]
    W, b = (c.states[names.index(n)].detach() for n in ("M.W", "M.b"))
    given = (x.clone() for x in (q, k, v, scale, bias, (lr * weight.T)[..., None]))
    theirs, last_W, last_b = naive.chunk_ttt_linear_ref(
        *given, scale=1.0, eps=1e-5, mini_batch_size=CHUNK, initial_state=W.clone(), initial_state_bias=b[:, :, None].clone(),
        output_final_state=True,
    )  # fmt: skip
    p = package("ttt_linear")
    for form in forms("ttt_linear"):
        found, last = p.ttt_linear(q, k, v, lr, *c.params, initial_state=c.states, output_final_state=True, form=form)
        normal = found - q
        assert apart(normed(theirs - normal) * scale + bias, normal) < 1e-5, form
        assert apart(last[names.index("M.W")], last_W) < 1e-5 and apart(last[names.index("M.b")], last_b[:, :, 0]) < 1e-5, form
