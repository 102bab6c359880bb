"""The expression for a state's next value -> its chain: updates are read from the last back to the state itself."""

from __future__ import annotations

from collections.abc import Container, Sequence

from seqc.analysis.chain import Chain, Raw, Read, Refusal
from seqc.analysis.merge import Merger
from seqc.analysis.rule import ruled
from seqc.analysis.terms import addends, at_index, carriers, dependent, drawn_out, factors, product, products_of, pushed, signed, without
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.rules import union

Held = tuple[Expr, Expr, int]  # a node that holds the state, its scale, its sign
Sum = list[tuple[Expr, int]]  # terms and their signs


class Reader:
    """Finds the chain of one state. `users` are the expressions that read the state, `along` the states that it is coupled with."""

    def __init__(self, state: Expr, next_: Expr, users: tuple[Expr, ...], sizes: dict[str, int], along: tuple[Expr, ...] = ()):
        self.state, self.next, self.sizes = state, next_, sizes
        self.states = (state, *along)
        self.fixed: list[str] = []  # axes whose length the chain has compiled in
        roots = (next_, *users)
        self.sees = dependent(roots, self.states)
        bent = products_of(users, self.sees) - {id(node) for node in walk(next_)}
        self.carry = set[int]().union(*(carriers(roots, s, bent) for s in self.states))
        self.line = self.carry  # the nodes that a read is taken apart to: of a chain, those that its steps begin with
        self.key = self._key_axes(users)
        self.value = tuple(a for a in state.axes if a not in self.key)
        self.made: list[Expr] = []  # nodes that `sees` knows and no root holds: the id of a freed node may be another's
        own = {id(node) for node in walk(next_)} & self.carry
        self.needed = {id(a) for node in walk(*users) for a in node.args if id(a) in self.carry and id(node) not in own}

    def _key_axes(self, users: tuple[Expr, ...]) -> tuple[str, ...]:
        """The axes along which the update reads the state; where it does not read, the fewest that anything else reads along."""
        own = self._read_along((self.next,))
        if len(own) > 1:
            first, second = list(own)[:2]
            raise Refusal(f"the update reads `{self.state.name}` along `{', '.join(first)}` and along `{', '.join(second)}`", own[second])
        return min(own or self._read_along(users), key=len, default=())

    def _read_along(self, roots: tuple[Expr, ...]) -> dict[tuple[str, ...], Expr]:
        """The axes that contractions with the state sum, each with the first such contraction."""
        found: dict[tuple[str, ...], Expr] = {}
        for node in walk(*roots):
            if node.op.name == "contract" and id(node) not in self.carry:
                for a in node.args:
                    if id(a) in self.carry:
                        others = union(tuple(o.type for o in node.args if o is not a))
                        summed = tuple(x for x in self.state.axes if x in a.axes and x not in node.axes and x in others)
                        if summed:
                            found.setdefault(summed, node)
        return found

    # --- The chain ---------------------------------------------------------------------------------------------

    def chain(self) -> Chain:
        found: list[tuple[Raw, Sum]] = []
        node = self.next
        while node is not self.state:
            found.append(self._step(node))
            node = found[-1][0].base
        self.line = {id(self.state), *(id(step.result) for step, _ in found)}
        for step, terms in found:
            for term, sign in terms:
                self._low_rank(term, sign, step)
        raw = [step for step, _ in reversed(found)]
        steps, versions = Merger(self.state, self.key, self.value, self.needed).merge(raw)
        return Chain(self.state, self.key, self.value, tuple(steps), versions)

    def _step(self, node: Expr) -> tuple[Raw, Sum]:
        """One step of the chain, and the terms that it adds."""
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
        ((base, scale, _),) = self._opened(node)
        return Raw(base, node, None if ops.is_number(scale, 1) else scale), []

    def _blocker(self, node: Expr) -> Expr:
        """The op that takes the whole state and gives something else, where the node is not the state in disguise."""
        for inner in walk(node):
            if inner.op.name != "contract" and id(inner) not in self.carry and any(id(a) in self.carry for a in inner.args):
                return inner
        return node

    def _sum(self, node: Expr) -> tuple[Raw, Sum]:
        held, terms = self._distributed(node)
        if len(held) == 1 and held[0][2] < 0:
            raise Refusal(f"`{self.state.name}` enters with a negative sign", node)
        counts: dict[Expr, int] = {}
        for _, scale, sign in held:
            counts[scale] = counts.get(scale, 0) + sign
        decay: Expr = ops.number(0)
        for scale, n in counts.items():
            decay = ops.add(decay, signed(ops.mul(ops.number(abs(n)), scale), n)) if n else decay
        return Raw(held[0][0], node, None if ops.is_number(decay, 1) else self._new(decay)), terms

    def _distributed(self, node: Expr) -> tuple[list[Held], Sum]:
        """A sum as scaled occurrences of one earlier node that holds the state, and terms that do not hold it.

        Products are distributed over sums until all occurrences are of the same node, and none alone is subtracted.
        """
        place = {id(n): i for i, n in enumerate(walk(node))}
        held, terms = [(node, ops.number(1), 1)], Sum()
        while len({id(h[0]) for h in held}) > 1 or held[0][0] is node or (len(held) == 1 and held[0][2] < 0):
            last = max((h[0] for h in held), key=lambda core: place[id(core)])
            if last is self.state:
                break
            held, more = self._open(held, {id(last)})
            terms += more
        return held, terms

    def _open(self, held: list[Held], which: set[int]) -> tuple[list[Held], Sum]:
        """Some of the nodes taken apart by one op each; and the terms that do not hold the state."""
        out, terms = [], Sum()
        for core, scale, sign in held:
            for part, more, s in self._opened(core) if id(core) in which else [(core, ops.number(1), 1)]:
                scaled = self._new(ops.mul(scale, more))
                if id(part) in self.carry:
                    out.append((part, scaled, sign * s))
                else:
                    terms += [(e, sign * s * inner) for e, inner in addends(self._new(ops.mul(scaled, part)))]
        return out, terms

    def _opened(self, core: Expr) -> list[Held]:
        """The arguments of a node that holds the state: the terms of a sum, or the one factor that holds it, scaled by the others."""
        one = ops.number(1)
        match core.op.name:
            case "add" | "sub":
                return [(a, one, s) for a, s in zip(core.args, (1, -1 if core.op.name == "sub" else 1), strict=True)]
            case "neg":
                return [(core.args[0], one, -1)]
            case "broadcast":
                return [(core.args[0], one, 1)]
            case "div":
                base, scale = core.args[0], ops.div(one, core.args[1])
            case _:
                base = next(a for a in core.args if id(a) in self.carry)
                rest = without(core.args, base)
                every = union(tuple(a.type for a in rest))
                summed = core.op.name == "contract" and not set(every) <= set(core.axes)
                scale = ops.contract(rest, (a for a in every if a in core.axes)) if summed else product(rest)
        if id(self._new(scale)) in self.sees:
            raise Refusal(f"a factor of `{self.state.name}` depends on it", core)
        return [(base, scale, 1)]

    def _new(self, e: Expr) -> Expr:
        """A node made here, which no root holds."""
        self.made.append(e)
        self.sees |= dependent((e,), self.states)
        return e

    # --- Low-rank terms ----------------------------------------------------------------------------------------

    def rows(self, added: Expr, sign: int) -> list[tuple[Expr, Expr | None, list[tuple[Expr, Expr]]]]:
        """The rows of a value that is added to the state."""
        step = Raw(added, added, rules=False)
        for term, s in addends(added):
            self._low_rank(term, sign * s, step)
        return [(write, value, reads) for write, value, reads, _ in step.rows]

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
        axis, length = bound[0], self.sizes[ops.base(bound[0])]
        self.fixed.append(ops.base(axis))
        for i in range(length):
            picked = [at_index(a, axis, i, length) for a in term.args]
            row = product([*picked, *([scale] if scale is not None else [])])
            self._low_rank(self._new(row), sign, step)

    def _row(self, parts: list[Expr], sign: int, step: Raw) -> None:
        for p in parts:
            self._new(p)  # the reciprocal of a divisor is made by taking the product apart
        on_key = [p for p in parts if set(p.axes) & set(self.key)]
        rest = [p for p in parts if p not in on_key]
        bad = next((p for p in on_key if id(p) in self.sees), None)
        if bad is not None:
            raise Refusal(f"the write's key depends on `{self.state.name}`", bad)
        live = [p for p in rest if id(p) in self.sees]
        plain = [p for p in rest if id(p) not in self.sees]
        write = product(on_key)
        if not live:
            step.rows.append((write, signed(product(plain), sign), [], None))
            return
        wide = [p for p in plain if set(p.axes) & set(self.value)]
        try:
            value, reads = self._written(live, wide)
        except Refusal as refused:
            if not (step.rules and self.key):
                raise
            self._ruled(live + wide, ops.mul(product(p for p in plain if p not in wide), signed(write, sign)), step, refused)
            return
        write = ops.mul(product(plain), write)
        value = None if value is None else signed(value, sign)
        step.rows.append((write, value, [(signed(c, sign), v) for c, v in reads], None))

    def _written(self, live: list[Expr], wide: list[Expr]) -> tuple[Expr | None, list[tuple[Expr, Expr]]]:
        """What a row writes, as value + sum of coefficient . version. wide: factors along the value axes."""
        if len(live) > 1:
            raise Refusal(f"two factors depend on `{self.state.name}`", live[1])
        value, reads = self._affine(live[0])
        if wide and reads:
            raise Refusal(f"the step size differs along `{', '.join(a for a in wide[0].axes if a in self.value)}`", wide[0])
        return value, reads

    def _ruled(self, parts: list[Expr], write: Expr, step: Raw, refused: Refusal) -> None:
        """A row that writes any other function of what it reads; if it is none, the refusal stands."""
        found = ruled(self, self._new(product(parts)))
        if found is None:
            raise refused
        rule, read = found
        value, reads = self._affine(read)
        step.rows.append((write, value, reads, rule))

    def _affine(self, e: Expr) -> tuple[Expr | None, list[tuple[Expr, Expr]]]:
        """A value-side factor as value + sum of coefficient . version."""
        if id(e) not in self.sees:
            return e, []
        e = self._new(pushed(e))
        total: Expr | None = None
        if e.op.name in ("add", "sub", "neg"):
            reads: list[tuple[Expr, Expr]] = []
            for term, sign in addends(e):
                value, more = self._affine(term)
                if value is not None:
                    total = signed(value, sign) if total is None else ops.add(total, signed(value, sign))
                reads += [(signed(c, sign), v) for c, v in more]
            return total, reads
        read = self.read(e)
        if read is not None and not read.rest and read.over == self.key:
            held, terms = self.parts(read.version, self.line)
            if any(set(scale.axes) & set(self.value) for _, scale, _ in held):
                raise Refusal("the read is scaled along its value axis", e)
            total = None
            for term in (signed(self.asked(read, t), s) for t, s in terms):
                total = term if total is None else ops.add(total, term)
            return total, [(signed(ops.mul(scale, read.query), s), core) for core, scale, s in held]
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
        """A contraction with the state, as query . version (and factors along the axes that stay)."""
        if not self.key and id(node) in self.carry:
            return Read(node, ops.number(1), node, ())
        if node.op.name != "contract" or id(node) in self.carry:
            return None
        versions = [a for a in node.args if id(a) in self.carry]
        if len(versions) != 1 or any(id(a) in self.sees for a in node.args if a is not versions[0]):
            return None
        gone = set(self.state.axes) - set(node.axes)
        over, kept = (self.key, self.value) if set(self.key) <= gone else (self.value, self.key)
        if not set(over) <= gone:
            along = ", ".join(a for a in self.state.axes if a in gone)
            sides = " nor all of ".join(f"`{', '.join(side)}`" for side in (self.key, self.value))
            raise Refusal(f"`{self.state.name}` is read along `{along}`, which is neither all of {sides}", node)
        others = [a for a in node.args if a is not versions[0]]
        query = [a for a in others if not set(a.axes) & set(kept)]
        rest = tuple(a for a in others if set(a.axes) & set(kept))
        if any(set(a.axes) & set(over) for a in rest):
            raise Refusal(f"`{self.state.name}` is read with a tensor along both of its axes", node)
        plain = not rest and set(kept) <= set(node.axes)
        return Read(node, product(query), versions[0], over, rest if rest or plain else (ops.number(1),))

    def reads(self, users: Sequence[Expr], versions: Container[Expr]) -> list[Read]:
        """Every read outside the state's own update, each node once, less those that are only part of another read."""
        found: dict[Expr, Read] = {}
        if self.key:
            for node in walk(*users):
                if id(node) not in self.carry and any(id(a) in self.carry for a in node.args) and (read := self.read(node)):
                    found[node] = read
        if not self.key or not self.value:  # a vector may be taken as it is
            stack = [e for e in users if id(e) in self.sees]
            while stack:
                node = stack.pop()
                if node in versions:
                    found[node] = Read(node, ops.number(1), node, ())
                elif node not in found:
                    stack += [a for a in node.args if id(a) in self.sees]
        met, ahead = set[int](), list(users)
        while ahead:
            node = ahead.pop()
            if id(node) not in met:
                met.add(id(node))
                whole = node in found and found[node].version in versions
                ahead += () if whole else node.args
        return [r for r in found.values() if id(r.node) in met]

    def parts(self, version: Expr, known: Container[int]) -> tuple[list[Held], Sum]:
        """What is read, as scaled nodes among the known ones, and the terms that are added to them."""
        held, terms = [(version, ops.number(1), 1)], Sum()
        while which := {id(core) for core, _, _ in held if id(core) not in known}:
            held, more = self._open(held, which)
            terms += more
        return held, terms

    def asked(self, read: Read, term: Expr) -> Expr:
        """The read of a term that is added to the state."""
        missing = [a for a in read.over if a not in (*read.query.axes, *term.axes)]
        every = union((read.query.type, term.type))
        wide = ops.broadcast(term, (*term.axes, *missing)) if missing else term
        return self._new(drawn_out(ops.contract((read.query, wide), (a for a in every if a not in read.over))))
