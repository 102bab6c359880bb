"""Deep memories as plain loops: every gradient is written out by hand, from the papers' equations."""

from __future__ import annotations

from math import erf

import numpy as np
from zoo_matrix import Array, Arrays, Loop, Outputs, Sizes, sigmoid, tokens


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def d_gelu(x: Array) -> Array:
    return (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2 + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def standardize(x: Array) -> tuple[Array, float]:
    s = np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
    return (x - x.mean()) / s, s


def d_standardize(hat: Array, s: float, e: Array) -> Array:
    """The gradient in f, from that in its standardised value."""
    return (e - e.mean() - hat * (e * hat).mean()) / s


def titans(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    W = {"W1": p["M_W1_init"], "W2": p["M_W2_init"]}
    S = {name: np.zeros_like(w) for name, w in W.items()}
    for i in tokens(x):
        if i.t % n["C"] == 0:
            F = dict(W)
        a = i.k @ F["W1"]
        g = sigmoid(a)
        r = 2 * ((a * g) @ F["W2"] - i.v)
        G = {"W2": np.outer(a * g, r), "W1": np.outer(i.k, (F["W2"] @ r) * (g + a * g * (1 - g)))}
        S = {name: i.eta * S[name] + i.theta * G[name] for name in W}
        W = {name: (1 - i.alpha) * W[name] - S[name] for name in W}
        a = i.q @ W["W1"]
        yield {"o": (a * sigmoid(a)) @ W["W2"]}


def ttt_linear(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    W, b = p["M_W_init"].T, np.zeros(n["D"])
    for i in tokens(x):
        if i.t % n["C"] == 0:
            W0, b0, sW, sb = W, b, 0.0, 0.0
        hat, s = standardize(W0 @ i.k + b0)
        e = p["scale"] * (p["scale"] * hat + p["bias"] + i.k - i.v)
        g = d_standardize(hat, s, e)
        sW, sb = sW + i.lr * np.outer(g, i.k), sb + i.lr * g
        nu = max(0, 1 / (i.t % n["C"] + 1) + p["nu"][i.t % n["C"]])
        W, b = W0 - nu * sW, b0 - nu * sb
        yield {"o": i.q + p["scale"] * standardize(W @ i.q + b)[0] + p["bias"]}


def ttt_mlp(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    W = {"W1": p["M_W1_init"], "b1": np.zeros(n["E"]), "W2": p["M_W2_init"], "b2": np.zeros(n["D"])}
    for i in tokens(x):
        if i.t % n["C"] == 0:
            F, S = dict(W), {name: np.zeros_like(w) for name, w in W.items()}
        a = i.k @ F["W1"] + F["b1"]
        hat, s = standardize(gelu(a) @ F["W2"] + F["b2"])
        g = d_standardize(hat, s, p["scale"] * (p["scale"] * hat + p["bias"] + i.k - i.v))
        h = (F["W2"] @ g) * d_gelu(a)
        G = {"W1": np.outer(i.k, h), "b1": h, "W2": np.outer(gelu(a), g), "b2": g}
        S = {name: S[name] + i.lr * G[name] for name in W}
        nu = max(0, 1 / (i.t % n["C"] + 1) + p["nu"][i.t % n["C"]])
        W = {name: F[name] - nu * S[name] for name in W}
        f = gelu(i.q @ W["W1"] + W["b1"]) @ W["W2"] + W["b2"]
        yield {"o": i.q + p["scale"] * standardize(f)[0] + p["bias"]}


def residual(W: dict[str, Array], z: Array) -> Array:
    """The memory of the three below: z + standardize(W1 gelu(W2 z))."""
    return z + standardize(gelu(z @ W["W2"]) @ W["W1"])[0]


def residual_gradient(W: dict[str, Array], z: Array, slope: Array) -> dict[str, Array]:
    a = z @ W["W2"]
    hat, s = standardize(gelu(a) @ W["W1"])
    g = d_standardize(hat, s, slope)
    return {"W1": np.outer(gelu(a), g), "W2": np.outer(z, (W["W1"] @ g) * d_gelu(a))}


def yaad(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    W = {"W1": p["M_W1_init"], "W2": p["M_W2_init"]}
    for i in tokens(x):
        if i.t % n["C"] == 0:
            F = dict(W)
        r = residual(F, i.k) - i.v
        G = residual_gradient(F, i.k, 2 * r if np.linalg.norm(r) <= i.delta else i.delta * np.tanh(10 * r))
        W = {"W1": i.alpha * W["W1"] - i.eta * G["W1"], "W2": i.alpha[:, None] * W["W2"] - i.eta[:, None] * G["W2"]}
        yield {"o": residual(W, i.q)}


def moneta(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    def read(A: dict[str, Array]) -> dict[str, Array]:
        return {name: a / (np.abs(a) ** 4).sum() ** (2 / 4) for name, a in A.items()}

    A = {"W1": p["M_W1_init"], "W2": p["M_W2_init"]}
    for i in tokens(x):
        if i.t % n["C"] == 0:
            F = read(A)
        r = residual(F, i.k) - i.v
        G = residual_gradient(F, i.k, 3 * np.tanh(10 * r) * (r * r + 1e-6))
        A = {"W1": i.alpha * A["W1"] - i.eta * G["W1"], "W2": i.alpha[:, None] * A["W2"] - i.eta[:, None] * G["W2"]}
        yield {"o": residual(read(A), i.q)}


def memora(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    def rows(a: Array) -> Array:
        e = np.exp(a - a.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    A = {"W1": np.zeros((n["E"], n["D"])), "W2": np.zeros((n["D"], n["E"]))}
    for i in tokens(x):
        if i.t % n["C"] == 0:
            F = {name: rows(a) for name, a in A.items()}
        G = residual_gradient(F, i.k, 2 * (residual(F, i.k) - i.v))
        log = {name: np.log(rows(a)) for name, a in A.items()}
        A = {"W1": i.alpha * log["W1"] - i.eta * G["W1"], "W2": i.alpha[:, None] * log["W2"] - i.eta[:, None] * G["W2"]}
        yield {"o": residual({name: rows(a) for name, a in A.items()}, i.q)}


def newton_schulz(G: Array) -> Array:
    X = G / (np.linalg.norm(G) + 1e-7)
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X - 4.7750 * A @ X + 2.0315 * A @ A @ X
    return X


def atlas(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    W = {"W1": p["M_W1_init"], "W2": p["M_W2_init"]}
    S = {name: np.zeros_like(w) for name, w in W.items()}
    for i in tokens(x):
        if i.t % n["C"] == 0:
            F = dict(W)
        total = {name: np.zeros_like(w) for name, w in W.items()}
        for j in range(n["c"]):
            s = i.t - n["c"] + 1 + j
            if s < 0:
                continue
            k, v = x["k"][s], x["v"][s]
            a = k @ F["W2"]
            r = 2 * i.gamma[j] * (k + gelu(a) @ F["W1"] - v)
            total["W1"] += np.outer(gelu(a), r)
            total["W2"] += np.outer(k, (F["W1"] @ r) * d_gelu(a))
        S = {name: i.theta * S[name] + total[name] for name in W}
        W = {name: i.alpha * W[name] - i.eta * newton_schulz(S[name]) for name in W}
        yield {"o": i.q + gelu(i.q @ W["W2"]) @ W["W1"]}


def lattice(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    S = p["M_S_init"]
    for i in tokens(x):
        length = np.linalg.norm(S, axis=1, keepdims=True)
        phi = S / length
        r = i.k @ phi - i.v
        g = np.outer(i.k, r)
        S = S - i.rate * (g - phi * (g * phi).sum(1, keepdims=True)) / length
        S = S / np.linalg.norm(S, axis=1, keepdims=True)
        yield {"o": i.q @ (S / np.linalg.norm(S, axis=1, keepdims=True))}


def hope(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    M = {name: p[f"{name}_init"].T for name in ("Mk", "Mv", "Mm")}
    for i in tokens(x):
        if i.t % n["C"] == 0:
            F = dict(M)
        k = F["Mk"] @ i.x
        k = k / np.sqrt(k @ k + 1e-6)
        v = F["Mv"] @ i.x
        # The frozen memory's prediction at k, less its own target, which is its value at v.
        M = {
            name: m @ (i.alpha * np.eye(n["D"]) - i.eta * np.outer(k, k)) - i.eta * np.outer(F[name] @ (k - v), k) for name, m in M.items()
        }
        yield {"y": M["Mm"] @ i.q}


def tnt(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    def value(A: Array, B: Array, z: Array) -> Array:
        return z + gelu(z @ A) @ B

    def step(A: Array, B: Array, F: tuple[Array, Array], k: Array, v: Array, eta: float) -> tuple[Array, Array]:
        a = k @ F[0]
        r = 2 * (value(*F, k) - v)
        return A - eta * np.outer(k, (F[1] @ r) * d_gelu(a)), B - eta * np.outer(gelu(a), r)

    slow = (p["Mg_A1_init"], p["Mg_A2_init"])
    fast = first = (p["Ml_B1_init"], p["Ml_B2_init"])
    P = np.zeros((n["D"], n["D"]))
    for i in tokens(x):
        if i.t % n["G"] == 0:
            slow_frozen = slow
        if i.t % n["C"] == 0:
            fast_frozen = fast
        P = (0 if i.t % n["L"] == 0 else P) + np.outer(i.k, i.k)
        slow = step(*slow, slow_frozen, i.k, i.v, i.eta)
        fast = step(*fast, fast_frozen, i.k, i.v, i.eta)
        yield {"o": value(*slow_frozen, i.q) + value(*fast, P @ i.q)}
        if i.t % n["L"] == n["L"] - 1:
            fast = first


DEEP: dict[str, Loop] = {f.__name__: f for f in (titans, ttt_linear, ttt_mlp, yaad, moneta, memora, atlas, lattice, hope, tnt)}
