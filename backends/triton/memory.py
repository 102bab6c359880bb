"""Where values lie, and how a kernel reads and writes them.

Sequences are rows; a row's chunks (of forms without chunks, its tokens) are places, counted through all rows. What a kernel makes for
other kernels lies as [places, heads, ...]. What the caller gives and gets with tokens lies as the caller has it, [B, T, heads, ...]:
row n has the tokens from `start` to `end` of all, and its first chunk begins at `origin`, which is `start` less the padding in front.
"""

from __future__ import annotations

from seqc.analysis.chain import Refusal
from seqc.backends.triton.micro import apart_in, rows_of
from seqc.backends.triton.text import atom, product
from seqc.backends.triton.writer import Env, Row, Scope, Tile, Writer
from seqc.forms.base import VALID
from seqc.ir.expr import Expr
from seqc.ir.program import BATCH, TOKENS


def load(w: Writer, leaf: Expr, env: Env) -> Tile:
    """A leaf from memory. Inside the loop, what has the loop's axis outside is seen at the step's index."""
    if leaf.name not in w.leaves:
        raise Refusal(f"a loop sums `{leaf.name}`, which it carries, over an axis of the grid", leaf)
    outer, loop = w.leaves[leaf.name], w.launch.loop
    if loop is not None and loop.axis in outer.axes and loop.axis not in leaf.axes:
        env = {**env, loop.axis: w.loop_index}
    dims = _dims(w, outer, env)
    if leaf.name == VALID:
        return Tile(f"tl.where({_alive(w, dims, env)}, 1.0, 0.0)", dims)
    given = w.given.get(leaf.name)
    guard = _guard(w, outer, dims, env, given is not None and not given.repeat)
    text = f"tl.load({_address(w, outer, dims, env)}{guard}{', other=0.0' if guard else ''})"
    if leaf.type.dtype == "bool":
        return Tile(f"{text} != 0.0", dims)
    text = f"{text}.to(tl.float32)"
    return Tile(f"tl.maximum({text}, tiles.SMALLEST)" if given is not None and given.positive else text, dims)


def store(w: Writer, leaf: Expr, t: Tile, env: Env, scope: Scope) -> None:
    """A tile into memory, by the first of the programs that have the same."""
    dims = _dims(w, leaf, env)
    value = w.whole(t, dims) + (".to(tl.float32)" if leaf.type.dtype == "bool" else "")
    line = f"tl.store({_address(w, leaf, dims, env, True)}, {value}{_guard(w, leaf, dims, env, leaf.name in w.given)})"
    first = _is_first(w, leaf, env)
    scope.lines += [f"if {' & '.join(first)}:", f"    {line}"] if first else [line]


def written(w: Writer, leaf: Expr, value: Expr, env: Env, scope: Scope) -> None:
    """A value into memory; one that is rows taken apart, row by row."""
    core, at = value, env
    if (rows := rows_of(value)) is not value:
        core, (old, new) = rows, apart_in(value)
        at = {**env, **as_rows(w, old, new)}
    store(w, leaf, w.tile(core, {a: i for a, i in env.items() if a in core.axes}), at, scope)


def as_rows(w: Writer, axes: tuple[str, ...], along: str) -> dict[str, str]:
    """The indices of two axes that are one in a tile."""
    found, rest = dict[str, str](), w.at(along, (along,))
    for a in reversed(axes):
        text = w.index(f"{rest} % {w.n(a)}" if a != axes[0] else rest, w.root, "micro" if a != axes[0] else "of_token")
        rest = f"({rest} // {w.n(a)})"
        found[a] = Row(text, along)
    return found


def _dims(w: Writer, leaf: Expr, env: Env) -> tuple[str, ...]:
    rows = (i.along for a in leaf.axes if isinstance(i := env.get(a), Row))
    return w.sorted((*w.dims(leaf, env), *rows))


def _wide(w: Writer, index: str, dims: tuple[str, ...]) -> str:
    return w.widen(index, (index.along,), dims) if isinstance(index, Row) else index


def _is_first(w: Writer, leaf: Expr, env: Env) -> list[str]:
    """What holds for the one of several programs that writes. The first row may have no places: of those that see a place, the first
    writes what all rows share, and every row writes what its places share with those of other rows."""
    grid, place = {*w.launch.grid}, w.launch.place
    joined = {place, BATCH} <= grid
    own = [a for a in (*w.launch.grid, *w.launch.split) if a not in leaf.axes and not (joined and a in (place, BATCH))]
    found = [f"({env[a]} == 0)" for a in own]
    if joined and not {place, BATCH} & {*leaf.axes}:
        found.append("(rest == 0)")  # what is left of the program's number counts the places of all rows
    return found + ([f"({env[place]} == 0)"] if joined and BATCH in leaf.axes and place not in leaf.axes else [])


def _guard(w: Writer, leaf: Expr, dims: tuple[str, ...], env: Env, alive: bool) -> str:
    own = alive and TOKENS in leaf.axes and w.launch.place != TOKENS
    masks = [_alive(w, dims, env)] if own else []
    masks += [w.inside(a, dims, env) for a in dims if not (own and a == TOKENS)]
    return f", mask={' & '.join(masks)}" if masks else ""


