"""How an op reads its arguments: at which indices, how wide, at other places along a dimension."""

from __future__ import annotations

from seqc.analysis.chain import Refusal
from seqc.backends.triton.writer import Env, Tile, Writer
from seqc.ir.expr import Expr
from seqc.ir.program import BATCH, GROUPS, HEADS, LEAD
from seqc.ir.rules import union


def within(w: Writer, e: Expr, arg: Expr, env: Env) -> Env:
    """The indices at which an argument is read."""
    name, attr = e.op.name, e.attr
    if name == "rename":
        back = {new: old for old, new in attr}
        first = (w.launch.place, *LEAD)  # what else the grid has was an axis of tiles like any other
        if any((new in first) != (old in first) for old, new in attr):
            raise Refusal(f"an axis of a tile is renamed to one of the grid: {dict(attr)}", e)
        env = {back.get(a, a): i for a, i in env.items()}
    elif name == "spread":
        if HEADS not in env:
            raise Refusal("groups are spread over heads that one program sees at once", e)
        env = {**env, str(attr[0]): w.index(f"{env[HEADS]} // ({w.n(HEADS)} // {w.n(GROUPS)})", w.home(e, env), "at_group")}
    elif name == "shift" and attr[0] in env:
        a, by = attr
        env = {**env, a: w.index(f"tl.minimum(tl.maximum({env[a]} - {by}, 0), {w.count(a, env)} - 1)", w.scope_of(env[a]))}
    elif name == "select" and attr[0] in w.launch.lead:
        a, i = attr
        env = {**env, a: w.index(_one(w, a, i, env), w.scope_of(env.get(BATCH, "")))}
    return {a: i for a, i in env.items() if a in arg.axes}


def _one(w: Writer, axis: str, i: int, env: Env) -> str:
    """One index of a leading axis. A row without places has none: a place beside it is read, and the result is not used."""
    if axis != w.launch.place or BATCH not in env:
        return f"origin + {i}" if i >= 0 else f"origin + ({w.n(axis)} - {-i})"
    last = f"tl.maximum({w.count(axis, env)} - 1, -{w.of_row('first', env)})"
    return f"tl.minimum({i}, {last})" if i >= 0 else last if i == -1 else f"({last} - {-i - 1})"


def arguments(w: Writer, e: Expr, env: Env) -> list[Tile]:
    return [w.tile(a, within(w, e, a, env)) for a in e.args]


def summed_over(w: Writer, e: Expr, env: Env) -> list[str]:
    """The leading axes that a sum is over: rows before their places."""
    lead = sorted(w.launch.lead, key=lambda a: a != BATCH)
    return [a for a in lead if a in union(tuple(x.type for x in e.args)) and a not in e.axes]


def walked_over(w: Writer, e: Expr) -> list[str]:
    """The axes that a sum is over block by block."""
    return [a for a in w.launch.walked if a in union(tuple(x.type for x in e.args)) and a not in e.axes]


def wide(w: Writer, e: Expr, env: Env) -> tuple[list[str], tuple[str, ...]]:
    dims, args = w.dims(e, env), arguments(w, e, env)
    if all(t.number or not t.dims for t in args) and dims:
        raise Refusal(f"`{e.op}` of numbers alone has axes", e)
    texts = [w.widen(t.text, t.dims, dims) for t in args]
    if all(t.number for t in args):
        texts[0] = w.numbers(args[0])
    return texts, dims


def gathered(w: Writer, text: str, dims: tuple[str, ...], axis: str, index: str, length: str) -> str:
    """A tile read along one dimension at other indices, a vector of a tile's length."""
    at = dims.index(axis)
    shape = f"({', '.join(length if a == axis else w.b(a) for a in dims)}{',' if len(dims) == 1 else ''})"
    return f"tl.gather({text}, tl.broadcast_to({w.widen(index, (axis,), dims)}, {shape}), {at})"


def taken(w: Writer, x: Tile, axis: str, i: str) -> str:
    """A tile at one index along a dimension; one that lacks it, as it is."""
    if axis not in x.dims:
        return x.text
    return f"tl.sum(tl.where({w.at(axis, x.dims)} == {i}, {x.text}, 0.0), {x.dims.index(axis)})"
