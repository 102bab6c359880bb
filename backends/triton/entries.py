"""Ops that work entry by entry, and leaves."""

from __future__ import annotations

from fractions import Fraction

from seqc.backends.triton import memory
from seqc.backends.triton.arguments import arguments, wide
from seqc.backends.triton.writer import Env, Tile, Writer
from seqc.ir.expr import Expr

FUNCTIONS = {
    "exp": "tl.exp", "log": "tl.log", "sqrt": "tl.sqrt", "abs": "tl.abs", "sin": "tl.sin", "cos": "tl.cos", "erf": "tl.erf",
    "floor": "tl.floor", "ceil": "tl.ceil", "sigmoid": "tl.sigmoid", "sign": "tiles.sign", "tanh": "tiles.tanh",
    "softplus": "tiles.softplus", "expm1": "tiles.expm1", "log1p": "tiles.log1p", "trailing_zeros": "tiles.trailing_zeros",
}  # fmt: skip
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
CALLS = {"power": "tiles.power", "modulo": "tiles.modulo", "maximum": "tl.maximum"}
RELATIONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}
SMALL = 4  # whole exponents that are products


def var(w: Writer, e: Expr, env: Env) -> Tile:
    if (through := w.through(e, env)) is not None:
        return w.tile(*through)
    return memory.load(w, e, env)


def const(w: Writer, e: Expr, env: Env) -> Tile:
    value = Fraction(e.attr)
    text = f"{int(value)}.0" if value.denominator == 1 and abs(value) < 10**15 else repr(float(value))
    return Tile(text if value >= 0 else f"({text})", (), True)


def constant(w: Writer, e: Expr, env: Env) -> Tile:
    return Tile({"pi": "3.141592653589793", "inf": 'float("inf")'}[str(e.attr)], (), True)


def size(w: Writer, e: Expr, env: Env) -> Tile:
    return Tile(f"tl.cast({w.n(str(e.attr))}, tl.float32)", ())


def iota(w: Writer, e: Expr, env: Env) -> Tile:
    (a,) = e.axes
    return Tile(f"tl.cast({env[a] if a in env else w.at(a, (a,), env)}, tl.float32)", w.dims(e, env))


def eye(w: Writer, e: Expr, env: Env) -> Tile:
    dims = w.dims(e, env)
    row, column = (w.at(a, dims, env) if a in dims else str(env[a]) for a in e.axes)
    return Tile(f"tl.where({row} == {column}, 1.0, 0.0)", dims)


def neg(w: Writer, e: Expr, env: Env) -> Tile:
    (x,) = arguments(w, e, env)
    return Tile(f"(-{x.text})" if x.number else f"-{x.text}", x.dims, x.number)


def same(w: Writer, e: Expr, env: Env) -> Tile:
    return arguments(w, e, env)[0]


def function(w: Writer, e: Expr, env: Env) -> Tile:
    (x,) = arguments(w, e, env)
    return Tile(f"{FUNCTIONS[e.op.name]}({w.numbers(x)})", x.dims)


def relu(w: Writer, e: Expr, env: Env) -> Tile:
    (x,) = arguments(w, e, env)
    return Tile(f"tl.maximum({w.numbers(x)}, 0.0)", x.dims)


def operator(w: Writer, e: Expr, env: Env) -> Tile:
    (x, y), dims = wide(w, e, env)
    return Tile(f"{x} {OPERATORS[e.op.name]} {y}", dims)


def call(w: Writer, e: Expr, env: Env) -> Tile:
    if e.op.name == "power" and (n := e.args[1]).op.name == "const" and Fraction(n.attr).denominator == 1 and 0 < abs(n.attr) <= SMALL:
        (x, _) = arguments(w, e, env)
        text = " * ".join([w.numbers(x)] * abs(int(n.attr)))
        return Tile(text if n.attr > 0 else f"1.0 / ({text})", x.dims)
    texts, dims = wide(w, e, env)
    return Tile(f"{CALLS[e.op.name]}({', '.join(texts)})", dims)


def compare(w: Writer, e: Expr, env: Env) -> Tile:
    (x, y), dims = wide(w, e, env)
    return Tile(f"{x} {RELATIONS[str(e.attr)]} {y}", dims)


def where(w: Writer, e: Expr, env: Env) -> Tile:
    texts, dims = wide(w, e, env)
    return Tile(f"tl.where({', '.join(texts)})", dims)


def broadcast(w: Writer, e: Expr, env: Env) -> Tile:
    (x,) = arguments(w, e, env)
    dims = w.dims(e, env)
    return Tile(w.whole(x, dims), dims) if dims or not x.number else x
