"""Rows of micro-steps as they lie in memory: a token's steps one by one, stacked and flattened to rows, are one value along both axes.

What is alike for all steps is said once: stack(f(x_0), f(x_1)) is f(x), where x_i are all entries of x along an axis. Rows are then read
from memory, and written there, without a value for each step; what differs from step to step is a number per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import reduce

from seqc.ir import ops
from seqc.ir.expr import Expr, make, rebuild
from seqc.ir.program import Program, changed, changed_equations
from seqc.ir.rules import union

EACH = ("add", "sub", "mul", "div", "neg", "exp", "sigmoid", "where")  # ops of entries


def in_rows(program: Program) -> Program:
    """The program with stacks of all entries of an axis as that axis, and what is done with rows done along one axis."""
    counts = {**{a: n for a, of, n in program.widths if not of}, **dict(program.fixed)}

    def rewritten(values: Iterable[Expr]) -> tuple[Expr, ...]:
        return rebuild(values, lambda node, args: _rule(node, args, counts))

    stages = tuple(changed(s, rewritten) for s in program.stages)
    return replace(program, stages=stages, outputs=changed_equations(program.outputs, rewritten))


def _rule(node: Expr, args: tuple[Expr, ...], counts: Mapping[str, int]) -> Expr:
    new = node if args == node.args else make(node.op, args, node.attr)
    name = new.op.name
    if name == "stack":
        return _ordered(_stacked(new.args, str(new.attr[0]), counts) or new, new.axes)
    if name == "add" and (places := _places(new)):
        axis, values = places
        if len(values) == counts.get(axis) and (found := _stacked(values, axis, counts)):
            return _ordered(found, new.axes)
    if name == "flatten":
        return _ordered(_flat(new.args[0], *new.attr), new.axes)
    if name == "contract" and (found := _of_one_step(new, counts)) is not None:
        return found
    if name in EACH or name == "contract":
        return _together(new)
    return new


def _ordered(e: Expr, axes: tuple[str, ...]) -> Expr:
    return e if e.axes == axes else ops.contract((e,), axes)


def _plain(e: Expr) -> Expr:
    """Without an order of its own of the axes."""
    while e.op.name == "contract" and len(e.args) == 1 and {*e.axes} == {*e.args[0].axes}:
        (e,) = e.args
    return e


def _places(e: Expr) -> tuple[str, list[Expr]] | None:
    """An axis and what is at each of its entries, of a sum of values that have one entry each."""
    found: dict[int, Expr] = {}
    axis, todo = "", [e]
    while todo:
        x = _plain(todo.pop())
        if x.op.name == "add":
            todo += x.args
        elif x.op.name == "place" and axis in ("", x.attr[0]) and x.attr[1] >= 0 and x.attr[1] not in found:
            axis, found[x.attr[1]] = str(x.attr[0]), x.args[0]
        else:
            return None
    return (axis, [found[i] for i in range(len(found))]) if {*found} == {*range(len(found))} else None


def _stacked(values: Iterable[Expr], axis: str, counts: Mapping[str, int]) -> Expr | None:
    """Values stacked along an axis, or none where they have nothing in common."""
    values = [_plain(v) for v in values]
    first = values[0]
    if all(v is first for v in values):
        return ops.broadcast(first, (axis, *first.axes))
    if all(v.op.name == "select" for v in values):
        whole, (of, _) = _plain(first.args[0]), first.attr
        every = all(v.attr == (of, i) and _plain(v.args[0]) is whole for i, v in enumerate(values))
        return ops.rename(whole, {str(of): axis}) if every and counts.get(str(of)) == len(values) and axis not in whole.axes else None
    factors = [_factors(v) for v in values]
    large = [[x for x in fs if len(x.axes) == max(len(y.axes) for y in fs)] for fs in factors]
    if max(map(len, factors)) > 1 and all(len(xs) == 1 for xs in large):
        found = _stacked([x for (x,) in large], axis, counts)
        if found is None:
            return None
        rest = [reduce(ops.mul, [x for x in fs if x is not big], ops.number(1)) for fs, (big,) in zip(factors, large, strict=True)]
        return found if all(ops.is_number(x, 1) for x in rest) else _together(ops.mul(_numbers(rest, axis, counts), found))
    if first.op.name in EACH and all((v.op, v.attr, len(v.args)) == (first.op, first.attr, len(first.args)) for v in values):
        done = _stacked_each(values, axis, counts)
        return None if done is None else _together(make(first.op, done, first.attr))
    if all(v.op.name == "contract" and v.axes == first.axes and len(v.args) == len(first.args) for v in values):
        done = _stacked_each(values, axis, counts)
        return None if done is None else _together(ops.contract(done, (axis, *first.axes)))
    return None


def _stacked_each(values: list[Expr], axis: str, counts: Mapping[str, int]) -> tuple[Expr, ...] | None:
    """The arguments of values stacked, first with first."""
    found = [_stacked(xs, axis, counts) for xs in zip(*(v.args for v in values), strict=True)]
    return None if any(x is None for x in found) else tuple(x for x in found if x is not None)


def _of_one_step(e: Expr, counts: Mapping[str, int]) -> Expr | None:
    """A sum over one of the steps that rows are taken apart in: summed in rows, and of the sums one step's."""
    picked = {i: x for i, x in enumerate(map(_plain, e.args)) if x.op.name == "select"}
    steps = {(x.attr[1], counts.get(str(x.attr[0]))) for x in picked.values()}
    if len(steps) != 1 or all(_unflattened(x.args[0]) is None for x in picked.values()) or any(n is None for _, n in steps):
        return None
    if {*e.axes} == {*union(tuple(x.type for x in e.args))}:
        return None
    axis = next(str(x.attr[0]) for x in picked.values() if _unflattened(x.args[0]) is not None)
    args = [ops.rename(_plain(picked[i].args[0]), {str(picked[i].attr[0]): axis}) if i in picked else x for i, x in enumerate(e.args)]
    if any(axis in x.axes for i, x in enumerate(e.args) if i not in picked):
        return None
    ((index, _),) = steps
    return _ordered(ops.select(_together(ops.contract(args, (axis, *e.axes))), axis, index), e.axes)


