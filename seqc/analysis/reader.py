"""The expression for a state's next value -> its chain: updates are read from the last back to the state itself."""

from __future__ import annotations

from seqc.analysis.chain import Chain, Raw, Read, Refusal
from seqc.analysis.merge import Merger
from seqc.analysis.terms import addends, at_index, carriers, dependent, factors, product, signed
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.rules import union


class Reader:
    """Finds the chain of one state. `users` are the expressions that read the state, `along` the states that it is coupled with."""

    def __init__(self, state: Expr, next_: Expr, users: tuple[Expr, ...], sizes: dict[str, int], along: tuple[Expr, ...] = ()):
        self.state, self.next, self.sizes = state, next_, sizes
        self.states = (state, *along)
        self.fixed: list[str] = []  # axes whose length the chain has compiled in
        roots = (next_, *users)
        self.sees = dependent(roots, self.states)
        self.carry = set[int]().union(*(carriers(roots, s) for s in self.states))
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
        raw: list[Raw] = []
        node = self.next
        while node is not self.state:
            step = self._step(node)
            raw.append(step)
            node = step.base
        raw.reverse()
        steps, versions = Merger(self.state, self.key, self.value, self.needed).merge(raw)
        return Chain(self.state, self.key, self.value, tuple(steps), versions)

    def _step(self, node: Expr) -> Raw:
        if id(node) not in self.carry:
            if id(node) not in self.sees:
                raise Refusal(f"`{self.state.name}` does not depend on its last value", node)
            blocker = self._blocker(node)
            if blocker.op.name == "rename":
                along = ", ".join(old for old, _ in blocker.attr)
                raise Refusal(f"the update mixes the entries of `{self.state.name}` along `{along}`, which no decay does", node)
            raise Refusal(f"the update is not affine in `{self.state.name}`: it passes through `{blocker.op.name}`", blocker)
        if node.op.name in ("add", "sub", "neg"):
            return self._sum(node)
        if node.op.name == "broadcast":
            return Raw(node.args[0], node)
        parts, sign = self._scaled(node)
        base = next(p for p in parts if id(p) in self.carry)
        rest = [p for p in parts if p is not base]
        if any(id(p) in self.sees for p in rest):
            raise Refusal(f"a factor of `{self.state.name}` depends on it", node)
        if sign < 0:
            raise Refusal(f"`{self.state.name}` is multiplied by a negative number", node)
        return Raw(base, node, product(rest))

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

    def _sum(self, node: Expr) -> Raw:
        signs = (1, -1) if node.op.name == "sub" else (-1,) if node.op.name == "neg" else (1, 1)
        carried = [(a, s) for a, s in zip(node.args, signs, strict=True) if id(a) in self.carry]
        if len(carried) > 1:
            base, decay = self._combine(carried, node)
            return Raw(base, node, decay)
        if carried[0][1] < 0:
            raise Refusal(f"`{self.state.name}` enters with a negative sign", node)
        step = Raw(carried[0][0], node)
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

    def rows(self, added: Expr, sign: int) -> list[tuple[Expr, Expr | None, list[tuple[Expr, Expr]]]]:
        """The rows of a value that is added to the state."""
        step = Raw(added, added)
        for term, s in addends(added):
            self._low_rank(term, sign * s, step)
        return step.rows

    def _low_rank(self, term: Expr, sign: int, step: Raw) -> None:
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

    def _summed(self, term: Expr, sign: int, step: Raw, scale: Expr | None = None) -> None:
        """A sum of outer products along an axis: one row for each of its entries."""
        bound = [a for a in union(tuple(x.type for x in term.args)) if a not in term.axes]
        if len(bound) != 1 or self.sizes.get(ops.base(bound[0])) is None:
            raise Refusal(f"a term added to `{self.state.name}` sums over {', '.join(bound)}", term)
        axis = bound[0]
        self.fixed.append(ops.base(axis))
        for i in range(self.sizes[ops.base(axis)]):
            picked = [at_index(a, axis, i) for a in term.args]
            row = product([*picked, *([scale] if scale is not None else [])])
            self.sees |= dependent((row,), self.states)
            self._low_rank(row, sign, step)

    def _row(self, parts: list[Expr], sign: int, step: Raw) -> None:
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
            step.rows.append((write, signed(product(plain), sign), []))
            return
        value, reads = self._affine(live[0])
        wide = [p for p in plain if set(p.axes) & set(self.value)]
        if wide and reads:
            raise Refusal(f"the step size differs along `{', '.join(a for a in wide[0].axes if a in self.value)}`", wide[0])
        scalar = product(plain)
        write = ops.mul(scalar, write)
        value = None if value is None else signed(value, sign)
        step.rows.append((write, value, [(signed(c, sign), v) for c, v in reads]))

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
                    total = signed(value, sign) if total is None else ops.add(total, signed(value, sign))
                reads += [(signed(c, sign), v) for c, v in more]
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
            value = None if value is None else signed(ops.mul(scale, value), sign)
            return value, [(signed(ops.mul(scale, c), sign), v) for c, v in reads]
        blocker = self._blocker(e)
        raise Refusal(f"the update is not affine in `{self.state.name}`: its read passes through `{blocker.op.name}`", blocker)

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
