"""Masks, decays and systems of equations."""

from __future__ import annotations

from seqc.analysis.chain import Refusal
from seqc.backends.triton.arguments import arguments, taken, within
from seqc.backends.triton.cuts import decayed_kind
from seqc.backends.triton.writer import Env, Scope, Step, Tile, Writer
from seqc.ir.expr import Expr, Mask, walk


def _sees(mask: Mask, row: str, column: str) -> str:
    """Whether a row sees a column, each given as whole numbers."""
    left = f"{column} // {mask.per_column}" if mask.per_column != 1 else column
    right = f"({row} // {mask.per_row})" if mask.per_row != 1 else row
    right = f"{right} * {mask.step}" if mask.step != 1 else right
    return f"({left} < {right} + {mask.offset})"


def _mask(w: Writer, mask: Mask, dims: tuple[str, ...]) -> str:
    return _sees(mask, w.at(mask.row, dims), w.at(mask.column, dims))


def masked(w: Writer, e: Expr, env: Env) -> Tile:
    (x,) = arguments(w, e, env)
    return Tile(f"tl.where({_mask(w, e.attr, x.dims)}, {x.text}, 0.0)", x.dims)


def decay(w: Writer, e: Expr, env: Env) -> Tile:
    upper, lower = arguments(w, e, env)
    dims = w.dims(e, env)
    exponent = f"{w.widen(upper.text, upper.dims, dims)} - {w.widen(lower.text, lower.dims, dims)}"
    return Tile(f"tl.where({_mask(w, e.attr, dims)}, tiles.decay({exponent}), 0.0)", dims)


def decayed(w: Writer, e: Expr, env: Env, args: list[Tile]) -> Tile:
    """By blocks, where one program sees the rows, the columns and one axis of decays; `tiles.py` says how."""
    _, mask = e.attr
    kind, dims = decayed_kind(e, w.launch.lead), w.dims(e, env)
    if not kind:
        return _decayed_one_by_one(w, e, env, args)
    (along,) = {a for t in args for a in t.dims} - {mask.row, mask.column}
    rows, columns, both = (mask.row, along), (mask.column, along), (mask.row, mask.column)
    first, second, out = {"gram": (rows, columns, both), "rows": (both, columns, rows), "columns": (both, rows, columns)}[kind]
    x, y, upper, lower = args
    if not ({*x.dims} <= {*first} and {*y.dims} <= {*second}):
        x, y = y, x

    def whole(t: Tile, want: tuple[str, ...], gone: str) -> str:
        have = w.sorted(want)
        return w.permuted(w.kept(w.whole(t, have), have, [a for a in want if a == gone], env=env), have, want)

    (gone,) = {*both, along} - {*out}
    exponents = gone if kind == "gram" else ""
    texts = [whole(x, first, gone), whole(y, second, gone), whole(upper, rows, exponents), whole(lower, columns, exponents)]
    numbers = (w.n(mask.row), w.n(mask.column), mask.per_row, mask.per_column, mask.step, mask.offset)
    text = f"tiles.decayed_{kind}({', '.join([*texts, *map(str, numbers), w.number('DOT')])})"
    return Tile(w.permuted(text, out, dims), dims)


def _decayed_one_by_one(w: Writer, e: Expr, env: Env, args: list[Tile]) -> Tile:
    """A loop over the axis that is summed: the decays of one index at a time are a tile, those of all never are."""
    _, mask = e.attr
    dims, home = w.dims(e, env), w.home(e, env)
    summed = [a for a in w.sorted(a for t in args for a in t.dims) if a not in dims]
    if len(summed) != 1:
        raise Refusal("a decayed product over several axes", e)
    (axis,) = summed
    acc, step = w.namer(w.hints.get(e, "total")), w.namer("step")
    home.lines.append(f"{acc} = {w.whole(Tile('0.0', (), True), dims)}")

    def one(scope: Scope) -> None:
        x, y, upper, lower = (_slice(w, t, axis, step, dims, scope) for t in args)
        row, column = (step if a == axis else w.at(a, dims) for a in (mask.row, mask.column))
        factor = f"tl.where({_sees(mask, row, column)}, tiles.decay({upper} - {lower}), 0.0)"
        scope.lines.append(f"{acc} += {x} * {y} * {factor}")

    w.nested(home, f"for {step} in range(0, {w.n(axis)}):", one)
    return Tile(acc, dims)


def _slice(w: Writer, t: Tile, axis: str, i: str, dims: tuple[str, ...], scope: Scope) -> str:
    """A tile at one index, as wide as the result."""
    if axis not in t.dims:
        return w.widen(t.text, t.dims, dims)
    name = w.namer("slice")
    scope.lines.append(f"{name} = {taken(w, t, axis, i)}")
    return w.widen(name, tuple(a for a in t.dims if a != axis), dims)


def decayed_solve(w: Writer, e: Expr, env: Env) -> Tile:
    """Row by row; the rows that are found stand in one tile, the others are zero in it."""
    mask, transposed = e.attr
    along, other = (mask.column, mask.row) if transposed else (mask.row, mask.column)
    matrix, right, upper, lower = arguments(w, e, env)
    dims, home = w.dims(e, env), w.home(e, env)
    wide = w.sorted(other if a == along else a for a in dims)
    found, step = w.namer(w.hints.get(e, "found")), w.namer("step")
    home.lines.append(f"{found} = {w.whole(Tile('0.0', (), True), dims)}")

    def one(scope: Scope) -> None:
        i = w.namer("row")
        scope.lines.append(f"{i} = {w.n(along)} - 1 - {step}" if transposed else f"{i} = {step}")
        weight, up, low = (_slice(w, t, along, i, wide, scope) for t in (matrix, upper, lower))
        row, column = (i if a == along else w.at(a, wide) for a in (mask.row, mask.column))
        factor = f"tl.where({_sees(mask, row, column)}, tiles.decay({up} - {low}), 0.0)"
        known = w.permuted(found, tuple(other if a == along else a for a in dims), wide)
        rest = tuple(a for a in dims if a != along)
        new = w.namer("new")
        total = w.summed(f"{weight} * {factor} * {known}", wide, (other,))
        scope.lines.append(f"{new} = {_slice(w, right, along, i, rest, scope)} - {total}")
        scope.lines.append(f"{found} = tl.where({w.at(along, dims)} == {i}, {w.widen(new, rest, dims)}, {found})")

    w.nested(home, f"for {step} in range(0, {w.n(along)}):", one)
    return Tile(found, dims)


