"""Products and sums: matrix products where two tiles share what is summed, loops over leading axes."""

from __future__ import annotations

from seqc.analysis.chain import Refusal
from seqc.backends.triton.arguments import arguments, gathered, summed_over, taken, walked_over, within
from seqc.backends.triton.cuts import expanded
from seqc.backends.triton.triangular import decayed
from seqc.backends.triton.wide import is_wide
from seqc.backends.triton.writer import Env, Scope, Step, Tile, Writer
from seqc.ir.expr import Expr, walk
from seqc.ir.rules import union


def product(w: Writer, e: Expr, env: Env) -> Tile:
    """A product, with decays or without, summed over what its result lacks."""
    bound, blocks = summed_over(w, e, env), walked_over(w, e)
    if len(blocks) == 1 and not bound and w.home(e, env) is w.root:
        return _together(w, e, env, blocks[0])
    bound += blocks
    if not bound:
        return _product(w, e, env, arguments(w, e, env))

    def body(at: Env, scope: Scope) -> str:
        t = _product(w, e, at, [w.tile(a, within(w, e, a, at)) for a in e.args])
        return w.widen(t.text, t.dims, w.dims(e, env))

    return w.total(e, env, bound, body)


def _together(w: Writer, e: Expr, env: Env, axis: str) -> Tile:
    """One walk along an axis for all sums over it that need none of each other, of those that what is being written needs."""
    sums = [e, *(n for n in w.wanted if n is not e and w.depth(n) == w.depth(e) and _same_walk(w, n, env, axis))]
    names = begun(w, sums, env)
    w.each(w.root, axis, env, lambda scope, i: added(w, names, {**env, axis: i}, axis, scope))
    given(w, names, env)
    found = w.find(e, _of(e, env))
    assert found is not None
    return found


def beside(w: Writer, values: list[Expr], env: Env, axis: str) -> list[Expr]:
    """The sums over an axis that a walk along it can find which has some values: they need no more other walks than those do, and the
    values do not need them, nor do others of these."""
    most = max(map(w.depth, values))
    found = [n for n in w.nodes() if w.depth(n) <= most + 1 and n not in w.wanted and _same_walk(w, n, env, axis)]
    every = set(found)
    return [n for n in found if every.isdisjoint(walk(*expanded(n.args, w.launch.folded)))]


def begun(w: Writer, sums: list[Expr], env: Env) -> dict[Expr, str]:
    """Each sum's name, which is zero before the walk."""
    names = {n: w.namer(w.hints.get(n, "total")) for n in sums}
    w.root.lines += [f"{acc} = {w.whole(Tile('0.0', (), True), w.dims(n, _of(n, env)))}" for n, acc in names.items()]
    return names


def added(w: Writer, names: dict[Expr, str], at: Env, axis: str, scope: Scope) -> None:
    """What one block adds to each sum."""
    for n, acc in names.items():
        own = {**_of(n, at), axis: at[axis]}
        t = _product(w, n, own, [w.tile(a, within(w, n, a, at)) for a in n.args])
        scope.lines.append(f"{acc} += {w.widen(t.text, t.dims, w.dims(n, _of(n, at)))}")


def given(w: Writer, names: dict[Expr, str], env: Env) -> None:
    for n, acc in names.items():
        w.give(n, _of(n, env), Tile(acc, w.dims(n, _of(n, env))))


def _same_walk(w: Writer, e: Expr, env: Env, axis: str) -> bool:
    """Whether a sum is not found yet, and can be in a walk along the axis that begins where this one does."""
    if e.op.name not in ("contract", "decayed") or walked_over(w, e) != [axis] or summed_over(w, e, env):
        return False
    every = union(tuple(x.type for x in e.args))
    seen = all(a in env for a in every if a in w.launch.lead or a in w.launch.split)
    whole = not any(a in w.launch.walked for a in e.axes if a not in env)
    return seen and whole and w.home(e, _of(e, env)) is w.root and w.find(e, _of(e, env)) is None