def _numbers(values: list[Expr], axis: str, counts: Mapping[str, int]) -> Expr:
    axes = union(tuple(v.type for v in values))
    return _stacked(values, axis, counts) or ops.stack([ops.broadcast(v, axes) for v in values], axis)


def _factors(e: Expr) -> list[Expr]:
    e = _plain(e)
    if e.op.name == "mul" or (e.op.name == "contract" and {*e.axes} == {*union(tuple(x.type for x in e.args))}):
        return [f for x in e.args for f in _factors(x)]
    return [e]


def _along(x: Expr, axes: tuple[str, ...]) -> Expr:
    return ops.broadcast(x, (*x.axes, *(a for a in axes if a not in x.axes)))


def _flat(x: Expr, old: tuple[str, ...], new: str) -> Expr:
    """Rows of what is done to entries: the same done to rows."""
    x = _plain(x)
    if x.op.name == "unflatten" and x.attr[0] == old:
        return ops.rename(x.args[0], {x.attr[1]: new})
    if x.op.name == "rename" and x.args[0].op.name == "unflatten":
        (inner,), table = x.args, dict(x.attr)
        if tuple(table.get(a, a) for a in inner.attr[0]) == old and not {*table} & {*inner.args[0].axes}:
            return ops.rename(inner.args[0], {inner.attr[1]: new})
    clear = all(new not in a.axes for a in x.args)
    if clear and (x.op.name in EACH or (x.op.name == "contract" and not {*old} - {*x.axes})):
        args = tuple(_flat(_along(a, old), old, new) if {*old} & {*a.axes} else a for a in x.args)
        if x.op.name == "contract":
            return ops.contract(args, (*(a for a in x.axes if a not in old), new))
        return make(x.op, args, x.attr)
    return ops.flatten(x, old, new)


def _together(e: Expr) -> Expr:
    """What is done to rows that are taken apart, done to the rows."""
    apart = [a for x in e.args if (a := _unflattened(x)) is not None]
    if not apart or any(a[1] != apart[0][1] for a in apart) or any(b not in e.axes for b in apart[0][1]):
        return e
    _, old, new = apart[0]
    if any(new in (x.axes if (a := _unflattened(x)) is None else {*a[0].axes} - {a[2]}) for x in e.args):
        return e
    args = []
    for x in e.args:
        found = _unflattened(x)
        if found is not None:
            args.append(ops.rename(found[0], {found[2]: new}) if found[2] != new else found[0])
        elif {*old} & {*x.axes}:
            args.append(_flat(_along(x, old), old, new))
        else:
            args.append(x)
    axes = (*(a for a in e.axes if a not in old), new)
    done = ops.contract(args, axes) if e.op.name == "contract" else make(e.op, tuple(args), e.attr)
    return _ordered(ops.unflatten(done, old, new), e.axes)


def _unflattened(x: Expr) -> tuple[Expr, tuple[str, ...], str] | None:
    """What is taken apart, the axes that come of it as they are named here, and the axis of rows."""
    x, table = _plain(x), dict[str, str]()
    if x.op.name == "rename":
        table, x = dict(x.attr), _plain(x.args[0])
    if x.op.name != "unflatten" or {*table} & ({*x.args[0].axes} - {x.attr[1]}):
        return None
    old = tuple(str(table.get(str(a), str(a))) for a in x.attr[0])
    return x.args[0], old, str(x.attr[1])


# --- Where rows lie --------------------------------------------------------------------------------------------------------


def read_from(e: Expr) -> Expr | None:
    """The leaf that a value is, with other names of axes, another order, or two axes as one."""
    joined = 0
    while e.op.name in ("rename", "spread", "flatten") or _plain(e) is not e:
        joined += e.op.name == "flatten"
        (e,) = e.args
    return e if e.op.name == "var" and joined < 2 else None


def is_leaf(e: Expr) -> bool:
    """Whether a value is read from memory as it is: a leaf, or rows of one."""
    return e.op.name == "var" or (e.op.name == "flatten" and read_from(e) is not None)


def rows_of(e: Expr) -> Expr:
    """What is written of a value: of one that is taken apart, the rows."""
    found = _unflattened(e)
    return e if found is None else found[0]


def apart_in(e: Expr) -> tuple[tuple[str, ...], str]:
    """The axes that rows are taken apart in, and the axis of rows."""
    found = _unflattened(e)
    assert found is not None
    return found[1:]


def nodes(values: Iterable[Expr]) -> Iterator[Expr]:
    """The nodes that are tiles: nothing below rows that are read, nor above rows that are written."""
    todo, seen = [rows_of(v) for v in values], set[Expr]()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo += () if is_leaf(node) else node.args