def strict_solve(w: Writer, e: Expr, env: Env) -> Tile:
    """Row by row, with the rule printed inside the loop over what a row finds and is given."""
    mask, back, rule, leaves = e.attr
    along, other = (mask.column, mask.row) if back else (mask.row, mask.column)
    matrix, *sides = arguments(w, e, env)
    dims, home = w.dims(e, env), w.home(e, env)
    own = tuple(a for a in dims if a != along)
    if {*own} != {*leaves[0].axes}:
        raise Refusal("a rule of rows that one program sees at once", e)
    wide = w.sorted((other, *own))
    known, step = w.namer(w.hints.get(e, "found")), w.namer("step")
    home.lines.append(f"{known} = {w.whole(Tile('0.0', (), True), dims)}")

    def one(scope: Scope) -> None:
        i = w.namer("row")
        scope.lines.append(f"{i} = {w.n(along)} - 1 - {step}" if back else f"{i} = {step}")
        seen = w.permuted(known, tuple(other if a == along else a for a in dims), wide)
        total = w.summed(f"{_slice(w, matrix, along, i, wide, scope)} * {seen}", wide, (other,))
        for node in walk(rule):
            if node in leaves or any(id(a) in w.inner for a in node.args):
                w.inner[id(node)] = scope
        for n, (leaf, side) in enumerate(zip(leaves, sides, strict=True)):
            axes = w.dims(leaf, {})
            w.inner[id(leaf)] = scope
            text = _slice(w, side, along, i, axes, scope)
            w.give(leaf, {}, Tile(f"{text} - {total}" if n == 0 else f"{text} + 0.0", axes))
        new = w.tile(rule, {})
        scope.lines.append(f"{known} = tl.where({w.at(along, dims)} == {i}, {w.widen(new.text, new.dims, dims)}, {known})")

    w.nested(home, f"for {step} in range(0, {w.n(along)}):", one)
    return Tile(known, dims)


def inverse(w: Writer, e: Expr, env: Env) -> Tile:
    row, column = (str(a) for a in e.attr)
    (x,) = arguments(w, e, env)
    rest = tuple(a for a in x.dims if a not in (row, column))
    want = (*rest, row, column)
    text = w.permuted(w.kept(x.text, x.dims, (row, column)), x.dims, want)
    wide = f"({' * '.join(w.b(a) for a in rest) or '1'}, {w.b(row)}, {w.b(column)})"
    text = f"tl.reshape(tiles.unit_lower_inverse(tl.reshape({text}, {wide})), {w.shape(want)})"
    return Tile(w.permuted(text, want, x.dims), x.dims)


def one_by_one(w: Writer, e: Expr, env: Env) -> tuple[str, ...]:
    """The axis of time along which a solution is found one system at a time: the matrices of all tokens are never a tile."""
    matrix, _ = e.args
    lead = tuple(a for a in w.dims(matrix, within(w, e, matrix, env)) if a not in e.attr)
    return lead if len(lead) == 1 and lead[0].startswith("@") else ()


def solve(w: Writer, e: Expr, env: Env) -> Tile:
    for axis in one_by_one(w, e, env):
        return _solve_one_by_one(w, e, env, axis)
    row, column = (str(a) for a in e.attr)
    matrix, right = arguments(w, e, env)
    lead = tuple(a for a in matrix.dims if a not in (row, column))
    others = tuple(a for a in right.dims if a not in lead and a != row)
    many = " * ".join(w.b(a) for a in lead) or "1"
    have = (*lead, row, *others)
    wide = w.whole(Tile(w.permuted(right.text, right.dims, tuple(a for a in have if a in right.dims)),
                        tuple(a for a in have if a in right.dims)), have)  # fmt: skip
    a = f"tl.reshape({w.permuted(matrix.text, matrix.dims, (*lead, row, column))}, ({many}, {w.b(row)}, {w.b(column)}))"
    x = f"tl.reshape({wide}, ({many}, {w.b(row)}, {' * '.join(w.b(o) for o in others) or '1'}))"
    found = (*lead, column, *others)
    text = f"tl.reshape(tiles.solve({a}, {x}, {w.n(row)}), {w.shape(found)})"
    return Tile(w.permuted(text, found, w.dims(e, env)), w.dims(e, env))


def _solve_one_by_one(w: Writer, e: Expr, env: Env, axis: str) -> Tile:
    dims, home = w.dims(e, env), w.home(e, env)
    found, step = w.namer(w.hints.get(e, "found")), w.namer("step")
    home.lines.append(f"{found} = {w.whole(Tile('0.0', (), True), dims)}")

    def one(scope: Scope) -> None:
        w.scopes[step] = scope
        new = solve(w, e, {**env, axis: Step(step)})
        scope.lines.append(f"{found} = tl.where({w.at(axis, dims)} == {step}, {w.widen(new.text, new.dims, dims)}, {found})")

    w.nested(home, f"for {step} in range(0, {w.n(axis)}):", one)
    return Tile(found, dims)
