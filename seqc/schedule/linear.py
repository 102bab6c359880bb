"""Program -> Kernel: an order, names, and the choice of which values deserve a name."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from seqc.diagnostics import InternalError
from seqc.ir import ops
from seqc.ir.expr import Expr, make, substitute, variables, walk
from seqc.ir.kernel import Assign, Iterate, Kernel, Loop, Repeat, Statement
from seqc.ir.lift import lift
from seqc.ir.program import (
    BATCH,
    CHUNKS,
    GROUPS,
    HEADS,
    LEAD,
    TOKENS,
    Carry,
    Equation,
    Map,
    Program,
    Solve,
    Stage,
    body_roots,
    carried_by,
    change_leaves,
    changed,
    changed_equations,
    flat,
    iterate,
    names,
    scope,
    within,
)
from seqc.passes.binary import binary, binary_program
from seqc.schedule.rows import merges, over_rows

FREE = ("var", "const", "constant", "size", "rename", "iota", "broadcast", "select", "neg")
PLAIN = ("add", "sub", "mul", "div", "neg", "rename", "const")
LIMIT = 6  # operands that a line holds before a part of it gets a name


# What the text of a kernel calls, and what Python keeps for itself.
RESERVED = (*keyword.kwlist, "math", "torch", "runtime", "range", "reversed", "zip", "step", "steps", "solver")
WORDS = ((BATCH, "B"), (HEADS, "H"), (GROUPS, "groups"), (CHUNKS, "chunks"), (TOKENS, "tokens"))


def axis_order(program: Program, declared: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """One order of all axes: what a loop walks along, batch, rows, columns, then the text's axes as its declarations order them."""
    after: dict[str, set[str]] = {}
    for axes in declared:
        for i, a in enumerate(axes):
            after.setdefault(a, set()).update(axes[:i])
    named: list[str] = []
    while len(named) < len(after):
        free = [a for a in after if a not in named and not after[a] - set(named)]
        named.append(free[0] if free else next(a for a in after if a not in named))
    widths = [a for a, _, _ in program.widths]
    rows = [a for a in widths if a[1] in "rm" and "#" not in a]
    columns = [a for a in widths if a[1] == "s" and "#" not in a]
    loops = [(s.axis, _entries(s)) for s in flat(program.stages) if isinstance(s, Carry)]
    tokens, chunks = (max((n for axis, n in loops if axis == along), default=0) for along in (TOKENS, CHUNKS))
    walked = [TOKENS] if tokens and tokens >= chunks else []
    return (*walked, *LEAD, TOKENS, *rows, *columns, *(a for a in widths if "#" in a), *named)


def _entries(stage: Carry) -> int:
    """The most axes of the text that a loop's values have, and one more, if it carries more than params make.

    What the loop of the largest values walks along stands first in memory.
    """
    kept = (k.init.axes for k in stage.carried if BATCH in k.init.axes or CHUNKS in k.init.axes)
    return max((1 + sum(not a.startswith("@") for a in axes) for axes in kept), default=0)


def rank(order: tuple[str, ...], axis: str) -> tuple[int, int, str]:
    """Where an axis stands; K' and K~ stand right behind K, each in a place of its own."""
    found = order.index(ops.base(axis)) if ops.base(axis) in order else len(order)
    return found, len(axis) - len(ops.base(axis)), axis


def layout(order: tuple[str, ...], axes: Iterable[str]) -> tuple[str, ...]:
    """The axes as they lie in memory."""
    return _layout(order, tuple(axes))


@lru_cache(1 << 12)  # a printer asks of every value, many times
def _layout(order: tuple[str, ...], axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(axes, key=lambda a: rank(order, a)))


class _Namer:
    """Python names: wanted ones where free, else numbered."""

    def __init__(self, taken: Iterable[str]):
        self.taken = set(taken)
        self.last: dict[str, int] = {}

    def __call__(self, wanted: str) -> str:
        stem = re.sub(r"^(?=\d)", "n", re.sub(r"\W", "_", wanted.lstrip("@")))
        name, n = stem, self.last.get(stem, 1)
        while name in self.taken:
            n += 1
            name = f"{stem}_{n}"
        self.last[stem] = n
        self.taken.add(name)
        return name


