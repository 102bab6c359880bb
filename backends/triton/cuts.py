"""Where a program is cut into kernels: what one writes for another, and what is computed again where it is needed.

A value that costs no more to compute from what it reads than to read is folded into the kernels that need it. A product of matrices
that one later kernel alone needs is computed there. What only needs each chunk's first state is computed in the loop that has it, if
then the states need not be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from seqc.backends.triton.micro import is_leaf, nodes, read_from
from seqc.ir import ops
from seqc.ir.expr import Attr, Expr, Mask, make, rebuild, walk
from seqc.ir.program import LEAD, TOKENS, Carry, Equation, Map, Solve, Stage, defined, roots

SERIAL = ("unit_lower_inverse", "solve", "decayed_solve", "strict_solve", "convolve", "correlate")
LOOPS = ("decayed", *SERIAL)
BEHIND = 6  # products of matrices that a loop computes behind its own at a step
STEP = 6  # of products that a loop computes at a step rather than reads, with its own
LONG = 64  # the length of an axis where values are compared
FULL = 3  # tensors as large as a value from which it is rather computed than read


@dataclass(frozen=True)
class Cuts:
    """Stages whose values are in memory, the values that are computed where they are read, and the equations that each loop computes
    behind its own at every step, by the loop's place among the stages. outputs: names that must be in memory."""

    outputs: frozenset[str]
    stages: tuple[Stage, ...]
    folded: Mapping[str, Expr]
    behind: Mapping[int, tuple[Equation, ...]]


def cut(stages: list[Stage], outputs: frozenset[str], lead: tuple[str, ...]) -> Cuts:
    """stages: as `sunk` left them, Maps in parts. outputs: names that must be in memory."""
    folded = _folded(stages, outputs, lead)
    kept = [Map(tuple(e for e in s.equations if e.name not in folded)) if isinstance(s, Map) else s for s in stages]
    fused, behind = _fused(kept, folded, lead)
    left = [i for i, s in enumerate(fused) if not isinstance(s, Map) or s.equations]
    return Cuts(outputs, tuple(fused[i] for i in left), folded, {left.index(i): es for i, es in behind.items()})


def made_before(stages: list[Stage], cuts: Cuts, lead: tuple[str, ...], names: Mapping[Expr, str]) -> list[Stage]:
    """The stages with what loops would compute in every block of their states alike where a kernel before them does it once. names: of
    some values."""
    stages = list(stages)
    for i, loop in enumerate(cuts.stages):
        if not isinstance(loop, Carry):
            continue
        kernels = {e for s in cuts.stages[:i] if isinstance(s, Map) for e in s.equations}
        read = expanded((*roots(loop), *(e.value for e in cuts.behind.get(i, ()))), cuts.folded)
        alike = _alike(read, loop, cuts.folded, lead)
        if not alike:
            continue
        at = stages.index(loop)
        needed = _names(expanded(alike, cuts.folded)) - {*cuts.folded}
        known = max((j for j, s in enumerate(stages[:at]) if needed & {leaf.name for leaf in defined(s)}), default=-1)
        there = [j for j, s in enumerate(stages[:at]) if j > known and isinstance(s, Map) and not kernels.isdisjoint(s.equations)]
        if not there and not any(n.op.name == "decayed" for n in walk(*alike)):
            continue
        whole = _unfolded(alike, cuts.folded)
        earlier = {leaf.name for s in stages[: there[-1] if there else at] for leaf in defined(s)}
        known_names = {n: name for n, name in names.items() if name not in earlier}
        own = [Equation(known_names.get(n, f"@before{len(stages)}_{j}"), v) for j, (n, v) in enumerate(zip(alike, whole, strict=True))]
        table = {n: ops.var(e.name, n.axes) for n, e in zip(alike, own, strict=True)}
        first = there[-1] if there else at  # equations of one Map do not see each other's names
        made = {e.name for e in own}  # some have been equations, of Maps or folded
        rest = [Map(tuple(e for e in s.equations if e.name not in made)) if isinstance(s, Map) else s for s in stages]
        here = _equations(rest[first]) if there else ()
        apart = Map(tuple(e for e in here if e not in kernels))
        later = [Map(_with(s.equations, table)) if isinstance(s, Map) else s for s in (apart, *rest[first + bool(there) :])]
        stages = [*rest[:first], Map((*own, *(e for e in here if e in kernels))), *later]
    return stages


