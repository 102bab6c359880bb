"""A well-typed example of every row of the op table, with what it should compute in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from seqc.ir import ops
from seqc.ir.expr import Attr, Expr, Mask, make, variables
from seqc.ir.interp import Reals, evaluate
from seqc.ir.ops import TABLE, var
from seqc.ir.rules import extent

# No two axes share a length, so that a swapped pair is seen. J joins K and V, `@h` heads lie in `@g` groups.
SIZES = {"K": 2, "V": 3, "J": 5, "P": 4, "@t": 5, "@s": 5, "@r": 4, "@h": 6, "@g": 2, "past": 3}
Array = np.ndarray


@dataclass(frozen=True)
class Example:
    """op(args) with an attribute; `want` takes the leaves in the order of their first use. `positive` leaves are drawn above zero.

    `without` says why the derivative is not compared with finite differences, `once` why its derivative is not.
    """

    op: str
    args: tuple[Expr, ...]
    attr: Attr
    want: Callable[..., Any]
    positive: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    without: str = ""
    once: str = ""

    @property
    def node(self) -> Expr:
        """The node itself, not simplified."""
        return make(TABLE[self.op], self.args, self.attr)

    @property
    def leaves(self) -> tuple[Expr, ...]:
        return variables(self.node)


def draw(e: Expr, example: Example, rng: np.random.Generator) -> Array:
    """A value of a leaf."""
    shape = [extent(SIZES, a) for a in e.axes]
    if e.name in example.whole:
        return rng.integers(1, 40, shape).astype(float)
    if e.type.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    x = rng.standard_normal(shape)
    if e.name == "up":  # sums of log decays: every exponent that a mask allows is at most zero
        return -1 - np.cumsum(np.abs(x) / 5, 0)
    if e.name == "low":
        return -np.cumsum(np.ones_like(x), 0) / (2 * len(x))
    if e.name in example.positive:
        return np.abs(x) + 0.5
    return x + 1j * rng.standard_normal(shape) if e.type.dtype == "complex" else x


def values(example: Example, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {leaf.name: draw(leaf, example, rng) for leaf in example.leaves}


def meaning(root: Expr, leaves: Mapping[str, Array]) -> Array:
    """The float64 value of an expression."""
    return np.asarray(evaluate(Reals(SIZES), (root,), leaves)[0])


X, Y, ROW, COLUMN, ONE = var("x", ("K", "V")), var("y", ("V",)), var("x", ("K",)), var("y", ("V",)), var("x")
Z, W = var("z", ("K", "V"), "complex"), var("w", ("V",), "complex")
TEST = var("test", ("K",), "bool")
CAUSAL = Mask("@t", "@s", 1, 1, 1, 1)
STEPS = Mask("@t", "@s", 2, 2, 1, 3)
UP, LOW = var("up", ("@t",)), var("low", ("@s",))
UPK, LOWK = var("up", ("@t", "K")), var("low", ("@s", "K"))
LEFT, RIGHT, SQUARE = var("x", ("@t", "K")), var("y", ("@s", "K")), var("p", ("@t", "@s"))
STRICT = Mask("@t", "@s")
GROWS = "the length of a growing axis is known to no size"
LOWER = ops.masked(var("x", ("P", "@t", "@s")), STRICT)
MATRIX = ops.add(ops.mul(ops.number(3), ops.eye("K", "K'")), var("x", ("K", "K'")))


def triangle(mask: Mask, rows: int = 5, columns: int = 5) -> Array:
    """The definition of a mask, entry by entry."""
    return np.array([[j // mask.per_column < (i // mask.per_row) * mask.step + mask.offset for j in range(columns)] for i in range(rows)])


def weights(mask: Mask, up: Array, low: Array) -> Array:
    """exp(up_i - low_j) under a mask, with further axes last."""
    keep = triangle(mask).reshape((5, 5) + (1,) * (up.ndim - 1))
    return np.where(keep, np.exp(up[:, None] - low[None, :]), 0.0)


def solved(p: Array, y: Array, up: Array, low: Array, transposed: bool) -> Array:
    """One system per entry of the last axis."""
    matrix = np.eye(5)[:, :, None] + p[:, :, None] * weights(STRICT, up, low)
    matrix = matrix.transpose(1, 0, 2) if transposed else matrix
    return np.stack([np.linalg.solve(matrix[:, :, k], y[:, k]) for k in range(y.shape[1])], 1)


# A row's rule: entry by entry, and through a norm along K; `g` is a number of the row, `c` has an entry for each of K.
FOUND, PER_ROW, PER_ENTRY = var("r", ("K",)), var("g"), var("c", ("K",))
LENGTH = ops.sqrt(ops.add(ops.number(1), ops.contract((FOUND, FOUND), ())))
RULE = ops.add(ops.mul(PER_ROW, ops.unary("tanh", FOUND)), ops.div(ops.mul(PER_ENTRY, FOUND), LENGTH))
RULED = (FOUND, PER_ROW, PER_ENTRY)


def ruled(p: Array, y: Array, g: Array, c: Array, back: bool) -> Array:
    """The rule row by row, from the last one if the matrix is transposed."""
    p = np.tril(p, -1).T if back else np.tril(p, -1)
    u = np.zeros_like(y)
    for i in reversed(range(5)) if back else range(5):
        r = y[i] - p[i] @ u
        u[i] = g[i] * np.tanh(r) + c[i] * r / np.sqrt(1 + r @ r)
    return u


def unary(name: str, want: Callable[[Array], Array], **more: Any) -> Example:
    return Example(name, (X,), (), want, **more)


def convolved(x: Array, y: Array) -> Array:
    """x [.., K, V], y [V, P] -> [V, P], or [V, ..] for a first dimension of x."""
    n = y.shape[0]
    total = np.zeros((n, y.shape[1]) if x.ndim == 2 else (n, len(x)))
    for t in range(n):
        for s in range(t + 1):
            total[t] += (x[..., t - s].sum(0) * y[s]) if x.ndim == 2 else x[..., t - s].sum(1) * y[s, 0]
    return total


def correlated(x: Array, y: Array) -> Array:
    """x [K, V], y [V, P] -> [V, P]."""
    n = y.shape[0]
    return np.stack([sum(x[:, t].sum() * y[t - s] for t in range(s, n)) for s in range(n)])


def shifted(x: Array, by: int) -> Array:
    out = np.zeros_like(x)
    for i in range(x.shape[1]):
        if 0 <= i - by < x.shape[1]:
            out[:, i] = x[:, i - by]
    return out


def placed(y: Array) -> Array:
    out = np.zeros((2, 3))
    out[1] = y
    return out


EXAMPLES: tuple[Example, ...] = (
    Example("var", (), ("x", ("K", "V"), "real"), lambda x: x),
    Example("const", (), Fraction(-3, 4), lambda: -0.75),
    Example("constant", (), "pi", lambda: 3.141592653589793),
    Example("constant", (), "inf", lambda: np.inf),
    Example("size", (), "V", lambda: 3.0),
    Example("iota", (), ("V",), lambda: np.array([0.0, 1.0, 2.0])),
    Example("eye", (), ("K", "K'"), lambda: np.eye(2)),
    unary("neg", lambda x: -x),
    unary("exp", np.exp),
    Example("exp", (Z,), (), np.exp),
    unary("log", np.log, positive=("x",)),
    unary("sqrt", lambda x: x**0.5, positive=("x",)),
    unary("abs", np.abs),
    unary("sign", np.sign),
    unary("sin", np.sin),
    unary("cos", np.cos),
    Example("cos", (Z,), (), np.cos),
    unary("tanh", np.tanh),
    unary("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    unary("softplus", lambda x: np.log(1 + np.exp(x))),
    unary("relu", lambda x: x * (x > 0)),
    unary("erf", lambda x: np.vectorize(__import__("math").erf)(x)),
    unary("expm1", lambda x: np.exp(x) - 1),
    unary("log1p", lambda x: np.log(1 + x), positive=("x",)),
    unary("floor", np.floor),
    unary("ceil", np.ceil),
    unary(
        "trailing_zeros",
        lambda x: np.vectorize(lambda n: len(f"{int(n):b}") - len(f"{int(n):b}".rstrip("0")))(x),
        whole=("x",),
        without="it takes whole numbers",
    ),
    unary("stop_gradient", lambda x: x, without="its derivative is zero by definition"),
    Example("conj", (Z,), (), np.conj),
    Example("re", (Z,), (), np.real),
    Example("im", (Z,), (), np.imag),
    Example("complex", (X, Y), (), lambda x, y: x + 1j * y),
    Example("add", (ROW, COLUMN), (), lambda x, y: x[:, None] + y),
    Example("add", (X, W), (), lambda x, w: x + w),
    Example("sub", (X, Y), (), lambda x, y: x - y),
    Example("sub", (Y, X), (), lambda y, x: y - x),
    Example("mul", (ROW, COLUMN), (), lambda x, y: x[:, None] * y),
    Example("mul", (Z, W), (), lambda z, w: z * w),
    Example("mul", (Z, Y), (), lambda z, y: z * y),
    Example("div", (X, Y), (), lambda x, y: x / y, positive=("y",)),
    Example("div", (Z, ops.add(W, ops.number(5))), (), lambda z, w: z / (w + 5)),
    Example("power", (X, Y), (), lambda x, y: x**y, positive=("x",)),
    Example("power", (X, ops.number(3)), (), lambda x: x * x * x),
    Example("power", (Z, ops.number(2)), (), lambda z: z * z),
    Example("maximum", (X, Y), (), np.maximum),
    Example("modulo", (X, Y), (), lambda x, y: x - y * np.floor(x / y), positive=("y",), fixed=("y",)),
    Example("compare", (X, Y), "lt", lambda x, y: x < y, without="its value is a truth"),
    Example("compare", (X, Y), "le", lambda x, y: x <= y, without="its value is a truth"),
    Example("compare", (X, Y), "gt", lambda x, y: x > y, without="its value is a truth"),
    Example("compare", (X, Y), "ge", lambda x, y: x >= y, without="its value is a truth"),
    Example("compare", (X, X), "eq", lambda x: x == x, without="its value is a truth"),
    Example("where", (TEST, X, Y), (), lambda test, x, y: np.where(test[:, None], x, y)),
    Example("max_over", (var("x", ("K", "V", "P")),), ("V", "P"), lambda x: x.reshape(2, 12).max(1)),
    Example("contract", (X, Y), ("K",), lambda x, y: x @ y),
    Example("contract", (ROW, COLUMN), ("V", "K"), lambda x, y: np.outer(y, x)),
    Example("contract", (X,), ("V", "K"), lambda x: x.T),
    Example("contract", (X, Y, var("u", ("K", "P"))), ("P",), lambda x, y, u: (x * y).sum(1) @ u),
    Example("contract", (Z, W), ("K",), lambda z, w: z @ w),
    Example("broadcast", (Y,), ("K", "V"), lambda y: np.stack([y, y])),
    Example("broadcast", (X,), ("P", "V", "K"), lambda x: np.stack([x.T] * 4)),
    Example("rename", (var("x", ("K", "K'")),), (("K", "K'"), ("K'", "K")), lambda x: x),
    Example("convolve", (X, var("y", ("V", "P"))), ("V", ("V", "P")), lambda x, y: convolved(x, y)),
    Example("convolve", (X, Y), ("V", ("K", "V")), lambda x, y: convolved(np.eye(len(x))[:, :, None] * x[:, None], y[:, None]).T),
    Example("correlate", (X, var("y", ("V", "P"))), ("V", ("V", "P")), lambda x, y: correlated(x, y)),
    Example("correlate", (Y, var("z", ("V",))), ("V", ("V",)), lambda y, z: correlated(y[None], z[:, None])[:, 0]),
    Example("cumsum", (X,), ("V", False), lambda x: np.stack([x[:, : i + 1].sum(1) for i in range(3)], 1)),
    Example("cumsum", (X,), ("V", True), lambda x: np.stack([x[:, i:].sum(1) for i in range(3)], 1)),
    *(Example("shift", (X,), ("V", by), lambda x, by=by: shifted(x, by)) for by in (1, -1, 2, -2, 0, 3, 5, -4)),
    Example("select", (X,), ("V", 1), lambda x: x[:, 1]),
    Example("select", (X,), ("K", -1), lambda x: x[-1]),
    Example("place", (Y,), ("K", 1), placed),
    Example("place", (Y,), ("K", -1), placed),
    Example("stack", (X, var("y", ("V", "K"))), ("2",), lambda x, y: np.stack([x, y.T])),
    Example("flatten", (var("x", ("P", "K", "V")),), (("V", "K"), "V*K"), lambda x: x.transpose(0, 2, 1).reshape(4, 6)),
    Example("unflatten", (var("x", ("P", "K*V")),), (("K", "V"), "K*V"), lambda x: x.reshape(4, 2, 3)),
    Example("concat", (var("x", ("K", "P")), var("y", ("P", "V"))), ("J", ("K", "V")), lambda x, y: np.concatenate([x, y.T])),
    Example("piece", (var("x", ("P", "J")),), ("J", ("K", "V"), 1), lambda x: x[:, 2:]),
    Example("piece", (var("x", ("P", "J")),), ("J", ("K", "V"), 0), lambda x: x[:, :2]),
    Example("append", (var("x", ("past", "K")), var("y", ("K",))), ("past",), lambda x, y: np.concatenate([x, y[None]]), once=GROWS),
    Example("drop_last", (var("x", ("past", "K")),), ("past",), lambda x: x[:-1], once=GROWS),
    Example("spread", (var("x", ("@g", "K")),), ("@g", "@h"), lambda x: np.stack([x[0]] * 3 + [x[1]] * 3)),
    Example("collect", (var("x", ("@h", "K")),), ("@g", "@h"), lambda x: np.stack([x[:3].sum(0), x[3:].sum(0)])),
    Example("solve", (MATRIX, var("y", ("K", "V"))), ("K", "K'"), lambda x, y: np.linalg.inv(3 * np.eye(2) + x) @ y),
    *(Example("masked", (SQUARE,), m, lambda p, m=m: np.where(triangle(m), p, 0.0)) for m in (CAUSAL, STRICT, STEPS)),
    Example("unit_lower_inverse", (LOWER,), ("@t", "@s"), lambda x: np.linalg.inv(np.eye(5) + np.tril(x, -1))),
    Example(
        "apply_inverse",
        (LOWER, ops.unit_lower_inverse(LOWER, "@t", "@s"), var("y", ("@t", "K"))),
        ("@t", "@s"),
        lambda x, y: np.linalg.inv(np.eye(5) + np.tril(x, -1)) @ y,
    ),
    *(Example("decay", (UP, LOW), m, lambda up, low, m=m: weights(m, up, low)) for m in (CAUSAL, STEPS)),
    Example(
        "decayed",
        (LEFT, RIGHT, UPK, LOWK),
        (("@t", "@s"), CAUSAL),
        lambda x, y, up, low: np.einsum("ik,jk,ijk->ij", x, y, weights(CAUSAL, up, low)),
    ),
    Example(
        "decayed",
        (SQUARE, RIGHT, UPK, LOWK),
        (("@t", "K"), STEPS),
        lambda p, y, up, low: np.einsum("ij,jk,ijk->ik", p, y, weights(STEPS, up, low)),
    ),
    Example(
        "decayed",
        (SQUARE, LEFT, UPK, LOWK),
        (("@s", "K"), CAUSAL),
        lambda p, x, up, low: np.einsum("ij,ik,ijk->jk", p, x, weights(CAUSAL, up, low)),
    ),
    Example(
        "decayed_solve", (SQUARE, var("y", ("@t", "K")), UPK, LOWK), (STRICT, False), lambda p, y, up, low: solved(p, y, up, low, False)
    ),
    Example("decayed_solve", (SQUARE, RIGHT, UPK, LOWK), (STRICT, True), lambda p, y, up, low: solved(p, y, up, low, True)),
    Example(
        "strict_solve",
        (ops.masked(SQUARE, STRICT), var("y", ("@t", "K")), var("g", ("@t",)), var("c", ("@t", "K"))),
        (STRICT, False, RULE, RULED),
        lambda p, y, g, c: ruled(p, y, g, c, False),
    ),
    Example(
        "strict_solve",
        (ops.masked(SQUARE, STRICT), RIGHT, var("g", ("@s",)), var("c", ("@s", "K"))),
        (STRICT, True, RULE, RULED),
        lambda p, y, g, c: ruled(p, y, g, c, True),
    ),
    Example(
        "implicit",
        (ops.add(ops.mul(var("x"), var("u", ("V",))), Y),),
        ("u", ("V",), "real"),
        lambda x, u, y: y / (1 - x),
        without="no form lowers it, and its derivative raises",
        fixed=("u",),
    ),
)
