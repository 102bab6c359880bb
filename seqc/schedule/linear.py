"""Program -> Kernel: an order, names, and the choice of which values deserve a name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from seqc.ir import ops
from seqc.ir.expr import Expr, substitute, variables, walk
from seqc.ir.kernel import Assign, Kernel, Loop, Statement
from seqc.ir.program import Carried, Carry, Equation, Map, Program, scope
from seqc.passes.binary import binary

FREE = ("var", "const", "constant", "size", "rename", "iota", "broadcast", "select", "neg")
HEAVY = ("contract", "decayed", "decay", "unit_lower_inverse", "solve", "cumsum", "masked", "flatten", "stack", "exp", "where")
LEAD = ("b", "h", "g", "c")


def axis_order(program: Program, declared: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """One order of all axes: batch, chunks, rows, columns, then the text's axes as its declarations order them."""
    after: dict[str, set[str]] = {}
    for axes in declared:
        for i, a in enumerate(axes):
            after.setdefault(a, set()).update(axes[:i])
    named: list[str] = []
    while len(named) < len(after):
        free = [a for a in after if a not in named and not after[a] - set(named)]
        named.append(free[0] if free else next(a for a in after if a not in named))
    widths = [a for a, _, _ in program.widths]
    rows = [a for a in widths if a[0] in "rm" and "#" not in a]
    columns = [a for a in widths if a[0] == "s" and "#" not in a]
    return (*LEAD, "t", *rows, *columns, *(a for a in widths if "#" in a), *named)


def rank(order: tuple[str, ...], axis: str) -> tuple[int, int]:
    """Where an axis stands; K' and K~ stand right behind K."""
    found = order.index(ops.base(axis)) if ops.base(axis) in order else len(order)
    return found, len(axis) - len(ops.base(axis))


def layout(order: tuple[str, ...], axes: Iterable[str]) -> tuple[str, ...]:
    """The axes as they lie in memory."""
    return tuple(sorted(axes, key=lambda a: rank(order, a)))


class _Namer:
    """Python names: wanted ones where free, else numbered."""

    def __init__(self, taken: Iterable[str]):
        self.taken = set(taken)

    def __call__(self, wanted: str) -> str:
        stem = re.sub(r"\W", "_", wanted)
        name, n = stem, 1
        while name in self.taken:
            n += 1
            name = f"{stem}_{n}"
        self.taken.add(name)
        return name


def linearise(program: Program, hints: Mapping[Expr, str], order: tuple[str, ...]) -> Kernel:
    """The kernel of a program."""
    program, hints = _binary(program, hints)
    leaves = scope(program)
    carried = [k.name for s in program.stages if isinstance(s, Carry) for k in s.carried]
    namer = _Namer([*leaves, *carried, *(ops.base(a) for a in order), "i", "torch", "runtime"])
    body: list[Statement] = []
    known = list(leaves.values())
    for stage in program.stages:
        if isinstance(stage, Map):
            body += _assignments(stage.equations, hints, namer, known)
        else:
            body.append(_loop(stage, hints, namer, leaves, known))
    finals = [Equation(namer(e.name) if e.name in leaves else e.name, e.value, e.note) for e in program.outputs]
    body += _assignments(finals, hints, namer, known, returned=True)
    outputs = tuple((e.name, ops.var(f.name, e.value.axes, e.value.type.dtype)) for e, f in zip(program.outputs, finals, strict=True))
    return Kernel(program.name, program.inputs, tuple(body), outputs, order, tuple(known), program.widths)


def _binary(program: Program, hints: Mapping[Expr, str]) -> tuple[Program, dict[Expr, str]]:
    """The program with contractions of two tensors only; names follow their nodes."""

    def equations(es: tuple[Equation, ...]) -> tuple[Equation, ...]:
        return tuple(replace(e, value=v) for e, v in zip(es, binary(e.value for e in es), strict=True))

    stages = []
    for s in program.stages:
        if isinstance(s, Map):
            stages.append(Map(equations(s.equations)))
        else:
            new = binary(k.next for k in s.carried)
            ks = tuple(Carried(k.name, binary((k.init,))[0], n, k.final) for k, n in zip(s.carried, new, strict=True))
            stages.append(replace(s, carried=ks, equations=equations(s.equations)))
    names = dict(zip(binary(hints), hints.values(), strict=True))
    return replace(program, stages=tuple(stages), outputs=equations(program.outputs)), names


