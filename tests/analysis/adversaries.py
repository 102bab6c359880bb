"""Cells whose dependence on their state is not what it looks like: several hundred texts, and what is true of each.

A cell is a base (a linear recurrence) with something around it that hides a dependence, or fakes one: a branch that never runs, a
clamp that rarely binds, terms that cancel, a permutation, a gate that is zero at common probe points, a position that hardly moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A text, and whether its step is affine in the state (for all states and inputs), and the same at every token."""

    name: str
    text: str
    affine: bool
    fixed: bool


# next value of h over h, a (a gate in (0, 1)), u and x (inputs), w (a param, [N, N'])
BASES = {
    "scaled": "a * h + u",
    "gated": "sigmoid(x) * h + (1 - sigmoid(x)) * u",
    "turned": "a * roll[N](h, 1) + u",
    "mixed": "h @ W / 4 + u",
    "mean": "h / 2 + mean(h) / 4 + u",
    "kept": "h + a * u",
    "constant": "h / 2 + u",
    "two": "a * h + x * h / 4 + u",
}

# What stands around the base: (text over E for the base's value, affine?, fixed in time?). E is used once or twice.
DISGUISES: dict[str, tuple[str, bool, bool]] = {
    "plain": ("E", True, True),
    "clamped far away": ("max(min(E, 1000000), -1000000)", False, True),
    "clamped near": ("max(E, -1)", False, True),
    "dead branch": ("where(1 > 2, E * h, E)", True, True),
    "never true for these inputs": ("where(abs(u) < 0, h * h, E)", False, True),
    "rare branch": ("where(x > 3, h * h, E)", False, True),
    "branch on the state": ("where(h > 0, E, E / 2)", False, True),
    "equal branches": ("where(x > 0, E, E)", True, True),
    "cancelling": ("E + h * h - h * h", True, True),
    "cancelling sums": ("E + sum(h) * u - sum(h * u)", True, True),
    "square minus square": ("E + (h + 1)^2 - h^2 - 2 * h - 1", True, True),
    "gate zero at one": ("E + (x - 1) * h * h", False, True),
    "gate zero at whole numbers": ("E + sin(pi * x) * h * h", False, True),
    "tiny nonlinearity": ("E + h * h / 1000000", False, True),
    "log of exp": ("log(exp(E))", True, True),
    "exp of log": ("exp(log(E))", False, True),
    "tanh": ("tanh(E)", False, True),
    "relu of both signs": ("relu(E) - relu(-E)", True, True),
    "abs": ("(E + abs(E)) / 2", False, True),
    "sqrt of the square": ("sqrt(E^2)", False, True),
    "norm": ("E / (1 + norm(h)^2)", False, True),
    "product with itself over itself": ("E * h / h", True, True),
    "with position": ("E + 0 * position", True, True),
    "position in the gate": ("E / (1 + position)", True, False),
    "late change": ("E * where(position > 100, 1/2, 1)", True, False),
    "phase": ("E * where(phase(3) == 0, 1/2, 1)", True, False),
    "earlier input": ("E + shift(u) * h", True, True),
    "earlier state": ("E + shift(h) / 4", True, True),
    "window": ("E + sum[c](window[c](x)) * h / 8", True, True),
    "turned twice": ("roll[N](roll[N](E, 1), -1)", True, True),
    "transposed twice": ("E @ transpose(transpose(eye[N]))", True, True),
    "picked": ("E + h[0]", True, True),
    "softmax of the state": ("E * softmax(h)", False, True),
    "softmax of the input": ("E * softmax(u)", True, True),
    "divided by the input": ("E / (2 + x^2)", True, True),
    "divided by the state": ("E / (2 + h^2)", False, True),
    "to the first power": ("E^1", True, True),
    "to a power": ("E^2 / (1 + abs(E))", False, True),
    "max with itself": ("max(E, E)", True, True),
    "max of two reads": ("max(E, h / 3)", False, True),
    "sign": ("E + sign(h) / 8", False, True),
    "floor": ("E + floor(h) / 8", False, True),
    "lerp by the input": ("lerp(E, h, a)", True, True),
    "lerp by the state": ("lerp(E, u, sigmoid(h))", False, True),
    "zero times": ("E + 0 * h * h", True, True),
    "difference of equals": ("E + (h - h) * h", True, True),
    "negated twice": ("-(-(E))", True, True),
    "cumulative": ("cumsum[N](E) / 2", True, True),
    "read and written": ("E + (h @ u) * u / 8", True, True),
    "read by itself": ("E + (h @ h) * u / 8", False, True),
    "bound hides it": ("E + sigmoid(h) - 1 / (1 + exp(-h))", True, True),
    "log space": ("exp(log(a) + log(2)) * E / 2", True, True),
    "logsumexp": ("logsumexp(E) * u", False, True),
    "standardised": ("standardize(E)", False, True),
    "l2norm": ("l2norm(E)", False, True),
    "normalised input": ("E * l2norm(u)", True, True),
    "modulo": ("E * where(position == 0, 2, 1)", True, False),
    "two positions": ("E + (position - position) * h", True, True),
    "first state": ("E + start(h) / 8", True, True),
    "frozen first": ("E + start(h, inf) / 8", True, True),
    "gelu": ("gelu(E)", False, True),
    "erased": ("E - u * (u @ h) / (1 + u @ u)", True, True),
    "erased by itself": ("E - h * (u @ h) / 8", False, True),
}  # fmt: skip


def text(base: str, disguise: str) -> str:
    value, wrap = BASES[base], DISGUISES[disguise][0]
    step = wrap.replace("E", f"({value})") if wrap != "E" else value
    used = {n for n in ("a", "x", "W") if any(n == w for w in _words(step))}
    inputs = ["u[N]", *(["a in (0, 1)"] if "a" in used else []), *(["x"] if "x" in used else [])]
    lines = [f"  input   {', '.join(inputs)}"]
    lines += ["  param   W[N, N] = normal(0, 1)"] if "W" in used else []
    sizes = "N = 3" + (", c = 2" if "window" in step else "")
    body = ["  state   h[N] = 0", f"  update  h = {step}", "  output  o[N] = h"]
    return "\n".join(["seqc 1", "", f"layer cell({sizes})", *lines, *body]) + "\n"


def _words(step: str) -> list[str]:
    word, out = "", []
    for c in step + " ":
        if c.isalnum() or c == "_":
            word += c
        else:
            out.append(word)
            word = ""
    return out


def cells() -> Iterator[Cell]:
    for disguise, (_, affine, fixed) in DISGUISES.items():
        for base in BASES:
            yield Cell(f"{base}, {disguise}", text(base, disguise), affine, fixed)