def _unfolded(values: list[Expr], folded: Mapping[str, Expr]) -> tuple[Expr, ...]:
    """The values without names of what is folded."""
    found = tuple(Equation("", v) for v in values)
    while {*folded} & _names(e.value for e in found):
        found = _replaced(found, folded)
    return tuple(e.value for e in found)


def _equations(stage: Stage) -> tuple[Equation, ...]:
    return stage.equations if isinstance(stage, Map) else ()


def _with(equations: tuple[Equation, ...], table: Mapping[Expr, Expr]) -> tuple[Equation, ...]:
    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        return table.get(node) or (node if args == node.args else make(node.op, args, node.attr))

    return tuple(replace(e, value=v) for e, v in zip(equations, rebuild((e.value for e in equations), rule), strict=True))


def _alike(read: list[Expr], loop: Carry, folded: Mapping[str, Expr], lead: tuple[str, ...]) -> list[Expr]:
    """The largest values with products of matrices, of every step, that have no axis of what is carried and need nothing of the loop."""
    of_state = _of_state(loop)
    own = {e.name for e in loop.equations} | {k.name for k in loop.carried} | {k.final for k in loop.carried}
    found = dict[Expr, None]()
    for node in walk(*read):
        for x in node.args if of_state & {*node.axes} else ():
            every = loop.axis in x.axes and not of_state & {*x.axes} and any(is_heavy(n, lead) for n in walk(x))
            if every and own.isdisjoint(_names(expanded([x], folded))):
                found[x] = None
    return list(found)


def expanded(values: Iterable[Expr], folded: Mapping[str, Expr]) -> list[Expr]:
    """The values and those that are folded into them."""
    found, todo, seen = list(values), list(values), set[str]()
    while todo:
        for node in walk(todo.pop()):
            if node.op.name == "var" and node.name in folded and node.name not in seen:
                seen.add(node.name)
                found.append(folded[node.name])
                todo.append(folded[node.name])
    return found


def is_work(node: Expr, lead: tuple[str, ...]) -> bool:
    """A product of matrices, or what takes a loop."""
    return node.op.name in LOOPS or is_product(node, lead)


def is_product(node: Expr, lead: tuple[str, ...]) -> bool:
    """Whether a node is a product of matrices as one program sees it."""
    wide = all(sum(a not in lead for a in x.axes) > 1 for x in node.args)
    return node.op.name == "contract" and len(node.args) == 2 and wide and bool(lost(node))


def is_heavy(node: Expr, lead: tuple[str, ...]) -> bool:
    """A product of matrices of which each has an axis of its own, or what takes a loop; sums along rows need no room."""
    if not is_product(node, lead):
        return node.op.name in LOOPS
    x, y = ({*a.axes} - {*lead} for a in node.args)
    return bool(x - y) and bool(y - x)


def decayed_kind(node: Expr, lead: tuple[str, ...]) -> str:
    """How a product with decays goes by blocks of rows: `gram` [row, column], `rows` [row, k], `columns` [column, k]; or nothing."""
    _, mask = node.attr
    tiles = [tuple(a for a in x.axes if a not in lead) for x in node.args]
    axes, out = {a for t in tiles for a in t}, {a for a in node.axes if a not in lead}
    if len(axes) != 3 or len(out) != 2 or not {mask.row, mask.column} < axes:
        return ""
    (along,) = axes - {mask.row, mask.column}
    rows, columns, both = {mask.row, along}, {mask.column, along}, {mask.row, mask.column}
    kind = "gram" if along not in out else "rows" if mask.row in out else "columns"
    sides = {"gram": (rows, columns), "rows": (both, columns), "columns": (both, rows)}[kind]
    x, y = ({*t} for t in tiles[:2])
    fits = (x <= sides[0] and y <= sides[1]) or (y <= sides[0] and x <= sides[1])
    return kind if fits and {*tiles[2]} <= rows and {*tiles[3]} <= columns else ""