def _of(e: Expr, env: Env) -> Env:
    return {a: i for a, i in env.items() if a in e.axes}


def _product(w: Writer, e: Expr, env: Env, tiles: list[Tile]) -> Tile:
    """The product of one or two tiles, summed over the axes of tiles that the result lacks."""
    if e.op.name == "decayed":
        return decayed(w, e, env, tiles)
    dims = w.dims(e, env)
    if len(tiles) == 2:
        return _of_two(w, tiles, dims, env)
    (x,) = tiles
    gone = [a for a in x.dims if a not in dims]
    return Tile(w.summed(x.text, x.dims, gone, env), dims)


def _of_two(w: Writer, tiles: list[Tile], dims: tuple[str, ...], env: Env) -> Tile:
    only = [[a for a in t.dims if a not in dims and a not in other.dims] for t, other in (tiles, tiles[::-1])]
    tiles = [Tile(w.summed(t.text, t.dims, gone, env), tuple(a for a in t.dims if a not in gone)) if gone else t
             for t, gone in zip(tiles, only, strict=True)]  # fmt: skip
    x, y = tiles
    summed = [a for a in x.dims if a in y.dims and a not in dims]
    left = [a for a in x.dims if a not in y.dims]
    right = [a for a in y.dims if a not in x.dims]
    if summed and left and right:
        return Tile(_matrices(w, x, y, dims, (summed, left, right), env), dims)
    every = w.sorted((*x.dims, *y.dims))
    text = f"{w.widen(x.text, x.dims, every)} * {w.widen(y.text, y.dims, every)}"
    return Tile(w.summed(text, every, summed, env), dims)


def _matrices(w: Writer, x: Tile, y: Tile, dims: tuple[str, ...], axes: tuple[list[str], list[str], list[str]], env: Env) -> str:
    """A product of matrices, or of as many as shared axes count. axes: what is summed, what only x has, what only y has."""
    summed, left, right = axes
    shared = [a for a in x.dims if a in y.dims and a in dims]

    def shape(*groups: list[str]) -> str:
        parts = [" * ".join(w.b(a) for a in g) for g in groups if g or groups.index(g)]
        return f"({', '.join(p or '1' for p in parts)})"

    def as_matrix(t: Tile, rows: list[str], columns: list[str]) -> str:
        want = (*shared, *rows, *columns)
        text = w.permuted(w.kept(t.text, t.dims, summed, env=env), t.dims, want)
        return text if not shared and len(want) == 2 else f"tl.reshape({text}, {shape(shared, rows, columns)})"

    turned = dims == (*right, *left) and len(dims) == 2
    name = "tiles.dots" if shared else "tiles.turned_dot" if turned else "tiles.dot"
    text = f"{name}({as_matrix(x, left, summed)}, {as_matrix(y, summed, right)}, {w.number('DOT')})"
    if turned:
        return text
    have = (*shared, *left, *right)
    if shared or len(have) != 2:
        text = f"tl.reshape({text}, {w.shape(have)})"
    return w.permuted(text, have, dims)


def max_over(w: Writer, e: Expr, env: Env) -> Tile:
    if summed_over(w, e, env):
        raise Refusal("a maximum over an axis of the grid", e)
    (x,) = arguments(w, e, env)
    gone = [a for a in x.dims if a not in e.axes]
    text = w.kept(x.text, x.dims, gone, 'float("-inf")')
    for a in reversed(gone):
        text = f"tl.max({text}, {x.dims.index(a)})"
    return Tile(text, w.dims(e, env))


def cumsum(w: Writer, e: Expr, env: Env) -> Tile:
    axis, reverse = e.attr
    (x,) = arguments(w, e, env)
    if axis in env:
        raise Refusal("a running sum along an axis of the grid", e)
    text = w.kept(x.text, x.dims, [axis]) if reverse else x.text
    return Tile(f"tl.cumsum({text}, {x.dims.index(axis)}{', reverse=True' if reverse else ''})", x.dims)


