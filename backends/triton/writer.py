"""What a kernel's lines are made of: scopes, names, indices and tiles. What each op says stands in `meanings.py`.

A program of the grid has one index of every leading axis, kept in `env`; all other axes of a value are the dimensions of its
tile, in the layout's order. Of an axis that is cut into blocks a tile has one block, whose number is in `env` too. A value is
printed once, in the outermost loop in which all that it depends on is known.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from seqc.backends.triton.launches import Launch
from seqc.backends.triton.text import atom
from seqc.diagnostics import InternalError
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import BATCH, CHUNKS, GROUPS, HEADS, TOKENS
from seqc.schedule.linear import layout

WIDTH = 140
WORDS = {BATCH: "B", HEADS: "H", GROUPS: "groups", CHUNKS: "chunks", TOKENS: "tokens"}
RESERVED = (*keyword.kwlist, "tl", "tiles", "triton", "torch", "origin", "rest", "range", "float", "p_rows", "n_T", "EVEN", "DOT")



class Block(str):
    """The number of a block of an axis: the axis is still a dimension of tiles."""


class Step(str):
    """The index, in a loop, of an axis that is a dimension of tiles outside it."""


Env = Mapping[str, str]  # the index of each axis that is not one of a tile, the block of each that is cut
NONE: Env = {}


@dataclass(frozen=True)
class Given:
    """A tensor with tokens as the caller has it. repeat: padding repeats the nearest token. positive: kept off zero."""

    repeat: bool = False
    positive: bool = False


@dataclass(frozen=True)
class Tile:
    """The text of a value and the axes of its dimensions. number: it is a Python number, not a tensor."""

    text: str
    dims: tuple[str, ...]
    number: bool = False


@dataclass(eq=False)
class Scope:
    """The lines of a loop's body and what is known there."""

    outer: Scope | None = None
    lines: list[str] = field(default_factory=list)
    known: dict[tuple[object, ...], Tile] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return 0 if self.outer is None else 1 + self.outer.depth


class Namer:
    """Python names: wanted ones where free, else numbered."""

    def __init__(self, taken: Iterable[str] = RESERVED):
        self.taken = set(taken)

    def __call__(self, wanted: str) -> str:
        stem = re.sub(r"^(?=\d)|^(?=[imnbp]_)", "v", re.sub(r"\W", "_", wanted.lstrip("@%")) or "x")
        name, n = stem, 1
        while name in self.taken:
            n += 1
            name = f"{stem}_{n}"
        self.taken.add(name)
        return name


class Sizes:
    """A word for the length of every axis: n_x its length, b_x that of its tile."""

    def __init__(self, order: tuple[str, ...], lead: tuple[str, ...]):
        self.order, self.lead, self.words, self.namer = order, lead, dict[str, str](), Namer(())

    def word(self, axis: str) -> str:
        axis = ops.base(axis)
        if axis not in self.words:
            self.words[axis] = self.namer("_" + WORDS.get(axis, axis.lstrip("@")))[1:]
        return self.words[axis]


Needs = Callable[["Writer", Expr, Env], list[tuple[Expr, Env]]]  # what is printed before a value
Meaning = Callable[["Writer", Expr, Env], Tile]  # the text of a value


class Row(str):
    """Indices along a dimension of a tile that is another axis's: of the tokens, or the steps, of rows that lie as both."""

    along: str

    def __new__(cls, text: str, along: str) -> Row:
        made = super().__new__(cls, text)
        made.along = along
        return made