def lost(node: Expr) -> tuple[str, ...]:
    return tuple(dict.fromkeys(a for x in node.args for a in x.axes if a not in node.axes))


def words(attr: Attr | object) -> set[str]:
    """The axes that an attribute names."""
    if isinstance(attr, Mask):
        return {attr.row, attr.column}
    if isinstance(attr, Expr):
        return set(attr.axes)
    if isinstance(attr, tuple):
        return {w for part in attr for w in words(part)}
    return {attr} if isinstance(attr, str) else set()


def _names(values: Iterable[Expr]) -> set[str]:
    return {n.name for n in walk(*values) if n.op.name == "var"}


def _readers(stages: list[Stage]) -> dict[str, list[int]]:
    """The stages that read a name."""
    found: dict[str, list[int]] = {}
    for i, s in enumerate(stages):
        for name in _names(roots(s)):
            found.setdefault(name, []).append(i)
    return found


def sunk(stages: list[Stage], outputs: frozenset[str], lead: tuple[str, ...]) -> list[Stage]:
    """Products that one later Map alone reads, inside it."""
    stages = list(stages)
    for i in range(len(stages)):
        here, readers, moved = stages[i], _readers(stages), dict[int, dict[str, Expr]]()
        if not isinstance(here, Map):
            continue
        for e in here.equations:
            at = readers.get(e.name, [])
            work = any(is_work(n, lead) for n in walk(e.value))
            if work and e.name not in outputs and len(at) == 1 and at[0] > i and isinstance(stages[at[0]], Map):
                moved.setdefault(at[0], {})[e.name] = e.value
        for j, values in moved.items():
            there = stages[j]
            assert isinstance(there, Map)
            stages[j] = Map(_replaced(there.equations, values))
        stages[i] = Map(tuple(e for e in here.equations if not any(e.name in values for values in moved.values())))
    return stages


def _replaced(equations: tuple[Equation, ...], values: Mapping[str, Expr]) -> tuple[Equation, ...]:
    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node.op.name == "var" and node.name in values:
            return values[node.name]
        return node if args == node.args else make(node.op, args, node.attr)

    return tuple(replace(e, value=v) for e, v in zip(equations, rebuild((e.value for e in equations), rule), strict=True))


def _folded(stages: list[Stage], outputs: frozenset[str], lead: tuple[str, ...]) -> dict[str, Expr]:
    """Values of Maps that are cheap to compute from what is in memory."""
    solved = {n for s in stages if isinstance(s, Solve) for n in _names(roots(s))}
    readers, folded = _readers(stages), dict[str, Expr]()
    every = walk(*(r for s in stages for r in roots(s)))
    matrices = _matrices(stages)
    as_rows = {leaf.name for n in every if n.op.name == "flatten" and (leaf := read_from(n)) is not None}  # read where they lie
    for s in stages:
        if not isinstance(s, Map):
            continue
        for e in s.equations:
            if e.name not in outputs and e.name not in solved and e.name not in as_rows:
                loops = [x for i in readers.get(e.name, []) if isinstance(x := stages[i], Carry)]
                only = loops[0] if len(loops) == len(readers.get(e.name, [])) == 1 else None
                inside = only is not None and (_is_state(e, only, folded, lead) or _is_at_hand(e, only, folded, lead))
                if inside or e.name in matrices or _is_cheap(e.value, folded, lead):
                    folded[e.name] = e.value
    return folded


def _matrices(stages: list[Stage]) -> set[str]:
    """Values that Maps read as matrices of systems of equations and as nothing else: there is one for every token."""
    found, others = set[str](), set[str]()
    for s in stages:
        systems, read = [n for n in walk(*roots(s)) if n.op.name == "solve"], found if isinstance(s, Map) else others
        read |= _names(n.args[0] for n in systems)
        todo, seen = list(roots(s)), set[Expr]()
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                others |= {node.name} if node.op.name == "var" else set()
                todo += node.args[1:] if node.op.name == "solve" else node.args
    return found - others