def collect(w: Writer, e: Expr, env: Env) -> Tile:
    groups, heads = (str(a) for a in e.attr)
    (x,) = e.args
    home, dims, acc, step = w.home(e, env), w.dims(e, env), w.namer("total"), w.namer("step")
    home.lines.append(f"{acc} = {w.whole(Tile('0.0', (), True), dims)}")
    each = f"({w.n(heads)} // {w.n(groups)})"

    def lag_by_lag(scope: Scope) -> None:
        i = w.index(f"{env[groups]} * {each} + {step}", scope, "at_head")
        t = w.tile(x, {heads: i, **{a: v for a, v in env.items() if a in x.axes}})
        scope.lines.append(f"{acc} += {t.text}")

    w.nested(home, f"for {step} in range(0, {each}):", lag_by_lag)
    return Tile(acc, dims)


def _moved(w: Writer, y: Tile, axis: str, by: str, scope: Scope, back: bool = False) -> Tile:
    """y at index i - by along a dimension (i + by, if `back`), zero where there is none, for a number that a loop counts."""
    if axis not in y.dims:
        raise Refusal("a convolution along an axis of the grid")
    i = w.at(axis, (axis,))
    there, at = (f"{i} >= {by}", f"tl.maximum({i} - {by}, 0)")
    if back:
        there, at = f"{i} + {by} < {w.n(axis)}", f"tl.minimum({i} + {by}, {w.n(axis)} - 1)"
    name, moved = w.namer("moved"), gathered(w, y.text, y.dims, axis, at, w.b(axis))
    scope.lines.append(f"{name} = tl.where({w.widen(f'({there})', (axis,), y.dims)}, {moved}, 0.0)")
    return Tile(name, y.dims)


def convolve(w: Writer, e: Expr, env: Env) -> Tile:
    """Lag by lag: x at the lag times y moved by it; the other way round, the sum of x times y moved by the lag. Of a wide factor one entry
    is found at a time, in the loop: all of them are no tile."""
    (axis, _), (x, y), dims = e.attr, e.args, w.dims(e, env)
    wide = [is_wide(a, w.launch.lead) for a in e.args]
    rows = e.op.name == "correlate" and not wide[1]
    back = e.op.name == "correlate" and not rows  # the sum over i of x[i] y[i - lag] is that over j of x[j + lag] y[j]
    one, other = (y, x) if back or (wide == [False, True] and not rows) else (x, y)  # a convolution is the same either way

    def body(at: Env, scope: Scope) -> str:
        first, second = ({k: i for k, i in at.items() if k in a.axes} for a in (one, other))
        moving, whole = w.tile(other, second), None if is_wide(one, w.launch.lead) and not rows else w.tile(one, first)
        acc, lag = w.namer("total"), w.namer("lag")
        scope.lines.append(f"{acc} = {w.whole(Tile('0.0', (), True), dims)}")

        def lag_by_lag(inner: Scope) -> None:
            w.scopes[lag] = inner
            moved = _moved(w, moving, axis, lag, inner, back)
            if rows and whole is not None:
                t = _of_two(w, [whole, moved], tuple(a for a in dims if a != axis), at)
                inner.lines.append(f"{acc} += tl.where({w.at(axis, dims)} == {lag}, {w.widen(t.text, t.dims, dims)}, 0.0)")
                return
            at_lag = w.tile(one, {**first, axis: Step(lag)}) if whole is None else _taken(w, whole, axis, lag)
            t = _of_two(w, [at_lag, moved], dims, at)
            inner.lines.append(f"{acc} += {w.widen(t.text, t.dims, dims)}")

        w.nested(scope, f"for {lag} in range(0, {w.n(axis)}):", lag_by_lag)
        return acc

    bound = summed_over(w, e, env)
    return w.total(e, env, bound, body) if bound else Tile(body(env, w.home(e, env)), dims)


def _taken(w: Writer, x: Tile, axis: str, i: str) -> Tile:
    return Tile(taken(w, x, axis, i), tuple(a for a in x.dims if a != axis))
