"""What each op says in Triton: one table, op -> text of a tile over the tiles of its arguments. What is not in it has no kernel."""

from __future__ import annotations

from collections.abc import Callable

from seqc.analysis.chain import Refusal
from seqc.backends.triton import entries, rearranging, sums, triangular
from seqc.backends.triton.arguments import summed_over, taken, walked_over, within
from seqc.backends.triton.cuts import words
from seqc.backends.triton.entries import CALLS, FUNCTIONS, OPERATORS
from seqc.backends.triton.wide import DIMENSIONS
from seqc.backends.triton.writer import Env, Step, Tile, Writer
from seqc.ir.expr import Expr

LOOPS = ("contract", "decayed")
MEANINGS: dict[str, Callable[[Writer, Expr, Env], Tile]] = {
    "var": entries.var, "const": entries.const, "constant": entries.constant, "size": entries.size, "iota": entries.iota,
    "eye": entries.eye, "neg": entries.neg, "relu": entries.relu, "stop_gradient": entries.same, "compare": entries.compare,
    "where": entries.where, "broadcast": entries.broadcast, "spread": entries.same,
    "contract": sums.product, "decayed": sums.product,
    "max_over": sums.max_over, "cumsum": sums.cumsum, "collect": sums.collect, "convolve": sums.convolve,
    "correlate": sums.convolve,
    "rename": rearranging.rename, "shift": rearranging.shift, "select": rearranging.select, "place": rearranging.place,
    "stack": rearranging.stack, "flatten": rearranging.flatten, "unflatten": rearranging.unflatten, "concat": rearranging.concat,
    "piece": rearranging.piece,
    "masked": triangular.masked, "decay": triangular.decay, "unit_lower_inverse": triangular.inverse,
    "solve": triangular.solve,
    "decayed_solve": triangular.decayed_solve, "strict_solve": triangular.strict_solve,
    **dict.fromkeys(FUNCTIONS, entries.function), **dict.fromkeys(OPERATORS, entries.operator), **dict.fromkeys(CALLS, entries.call),
}  # fmt: skip


ENTRY_BY_ENTRY = (*FUNCTIONS, *OPERATORS, *CALLS, "neg", "relu", "compare", "where", "broadcast", "contract", "rename")


def whole(w: Writer, e: Expr, env: Env) -> tuple[str, Env] | None:
    """The axis of a loop along a tile's dimension, and the indices without it, where a value is computed before the loop and its entries
    are taken there. What has more dimensions than a tile of a matrix is computed in the loop, and what is in memory is read there."""
    axis = next((a for a in e.axes if isinstance(env.get(a), Step)), None)
    if axis is None or e.op.name == "var":
        return None
    outside = {a: i for a, i in env.items() if a != axis}
    inside = e.op.name in ENTRY_BY_ENTRY and not (e.op.name == "rename" and axis in words(e.attr))
    return None if inside and len(w.dims(e, outside)) > DIMENSIONS else (axis, outside)


def needs(w: Writer, e: Expr, env: Env) -> list[tuple[Expr, Env]]:
    """The arguments that are printed before the value, each with its indices; none where a loop prints them."""
    if (outside := whole(w, e, env)) is not None:
        return [(e, outside[1])]
    if e.op.name == "solve" and triangular.one_by_one(w, e, env):
        return []
    if e.op.name in LOOPS and (summed_over(w, e, env) or walked_over(w, e)):
        return []
    if e.op.name in ("collect", "convolve", "correlate") or (e.op.name == "flatten" and rearranging.rows_read(w, e, env) is not None):
        return []
    if e.op.name == "var":
        through = w.through(e, env)
        return [through] if through is not None else []
    return [(a, within(w, e, a, env)) for a in e.args]


def meaning(w: Writer, e: Expr, env: Env) -> Tile:
    if e.type.dtype == "complex":
        raise Refusal("complex values have no Triton kernel", e)
    if e.op.name not in MEANINGS:
        raise Refusal(f"`{e.op}` has no Triton kernel", e)
    if (outside := whole(w, e, env)) is not None:
        axis, at = outside
        return Tile(taken(w, w.tile(e, at), axis, env[axis]), w.dims(e, env))
    return MEANINGS[e.op.name](w, e, env)
