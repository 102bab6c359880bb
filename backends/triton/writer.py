"""Launch -> the text of a Triton kernel: scopes, names, loads, stores and loops. What each op says stands in `meanings.py`.

A program of the grid has one index of every leading axis, kept in `env`; all other axes of a value are the dimensions of its
tile, in the layout's order. A value is printed once, in the outermost loop in which all that it depends on is known.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from seqc.analysis.chain import Refusal
from seqc.backends.triton.launches import Launch
from seqc.diagnostics import InternalError
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import BATCH, CHUNKS, GROUPS, HEADS, TOKENS, outer_of
from seqc.schedule.linear import layout

WIDTH = 140
WORDS = {BATCH: "B", HEADS: "H", GROUPS: "groups", CHUNKS: "chunks", TOKENS: "tokens"}
RESERVED = (*keyword.kwlist, "tl", "tiles", "triton", "torch", "origin", "rest", "range", "float")

Env = Mapping[str, str]  # the index of each axis that is not one of a tile


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


class Writer:
    """The lines of one kernel."""

    def __init__(self, launch: Launch, leaves: Mapping[str, Expr], hints: Mapping[Expr, str], sizes: Sizes, needs: Needs, meaning: Meaning):
        self.launch, self.leaves, self.hints, self.sizes = launch, leaves, hints, sizes
        self.needs, self.meaning = needs, meaning
        self.namer, self.tensors = Namer(), Namer(())
        self.root = Scope()
        self.scopes: dict[str, Scope] = {}  # of index texts
        self.pointers: dict[str, str] = {}  # tensors by name: the names of their pointers
        self.lengths: dict[str, None] = {}  # words of lengths that are read
        self.blocks: dict[str, None] = {}  # words of tiles that are made
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

    def at(self, axis: str, dims: tuple[str, ...]) -> str:
        """0, 1, 2, ... along one dimension."""
        self.b(axis)
        return self.widen(f"i_{self.sizes.word(axis)}", (axis,), dims)

    def inside(self, axis: str, dims: tuple[str, ...]) -> str:
        self.b(axis)
        return self.widen(f"m_{self.sizes.word(axis)}", (axis,), dims)

    def shape(self, dims: tuple[str, ...]) -> str:
        return f"({', '.join(self.b(a) for a in dims)}{',' if len(dims) == 1 else ''})"

    def dims(self, e: Expr, env: Env) -> tuple[str, ...]:
        return tuple(a for a in layout(self.sizes.order, e.axes) if a not in env)

    def sorted(self, dims: Iterable[str]) -> tuple[str, ...]:
        return layout(self.sizes.order, dict.fromkeys(dims))

    def widen(self, text: str, have: tuple[str, ...], want: tuple[str, ...]) -> str:
        """A tile with dimensions of length 1 where it lacks some of `want`."""
        if have == want or not have:
            return text
        return f"{_atom(text)}[{', '.join(':' if a in have else 'None' for a in want)}]"

    def permuted(self, text: str, have: tuple[str, ...], want: tuple[str, ...]) -> str:
        if have == want:
            return text
        return f"tl.permute({text}, ({', '.join(str(have.index(a)) for a in want)}))"

    def whole(self, t: Tile, dims: tuple[str, ...]) -> str:
        """A tile with every dimension of its full length."""
        if t.number:
            return f"tl.full({self.shape(dims) if dims else '()'}, {t.text}, tl.float32)"
        return t.text if t.dims == dims else f"tl.broadcast_to({self.widen(t.text, t.dims, dims)}, {self.shape(dims)})"

    def kept(self, text: str, dims: tuple[str, ...], axes: Iterable[str], other: str = "0.0") -> str:
        """A tile with `other` behind the ends of some axes."""
        for a in axes:
            text = f"tiles.kept({text}, {self.inside(a, dims)}, {self.n(a)}, {self.b(a)}, {other})"
        return text

    def summed(self, text: str, dims: tuple[str, ...], gone: Iterable[str]) -> str:
        gone = [a for a in dims if a in tuple(gone)]
        text = self.kept(text, dims, gone)
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

    # --- Values ---------------------------------------------------------------------------------------------------------

    def home(self, e: Expr, env: Env) -> Scope:
        """The outermost scope in which the value can be computed."""
        found = [self.scopes.get(env[a], self.root) for a in e.axes if a in env]
        if id(e) in self.inner:
            found.append(self.inner[id(e)])
        return max(found, key=lambda s: s.depth, default=self.root)

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
        """The sum of a body over all indices of some leading axes."""
        home, dims, acc = self.home(e, env), self.dims(e, env), self.namer(self.hints.get(e, "total"))
        home.lines.append(f"{acc} = {self.whole(Tile('0.0', (), True), dims)}")

        def walked(scope: Scope, at: Env, rest: list[str]) -> None:
            if not rest:
                text = body(at, scope)
                scope.lines.append(f"{acc} += {text}")
                return
            step = self.namer("step")

            def one(child: Scope) -> None:
                i = self.index(f"origin + {step}", child, f"at_{self.sizes.word(rest[0])}")
                walked(child, {**at, rest[0]: i}, rest[1:])

            self.nested(scope, f"for {step} in range(0, {self.n(rest[0])}):", one)

        walked(home, env, list(bound))
        return Tile(acc, dims)

    # --- Memory ---------------------------------------------------------------------------------------------------------

    def offset(self, axes: tuple[str, ...], dims: tuple[str, ...], env: Env) -> str:
        text = ""
        for a in axes:
            i = env[a] if a in env else self.at(a, dims)
            text = f"{_atom(text)} * {self.n(a)} + {i}" if text else i
        return text or "origin"

    def place(self, leaf: Expr, dims: tuple[str, ...], env: Env) -> str:
        """The addresses of a tile: a tensor's pointer, the place of the tile in it, and those of the entries in the tile.

        The latter are of 32 bits where the tile lies in one piece: no tile has more than 2^20 entries.
        """
        lead = [a for a in leaf.axes if a in env]
        pointer = self.pointer(leaf)
        if tuple(lead) != leaf.axes[: len(lead)]:
            return f"{pointer} + {_atom(self.offset(leaf.axes, dims, env))}"
        rest = leaf.axes[len(lead) :]
        parts = [pointer]
        if lead:
            first = " * ".join([_atom(self.offset(tuple(lead), (), env)), *(self.n(a) for a in rest)])
            scope = max((self.scopes.get(env[a], self.root) for a in lead), key=lambda s: s.depth)
            parts.append(self.index(first, scope, "first"))
        if rest:
            parts.append(self.index(self.offset(rest, dims, env), self.root, "cell"))
        return " + ".join(parts)

    def pointer(self, leaf: Expr) -> str:
        if leaf.name not in self.pointers:
            self.pointers[leaf.name] = f"p_{self.tensors(leaf.name)}"
        return self.pointers[leaf.name]

    def load(self, leaf: Expr, env: Env) -> Tile:
        """A leaf from memory. Inside the loop, what has the loop's axis outside is seen at the step's index."""
        if leaf.name not in self.leaves:
            raise Refusal(f"a loop sums `{leaf.name}`, which it carries, over an axis of the grid", leaf)
        outer, loop = self.leaves[leaf.name], self.launch.loop
        if loop is not None and loop.axis in outer.axes and loop.axis not in leaf.axes:
            env = {**env, loop.axis: self.loop_index}
        dims = self.dims(outer, env)
        masks = [self.inside(a, dims) for a in dims]
        guard = f", mask={' & '.join(masks)}, other=0.0" if masks else ""
        text = f"tl.load({self.place(outer, dims, env)}{guard})"
        return Tile(f"{text} != 0.0" if leaf.type.dtype == "bool" else f"{text}.to(tl.float32)", dims)

    def store(self, leaf: Expr, t: Tile, env: Env, scope: Scope) -> None:
        """A tile into memory, by the first of the programs that have the same."""
        dims = self.dims(leaf, env)
        masks = [self.inside(a, dims) for a in dims]
        guard = f", mask={' & '.join(masks)}" if masks else ""
        value = self.whole(t, dims) + (".to(tl.float32)" if leaf.type.dtype == "bool" else "")
        line = f"tl.store({self.place(leaf, dims, env)}, {value}{guard})"
        first = [f"({env[a]} == 0)" for a in self.launch.grid if a not in leaf.axes]
        scope.lines += [f"if {' & '.join(first)}:", f"    {line}"] if first else [line]

    # --- The kernel -----------------------------------------------------------------------------------------------------

    def text(self) -> str:
        launch = self.launch
        env = {a: f"i_{self.sizes.word(a)}" for a in launch.grid}
        if launch.loop is None:
            for e in launch.equations:
                self.store(ops.var(e.name, e.value.axes, e.value.type.dtype), self.tile(e.value, env), env, self.root)
        else:
            self._loop(env)
        head = ["origin = tl.full((), 0, tl.int64)", "rest = origin + tl.program_id(0)"]
        for a in reversed(launch.grid):
            head += [f"{env[a]} = rest % {self.n(a)}", f"rest = rest // {self.n(a)}"]
        for word in self.blocks:
            head += [f"i_{word} = tl.arange(0, b_{word})", f"m_{word} = i_{word} < n_{word}"]
        arguments = [*self.pointers.values(), *self.scalars(), *self.constants()]
        free = self.scalars()
        decorator = f"@triton.jit(do_not_specialize=[{', '.join(map(repr, free))}])".replace("'", '"') if free else "@triton.jit"
        lines = [decorator, *_signature(launch.name, arguments)]
        return "\n".join([*lines, *(f"    {line}" for line in [*head, *self.root.lines])]) + "\n"

    def scalars(self) -> list[str]:
        """Lengths of leading axes: numbers of the call."""
        lead = {self.sizes.word(a) for a in self.launch.lead}
        return [f"n_{w}" for w in self.lengths if w in lead]

    def constants(self) -> list[str]:
        lead = {self.sizes.word(a) for a in self.launch.lead}
        names = [f"n_{w}" for w in self.lengths if w not in lead] + [f"b_{w}" for w in self.blocks]
        return [f"{name}: tl.constexpr" for name in names]

    def _loop(self, env: dict[str, str]) -> None:
        loop = self.launch.loop
        assert loop is not None
        self.body = Scope(self.root)
        states = {k.name for k in loop.carried}
        values = [*(k.next for k in loop.carried), *(e.value for e in loop.equations)]
        for node in walk(*values):
            seen = node.op.name == "var" and (node.name in states or self._sliced(node))
            if seen or any(id(a) in self.inner for a in node.args):
                self.inner[id(node)] = self.body
        step, i = self.namer("step"), self.namer(f"at_{self.sizes.word(loop.axis)}")
        self.loop_index, self.scopes[i] = i, self.body
        names = []
        for k in loop.carried:
            dims = tuple(a for a in layout(self.sizes.order, k.next.axes) if a not in env)
            name = self.namer(k.name)
            self.root.lines.append(f"{name} = {self.whole(self.tile(k.init, env), dims)}")
            for v in (n for n in walk(*values) if n.op.name == "var" and n.name == k.name):
                self.body.known[self.key(v, env)] = Tile(name, dims)
            names.append((name, dims))
        n = self.n(loop.axis)
        self.body.lines.append(f"{i} = origin + {f'({n} - 1 - {step})' if loop.reverse else step}")
        nexts = [self.tile(k.next, env) for k in loop.carried]
        for e in loop.equations:
            self.store(outer_of(e, loop.axis), self.tile(e.value, env), {**env, loop.axis: i}, self.body)
        fresh = []
        for k, t, (_, dims) in zip(loop.carried, nexts, names, strict=True):
            fresh.append(self.namer(f"{k.name}_next"))
            self.body.lines.append(f"{fresh[-1]} = {self.whole(t, dims)}")
        self.body.lines += [f"{name} = {new}" for (name, _), new in zip(names, fresh, strict=True)]
        self.root.lines.append(f"for {step} in range(0, {n}):")
        self.root.lines += [f"    {line}" for line in self.body.lines]
        for k, (name, dims) in zip(loop.carried, names, strict=True):
            self.store(ops.var(k.final, k.init.axes), Tile(name, dims), env, self.root)

    def _sliced(self, leaf: Expr) -> bool:
        loop = self.launch.loop
        assert loop is not None
        return loop.axis in self.leaves[leaf.name].axes and loop.axis not in leaf.axes


def _atom(text: str) -> str:
    return text if re.fullmatch(r"[\w.]+(\(.*\))?", text) and _closed(text) else f"({text})"


def _closed(text: str) -> bool:
    """Whether a call is one: its first parenthesis closes at the end."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and c == ")" and i < len(text) - 1:
            return False
    return True


def _signature(name: str, arguments: list[str]) -> list[str]:
    line = f"def {name}({', '.join(arguments)}):"
    return [line] if len(line) <= WIDTH else [f"def {name}(", *(f"    {a}," for a in arguments), "):"]
