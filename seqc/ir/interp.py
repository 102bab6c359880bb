"""The float64 meaning of expressions and recurrences: the definition that every form is held to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqc.diagnostics import InternalError
from seqc.ir.expr import Expr, Mask, walk
from seqc.ir.meaning import keeps, remembered
from seqc.ir.recurrence import Fold, Recurrence
from seqc.ir.rules import extent

Array = NDArray[Any]


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(x, 0.0))


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def _trailing_zeros(x: Array) -> Array:
    n = x.astype(np.int64)
    return np.where(n == 0, 1024.0, np.log2(np.maximum(n & -n, 1)))


def _erf(x: Array) -> Array:
    from math import erf

    return np.vectorize(erf, otypes=[float])(x) if np.size(x) else x


UNARY: dict[str, Any] = {
    "neg": np.negative, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "abs": np.abs, "sign": np.sign, "sin": np.sin, "cos": np.cos,
    "tanh": np.tanh, "sigmoid": _sigmoid, "softplus": _softplus, "relu": lambda x: np.maximum(x, 0.0), "erf": _erf, "expm1": np.expm1,
    "log1p": np.log1p, "floor": np.floor, "ceil": np.ceil, "trailing_zeros": _trailing_zeros, "stop_gradient": lambda x: x,
    "conj": np.conj, "re": np.real, "im": np.imag,
}  # fmt: skip
BINARY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "maximum": np.maximum, "modulo": np.mod,
}  # fmt: skip
COMPARE: dict[str, Any] = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal}


class Reals:
    """float64 (complex128) NumPy arrays."""

    def __init__(self, sizes: Mapping[str, int]):
        self.sizes = sizes

    def structural(self, fn: Any, *values: Array) -> Array:
        return np.asarray(fn(*values))

    def rational(self, value: Fraction) -> Array:
        return np.asarray(float(value))

    def named(self, name: str) -> Array:
        return np.asarray({"pi": np.pi, "inf": np.inf}[name])

    def integers(self, values: Array) -> Array:
        return values.astype(float)

    def unary(self, name: str, x: Array) -> Array:
        return np.asarray(UNARY[name](x))

    def binary(self, name: str, x: Array, y: Array) -> Array:
        return np.asarray(BINARY[name](x, y))

    def complex(self, x: Array, y: Array) -> Array:
        return x + 1j * y

    def power(self, x: Array, n: Array, exponent: Fraction | None) -> Array:
        return np.asarray(np.power(x, n))

    def compare(self, relation: str, x: Array, y: Array) -> Array:
        return np.asarray(COMPARE[relation](x, y))

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return np.where(condition, x, y)

    def sum(self, x: Array, axes: tuple[int, ...]) -> Array:
        return np.asarray(x.sum(axis=axes))

    def cumsum(self, x: Array, axis: int, reverse: bool) -> Array:
        return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if reverse else np.cumsum(x, axis)

    def maximum_over(self, x: Array, axes: tuple[int, ...]) -> Array:
        return np.asarray(x.max(axis=axes, initial=-np.inf))  # a memory may be empty

    def contract(self, values: Iterable[Array], axes: list[tuple[str, ...]], out: tuple[str, ...]) -> Array:
        numbers = {a: i for i, a in enumerate(dict.fromkeys(a for group in axes for a in group))}
        operands: list[Any] = []
        for value, group in zip(values, axes, strict=True):
            operands += [value, [numbers[a] for a in group]]
        return np.asarray(np.einsum(*operands, [numbers[a] for a in out], optimize=len(axes) > 2))

    def exp_masked(self, x: Array, mask: Mask) -> Array:
        return np.exp(np.where(keeps(mask, *x.shape[-2:]), x, -np.inf))

    def solve(self, matrix: Array, rhs: Array) -> Array:
        return np.linalg.solve(matrix, rhs)

    def unit_lower_inverse(self, x: Array) -> Array:
        return np.linalg.inv(np.eye(x.shape[-1]) + x)


def evaluate(A: Any, roots: Iterable[Expr], leaves: Mapping[str, Any], order: tuple[Expr, ...] | None = None) -> tuple[Any, ...]:
    """The roots' values in an arithmetic, each node once. order: every node below the roots, if that is known from before."""
    roots = tuple(roots)
    values: dict[Expr, Any] = {}
    order = tuple(walk(*roots)) if order is None else order
    unknown = {node.attr[0] for node in order if node.op.name == "implicit"} - set(leaves)
    for node in order:
        op = node.op
        if op.name == "var":
            if node.name in leaves:
                values[node] = leaves[node.name]
            elif node.name not in unknown:
                raise InternalError(f"`{node.name}` has no value")
        elif unknown and op.name != "implicit" and any(a not in values for a in node.args):
            continue  # inside an implicit value: computed when that is solved
        elif op.name == "implicit":
            values[node] = _implicit(A, node, leaves)
        else:
            args = tuple([values[a] for a in node.args])
            values[node] = remembered(A, node, args, partial(op.meaning, A, node, args))
    return tuple(values[r] for r in roots)