def _is_state(e: Equation, loop: Carry, folded: Mapping[str, Expr], lead: tuple[str, ...]) -> bool:
    """A product as large as a state that one loop alone reads, of tokens: writing it costs more than the loop's own product."""
    of_text = all(not a.startswith("@") for a in e.value.axes if a not in lead)
    return of_text and is_product(e.value, lead) and _at_one_step(e, loop, set(), folded)


def _is_at_hand(e: Equation, loop: Carry, folded: Mapping[str, Expr], lead: tuple[str, ...]) -> bool:
    """Whether a loop that alone reads a value reads little more if it computes it: sums, and products of matrices that it has at that
    step."""
    own = [n for n in walk(*expanded([e.value], folded)) if is_heavy(n, lead)]
    if any(n.op.name in SERIAL for n in own) or not _at_one_step(e, loop, set(), folded):
        return False
    others = {**folded, e.name: e.value}
    at_step = [n for n in walk(*expanded(roots(loop), others)) if is_heavy(n, lead)]
    more = sum(entries(n, lead) for n in _leaves([e.value], folded) - _leaves(roots(loop), folded))
    return len(at_step) <= STEP and more <= (2 * entries(e.value, lead) if own else LONG**2)


def _leaves(values: Iterable[Expr], folded: Mapping[str, Expr]) -> set[Expr]:
    return {n for n in nodes(expanded(values, folded)) if is_leaf(n) and not (n.op.name == "var" and n.name in folded)}


def entries(node: Expr, lead: tuple[str, ...]) -> int:
    """What a value takes in memory, of each program of the grid."""
    return int(LONG ** sum(a not in lead for a in node.axes))


def _is_cheap(value: Expr, folded: Mapping[str, Expr], lead: tuple[str, ...]) -> bool:
    own = [a for a in value.axes if a not in lead]
    full = set[Expr]()
    for n in nodes(expanded([value], folded)):
        if is_work(n, lead) or n.op.name in ("collect", "max_over") or (n.op.name == "contract" and {*lead} & {*lost(n)}):
            return False
        if is_leaf(n) and not (n.op.name == "var" and n.name in folded):
            tile = [a for a in n.axes if a not in lead]
            if len(tile) > 1 and (len(tile) > len(own) or not _of_text(tile) <= _of_text(own)):
                return False
            full |= {n} if len(tile) > 1 else set()
    return len(full) <= FULL


def _of_text(axes: list[str]) -> set[str]:
    return {ops.base(a) for a in axes if not a.startswith("@")}


def _fused(
    stages: list[Stage], folded: Mapping[str, Expr], lead: tuple[str, ...]
) -> tuple[list[Stage], dict[int, tuple[Equation, ...]]]:  # fmt: skip
    """Equations behind a loop that need its stacked values of one step only, as equations of the loop."""
    behind: dict[int, tuple[Equation, ...]] = {}
    for i, s in enumerate(stages):
        if not isinstance(s, Carry) or s.axis not in (LEAD[0], TOKENS):
            continue
        stacked = {e.name for e in s.equations}
        readers = [j for j, t in enumerate(stages) if j != i and stacked & _names(expanded(roots(t), folded))]
        maps = {j: t for j in readers if j > i and isinstance(t := stages[j], Map)}
        one = len(maps) == len(readers) == 1
        moved = _all_behind(s, next(iter(maps.values())), stages[i + 1 : readers[0]], folded, lead) if one else ()
        moved = moved or tuple(e for t in maps.values() for e in t.equations if _is_copy(e, s, folded))
        after = {leaf.name for t in stages[i + 1 :] for leaf in defined(t)} - {e.name for e in moved} | {k.final for k in s.carried}
        moved += tuple(e for t in stages[i + 1 :] for e in _equations(t) if e not in moved and _follows(e, moved, s, after, folded, lead))
        if moved:
            maps = {j: t for j, t in enumerate(stages) if j > i and isinstance(t, Map)}
            behind[i] = moved
            left = {j: Map(tuple(e for e in t.equations if e not in moved)) for j, t in maps.items()}
            stages = [left.get(j, t) for j, t in enumerate(stages)]
    return stages, behind


