"""Expressions as products and sums, and where in them a state stands."""

from __future__ import annotations

from collections.abc import Container, Iterable
from math import prod

from seqc.ir import ops, rules
from seqc.ir.expr import Expr, walk
from seqc.ir.rules import union

ELEMENTWISE_LINEAR = {"neg": (0,), "add": (0, 1), "sub": (0, 1), "mul": (0, 1), "div": (0,), "broadcast": (0,)}


def dependent(roots: Iterable[Expr], on: Iterable[Expr]) -> set[int]:
    """The nodes at or below the roots that see one of the leaves."""
    found = {id(e) for e in on}
    for node in walk(*roots):
        if any(id(a) in found for a in node.args):
            found.add(id(node))
    return found


def carriers(roots: Iterable[Expr], state: Expr, besides: Container[int] = ()) -> set[int]:
    """The nodes that hold the whole state, up to elementwise factors and added terms; `besides` are nodes that do not count."""
    found = {id(state)}
    for node in walk(*roots):
        if id(node) in besides:
            continue
        places = ELEMENTWISE_LINEAR.get(node.op.name, ())
        if any(id(node.args[i]) in found for i in places if i < len(node.args)):
            found.add(id(node))
        if node.op.name == "contract" and any(id(a) in found and set(a.axes) <= set(node.axes) for a in node.args):
            found.add(id(node))
    return found


def products_of(roots: Iterable[Expr], sees: Container[int]) -> set[int]:
    """The products of which two factors see a state: what they are linear in is not the state."""
    return {id(n) for n in walk(*roots) if n.op.name in ("mul", "div", "contract") and sum(id(a) in sees for a in n.args) > 1}


def factors(e: Expr) -> tuple[list[Expr], int]:
    """A product as its factors and sign. Contractions count as products; what they sum is named by the caller."""
    sign, out, stack = 1, [], [e]
    while stack:
        node = stack.pop()
        match node.op.name:
            case "neg":
                sign, stack = -sign, [*stack, node.args[0]]
            case "mul":
                stack += reversed(node.args)
            case "div":
                out.append(ops.div(ops.number(1), node.args[1]))
                stack.append(node.args[0])
            case "broadcast":
                stack.append(node.args[0])
            case "contract":
                if union(tuple(a.type for a in node.args)) and set(union(tuple(a.type for a in node.args))) <= set(node.axes):
                    stack += reversed(node.args)
                else:
                    out.append(node)
            case _:
                out.append(node)
    return out, sign


def pushed(e: Expr) -> Expr:
    """A renamed elementwise value as that of its renamed arguments; anything else as it is."""
    if e.op.name != "rename" or e.args[0].op.infer not in (rules.same, rules.elementwise):
        return e
    return e.args[0].op.build(tuple(ops.rename(a, dict(e.attr)) for a in e.args[0].args), e.args[0].attr)


def product(items: Iterable[Expr]) -> Expr:
    result = ops.number(1)
    for item in items:
        result = ops.mul(result, item)
    return result


def drawn_out(e: Expr) -> Expr:
    """A sum of products with the factors that it need not sum before it: what is summed is then smaller."""
    if e.op.name != "contract" or e.type.dtype != "real":
        return e
    gone = {a for x in e.args for a in x.axes} - {*e.axes}
    found = [factors(x) for x in e.args]
    every = [p for parts, _ in found for p in parts]
    inside = [p for p in every if gone & {*p.axes}]
    if not gone or len(inside) == len(every) or not gone <= {a for p in inside for a in p.axes}:
        return e
    total = ops.contract(inside, (a for a in e.axes if any(a in p.axes for p in inside)))
    outside = product(p for p in every if not gone & {*p.axes})
    return ops.broadcast(signed(ops.mul(total, outside), prod(sign for _, sign in found)), e.axes)


def without(items: Iterable[Expr], one: Expr) -> list[Expr]:
    """The items less one of them, once: in h * h the other factor is h again."""
    rest = list(items)
    del rest[next(i for i, x in enumerate(rest) if x is one)]
    return rest


def addends(e: Expr) -> list[tuple[Expr, int]]:
    """A sum as signed terms."""
    out: list[tuple[Expr, int]] = []
    stack = [(e, 1)]
    while stack:
        node, sign = stack.pop()
        match node.op.name:
            case "add":
                stack += [(node.args[1], sign), (node.args[0], sign)]
            case "sub":
                stack += [(node.args[1], -sign), (node.args[0], sign)]
            case "neg":
                stack.append((node.args[0], -sign))
            case "broadcast" if node.args[0].op.name in ("add", "sub", "neg"):
                stack.append((node.args[0], sign))
            case _:
                out.append((node, sign))
    return out


def signed(e: Expr, sign: int) -> Expr:
    return e if sign > 0 else ops.neg(e)


def at_index(e: Expr, axis: str, index: int, length: int) -> Expr:
    """A value at one entry of an axis of that length, the selection pushed down to the leaves so that sums stay visible."""
    new: dict[int, Expr] = {}
    for node in walk(e):
        args = tuple(new[id(a)] for a in node.args)
        if axis not in node.axes:
            new[id(node)] = node
        elif node.op.name in ("contract", "broadcast"):
            new[id(node)] = node.op.build(args, tuple(a for a in node.axes if a != axis))
        elif node.args and node.op.infer in (rules.same, rules.elementwise, rules.where, rules.boolean):
            new[id(node)] = node.op.build(args, node.attr)
        elif node.op.name == "place" and node.attr[0] == axis:
            new[id(node)] = node.args[0] if node.attr[1] % length == index else ops.broadcast(ops.number(0), node.args[0].axes)
        elif node.op.name == "shift" and node.attr[0] == axis:
            (x,), rest, source = node.args, tuple(a for a in node.axes if a != axis), index - node.attr[1]
            new[id(node)] = at_index(x, axis, source, length) if 0 <= source < length else ops.broadcast(ops.number(0), rest)
        else:
            new[id(node)] = ops.select(node, axis, index)
    return new[id(e)]
