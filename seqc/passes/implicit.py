"""Recurrence -> Recurrence without implicit steps: what an equation W = body(W) says of W, written out.

The body is affine in W and sees it through reads (contractions with it) only. All reads together, s = read(W), satisfy a small
linear system, since W is affine in s: with one read that is elementwise in its own axes, s = read(body at s = 0) / (1 - c), the
formula of Sherman and Morrison 1950.
"""

from __future__ import annotations

from dataclasses import replace

from seqc.analysis.affine import linear_parts, mixed_axes
from seqc.analysis.chain import Refusal
from seqc.analysis.terms import dependent, drawn_out
from seqc.ir import ops
from seqc.ir.expr import Expr, rebuild, substitute, walk
from seqc.ir.recurrence import Recurrence


def solved(rec: Recurrence) -> Recurrence:
    """The recurrence with every implicit value written out. Raises Refusal where its reads are not one, or mix their own axes."""
    roots = [*(s.next for s in rec.states), *(o.value for o in rec.outputs), *(e.value for e in rec.lines)]
    if not any(n.op.name == "implicit" for n in walk(*roots)):
        return rec

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op.name == "implicit":
            return _solution(node, args[0])
        return node if args == node.args else node.op.build(args, node.attr)

    new = iter(rebuild(roots, rule))
    states = tuple(replace(s, next=next(new)) for s in rec.states)
    outputs = tuple(replace(o, value=next(new)) for o in rec.outputs)
    return replace(rec, states=states, outputs=outputs, lines=tuple(replace(e, value=next(new)) for e in rec.lines))


def _solution(node: Expr, body: Expr) -> Expr:
    name, *axes, dtype = node.attr if isinstance(node.attr[1], str) else (node.attr[0], *node.attr[1], node.attr[2])
    unknown = ops.var(str(name), tuple(map(str, axes)), str(dtype))
    reached = dependent((body,), (unknown,))
    if id(body) not in reached:
        return body
    users = [n for n in walk(body) if any(a is unknown for a in n.args)]
    if len(users) != 1 or users[0].op.name != "contract":
        raise Refusal("an implicit step that sees its result otherwise than through one read", node)
    (read,) = users
    s = ops.var(f"{unknown.name}@read", read.axes, read.type.dtype)
    (through,) = substitute((body,), {read: s})
    (again,) = substitute((read,), {unknown: ops.broadcast(through, unknown.axes)})
    if mixed_axes((again,), (s,)) & set(s.axes):
        raise Refusal("an implicit step whose read mixes its own axes", node)
    (slope,) = linear_parts((again,), {s: ops.number(1)})  # without axes along which it is the same
    (at_zero,) = substitute((again,), {s: ops.broadcast(ops.number(0), s.axes)})
    if slope is not None:
        (slope,) = rebuild((slope,), lambda e, args: drawn_out(e if args == e.args else e.op.build(args, e.attr)))
    value = at_zero if slope is None else ops.div(at_zero, ops.sub(ops.number(1), slope))
    (found,) = substitute((through,), {s: ops.broadcast(value, s.axes)})
    return found