def _uses(roots: Iterable[Expr]) -> dict[int, int]:
    count: dict[int, int] = {}
    roots = tuple(roots)
    for root in roots:
        count[id(root)] = count.get(id(root), 0) + 1
    for node in walk(*roots):
        for a in node.args:
            count[id(a)] = count.get(id(a), 0) + 1
    return count


def _assignments(
    equations: Iterable[Equation], hints: Mapping[Expr, str], namer: _Namer, known: list[Expr], returned: bool = False
) -> list[Assign]:
    """The equations as assignments: shared and heavy values get names, the rest stays inside its user."""
    equations = list(equations)
    roots = [e.value for e in equations]
    count = _uses(roots)
    table: dict[Expr, Expr] = {}
    out: list[Assign] = []
    done: dict[int, str] = {}

    def name_it(node: Expr, value: Expr, name: str, note: str = "") -> None:
        out.append(Assign(name, value, note))
        leaf = ops.var(name, node.axes, node.type.dtype)
        known.append(leaf)
        table[node] = leaf

    last = {id(e.value): e for e in equations}
    for node in walk(*roots):
        value = _shallow(node, table)
        e = last.get(id(node))
        if e is not None and id(node) not in done and node.op.name != "var":
            done[id(node)] = e.name
            name_it(node, value, e.name, e.note)
        elif _deserves(node, count, hints):
            name_it(node, value, namer(hints.get(node, _word(node))))
        elif value is not node:
            table[node] = value
    for e in equations:
        if done.get(id(e.value)) != e.name:
            leaf = ops.var(e.name, e.value.axes, e.value.type.dtype)
            out.append(Assign(e.name, table.get(e.value, e.value), e.note))
            known.append(leaf)
    return out


def _shallow(node: Expr, table: Mapping[Expr, Expr]) -> Expr:
    """The node over the names that its arguments have been given. Types are kept, so no rule simplifies it away."""
    from seqc.ir.expr import make

    args = tuple(table.get(a, a) for a in node.args)
    return node if args == node.args else make(node.op, args, node.attr)


def _deserves(node: Expr, count: Mapping[int, int], hints: Mapping[Expr, str]) -> bool:
    if node.op.name in FREE:
        return False
    return node in hints or node.op.name in HEAVY or count[id(node)] > 1


def _word(node: Expr) -> str:
    return {"contract": "y", "decayed": "y", "decay": "E", "exp": "e", "mul": "p", "where": "w", "cumsum": "L"}.get(node.op.name, "x")


def _loop(stage: Carry, hints: Mapping[Expr, str], namer: _Namer, leaves: Mapping[str, Expr], known: list[Expr]) -> Loop:
    state = {k.name for k in stage.carried}
    nexts = [Equation(namer(f"{k.name}_next"), k.next) for k in stage.carried]
    emitted = [Equation(namer(f"{e.name}_i"), e.value, e.note) for e in stage.equations]
    inner: list[Expr] = []
    roots = [e.value for e in (*nexts, *emitted)]
    read = [v.name for v in variables(*roots) if v.name not in state]
    sliced = tuple(n for n in read if stage.axis in leaves[n].axes)
    body = _assignments([*nexts, *emitted], hints, namer, inner)
    carried = tuple((k.name, k.init, n.name, k.final) for k, n in zip(stage.carried, nexts, strict=True))
    for k in stage.carried:
        known.append(ops.var(k.name, k.init.axes, k.next.type.dtype))
    known += inner
    return Loop(stage.axis, stage.reverse, carried, sliced, tuple(body), tuple((e.name, i.name) for e, i in zip(stage.equations, emitted, strict=True)))