def linearise(program: Program, hints: Mapping[Expr, str], order: tuple[str, ...]) -> Kernel:
    """The kernel of a program."""
    program, hints = _spelled(*_binary(program, hints))
    leaves = scope(program)
    results = [e.name for e in program.outputs]
    shown = [ops.base(a) for leaf in program.inputs for a in leaf.axes]  # the names of sizes, which a kernel reads off its inputs
    namer = _Namer([*names(program), *results, *(ops.base(a) for a in order), *shown, *RESERVED])
    words = tuple((axis, namer(word)) for axis, word in WORDS)
    table: dict[Expr, Expr] = {}
    given = {*leaves, *(k.name for s in program.stages for k in carried_by(s))}
    count = _uses((*_outside(program.stages), *(e.value for e in program.outputs)))
    body = _statements(program.stages, count, hints, namer, leaves, table)
    finals = [replace(e, name=namer(e.name) if e.name in given else e.name) for e in program.outputs]
    body += _assignments(finals, count, hints, namer, table)
    outputs = []
    for e, f in zip(program.outputs, finals, strict=True):
        leaf = ops.var(f.name, e.value.axes, e.value.type.dtype)
        outputs.append((e.name, table.get(leaf, leaf)))
    kernel = Kernel(program.name, program.inputs, tuple(body), tuple(outputs), order, program.widths, words)
    _each_name_once(kernel)
    return kernel


def _outside(stages: Iterable[Stage]) -> list[Expr]:
    """What is computed outside of loops."""
    maps = [e.value for s in stages if isinstance(s, Map) for e in s.equations]
    return [*maps, *(k.init for s in stages for k in carried_by(s)), *(u.guess for s in stages if isinstance(s, Solve) for u in s.unknowns)]


def _statements(
    stages: Iterable[Stage], count: Mapping[int, int], hints: Mapping[Expr, str], namer: _Namer, leaves: Mapping[str, Expr],
    table: dict[Expr, Expr],
) -> list[Statement]:  # fmt: skip
    body: list[Statement] = []
    for stage in stages:
        if isinstance(stage, Map):
            body += _assignments(stage.equations, count, hints, namer, table)
        elif isinstance(stage, Carry):
            body.append(_loop(stage, hints, namer, leaves, table))
        else:
            body += _repeat(stage, count, hints, namer, leaves, table)
    return body


def _repeat(
    stage: Solve, count: Mapping[int, int], hints: Mapping[Expr, str], namer: _Namer, leaves: Mapping[str, Expr], table: dict[Expr, Expr]
) -> list[Statement]:
    """A Solve as its guesses and the iteration; nothing that one iteration has computed stands for anything after it."""
    guesses = [Equation(namer(f"{u.name}_guess"), u.guess, "where the iteration begins") for u in stage.unknowns]
    before: list[Statement] = [*_assignments(guesses, count, hints, namer, table)]
    known, inner = dict(table), {**leaves, **within(stage)}
    steps = [Equation(namer(f"{u.name}_step"), u.step) for u in stage.unknowns]
    own = _uses((*_outside(stage.stages), *(e.value for e in steps)))
    body = [*_statements(stage.stages, own, hints, namer, inner, known), *_assignments(steps, own, hints, namer, known)]
    found = []
    for u, guess, step in zip(stage.unknowns, guesses, steps, strict=True):
        leaf = iterate(u)
        first, residual, new = (ops.var(n, leaf.axes) for n in (guess.name, u.residual, step.name))
        found.append(Iterate(leaf, table.get(first, first), known.get(residual, residual), known.get(new, new)))
    return [*before, Repeat(tuple(found), tuple(body))]


