"""An affine matrix state as a chain of micro-steps: the normal form that the chunkwise form stands on.

    S_t = D_t * S_{t-1} + sum of  write (value - read . S_{t-1})      D scalar, along the key axes or along the value axes

The text's updates are read off the expression for the next state, from the last back to the state itself. A fact that
does not hold is a Refusal with the node that is the cause.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from seqc.ir import ops, rules
from seqc.ir.expr import Expr, variables, walk
from seqc.ir.rules import union


@dataclass(frozen=True)
class Refusal(Exception):
    """Why a structure is not there. `cause` is the node to blame, if one is known."""

    reason: str
    cause: Expr | None = None
    helps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One rank of an update: S += write (value - read . S), `read` against the state before the micro-step.

    write, read: key axes; value: value axes. None stands for zero.
    """

    write: Expr
    value: Expr | None
    read: Expr | None


@dataclass(frozen=True)
class MicroStep:
    """A decay (None is one) and the rows that are added to the decayed state."""

    decay: Expr | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Version:
    """A node that is the state after some micro-steps, times a decay that the next micro-step begins with."""

    done: int
    decay: Expr | None


@dataclass(frozen=True)
class Chain:
    """A state's micro-steps at one token. `versions` finds where in the chain a node is the state."""

    state: Expr
    key: tuple[str, ...]
    value: tuple[str, ...]
    steps: tuple[MicroStep, ...]
    versions: dict[Expr, Version]


@dataclass(frozen=True)
class Read:
    """query . S at a version: what another expression takes from the state. `node` is the expression to replace."""

    node: Expr
    query: Expr
    version: Expr
    rest: tuple[Expr, ...] = ()


@dataclass
class _Raw:
    """A step before merging: base and result are nodes; rows' reads are (coefficient * query, version node)."""

    base: Expr
    result: Expr
    decay: Expr | None = None
    rows: list[tuple[Expr, Expr | None, list[tuple[Expr, Expr]]]] = field(default_factory=list)


ELEMENTWISE_LINEAR = {"neg": (0,), "add": (0, 1), "sub": (0, 1), "mul": (0, 1), "div": (0,), "broadcast": (0,)}


def dependent(roots: Iterable[Expr], on: Iterable[Expr]) -> set[int]:
    """The nodes at or below the roots that see one of the leaves."""
    found = {id(e) for e in on}
    for node in walk(*roots):
        if any(id(a) in found for a in node.args):
            found.add(id(node))
    return found


def carriers(roots: Iterable[Expr], state: Expr) -> set[int]:
    """The nodes that hold the whole state, up to elementwise factors and added terms."""
    found = {id(state)}
    for node in walk(*roots):
        places = ELEMENTWISE_LINEAR.get(node.op.name, ())
        if any(id(node.args[i]) in found for i in places if i < len(node.args)):
            found.add(id(node))
        if node.op.name == "contract" and any(id(a) in found and set(a.axes) <= set(node.axes) for a in node.args):
            found.add(id(node))
    return found


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


def product(items: Iterable[Expr]) -> Expr:
    result = ops.number(1)
    for item in items:
        result = ops.mul(result, item)
    return result


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


