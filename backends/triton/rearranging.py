"""Ops that move entries: along a leading axis another index, along a dimension of a tile a gather."""

from __future__ import annotations

from seqc.analysis.chain import Refusal
from seqc.backends.triton import memory
from seqc.backends.triton.arguments import arguments, gathered, taken, within
from seqc.backends.triton.micro import is_leaf
from seqc.backends.triton.writer import Env, Tile, Writer
from seqc.ir.expr import Expr


def rename(w: Writer, e: Expr, env: Env) -> Tile:
    (x,) = arguments(w, e, env)
    table, dims = dict(e.attr), w.dims(e, env)
    return Tile(w.permuted(x.text, tuple(table.get(a, a) for a in x.dims), dims), dims)


def shift(w: Writer, e: Expr, env: Env) -> Tile:
    axis, by = e.attr
    (x,) = arguments(w, e, env)
    if axis in env:
        there = f"({env[axis]} >= {by})" if by >= 0 else f"({env[axis]} < {w.count(axis, env)} - {-by})"
        return Tile(f"tl.where({there}, {x.text}, 0.0)", x.dims)
    i = w.at(axis, (axis,))
    index = w.index(f"tl.minimum(tl.maximum({i} - {by}, 0), {w.n(axis)} - 1)", w.root, "moved")
    there = w.index(f"({i} - {by} >= 0) & ({i} - {by} < {w.n(axis)})", w.root, "there")
    moved = gathered(w, x.text, x.dims, axis, index, w.b(axis))
    return Tile(f"tl.where({w.widen(there, (axis,), x.dims)}, {moved}, 0.0)", x.dims)


def select(w: Writer, e: Expr, env: Env) -> Tile:
    axis, i = e.attr
    (x,) = arguments(w, e, env)
    if axis not in x.dims:
        return x
    return Tile(taken(w, x, axis, str(i) if i >= 0 else f"{w.n(axis)} - {-i}"), w.dims(e, env))


def place(w: Writer, e: Expr, env: Env) -> Tile:
    axis, i = e.attr
    (x,) = arguments(w, e, env)
    dims, at = w.dims(e, env), str(i) if i >= 0 else f"({w.count(axis, env)} - {-i})"
    here = f"{env[axis] if axis in env else w.at(axis, dims)} == {at}"
    return Tile(f"tl.where({here}, {w.widen(x.text, x.dims, dims)}, 0.0)", dims)


def stack(w: Writer, e: Expr, env: Env) -> Tile:
    (axis,) = e.attr
    args, dims = arguments(w, e, env), w.dims(e, env)
    if axis in env:
        raise Refusal("values stacked along an axis of the grid", e)
    text = w.widen(args[-1].text, args[-1].dims, dims)
    for i, t in reversed(list(enumerate(args[:-1]))):
        text = f"tl.where({w.at(axis, dims)} == {i}, {w.widen(t.text, t.dims, dims)}, {text})"
    return Tile(text if len(args) > 1 else f"tl.broadcast_to({text}, {w.shape(dims)})", dims)


def rows_read(w: Writer, e: Expr, env: Env) -> tuple[Expr, Env] | None:
    """The leaf that rows are read from, and the indices at which."""
    old, new = e.attr
    if not is_leaf(e) or new in env:
        return None
    at: Env = {**env, **memory.as_rows(w, old, new)}
    node = e.args[0]
    while node.op.name != "var":
        if node.op.name == "rename":
            back = {b: a for a, b in node.attr}
            at = {back.get(a, a): i for a, i in at.items()}
        elif node.op.name == "flatten":
            return None
        else:
            at = within(w, node, node.args[0], at)
        (node,) = node.args
    at = {a: i for a, i in at.items() if a in node.axes}
    return None if w.through(node, at) is not None or node.name not in w.leaves else (node, at)