def _implicit(A: Any, node: Expr, leaves: Mapping[str, Any]) -> Any:
    """Solves W = body(W), body affine: columns of its linear part from unit vectors."""
    (body,), (name, *_) = node.args, node.attr
    shape = [extent(A.sizes, a) for a in body.axes]
    n, k = prod(shape), len(shape)

    def at(value: Array) -> Any:
        """The body at a value, its axes as one."""
        found = evaluate(A, (body,), {**leaves, str(name): A.integers(value.reshape(shape))})[0]
        return A.structural(lambda x: np.broadcast_to(x, (*x.shape[: x.ndim - k], *shape)).reshape((*x.shape[: x.ndim - k], n)), found)

    zero = at(np.zeros(n, np.int64))
    columns = [A.binary("sub", at(unit), zero) for unit in np.eye(n, dtype=np.int64)]
    linear = A.structural(lambda *xs: np.stack(np.broadcast_arrays(*xs), -1), *columns)
    matrix = A.binary("sub", A.integers(np.eye(n, dtype=np.int64)), linear)
    solution = A.solve(matrix, A.structural(lambda x: x[..., None], zero))
    return A.structural(lambda x: x.reshape((*x.shape[:-2], *shape)), solution)


def initial_states(
    rec: Recurrence, params: Mapping[str, Array], sequence: Mapping[str, Array], sizes: Mapping[str, int], head: int = 0
) -> dict[str, Array]:
    """Each state before the first token: per head, with params and per-sequence inputs of that head."""
    A = Reals(sizes)
    leaves = {**params, **sequence, **_numbers(sizes, head)}
    out: dict[str, Array] = {}
    for s in rec.states:
        if s.growing:
            out[s.name] = np.zeros([0 if a == s.growing else extent(sizes, a) for a in s.axes])
        else:
            value = evaluate(A, (s.init,), {**leaves, **out})[0]
            shape = [extent(sizes, a) for a in s.axes]
            out[s.name] = np.broadcast_to(value, shape).astype(complex if s.dtype == "complex" else float)
    return out


def _numbers(sizes: Mapping[str, int], head: int) -> dict[str, Array]:
    return {
        "head": np.asarray(float(head)), "heads": np.asarray(float(sizes.get("heads", 1))),
        "depth": np.asarray(float(sizes.get("depth", 0))), "depths": np.asarray(float(sizes.get("depths", 1))),
    }  # fmt: skip


def run(
    rec: Recurrence,
    inputs: Mapping[str, Array],
    params: Mapping[str, Array],
    sizes: Mapping[str, int],
    *,
    states: Mapping[str, Array] | None = None,
    head: int = 0,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """One sequence of one head, token by token.

    inputs: [T, axes], or [axes] if given once per sequence. Returns the outputs [T, axes] and the states after the last token.
    """
    A = Reals(sizes)
    once = {i.name: np.asarray(inputs[i.name]) for i in rec.inputs if i.scope == "sequence"}
    given = {i.name: np.asarray(inputs[i.name]) for i in rec.inputs if i.scope != "sequence"}
    current = dict(states) if states is not None else initial_states(rec, params, once, sizes, head)
    steps = len(next(iter(given.values()))) if given else 0
    fixed = {**params, **once, **_numbers(sizes, head)}
    trees: dict[str, Any] = {f.state: _Tree(f, fixed, sizes) for f in rec.folds if f.order == "tree"}
    results: dict[str, list[Array]] = {o.name: [] for o in rec.outputs}
    for t in range(steps):
        leaves = {**fixed, **{n: v[t] for n, v in given.items()}, **current}
        after = {name: tree.push(leaves) for name, tree in trees.items()}
        plain = [s for s in rec.states if s.name not in trees]
        roots = [*(s.next for s in plain), *(o.value for o in rec.outputs)]
        values = evaluate(A, roots, {**leaves, **{f"{n}@next": v for n, v in after.items()}})
        for o, v in zip(rec.outputs, values[len(plain) :], strict=True):
            results[o.name].append(np.broadcast_to(v, [extent(sizes, a) for a in o.axes]))
        current = {**{s.name: v for s, v in zip(plain, values, strict=False)}, **after}
        current = {s.name: current[s.name] for s in rec.states}
    shapes = {o.name: [extent(sizes, a) for a in o.axes] for o in rec.outputs}
    return {n: np.stack(v) if v else np.zeros([0, *shapes[n]]) for n, v in results.items()}, current


class _Tree:
    """A fold along the balanced tree over the tokens so far; an odd leaf passes up unchanged."""

    def __init__(self, fold: Fold, fixed: Mapping[str, Array], sizes: Mapping[str, int]):
        self.fold, self.fixed, self.sizes = fold, fixed, sizes
        self.items: list[Array] = []

    def push(self, leaves: Mapping[str, Array]) -> Array:
        A = Reals(self.sizes)
        self.items.append(evaluate(A, (self.fold.operand,), leaves)[0])
        level = list(self.items)
        while len(level) > 1:
            joined = [
                evaluate(A, (self.fold.operator,), {**self.fixed, self.fold.state: left, self.fold.leaf.name: right})[0]
                for left, right in zip(level[::2], level[1::2], strict=False)
            ]
            level = joined + (level[-1:] if len(level) % 2 else [])
        return level[0]