def _all_behind(s: Carry, later: Map, between: Iterable[Stage], folded: Mapping[str, Expr], lead: tuple[str, ...]) -> tuple[Equation, ...]:
    """What of a Map needs a loop's stacked values, if that spares the states and all of it can be computed at a step."""
    stacked = {e.name for e in s.equations}
    known = {leaf.name for t in between for leaf in defined(t)} | {k.final for k in s.carried}
    moved = tuple(e for e in later.equations if stacked & _names(expanded([e.value], folded)))
    states = [e for e in s.equations if sum(not a.startswith("@") for a in e.value.axes) > 1]
    grid = {s.axis, *(a for e in s.equations for a in e.value.axes if a in LEAD)}
    alike = all({a for a in e.value.axes if a in (s.axis, *LEAD)} == grid for e in moved)
    of_state = _of_state(s)
    every = walk(*expanded((*roots(s), *(e.value for e in moved)), folded))
    few = sum(is_heavy(n, lead) and not of_state.isdisjoint(n.axes) for n in every) <= BEHIND
    serial = any(n.op.name == "solve" for n in walk(*expanded((e.value for e in moved), folded)))  # all chunks solve at once
    possible = states and alike and few and not serial and all(_at_one_step(e, s, known, folded) for e in moved)
    own = expanded(roots(s), folded)
    in_blocks = not _free(s, own, lead) or _free(s, [*own, *expanded((e.value for e in moved), folded)], lead)
    return moved if possible and in_blocks else ()


def _free(s: Carry, values: list[Expr], lead: tuple[str, ...]) -> set[str]:
    """The axes of what is carried that no work sums over: their blocks can be programs, and without them a loop has few."""
    summed = {a for n in walk(*values) if is_work(n, lead) for a in lost(n)}
    return {a for k in s.carried for a in k.init.axes if not a.startswith("@") and a not in summed}


def _follows(
    e: Equation, moved: tuple[Equation, ...], s: Carry, after: set[str], folded: Mapping[str, Expr], lead: tuple[str, ...]
) -> bool:  # fmt: skip
    """Whether a value is made of what a loop computes behind its own, of nothing else as large, and of nothing made `after` the loop."""
    if not moved or {*lead} & {*e.value.axes} != {*lead} & {*moved[0].value.axes}:
        return False
    values = expanded([e.value], folded)
    tiles = {n.name for n in walk(*values) if n.op.name == "var" and n.name not in folded and sum(a not in lead for a in n.axes) > 1}
    simple = not any(is_work(n, lead) or n.op.name in ("collect", "max_over") for n in walk(*values))
    return bool(tiles) and tiles <= {x.name for x in moved} and simple and _at_one_step(e, s, after, folded)


def _is_copy(e: Equation, s: Carry, folded: Mapping[str, Expr]) -> bool:
    """Whether a value is what a loop stacks, in another place: the loop writes it there rather than a kernel that reads it for that."""
    core = e.value
    while core.op.name in ("rename", "neg"):
        (core,) = core.args
    stacked = {x.name for x in s.equations if {*x.value.axes, s.axis} == {*core.axes}}
    return core.op.name == "var" and core.name in stacked and _at_one_step(e, s, set(), folded)


def _at_one_step(e: Equation, loop: Carry, known: set[str], folded: Mapping[str, Expr]) -> bool:
    """Whether a value needs nothing of other steps of a loop, nor what is `known` behind it. Products with decays are made before loops,
    if they can be."""
    values, axis, of_state = expanded([e.value], folded), loop.axis, _of_state(loop)
    same = all(axis not in words(n.attr) or n.op.name in ("var", "contract", "broadcast") or _is_alike(n, of_state) for n in walk(*values))
    return axis in e.value.axes and same and not known & _names(values) and not any(axis in lost(n) for n in walk(*values))


def _is_alike(node: Expr, of_state: set[str]) -> bool:
    """Whether a product with decays is the same for every block of a state."""
    return node.op.name == "decayed" and of_state.isdisjoint(node.axes)


def _of_state(loop: Carry) -> set[str]:
    """The axes of the text that what is carried has."""
    return {a for k in loop.carried for a in k.init.axes if not a.startswith("@")}