class Writer:
    """The lines of one kernel."""

    def __init__(
        self, launch: Launch, leaves: Mapping[str, Expr], given: Mapping[str, Given], hints: Mapping[Expr, str], sizes: Sizes,
        needs: Needs, meaning: Meaning,
    ):  # fmt: skip
        self.launch, self.leaves, self.given, self.hints, self.sizes = launch, leaves, given, hints, sizes
        self.needs, self.meaning = needs, meaning
        self.namer, self.tensors = Namer(), Namer(())
        self.kernel = launch.name  # what is launched: a kernel of the same text may have another name
        self.root = Scope()
        self.scopes: dict[str, Scope] = {}  # of index texts
        self.pointers: dict[str, str] = {}  # tensors by name: the names of their pointers
        self.lengths: dict[str, None] = {}  # words of lengths that are read
        self.blocks: dict[str, None] = {}  # words of tiles that are made
        self.whole_axes: dict[str, None] = {}  # words of axes of which a tile has all
        self.extra: dict[str, None] = {}  # other arguments
        self.depths: dict[Expr, int] = {}  # of nodes, how many sums over axes that are cut stand behind each other
        self.wanted: Mapping[Expr, None] = {}  # what the equations need that are being written
        self.body: Scope = self.root
        self.inner: dict[int, Scope] = {}  # nodes that change from step to step of a loop over a tile or the launch's
        self.loop_index = ""

    # --- Sizes, indices and dimensions ----------------------------------------------------------------------------------

    def n(self, axis: str) -> str:
        word = self.sizes.word(axis)
        self.lengths.setdefault(word)
        return f"n_{word}"

    def b(self, axis: str) -> str:
        word = self.sizes.word(axis)
        self.lengths.setdefault(word)
        self.blocks.setdefault(word)
        return f"b_{word}"

    def number(self, name: str) -> str:
        """An argument that is no tensor's and no axis's."""
        self.extra.setdefault(name)
        return name

    def scope_of(self, index: str) -> Scope:
        return self.scopes.get(index, self.root)

    def of_row(self, what: str, env: Env, next_one: bool = False) -> str:
        """A number of the sequence that is seen: its first place, count of places, first token or origin; its end is the next start."""
        place, row = self.launch.place, env[BATCH]
        n = self.n(place) if what in ("first", "count") else self.number("n_T")
        text = f"tiles.{what}({f'{row} + 1' if next_one else row}, {self.number('p_rows')}, {self.n(BATCH)}, {n}, {self.number('EVEN')})"
        return self.index(text, self.scope_of(row), "end" if next_one else what)

    def count(self, axis: str, env: Env) -> str:
        """How many indices a leading axis has: of places, those of the row that is seen."""
        return self.of_row("count", env) if axis == self.launch.place and BATCH in env else self.n(axis)

    def at(self, axis: str, dims: tuple[str, ...], env: Env = NONE) -> str:
        """The indices along one dimension: 0, 1, 2, ..., or those of a block."""
        return self.widen(self._along(axis, env)[0], (axis,), dims)

    def inside(self, axis: str, dims: tuple[str, ...], env: Env = NONE) -> str:
        return self.widen(self._along(axis, env)[1], (axis,), dims)

    def _along(self, axis: str, env: Env) -> tuple[str, str]:
        b, n, word = self.b(axis), self.n(axis), self.sizes.word(axis)
        if not isinstance(env.get(axis), Block):
            self.whole_axes.setdefault(word)
            return f"i_{word}", f"m_{word}"
        scope = self.scope_of(env[axis])
        i = self.index(f"{env[axis]} * {b} + tl.arange(0, {b})", scope, f"i_{word}")
        return i, self.index(f"{i} < {n}", scope, f"m_{word}")

    def shape(self, dims: tuple[str, ...]) -> str:
        return f"({', '.join(self.b(a) for a in dims)}{',' if len(dims) == 1 else ''})"

    def dims(self, e: Expr, env: Env) -> tuple[str, ...]:
        return tuple(a for a in layout(self.sizes.order, e.axes) if a not in env or isinstance(env[a], Block))

    def sorted(self, dims: Iterable[str]) -> tuple[str, ...]:
        return layout(self.sizes.order, dict.fromkeys(dims))

    def widen(self, text: str, have: tuple[str, ...], want: tuple[str, ...]) -> str:
        """A tile with dimensions of length 1 where it lacks some of `want`."""
        if have == want or not have:
            return text
        return f"{atom(text)}[{', '.join(':' if a in have else 'None' for a in want)}]"

    def permuted(self, text: str, have: tuple[str, ...], want: tuple[str, ...]) -> str:
        if have == want:
            return text
        return f"tl.permute({text}, ({', '.join(str(have.index(a)) for a in want)}))"

    def whole(self, t: Tile, dims: tuple[str, ...]) -> str:
        """A tile with every dimension of its full length."""
        if t.number:
            return f"tl.full({self.shape(dims) if dims else '()'}, {t.text}, tl.float32)"
        return t.text if t.dims == dims else f"tl.broadcast_to({self.widen(t.text, t.dims, dims)}, {self.shape(dims)})"

    def kept(self, text: str, dims: tuple[str, ...], axes: Iterable[str], other: str = "0.0", env: Env = NONE) -> str:
        """A tile with `other` behind the ends of some axes."""
        for a in axes:
            text = f"tiles.kept({text}, {self.inside(a, dims, env)}, {self.n(a)}, {self.b(a)}, {other})"
        return text

    def summed(self, text: str, dims: tuple[str, ...], gone: Iterable[str], env: Env = NONE) -> str:
        gone = [a for a in dims if a in tuple(gone)]
        text = self.kept(text, dims, gone, env=env)
        for a in reversed(gone):
            text = f"tl.sum({text}, {dims.index(a)})"
        return text

    def index(self, text: str, scope: Scope, wanted: str = "at") -> str:
        """A name for a whole number that is known in a scope."""
        key = ("index", text)
        if key not in scope.known:
            name = self.namer(wanted)
            scope.lines.append(f"{name} = {text}")
            scope.known[key] = Tile(name, ())
            self.scopes[name] = scope
        return scope.known[key].text

    def nodes(self) -> list[Expr]:
        """All that is computed."""
        folded, own = self.launch.folded, {id(v) for v in self.launch.values}
        if not self.depths:
            earlier = [v for v in folded.values() if id(v) in own]  # in the order of stages: each needs earlier ones only
            for node in walk(*earlier, *self.launch.values):
                args = (folded[node.name],) if node.op.name == "var" and node.name in folded else node.args
                lost = {a for x in node.args for a in x.axes if a in self.launch.walked} - {*node.axes}
                self.depths[node] = max((self.depths[a] for a in args), default=0) + bool(lost)
        return list(self.depths)

    def depth(self, e: Expr) -> int:
        """How many sums over axes that are cut stand behind each other in a value."""
        self.nodes()
        return self.depths[e]

    # --- Values ---------------------------------------------------------------------------------------------------------

    def home(self, e: Expr, env: Env) -> Scope:
        """The outermost scope in which the value can be computed."""
        found = [self.scopes.get(env[a], self.root) for a in e.axes if a in env]
        if id(e) in self.inner:
            found.append(self.inner[id(e)])
        return max(found, key=lambda s: s.depth, default=self.root)

    def through(self, leaf: Expr, env: Env) -> tuple[Expr, Env] | None:
        """What a leaf names, where it is computed rather than read, and the indices at which."""
        loop, value = self.launch.loop, self.launch.folded.get(leaf.name)
        if value is not None:
            if loop is not None and loop.axis in value.axes and loop.axis not in leaf.axes:
                env = {**env, loop.axis: self.loop_index}
        elif loop is not None and loop.axis in leaf.axes:
            value = next((e.value for e in loop.equations if e.name == leaf.name), None)
        return None if value is None else (value, {a: i for a, i in env.items() if a in value.axes})

    def key(self, e: Expr, env: Env) -> tuple[object, ...]:
        return (id(e), *((a, env[a]) for a in e.axes if a in env))

    def find(self, e: Expr, env: Env) -> Tile | None:
        return self.home(e, env).known.get(self.key(e, env))

    def tile(self, e: Expr, env: Env) -> Tile:
        """The value's tile, printed where it is not yet. No recursion, but for the bodies of sums over leading axes."""
        todo = [(e, env)]
        while todo:
            node, at = todo[-1]
            if self.find(node, at) is not None:
                todo.pop()
                continue
            missing = [(a, v) for a, v in self.needs(self, node, at) if self.find(a, v) is None]
            if missing:
                todo += reversed(missing)
                continue
            self.give(node, at, self.meaning(self, node, at))
            todo.pop()
        found = self.find(e, env)
        assert found is not None
        return found

    def give(self, e: Expr, env: Env, t: Tile) -> None:
        home, text = self.home(e, env), t.text
        if t.dims != self.dims(e, env) and not t.number:
            raise InternalError(f"a tile has the dimensions {t.dims}, not {self.dims(e, env)}: `{e.op}`")
        if not t.number and not text.isidentifier():
            name = self.namer(e.name if e.op.name == "var" else self.hints.get(e, "x"))
            home.lines.append(f"{name} = {text}")
            text = name
        home.known[self.key(e, env)] = Tile(text, t.dims, t.number)

    def numbers(self, t: Tile) -> str:
        """A tile where a tensor is needed."""
        return f"tl.full((), {t.text}, tl.float32)" if t.number else t.text

    def nested(self, scope: Scope, header: str, body: Callable[[Scope], None]) -> None:
        """A loop in a scope."""
        child = Scope(scope)
        body(child)
        scope.lines.append(header)
        scope.lines += [f"    {line}" for line in child.lines]

    def total(self, e: Expr, env: Env, bound: Iterable[str], body: Callable[[Env, Scope], str]) -> Tile:
        """The sum of a body over all indices of some leading axes and all blocks of axes that are cut."""
        home, dims, acc = self.home(e, env), self.dims(e, env), self.namer(self.hints.get(e, "total"))
        home.lines.append(f"{acc} = {self.whole(Tile('0.0', (), True), dims)}")

        def walked(scope: Scope, at: Env, rest: list[str]) -> None:
            if not rest:
                text = body(at, scope)
                scope.lines.append(f"{acc} += {text}")
                return
            self.each(scope, rest[0], at, lambda child, i: walked(child, {**at, rest[0]: i}, rest[1:]))

        walked(home, env, list(bound))
        return Tile(acc, dims)

    def each(self, scope: Scope, axis: str, env: Env, body: Callable[[Scope, str], None]) -> None:
        """A loop over the indices of a leading axis or over the blocks of one that is cut."""
        step = self.namer("step")

        def one(child: Scope) -> None:
            if axis in self.launch.walked:
                self.scopes[step] = child
                body(child, Block(step))
                return
            i = self.index(f"origin + {step}", child, f"at_{self.sizes.word(axis)}")
            if axis == BATCH and self.launch.place in env:  # a row may have fewer places than others
                there = f"if {env[self.launch.place]} < {self.count(self.launch.place, {**env, axis: i})}:"

                def guarded(inner: Scope) -> None:
                    self.scopes[i] = inner
                    body(inner, i)

                self.nested(child, there, guarded)
            else:
                body(child, i)

        steps = f"tl.cdiv({self.n(axis)}, {self.b(axis)})" if axis in self.launch.walked else self.count(axis, env)
        self.nested(scope, f"for {step} in range(0, {steps}):", one)

    def pointer(self, leaf: Expr) -> str:
        if leaf.name not in self.pointers:
            self.pointers[leaf.name] = f"p_{self.tensors(leaf.name)}"
        return self.pointers[leaf.name]