def one_row(kernel: Kernel, rule: Expr, leaves: tuple[Expr, ...], along: str) -> Kernel:
    """The rule of a `strict_solve` as a kernel: of some rows along an axis, each by itself."""
    namer = _Namer([*RESERVED, *(word for _, word in kernel.words), *(ops.base(a) for a in kernel.order)])
    rows = {x: ops.var(namer(x.name), (along, *x.axes)) for x in leaves}
    (value,) = binary(lift((rule,), rows))
    result = namer("u")
    body = _assignments((Equation(result, value),), _uses((value,)), {}, namer, {})
    given, outputs = tuple(rows.values()), ((result, ops.var(result, value.axes)),)
    return replace(kernel, name="rule", inputs=given, body=tuple(body), outputs=outputs)


def _spelled(program: Program, hints: Mapping[Expr, str]) -> tuple[Program, dict[Expr, str]]:
    """The program with names that Python can spell; those of the text stay where they can."""
    namer = _Namer(RESERVED)
    every = names(program)
    plain = [n for n in every if n.isidentifier()]
    new = {n: namer(n) for n in [*plain, *(n for n in every if n not in plain)]}

    change = change_leaves(new)
    stages = tuple(changed(s, change, new.__getitem__) for s in program.stages)
    outputs = changed_equations(program.outputs, change, new.__getitem__)
    hinted = dict(zip(change(hints), hints.values(), strict=True))
    return replace(program, inputs=change(program.inputs), stages=stages, outputs=outputs), hinted


def _each_name_once(kernel: Kernel) -> None:
    """Raises InternalError if a name is given to two values: a proof is of the Program, and must not be lost in its text."""
    given = [leaf.name for leaf in kernel.inputs] + _given(kernel.body)
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise InternalError(f"a kernel gives {', '.join(twice)} to two values")


def _given(body: Iterable[Statement]) -> list[str]:
    """The names that statements give."""
    out: list[str] = []
    for s in body:
        if isinstance(s, Assign):
            out.append(s.name)
        elif isinstance(s, Repeat):
            out += [x.leaf.name for x in s.found] + _given(s.body)
        else:
            out += [leaf.name for leaf, _ in s.stacked] + [name for _, name in s.sliced] + [a.name for a in s.body]
            out += [name for name, _, _, _ in s.carried] + [last for _, _, _, last in s.carried]
    return out


def _binary(program: Program, hints: Mapping[Expr, str]) -> tuple[Program, dict[Expr, str]]:
    """The program with contractions of two tensors only; names follow their nodes."""
    names = dict(zip(binary(hints), hints.values(), strict=True))
    return binary_program(program), names


def _uses(roots: Iterable[Expr]) -> dict[int, int]:
    """How often each value is read. What stands inside its user, as a rename does, hands its own readers on."""
    roots = tuple(roots)
    count = dict(Counter(map(id, roots)))
    for node in reversed(list(walk(*roots))):
        for a in node.args:
            count[id(a)] = count.get(id(a), 0) + (count[id(node)] if node.op.name in FREE else 1)
    return count


def _assignments(
    equations: Iterable[Equation], count: Mapping[int, int], hints: Mapping[Expr, str], namer: _Namer, table: dict[Expr, Expr]
) -> list[Assign]:
    """The equations as assignments: values that are read more than once get names, the rest stays inside its reader.

    `table` finds the leaf that stands for a node: what an earlier statement has computed is not computed again.
    """
    equations = list(equations)
    roots = [e.value for e in equations]
    weight: dict[Expr, int] = {}  # what a reader meets where a value stands inside its user
    wanted = {e.value: e for e in reversed(equations)}
    out: list[Assign] = []

    def give(node: Expr, value: Expr, name: str, note: str = "") -> None:
        out.append(Assign(name, value, note))
        table[node] = ops.var(name, node.axes, node.type.dtype)

    for node in walk(*roots):
        if node in table or node.op.name == "var":
            continue
        value = _over(node, table)
        weight[value] = sum(weight.get(a, 1) for a in value.args) + (node.op.name not in PLAIN)
        if _is_alias(value):
            table[node] = _aliased(value)
        elif node in wanted:
            give(node, value, wanted[node].name, wanted[node].note)
        elif _deserves(node, count, hints) or weight[value] > (2 if count[id(node)] > 1 else LIMIT):
            give(node, value, namer(hints.get(node, _word(node))))
        elif value is not node:
            table[node] = value
    for e in equations:
        leaf = ops.var(e.name, e.value.axes, e.value.type.dtype)
        found = table.get(e.value, e.value)
        if found.op.name != "var":
            out.append(Assign(e.name, found, e.note))
        elif found is not leaf:
            table[leaf] = found
    return out


