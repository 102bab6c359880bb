"""Elementwise states, attention and cells as plain loops, written from the papers' equations."""

from __future__ import annotations

import numpy as np
from zoo_matrix import Array, Arrays, Loop, Outputs, Sizes, sigmoid, softmax, softplus, tokens

# --- Elementwise states -------------------------------------------------------------------------------------------


def aaren(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    s = x["k"] @ p["query"] / np.sqrt(n["K"])
    for i in tokens(x):
        yield {"o": softmax(s[: i.t + 1]) @ x["v"][: i.t + 1]}


def rwkv4(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    w = -np.exp(p["w"])
    for i in tokens(x):
        # Each channel: a softmax over the past with a linear bias in time, and a bonus for the present.
        age = i.t - 1 - np.arange(i.t)[:, None]
        logits = np.concatenate((age * w + x["k"][: i.t], (p["u"] + i.k)[None]))
        weights = np.exp(logits - logits.max(0))
        yield {"o": (weights * x["v"][: i.t + 1]).sum(0) / weights.sum(0)}


def mamba(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    h = np.zeros((n["D"], n["N"]))
    for i in tokens(x):
        h = np.exp(-np.exp(p["A_log"]) * i.dt[:, None]) * h + np.outer(i.dt * i.x, i.B)
        yield {"y": h @ i.C + p["skip"] * i.x}


def rg_lru(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    h = np.zeros(n["D"])
    for i in tokens(x):
        a = np.exp(-8 * i.r * softplus(p["a"]))
        h = a * h + (1.0 if i.t == 0 else np.sqrt(1 - a**2)) * i.i * i.x
        yield {"h": h}


def minlstm(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    h = np.zeros(n["D"])
    for i in tokens(x):
        h = (i.f * h + i.i * i.c) / (i.f + i.i)
        yield {"h": h}


def lru(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    lam = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    B, C = (p["b_re"] + 1j * p["b_im"]).T, (p["c_re"] + 1j * p["c_im"]).T
    h = np.zeros(n["N"], complex)
    for i in tokens(x):
        h = lam * h + np.exp(p["gamma"]) * (B @ i.x)
        yield {"y": (C @ h).real + p["skip"] * i.x}


def s4d(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    A, dt = -np.exp(p["a_re"]) + 1j * p["a_im"], np.exp(p["log_dt"])
    C = p["c_re"] + 1j * p["c_im"]
    for i in tokens(x):
        # The kernel: K_l = 2 Re sum C (e^(dt A) - 1) / A e^(dt A l).
        kernel = [2 * (C * (np.exp(dt * A) - 1) / A * np.exp(dt * A * lag)).sum().real for lag in range(i.t + 1)]
        yield {"y": np.array(kernel) @ x["u"][i.t :: -1] + p["D"] * i.u}


def s5(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    A, dt = np.minimum(p["a_re"], -1e-4) + 1j * p["a_im"], np.exp(p["log_dt"])
    B, C = (p["b_re"] + 1j * p["b_im"]).T, (p["c_re"] + 1j * p["c_im"]).T
    h = np.zeros(n["N"], complex)
    for i in tokens(x):
        h = np.exp(dt * A) * h + (np.exp(dt * A) - 1) / A * (B @ i.x)
        yield {"y": 2 * (C @ h).real + p["skip"] * i.x}


def bilinear_kernel(A: Array, B: Array, C: Array, dt: float, length: int) -> Array:
    eye = np.eye(len(A))
    inverse = np.linalg.inv(eye - dt / 2 * A)
    step, h, kernel = inverse @ (eye + dt / 2 * A), inverse @ (dt * B), []
    for _ in range(length):
        kernel.append(C @ h)
        h = step @ h
    return np.array(kernel)


def lssl(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    N = n["N"]
    A = np.array([[-np.sqrt((2 * a + 1) * (2 * b + 1)) if a > b else -(a + 1) if a == b else 0 for b in range(N)] for a in range(N)])
    kernel = bilinear_kernel(A, np.sqrt(2 * np.arange(N) + 1), p["C"], np.exp(p["log_dt"]), len(x["u"]))
    for i in tokens(x):
        yield {"y": kernel[: i.t + 1] @ x["u"][i.t :: -1] + p["D"] * i.u}


# --- Cells ------------------------------------------------------------------------------------------------------


def lstm(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    c = h = np.zeros(n["N"])
    for i in tokens(x):
        gate = {g: getattr(i, f"z{g}") + p[f"R{g}"].T @ h for g in "ifoc"}
        c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["c"])
        h = sigmoid(gate["o"]) * np.tanh(c)
        yield {"h": h}


def gru(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    h = np.zeros(n["N"])
    for i in tokens(x):
        z, r = sigmoid(i.zz + p["Rz"].T @ h), sigmoid(i.zr + p["Rr"].T @ h)
        h = z * h + (1 - z) * np.tanh(i.zn + r * (p["Rn"].T @ h + p["b"]))
        yield {"h": h}


def slstm(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    c, z, h, m = (np.zeros(n["N"]) for _ in range(4))
    for i in tokens(x):
        gate = {g: getattr(i, f"z{g}") + p[f"R{g}"].T @ h for g in "ifoc"}
        log_f = -np.log1p(np.exp(-gate["f"] - p["bf"]))
        new = np.maximum(gate["i"], log_f + m) if i.t else gate["i"]
        inner, keep = np.exp(gate["i"] - new), np.exp(log_f + m - new) if i.t else 0.0
        c, z, m = keep * c + inner * np.tanh(gate["c"]), keep * z + inner, new
        h = sigmoid(gate["o"]) * c / z
        yield {"h": h}


def sru(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    c = np.zeros(n["D"])
    for i in tokens(x):
        f, r = sigmoid(i.f + p["vf"] * c), sigmoid(i.r + p["vr"] * c)
        c = f * c + (1 - f) * i.u
        yield {"h": r * c + (1 - r) * np.sqrt(3) * i.x}


def paralstm(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    c = h = np.zeros(n["N"])
    for i in tokens(x):
        f = sigmoid(p["af"] * h + p["cf"] * c + i.zf)
        c = f * c + (1 - f) * np.tanh(p["ac"] * h + i.zc)
        h = sigmoid(p["ao"] * h + p["co"] * c + i.zo) * np.tanh(c)
        yield {"h": h}


def fernn(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    N, X, W = n["N"], n["X"], n["W"]
    h = np.zeros((N, X))
    for i in tokens(x):
        new = np.zeros_like(h)
        for v in range(N):
            for at in range(X):
                for w in range(W):
                    new[v, at] += p["a"][w] * i.u[(at - w + W // 2) % X] + p["b"][w] * h[v, (at - (w - W // 2) - (v - N // 2)) % X]
        h = np.maximum(new, 0)
        yield {"y": h.mean(0)}


def lcm(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    def join(h: Array, u: Array) -> Array:
        z = sigmoid(p["Wz"].T @ u + p["Uz"].T @ h)
        return z * h + (1 - z) * np.tanh(p["W"].T @ u + p["U"].T @ h)

    def tree(items: list[Array]) -> Array:
        while len(items) > 1:
            pairs = [(join(a, b) + join(b, a)) / 2 for a, b in zip(items[::2], items[1::2], strict=False)]
            items = pairs + (items[-1:] if len(items) % 2 else [])
        return items[0]

    for i in tokens(x):
        yield {"s": tree(list(x["x"][: i.t + 1]))}


# --- Attention ----------------------------------------------------------------------------------------------------


def softmax_attention(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    for i in tokens(x):
        yield {"o": softmax(x["k"][: i.t + 1] @ i.q / np.sqrt(n["K"])) @ x["v"][: i.t + 1]}


def swa(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    for i in tokens(x):
        seen = slice(max(0, i.t - n["c"] + 1), i.t + 1)
        yield {"o": softmax(x["k"][seen] @ i.q / np.sqrt(n["K"])) @ x["v"][seen]}


def fox(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    total = np.cumsum(x["g"])
    for i in tokens(x):
        bias = total[i.t] - total[: i.t + 1]
        yield {"o": softmax(x["k"][: i.t + 1] @ i.q / np.sqrt(n["K"]) + bias) @ x["v"][: i.t + 1]}


def path_attention(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    reflect = [np.eye(n["K"]) - b * np.outer(w, w) for b, w in zip(x["beta"], x["w"], strict=True)]
    for i in tokens(x):
        logits = []
        for j in range(i.t + 1):
            key = x["k"][j]
            for s in range(j + 1, i.t + 1):
                key = reflect[s] @ key
            logits.append(i.q @ key)
        yield {"o": softmax(np.array(logits) / np.sqrt(n["K"])) @ x["v"][: i.t + 1]}


def deltaformer(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    T, scale = len(x["q"]), np.sqrt(n["K"])
    P = np.zeros((T, T))
    for t in range(1, T):
        P[t, :t] = softmax(x["k"][:t] @ x["q"][t] / scale)
    U = np.linalg.solve(np.eye(T) + x["beta"][:, None] * P, x["v"])
    for i in tokens(x):
        yield {"o": softmax(x["k"][: i.t + 1] @ i.q / scale) @ U[: i.t + 1]}


def stickbreaking(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    for i in tokens(x):
        z = x["k"][: i.t + 1] @ i.q / np.sqrt(n["K"])
        left, o = 1.0, np.zeros(n["V"])
        for j in range(i.t, -1, -1):
            o, left = o + left * sigmoid(z[j]) * x["v"][j], left * (1 - sigmoid(z[j]))
        yield {"o": o}


def hyena(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    for i in tokens(x):
        y = p["skip"] * i.v * i.x1
        for j in range(i.t + 1):
            age = i.t - j
            y = y + np.sin(age * p["freq"] + p["phase_of"]) @ p["W"] * np.exp(-age * p["delta"]) * x["v"][j] * x["x1"][j]
        yield {"y": i.x0 * y}


def ngram(x: Arrays, p: Arrays, n: Sizes, head: int) -> Outputs:
    ids = np.concatenate((np.full(n["n"], -1.0), x["id"]))
    for i in tokens(x):
        now = ids[i.t + 1 : i.t + 1 + n["n"]]
        followed = [x["x"][j] for j in range(i.t + 1) if (ids[j : j + n["n"]] == now).all()]
        yield {"o": sum(followed) / max(len(followed), 1) if followed else np.zeros(n["D"])}


OTHER: dict[str, Loop] = {
    f.__name__: f
    for f in (
        aaren, rwkv4, mamba, rg_lru, minlstm, lru, s4d, s5, lssl, lstm, gru, slstm, sru, paralstm, fernn, lcm,
        softmax_attention, swa, fox, path_attention, deltaformer, stickbreaking, hyena, ngram,
    )
}  # fmt: skip
