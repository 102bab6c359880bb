"""Values with more axes of a tile than DIMENSIONS: sums of them are sums of what they are made of, and what moves along their tokens has a
kernel of its own. The kernels that are left can go through tokens block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial

from seqc.backends.triton.cuts import lost, words
from seqc.ir import ops
from seqc.ir.expr import Expr, make, substitute, walk
from seqc.ir.program import TOKENS, Equation, Map, Stage, changed, roots

DIMENSIONS = 2  # of a tile, where axes can be had for the grid, or walked
MOVED = ("convolve", "correlate", "cumsum", "shift")  # ops along an axis


def is_wide(node: Expr, lead: tuple[str, ...]) -> bool:
    return sum(a not in lead for a in node.axes) > DIMENSIONS


def summed_inside(stages: list[Stage], lead: tuple[str, ...]) -> list[Stage]:
    """The stages with sums of wide values taken inside: of a sum each term's, of a product that nothing else needs one product."""
    while True:
        every = list(walk(*(r for s in stages for r in roots(s))))
        readers = Counter(a for n in every for a in {*n.args}) + Counter(r for s in stages for r in roots(s))
        wide = [n for n in every if n.op.name == "contract" and len(n.args) == 1 and lost(n) and is_wide(n.args[0], lead)]
        table = {n: new for n in wide if (new := _sum(n.args[0], n.axes, readers)) is not n}
        if not table:
            return stages
        stages = [changed(s, partial(substitute, replacements=table)) for s in stages]


def _sum(x: Expr, axes: tuple[str, ...], readers: Mapping[Expr, int]) -> Expr:
    """A value summed to some axes."""
    if x.op.name in ("add", "sub", "neg") and all({*x.axes} - {*axes} <= {*a.axes} for a in x.args):
        found = make(x.op, tuple(_sum(a, tuple(b for b in axes if b in a.axes), readers) for a in x.args), x.attr)
        return found if found.axes == axes else ops.contract((found,), axes)
    if x.op.name == "rename":
        table = {old: new for old, new in x.attr if new in axes}
        back = {new: old for old, new in table.items()}
        return ops.rename(_sum(x.args[0], tuple(back.get(a, a) for a in axes), readers), table)
    if x.op.name == "contract" and readers[x] <= 1:
        return _sum(x.args[0], axes, readers) if len(x.args) == 1 else ops.contract(x.args, axes)
    return ops.contract((x,), axes) if axes != x.axes else x


def moved_apart(stages: list[Stage], lead: tuple[str, ...]) -> list[Stage]:
    """The stages with wide values that are moved along their tokens in a Map of their own, before one that sums such values."""
    found = list[Stage]()
    for s in stages:
        own = _moved(s, lead) if isinstance(s, Map) else []
        if isinstance(s, Map) and own and not all(e.value in own for e in s.equations):
            known = [e for e in s.equations if e.value in own]
            new = [Equation(f"@moved{len(found)}_{i}", n) for i, n in enumerate(own) if all(e.value is not n for e in known)]
            left = Map(tuple(e for e in s.equations if e not in known))
            names = {e.value: ops.var(e.name, e.value.axes) for e in (*known, *new)}
            found += [Map((*known, *new)), changed(left, partial(substitute, replacements=names))]
        else:
            found.append(s)
    return found


def _moved(s: Map, lead: tuple[str, ...]) -> list[Expr]:
    """The largest wide values of a Map, if it sums any, that are one along their tokens moved."""
    if not any(n.op.name == "contract" and {*lost(n)} - {*lead} and any(is_wide(a, lead) for a in n.args) for n in walk(*roots(s))):
        return []
    found, todo, seen = dict[Expr, None](), list(roots(s)), set[Expr]()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if moves(node, lead):
            found[node] = None
        else:
            todo += node.args
    return list(found)


def moves(node: Expr, lead: tuple[str, ...]) -> bool:
    """Whether a wide value is moved along its tokens."""
    return node.op.name in MOVED and TOKENS in words(node.attr) and TOKENS not in lead and is_wide(node, lead)