def _is_alias(value: Expr) -> bool:
    """Whether a value is a named one with its axes in another order: the same tensor."""
    if value.op.name != "contract" or len(value.args) != 1:
        return False
    return value.args[0].op.name == "var" and set(value.axes) == set(value.args[0].axes)


def _aliased(value: Expr) -> Expr:
    return ops.var(value.args[0].name, value.axes, value.type.dtype)


def _over(node: Expr, table: Mapping[Expr, Expr]) -> Expr:
    """The node over the names that its arguments have been given. Types are kept, so no rule simplifies it away."""
    args = tuple(table.get(a, a) for a in node.args)
    return node if args == node.args else make(node.op, args, node.attr)


def _deserves(node: Expr, count: Mapping[int, int], hints: Mapping[Expr, str]) -> bool:
    if node.op.name in FREE or (node.op.name == "contract" and len(node.args) == 1 and set(node.axes) == set(node.args[0].axes)):
        return False
    return node in hints or count[id(node)] > 1


def _word(node: Expr) -> str:
    return {"decay": "E", "exp": "e", "cumsum": "L"}.get(node.op.name, "x")


def _loop(stage: Carry, hints: Mapping[Expr, str], namer: _Namer, leaves: Mapping[str, Expr], table: dict[Expr, Expr]) -> Loop:
    """A Carry as a loop; a value that is seen without the axis gets a name of its own inside."""
    state = {k.name for k in stage.carried}
    merged = merges(stage, leaves)
    if merged:
        stage, hints = over_rows(stage, hints)
    read = [v for v in variables(*body_roots(stage)) if v.name not in state]
    sliced, inner = [], {}
    for v in read:
        outer = table.get(leaves[v.name], leaves[v.name])
        if stage.axis in leaves[v.name].axes:
            name = namer(f"{v.name}_i")
            sliced.append((outer, name))
            inner[v] = ops.var(name, v.axes, v.type.dtype)
        elif outer.name != v.name:
            inner[v] = ops.var(outer.name, v.axes, v.type.dtype)
    known: dict[Expr, Expr] = dict(inner)
    nexts = [Equation(namer(f"{k.name}_next"), k.next) for k in stage.carried]
    emitted = [Equation(namer(f"{e.name}_i"), e.value, e.note) for e in stage.equations]
    body = _assignments([*nexts, *emitted], _uses(e.value for e in (*nexts, *emitted)), hints, namer, known)

    def name_of(e: Equation) -> str:
        leaf = ops.var(e.name, e.value.axes, e.value.type.dtype)
        return known.get(leaf, leaf).name

    inits = [substitute((k.init,), dict(table))[0] for k in stage.carried]
    carried = tuple((k.name, init, name_of(n), k.final) for k, init, n in zip(stage.carried, inits, nexts, strict=True))
    rows: dict[str, Expr] = {}  # what is emitted under two names is stacked once
    for e, i in zip(stage.equations, emitted, strict=True):
        leaf = leaves[e.name]
        first = rows.setdefault(name_of(i), leaf)
        if first is not leaf:
            table[leaf] = ops.var(first.name, leaf.axes, leaf.type.dtype)
    stacked = tuple((leaf, name) for name, leaf in rows.items())
    return Loop(stage.axis, stage.reverse, carried, tuple(sliced), tuple(body), stacked, merged)
