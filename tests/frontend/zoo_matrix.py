"""Matrix memories as plain loops in columns (S is dv x dk), written from the papers' equations and sharing nothing with the compiler.

A loop takes inputs [T, ...], params, sizes and the head's number, and yields the outputs of one token after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray
Arrays = dict[str, Any]
Sizes = dict[str, int]
Outputs = Iterator[dict[str, Array]]
Loop = Callable[[Arrays, Arrays, Sizes, int], Outputs]


def sigmoid(x: Any) -> Any:
    return (1 + np.tanh(x / 2)) / 2


def softplus(x: Any) -> Any:
    return np.log1p(np.exp(x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max()) if x.size else x
    return e / e.sum() if x.size else e


def tokens(x: dict[str, Array]) -> Iterator[Any]:
    """The inputs of each token, as attributes."""
    length = max(len(v) for v in x.values())
    for t in range(length):
        yield type("Token", (), {n: v[t] for n, v in x.items() if len(v) == length} | {"t": t})


def zeros(n: dict[str, int]) -> Array:
    return np.zeros((n["V"], n["K"]))


def linear_attention(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S, z = zeros(n), np.zeros(n["K"])
    for i in tokens(x):
        S, z = S + np.outer(i.v, i.k), z + i.k
        yield {"o": S @ i.q / (z @ i.q + 1e-10)}


def retnet(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = (1 - 2.0 ** (-5 - head)) * S + np.outer(i.v, i.k)
        yield {"o": S @ i.q}


def gla(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = S @ np.diag(np.exp(i.g)) + np.outer(i.v, i.k)
        yield {"o": S @ i.q}


def hgrn2(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = S @ np.diag(i.f) + np.outer(i.v, 1 - i.f)
        yield {"o": S @ i.q}


def mamba2(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = np.zeros((n["P"], n["N"]))
    for i in tokens(x):
        S = np.exp(-np.exp(p["A_log"]) * i.dt) * S + np.outer(i.dt * i.x, i.B)
        yield {"y": S @ i.C + p["D"] * i.x}


def delta(S: Array, k: Array, v: Array, beta: Any) -> Array:
    """The erasing and writing step of the delta rule."""
    return S @ (np.eye(len(k)) - beta * np.outer(k, k)) + beta * np.outer(v, k)


def deltanet(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = delta(S, i.k, i.v, i.beta)
        yield {"o": S @ i.q}


def gated_deltanet(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = delta(np.exp(i.g) * S, i.k, i.v, i.beta)
        yield {"o": S @ i.q}


def kda(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = delta(S @ np.diag(np.exp(i.g)), i.k, i.v, i.beta)
        yield {"o": S @ i.q}


def gated_deltaproduct(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = np.exp(i.g) * S
        for j in range(n["n"]):
            S = delta(S, i.k[j], i.v[j], i.beta[j])
        yield {"o": S @ i.q}


def deltaproduct(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        for j in range(n["n"]):
            S = delta(S, i.k[j], i.v[j], i.beta[j])
        yield {"o": S @ i.q}


def comba(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        read = sigmoid(p["psi"]) * i.k
        # beta / sigmoid(psi) cancels the psi that the gradient in p carries.
        S = np.exp(i.g) * S - i.beta * np.outer(S @ read - i.v, i.k)
        yield {"o": S @ (i.q - p["D"] * read)}


def rwkv7(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = S @ (np.diag(np.exp(i.g)) - np.outer(i.e, i.e * i.a)) + np.outer(i.v, i.k)
        yield {"o": S @ i.r, "p": (i.r * i.k * p["bonus"]).sum() * i.v}


def rwkv6(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        o = (S + np.outer(i.v, p["u"] * i.k)) @ i.r
        S = S @ np.diag(np.exp(i.g)) + np.outer(i.v, i.k)
        yield {"o": o}


def gdn2(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = S @ np.diag(np.exp(i.g))
        S = S - np.outer(S @ (i.e * i.k), i.k) + np.outer(i.w * i.v, i.k)
        yield {"o": S @ i.q}


def gated_oja(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        S = np.diag(np.exp(i.g)) @ S
        S = S + np.outer(i.v, i.beta * (i.k - S.T @ i.v))
        yield {"o": S @ i.q}


def longhorn_diagonal(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = np.zeros((n["D"], n["N"]))
    for i in tokens(x):
        eps = i.eta / (1 + i.eta * (i.k @ i.k))
        S = (1 - np.outer(eps, i.k * i.k)) * S + np.outer(eps * i.x, i.k)
        yield {"o": S @ i.q + p["skip"] * i.x}


def mesanet(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    H, G = np.zeros((n["K"], n["K"])), zeros(n)
    for i in tokens(x):
        H = np.exp(i.g) * H + i.beta * np.outer(i.k, i.k)
        G = np.exp(i.g) * G + i.beta * np.outer(i.v, i.k)
        yield {"o": G @ np.linalg.inv(H + np.diag(softplus(p["ridge"]) + 0.25)) @ i.q}


def mesanet_cg(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    H, G = np.zeros((n["K"], n["K"])), zeros(n)
    for i in tokens(x):
        H = np.exp(i.g) * H + i.beta * np.outer(i.k, i.k)
        G = np.exp(i.g) * G + i.beta * np.outer(i.v, i.k)
        A = H + np.diag(softplus(p["ridge"]) + 0.25)
        y, r, d = np.zeros(n["K"]), i.q.copy(), i.q.copy()
        for _ in range(n["steps"]):
            step = (r @ r) / (d @ A @ d + 1e-5)
            y, s = y + step * d, r - step * (A @ d)
            d, r = s + (s @ s) / (r @ r + 1e-5) * d, s
        yield {"o": G @ y}


def momentum_deltanet(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S, M = zeros(n), zeros(n)
    for i in tokens(x):
        M = i.mu * M - i.eta * np.outer(i.v - i.alpha * S @ i.k, i.k)
        S = i.alpha * S - i.beta * M
        yield {"o": S @ i.q}


def titans_linear(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    W, S = zeros(n), zeros(n)
    for i in tokens(x):
        S = i.eta * S - i.theta * 2 * np.outer(W @ i.k - i.v, i.k)
        W = (1 - i.alpha) * W + S
        yield {"o": W @ i.q}


def omega_linear(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        step = np.zeros_like(S)
        for j in range(n["c"]):
            s = i.t - n["c"] + 1 + j
            if s >= 0:
                step += i.gamma[j] * np.outer(S @ x["k"][s] - x["v"][s], x["k"][s])
        S = i.alpha * S - step
        yield {"o": S @ i.q}


def elastic(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        z = i.keep * S - i.zeta * np.outer(S @ i.k - i.v, i.k)
        S = np.sign(z) * np.maximum(np.abs(z) - i.gamma, 0)
        yield {"o": S @ i.q}


def huber_linear(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = zeros(n)
    for i in tokens(x):
        r = S @ i.k - i.v
        slope = np.where(np.abs(r) <= i.delta, r, i.delta * np.sign(r))
        S = i.alpha * S - i.eta * np.outer(slope, i.k)
        yield {"o": S @ i.q}


def mlstm(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    C, z = zeros(n), np.zeros(n["K"])
    for i in tokens(x):
        C = sigmoid(i.f) * C + np.exp(i.i) * np.outer(i.v, i.k)
        z = sigmoid(i.f) * z + np.exp(i.i) * i.k
        yield {"h": C @ i.q / max(abs(z @ i.q), 1)}


def gsa(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    keys, values = np.zeros((n["m"], n["K"])), np.zeros((n["m"], n["V"]))
    for i in tokens(x):
        keep = np.diag(np.exp(i.g))
        keys = keep @ keys + np.outer(1 - np.exp(i.g), i.k)
        values = keep @ values + np.outer(1 - np.exp(i.g), i.v)
        yield {"o": values.T @ softmax(keys @ i.q)}


def abc(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    for i in tokens(x):
        # The softmax over all tokens so far, slot by slot.
        w = np.stack([softmax(x["s"][: i.t + 1, j]) for j in range(n["m"])])
        keys, values = w @ x["k"][: i.t + 1], w @ x["v"][: i.t + 1]
        yield {"o": values.T @ softmax(keys @ i.q / np.sqrt(n["K"]))}


def based(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    for i in tokens(x):
        s = x["k"][: i.t + 1] @ i.q / np.sqrt(n["K"])
        w = 1 + s + s * s / 2
        yield {"o": w @ x["v"][: i.t + 1] / (w.sum() + 1e-12)}


def log_linear(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = [zeros(n) for _ in range(n["L"])]
    for i in tokens(x):
        if i.t >= 1:
            low = (i.t & -i.t).bit_length() - 1
            S[low + 1] = S[low + 1] + sum(S[: low + 1])
            S[: low + 1] = [zeros(n) for _ in range(low + 1)]
        S = [np.exp(i.g) * s for s in S]
        S[0] = np.outer(i.v, i.k)
        yield {"o": sum(w * s @ i.q for w, s in zip(i.level, S, strict=True))}


def srwm(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    W = {name: p[f"{name}_init"].T for name in ("Wy", "Wq", "Wk")} | {"Wb": p["B"].T}
    for i in tokens(x):
        q, k, b = softmax(W["Wq"] @ i.x), softmax(W["Wk"] @ i.x), sigmoid(W["Wb"] @ i.x)
        y = W["Wy"] @ i.x
        W = {name: w + rate * np.outer(w @ q - w @ k, k) for rate, (name, w) in zip(b, W.items(), strict=True)}
        yield {"y": y}


def delta_rnn(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    W, R, y = zeros(n), np.zeros((n["V"], n["V"])), np.zeros(n["V"])
    for i in tokens(x):
        W = delta(W, i.k, i.v, i.beta)
        R = delta(R, i.kr, i.vr, i.br)
        y = W @ i.q + R @ softmax(y)
        yield {"y": y}


def m2rnn(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    H = np.zeros((n["K"], n["V"]))
    for i in tokens(x):
        H = i.f * H + (1 - i.f) * np.tanh(H @ p["W"] + np.outer(i.k, i.v))
        yield {"y": H.T @ i.q + p["D"] * i.v}


MATRIX: dict[str, Loop] = {
    f.__name__: f
    for f in (
        linear_attention, retnet, gla, hgrn2, mamba2, deltanet, gated_deltanet, kda, deltaproduct, gated_deltaproduct, comba,
        rwkv7, rwkv6, gdn2, gated_oja, longhorn_diagonal, mesanet, mesanet_cg,
        momentum_deltanet, titans_linear, omega_linear, elastic,
        huber_linear, mlstm, gsa, abc, based, log_linear, srwm, delta_rnn, m2rnn,
    )
} | {"retnet_dsf": retnet}  # fmt: skip