class Reader:
    """Finds the chain of one state. `users` are the expressions that read the state."""

    def __init__(self, state: Expr, next_: Expr, users: tuple[Expr, ...], sizes: dict[str, int]):
        self.state, self.next, self.sizes = state, next_, sizes
        self.fixed: list[str] = []  # axes whose length the chain has compiled in
        roots = (next_, *users)
        self.sees = dependent(roots, (state,))
        self.carry = carriers(roots, state)
        self.key = self._key_axes(roots)
        self.value = tuple(a for a in state.axes if a not in self.key)
        self.needed = {id(a) for node in walk(*users) for a in node.args if id(a) in self.carry and id(node) not in self.carry}

    def _key_axes(self, roots: tuple[Expr, ...]) -> tuple[str, ...]:
        """The axes along which the state is read: those that a contraction with it sums."""
        keys: dict[tuple[str, ...], Expr] = {}
        for node in walk(*roots):
            if node.op.name == "contract" and id(node) not in self.carry:
                for a in node.args:
                    if id(a) in self.carry:
                        others = union(tuple(o.type for o in node.args if o is not a))
                        summed = tuple(x for x in self.state.axes if x in a.axes and x not in node.axes and x in others)
                        if summed:
                            keys.setdefault(summed, node)
        if len(keys) > 1:
            first, second = list(keys)[:2]
            raise Refusal(f"`{self.state.name}` is read along `{', '.join(first)}` and along `{', '.join(second)}`", keys[second])
        return next(iter(keys), ())

    # --- The chain ---------------------------------------------------------------------------------------------

    def chain(self) -> Chain:
        raw: list[_Raw] = []
        node = self.next
        while node is not self.state:
            step = self._step(node)
            raw.append(step)
            node = step.base
        raw.reverse()
        steps, versions = self._merge(raw)
        return Chain(self.state, self.key, self.value, tuple(steps), versions)

    def _step(self, node: Expr) -> _Raw:
        if id(node) not in self.carry:
            if id(node) not in self.sees:
                raise Refusal(f"`{self.state.name}` does not depend on its last value", node)
            blocker = self._blocker(node)
            if blocker.op.name == "rename":
                along = ", ".join(old for old, _ in blocker.attr)  # type: ignore[union-attr, misc]
                raise Refusal(f"the update mixes the entries of `{self.state.name}` along `{along}`, which no decay does", node)
            raise Refusal(f"the update is not affine in `{self.state.name}`: it passes through `{blocker.op.name}`", blocker)
        if node.op.name in ("add", "sub", "neg"):
            return self._sum(node)
        if node.op.name == "broadcast":
            return _Raw(node.args[0], node)
        parts, sign = self._scaled(node)
        base = next(p for p in parts if id(p) in self.carry)
        rest = [p for p in parts if p is not base]
        if any(id(p) in self.sees for p in rest):
            raise Refusal(f"a factor of `{self.state.name}` depends on it", node)
        if sign < 0:
            raise Refusal(f"`{self.state.name}` is multiplied by a negative number", node)
        return _Raw(base, node, product(rest))

    def _blocker(self, node: Expr) -> Expr:
        """The op that takes the whole state and gives something else, where the node is not the state in disguise."""
        for inner in walk(node):
            if inner.op.name != "contract" and id(inner) not in self.carry and any(id(a) in self.carry for a in inner.args):
                return inner
        return node

    def _scaled(self, node: Expr) -> tuple[list[Expr], int]:
        """The factors of a carrier, of which one is the carrier itself (not taken apart)."""
        if node.op.name == "contract" or node.op.name == "mul":
            return list(node.args), 1
        if node.op.name == "div":
            return [node.args[0], ops.div(ops.number(1), node.args[1])], 1
        return [node], 1

    def _sum(self, node: Expr) -> _Raw:
        signs = (1, -1) if node.op.name == "sub" else (-1,) if node.op.name == "neg" else (1, 1)
        carried = [(a, s) for a, s in zip(node.args, signs, strict=True) if id(a) in self.carry]
        if len(carried) > 1:
            base, decay = self._combine(carried, node)
            return _Raw(base, node, decay)
        if carried[0][1] < 0:
            raise Refusal(f"`{self.state.name}` enters with a negative sign", node)
        step = _Raw(carried[0][0], node)
        for other, sign in zip(node.args, signs, strict=True):
            if id(other) not in self.carry:
                for term, s in addends(other):
                    self._low_rank(term, sign * s, step)
        return step

    def _combine(self, carried: list[tuple[Expr, int]], node: Expr) -> tuple[Expr, Expr]:
        """(D1 + D2) S for D1 S + D2 S."""
        total: Expr = ops.number(0)
        base: Expr | None = None
        for term, sign in carried:
            parts = [term]
            while not any(p is self.state for p in parts):
                inner = next(p for p in parts if id(p) in self.carry)
                if inner.op.name not in ("mul", "contract", "neg", "div"):
                    break
                got, s = factors(inner)
                parts = [p for p in parts if p is not inner] + got
                sign *= s
            core = next(p for p in parts if id(p) in self.carry)
            if base is not None and core is not base:
                raise Refusal(f"two versions of `{self.state.name}` are added", node)
            base = core
            scale = product(p for p in parts if p is not core)
            if any(id(p) in self.sees for p in parts if p is not core):
                raise Refusal(f"a factor of `{self.state.name}` depends on it", node)
            total = ops.add(total, scale if sign > 0 else ops.neg(scale))
        assert base is not None
        return base, total

    # --- Low-rank terms ----------------------------------------------------------------------------------------

    def _low_rank(self, term: Expr, sign: int, step: _Raw) -> None:
        """Adds the rows of a term of the shape write (x) (value and reads)."""
        if ops.is_zero(term):
            return
        if term.op.name == "contract" and not set(union(tuple(a.type for a in term.args))) <= set(term.axes):
            self._summed(term, sign, step)
            return
        parts, inner = factors(term)
        sign *= inner
        both = [p for p in parts if set(p.axes) & set(self.key) and set(p.axes) & set(self.value)]
        if both:
            sums = [p for p in both if p.op.name in ("add", "sub", "neg")] or [p for p in both if p.op.name == "contract"]
            if not sums:
                raise Refusal(f"a term added to `{self.state.name}` is no outer product of a key and a value", both[0])
            rest = product(p for p in parts if p is not sums[0])
            if sums[0].op.name == "contract":
                self._summed(sums[0], sign, step, rest)
                return
            for piece, s in addends(sums[0]):
                self._low_rank(ops.mul(rest, piece), sign * s, step)
            return
        self._row(parts, sign, step)

    def _summed(self, term: Expr, sign: int, step: _Raw, scale: Expr | None = None) -> None:
        """A sum of outer products along an axis: one row for each of its entries."""
        bound = [a for a in union(tuple(x.type for x in term.args)) if a not in term.axes]
        if len(bound) != 1 or self.sizes.get(ops.base(bound[0])) is None:
            raise Refusal(f"a term added to `{self.state.name}` sums over {', '.join(bound)}", term)
        axis = bound[0]
        self.fixed.append(ops.base(axis))
        for i in range(self.sizes[ops.base(axis)]):
            picked = [at_index(a, axis, i) for a in term.args]
            row = product([*picked, *([scale] if scale is not None else [])])
            self.sees |= dependent((row,), (self.state,))
            self._low_rank(row, sign, step)

    def _row(self, parts: list[Expr], sign: int, step: _Raw) -> None:
        on_key = [p for p in parts if set(p.axes) & set(self.key)]
        rest = [p for p in parts if p not in on_key]
        bad = next((p for p in on_key if id(p) in self.sees), None)
        if bad is not None:
            raise Refusal(f"the write's key depends on `{self.state.name}`", bad)
        live = [p for p in rest if id(p) in self.sees]
        if len(live) > 1:
            raise Refusal(f"two factors depend on `{self.state.name}`", live[1])
        plain = [p for p in rest if id(p) not in self.sees]
        write = product(on_key)
        if not live:
            step.rows.append((write, _signed(product(plain), sign), []))
            return
        value, reads = self._affine(live[0])
        wide = [p for p in plain if set(p.axes) & set(self.value)]
        if wide and reads:
            raise Refusal(f"the step size differs along `{', '.join(a for a in wide[0].axes if a in self.value)}`", wide[0])
        scalar = product(plain)
        write = ops.mul(scalar, write)
        value = None if value is None else _signed(value, sign)
        step.rows.append((write, value, [(_signed(c, sign), v) for c, v in reads]))

    def _affine(self, e: Expr) -> tuple[Expr | None, list[tuple[Expr, Expr]]]:
        """A value-side factor as value + sum of coefficient . version."""
        if id(e) not in self.sees:
            return e, []
        if e.op.name in ("add", "sub", "neg"):
            total: Expr | None = None
            reads: list[tuple[Expr, Expr]] = []
            for term, sign in addends(e):
                value, more = self._affine(term)
                if value is not None:
                    total = _signed(value, sign) if total is None else ops.add(total, _signed(value, sign))
                reads += [(_signed(c, sign), v) for c, v in more]
            return total, reads
        read = self.read(e)
        if read is not None and not read.rest:
            return None, [(read.query, read.version)]
        parts, sign = factors(e)
        live = [p for p in parts if id(p) in self.sees]
        if len(live) == 1 and live[0] is not e:
            value, reads = self._affine(live[0])
            scale = product(p for p in parts if p is not live[0])
            if set(scale.axes) & set(self.value):
                raise Refusal("the read is scaled along its value axis", e)
            value = None if value is None else _signed(ops.mul(scale, value), sign)
            return value, [(_signed(ops.mul(scale, c), sign), v) for c, v in reads]
        raise Refusal(f"the update is not affine in `{self.state.name}`: its read passes through `{e.op.name}`", e)

    # --- Reads -------------------------------------------------------------------------------------------------

    def read(self, node: Expr) -> Read | None:
        """A contraction with the state, as query . version (and factors along the value axes)."""
        if not self.key and id(node) in self.carry:
            return Read(node, ops.number(1), node)
        if node.op.name != "contract":
            return None
        versions = [a for a in node.args if id(a) in self.carry]
        if len(versions) != 1 or any(id(a) in self.sees for a in node.args if a is not versions[0]):
            return None
        others = [a for a in node.args if a is not versions[0]]
        query = [a for a in others if not set(a.axes) & set(self.value)]
        rest = tuple(a for a in others if set(a.axes) & set(self.value))
        if any(set(a.axes) & set(self.key) for a in rest):
            raise Refusal(f"`{self.state.name}` is read with a tensor along both of its axes", node)
        if set(node.axes) & set(self.key):
            return None
        plain = not rest and set(self.value) <= set(node.axes)
        return Read(node, product(query), versions[0], rest if rest or plain else (ops.number(1),))

    # --- Merging -----------------------------------------------------------------------------------------------

    def _merge(self, raw: list[_Raw]) -> tuple[list[MicroStep], dict[Expr, Version]]:
        """Raw steps as micro-steps: a decay joins the step that follows it, steps that read one version are simultaneous."""
        steps: list[MicroStep] = []
        start = self.state  # the node that the last micro-step starts from
        boundary: dict[Expr, int] = {self.state: 0}
        decayed: dict[Expr, Version] = {}
        along: set[str] = set()
        for s in raw:
            along |= set() if s.decay is None else set(s.decay.axes)
            if along & set(self.key) and along & set(self.value):
                raise Refusal(f"`{self.state.name}` decays along both `{self.key[0]}` and `{self.value[0]}`", s.result)
            read = {id(v) for _, _, reads in s.rows for _, v in reads}
            if steps and self._joins(steps[-1], start, s, read, decayed):
                boundary.pop(s.base, None)
                steps[-1] = self._join(steps[-1], start, s)
            elif read <= {id(s.base)}:
                start = s.base
                steps.append(MicroStep(s.decay, tuple(self._rows(s, None))))
            else:
                raise Refusal(f"one update reads `{self.state.name}` at several lines", s.result)
            boundary[s.result] = len(steps)
            if not s.rows and s.base in boundary:
                decayed[s.result] = Version(boundary[s.base], s.decay)
        versions = {**decayed, **{e: Version(n, None) for e, n in boundary.items()}}
        return steps, versions

    def _joins(self, last: MicroStep, start: Expr, s: _Raw, read: set[int], decayed: dict[Expr, Version]) -> bool:
        """Whether a step can be part of the micro-step before it: nothing else reads the state between the two."""
        if id(s.base) in self.needed and s.base not in decayed:
            return False
        if read <= {id(start)}:
            return True
        along_value = last.decay is not None and set(last.decay.axes) & set(self.value)
        return not last.rows and s.decay is None and read <= {id(s.base)} and not along_value

    def _join(self, last: MicroStep, start: Expr, s: _Raw) -> MicroStep:
        scale = s.decay
        rows = tuple(self._decayed(r, scale) for r in last.rows) if scale is not None else last.rows
        decay = last.decay if scale is None else scale if last.decay is None else ops.mul(last.decay, scale)
        after = {id(v) for _, _, reads in s.rows for _, v in reads}
        through = last.decay if after and after != {id(start)} else None
        return MicroStep(decay, (*rows, *self._rows(s, through)))

    def _decayed(self, row: Row, scale: Expr) -> Row:
        if set(scale.axes) & set(self.value):
            if row.read is not None:
                raise Refusal("a decay along the value axis follows an erase in one step", scale)
            return replace(row, value=ops.mul(scale, row.value if row.value is not None else ops.number(1)))
        return replace(row, write=ops.mul(scale, row.write))

    def _rows(self, s: _Raw, through: Expr | None) -> list[Row]:
        """Rows with all their reads against the micro-step's first state, through a decay if they came after it."""
        out = []
        for write, value, reads in s.rows:
            total: Expr | None = None
            for query, _ in reads:
                query = query if through is None else ops.mul(through, query)
                total = query if total is None else ops.add(total, query)
            out.append(Row(write, value, None if total is None else ops.neg(total)))
        return out


def at_index(e: Expr, axis: str, index: int) -> Expr:
    """A value at one entry of an axis, the selection pushed down to the leaves so that sums stay visible."""
    new: dict[int, Expr] = {}
    for node in walk(e):
        args = tuple(new[id(a)] for a in node.args)
        if axis not in node.axes:
            new[id(node)] = node
        elif node.op.name in ("contract", "broadcast"):
            new[id(node)] = node.op.build(args, tuple(a for a in node.axes if a != axis))
        elif node.args and node.op.infer in (rules.same, rules.elementwise, rules.where, rules.boolean):
            new[id(node)] = node.op.build(args, node.attr)
        else:
            new[id(node)] = ops.select(node, axis, index)
    return new[id(e)]


def _signed(e: Expr, sign: int) -> Expr:
    return e if sign > 0 else ops.neg(e)


def leaves_of(chain: Chain) -> tuple[Expr, ...]:
    """Every leaf that the micro-steps use."""
    parts = [s.decay for s in chain.steps if s.decay is not None]
    parts += [x for s in chain.steps for r in s.rows for x in (r.write, r.value, r.read) if x is not None]
    return variables(*parts)