def flatten(w: Writer, e: Expr, env: Env) -> Tile:
    old, new = e.attr
    if (read := rows_read(w, e, env)) is not None:
        return memory.load(w, *read)
    (x,) = arguments(w, e, env)
    dims = w.dims(e, env)
    if new not in dims:
        raise Refusal("axes of the grid are flattened", e)
    between = tuple(b for a in dims for b in (old if a == new else (a,)))
    flat = " * ".join(w.b(a) for a in old)
    shape = ", ".join(f"{flat}" if a == new else w.b(a) for a in dims)
    text = f"tl.reshape({w.permuted(x.text, x.dims, between)}, ({shape}{',' if len(dims) == 1 else ''}))"
    w.b(new)
    rest, place, stride = w.at(new, (new,)), "", ""
    for a in reversed(old):
        digit = f"({rest} % {w.n(a)})" if a != old[0] else f"({rest})"
        place += f"{' + ' if place else ''}{digit}{stride}"
        rest, stride = f"{rest} // {w.n(a)}", f"{stride} * {w.b(a)}"
    index = w.index(f"tl.minimum({place}, {flat} - 1)", w.root, "flat")
    return Tile(gathered(w, text, dims, new, index, w.b(new)), dims)


def unflatten(w: Writer, e: Expr, env: Env) -> Tile:
    old, new = e.attr
    (x,) = arguments(w, e, env)
    if new not in x.dims:
        raise Refusal("an axis of the grid is unflattened", e)
    flat = " * ".join(w.b(a) for a in old)
    rest, place, stride = w.index(f"tl.arange(0, {flat})", w.root, "flat"), "", ""
    for a in reversed(old):
        place += f"{' + ' if place else ''}({rest} % {w.b(a)}){stride}"
        rest, stride = f"{rest} // {w.b(a)}", f"{stride} * {w.n(a)}"
    index = w.index(f"tl.minimum({place}, {w.b(new)} - 1)", w.root, "apart")
    between = tuple(str(b) for a in x.dims for b in (old if a == new else (a,)))
    text = f"tl.reshape({gathered(w, x.text, x.dims, new, index, flat)}, {w.shape(between)})"
    return Tile(w.permuted(text, between, w.dims(e, env)), w.dims(e, env))


def concat(w: Writer, e: Expr, env: Env) -> Tile:
    new, parts = e.attr
    args, dims = arguments(w, e, env), w.dims(e, env)
    if new not in dims:
        raise Refusal("values joined along an axis of the grid", e)
    w.b(new)
    text, start = "0.0", "0"
    i = w.at(new, (new,))
    for t, p in zip(args, map(str, parts), strict=True):
        have = tuple(new if a == p else a for a in t.dims)
        index = w.index(f"tl.minimum(tl.maximum({i} - ({start}), 0), {w.n(p)} - 1)", w.root, "from_part")
        here = w.index(f"({i} >= {start}) & ({i} < {start} + {w.n(p)})", w.root, "is_part")
        moved = gathered(w, w.permuted(t.text, have, dims), dims, new, index, w.b(new))
        text = f"tl.where({w.widen(here, (new,), dims)}, {moved}, {text})"
        start = f"{start} + {w.n(p)}"
    return Tile(text, dims)


def piece(w: Writer, e: Expr, env: Env) -> Tile:
    axis, parts, which = e.attr
    (x,) = arguments(w, e, env)
    if axis not in x.dims:
        raise Refusal("a piece of an axis of the grid", e)
    part = str(parts[which])
    w.b(part)
    start = " + ".join(w.n(str(p)) for p in parts[:which]) or "0"
    index = w.index(f"tl.minimum({w.at(part, (part,))} + {start}, {w.b(axis)} - 1)", w.root, "in_part")
    text = gathered(w, x.text, x.dims, axis, index, w.b(part))
    have = tuple(part if a == axis else a for a in x.dims)
    return Tile(w.permuted(text, have, w.dims(e, env)), w.dims(e, env))