def _base(w: Writer, env: Env) -> str:
    """The token, counted through all rows, at which the chunk begins that is seen."""
    scope = max((w.scope_of(env[a]) for a in (BATCH, w.launch.place)), key=lambda s: s.depth)
    return w.index(f"{w.of_row('origin', env)} + {env[w.launch.place]} * {w.n(TOKENS)}", scope, "base")


def _alive(w: Writer, dims: tuple[str, ...], env: Env) -> str:
    """Whether a token is one of the row, and not padding."""
    if w.launch.place == TOKENS:
        return "(origin == 0)"
    base, start, end = _base(w, env), w.of_row("start", env), w.of_row("start", env, next_one=True)
    scope = w.scopes[base]
    if isinstance(rows := env.get(TOKENS), Row):
        inside = w.inside(rows.along, (rows.along,))
        here = w.index(f"{inside} & ({base} + {rows} >= {start}) & ({base} + {rows} < {end})", w.scopes[base], "alive")
        return w.widen(here, (rows.along,), dims)
    if TOKENS in env and TOKENS not in dims:
        one = " + tl.arange(0, 1)" if dims else ""  # masks of tiles are tiles
        time = f"{base} + {env[TOKENS]}{one}"
        scope = max((scope, w.scope_of(env[TOKENS])), key=lambda s: s.depth)
        return w.widen(w.index(f"({time} >= {start}) & ({time} < {end})", scope, "alive"), dims[:1], dims)
    i, inside = w.at(TOKENS, (TOKENS,), env), w.inside(TOKENS, (TOKENS,), env)
    scope = max((scope, w.scope_of(env.get(TOKENS, ""))), key=lambda s: s.depth)
    here = w.index(f"{inside} & ({base} + {i} >= {start}) & ({base} + {i} < {end})", scope, "alive")
    return w.widen(here, (TOKENS,), dims)


def _address(w: Writer, leaf: Expr, dims: tuple[str, ...], env: Env, written: bool = False) -> str:
    """A tensor's pointer, the place of the tile in it, and those of the entries in the tile.

    The latter are of 32 bits where the tile lies in one piece: no tile has more than 2^20 entries.
    """
    pointer, axes = w.pointer(leaf), list(leaf.axes)
    outer: list[tuple[str, str]] = []  # number of indices and the index, of what is known of the whole tile
    given, place = w.given.get(leaf.name), w.launch.place
    tokens = ""
    if given is not None and place != TOKENS:
        if not {TOKENS, place, BATCH} <= {*axes}:
            raise Refusal(f"`{leaf.name}` lacks an axis of time", leaf)
        axes = [a for a in axes if a not in (TOKENS, place, BATCH)]
        outer.append(("", _base(w, env)))
        tokens = _token(w, env, dims, given.repeat and not written)
    elif place in axes and BATCH in axes:
        axes = [a for a in axes if a not in (place, BATCH)]
        scope = max((w.scope_of(env[a]) for a in (BATCH, place)), key=lambda s: s.depth)
        outer.append(("", w.index(f"{w.of_row('first', env)} + {env[place]}", scope, "place")))
    while axes and axes[0] in env and axes[0] not in dims and not isinstance(env[axes[0]], Row):
        outer.append((w.n(axes[0]), env[axes[0]]))
        axes = axes[1:]
    parts, lengths = [pointer], [w.n(a) for a in axes]
    if outer:
        text = outer[0][1]
        for n, i in outer[1:]:
            text = f"{atom(text)} * {n} + {i}"
        scope = max((w.scope_of(i) for _, i in outer), key=lambda s: s.depth)
        parts.append(w.index(product([text, *lengths]), scope, "first"))
    cell = ""
    for a in axes:
        i = _wide(w, env[a], dims) if a in env and a not in dims else w.at(a, dims, env)
        cell = f"{atom(cell)} * {w.n(a)} + {i}" if cell else i
    if tokens:
        stride = product([*(n for n, _ in outer[1:]), *lengths])
        cell = " + ".join(x for x in (product([tokens, stride] if stride else [tokens]), cell) if x)
    if cell:
        scopes = [w.scope_of(env[a]) for a in (*dims, *axes) if a in env]
        scopes += [w.scopes.get(tokens.split("[")[0], w.root)] if tokens else []
        parts.append(w.index(cell, max(scopes, key=lambda s: s.depth, default=w.root), "cell"))
    return " + ".join(parts)


def _token(w: Writer, env: Env, dims: tuple[str, ...], repeat: bool) -> str:
    """Tokens counted from the first of the chunk; of those outside of the row the nearest inside."""
    one = TOKENS in env and TOKENS not in dims
    i = env[TOKENS] if one else w.at(TOKENS, (TOKENS,), env)
    if repeat:
        base, start, end = _base(w, env), w.of_row("start", env), w.of_row("start", env, next_one=True)
        text = f"(tl.maximum(tl.minimum(tl.maximum({base} + {i}, {start}), {end} - 1), 0) - {base})"
        scopes = [w.scopes[base], w.scope_of(env.get(TOKENS, ""))]
        i = w.index(f"{text}.to(tl.int32)", max(scopes, key=lambda s: s.depth), "token")
    rows = env.get(TOKENS)
    if isinstance(rows, Row):
        return w.widen(i, (rows.along,), dims)
    return i if one else w.widen(i, (TOKENS,), dims)
