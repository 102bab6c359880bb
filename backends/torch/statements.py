"""Kernel -> the text of a PyTorch function."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from seqc.backends.torch.contractions import plain_factors
from seqc.backends.torch.operands import ATOM, wrap
from seqc.backends.torch.places import Place, filling, into, places
from seqc.backends.torch.printer import Printer, RulePrinter
from seqc.backends.torch.reuse import is_fresh, occurrences, reads, spent
from seqc.ir import ops
from seqc.ir.expr import Expr, make, variables
from seqc.ir.kernel import Assign, Kernel, Loop, Repeat, Statement
from seqc.ir.program import BATCH, HEADS

WIDTH = 140
DEAD = 4  # tensors that may be waiting to be let go of: their memory serves the next ones while it is in the cache


def print_kernel(kernel: Kernel, name: str, doc: Iterable[str], *, in_place: bool = False) -> str:
    """The kernel as a function `name(inputs...) -> tuple of outputs`.

    in_place: its loops may write into tensors made before them, which is faster and nothing that autograd could differentiate.
    """
    writer = _Writer(kernel, in_place)
    body = writer.body()
    given = [*(writer.as_declared(leaf) for _, leaf in kernel.outputs), *(["solver"] if _repeats(kernel) else [])]
    results = ", ".join(given)
    head = [f"def {name}({', '.join(i.name for i in kernel.inputs)}):"]
    if len(head[0]) > WIDTH:
        head = [f"def {name}(", *(f"    {i.name}," for i in kernel.inputs), "):"]
    head += _docstring(doc)
    head += ["    " + line for line in writer.prologue(body)]
    head += ["    solver = runtime.Newton()"] if _repeats(kernel) else []
    tail = f"    return ({results},)" if len(given) == 1 else f"    return {results}"
    return "\n".join([*head, *("    " + line if line else "" for line in body), tail]) + "\n"


def _docstring(doc: Iterable[str]) -> list[str]:
    first, *rest = doc
    if not rest:
        return [f'    """{first}"""']
    return [f'    """{first}', "", *(f"    {line}".rstrip() for line in rest), '    """']


def _repeats(kernel: Kernel) -> bool:
    return any(isinstance(s, Repeat) for s in kernel.body)


def _assigns(body: Iterable[Statement]) -> list[Assign]:
    return [a for s in body for a in ([s] if isinstance(s, Assign) else _assigns(s.body))]


def _deleted(names: list[str]) -> list[str]:
    """`del` statements, each within a line."""
    parts = textwrap.wrap(", ".join(names), WIDTH - len("    del "), break_long_words=False)
    return [f"del {part.rstrip(',')}" for part in parts]


def _unpacked(names: list[str]) -> list[str]:
    """A loop's step as its values, a few per line."""
    lines, at = [], 0
    for part in textwrap.wrap(", ".join(names), WIDTH - len("        = step[00:00]"), break_long_words=False):
        few = [name.strip() for name in part.rstrip(",").split(",")]
        where = f"step[{at}]" if len(few) == 1 else f"step[{at}:{at + len(few)}]"
        lines.append(f"    {', '.join(few)} = {where}")
        at += len(few)
    return lines


def _rule(kernel: Kernel, name: str) -> list[str]:
    """What a row of a triangular solve writes, as a function inside the kernel's."""
    writer = _Writer(kernel, False, RulePrinter(kernel))
    lines = [line for s in kernel.body if isinstance(s, Assign) for line in writer.assign(s, 8)]
    head, last = f"def {name}({', '.join(i.name for i in kernel.inputs)}):", f"return {kernel.outputs[0][0]}"
    return ["", head, *("    " + line for line in (*lines, last)), ""]


class _Writer:
    """The lines of one function; names for what a line has no room for."""

    def __init__(self, kernel: Kernel, in_place: bool, printer: Printer | None = None):
        self.kernel, self.printer, self.in_place = kernel, printer or Printer(kernel), in_place
        self.results = {n.name for n in variables(*(leaf for _, leaf in kernel.outputs))}
        self.read = self.results.union(*map(reads, kernel.body))
        self.printer.allow(in_place)
        self.depth = 0  # of the indentation that an iteration adds
        self.taken = {*self.read, *(s.name for s in _assigns(kernel.body))}
        self.early = self._early() if in_place else {}

    def _early(self) -> dict[str, Place]:
        """The places that a product is written to before their loops begin, by its name: a loop is all that reads it."""
        body, found = self.kernel.body, {}
        readers = Counter(name for s in body for name in reads(s))
        products = {s.name: s for s in body if isinstance(s, Assign) and plain_factors(self.printer, s.value)}
        for loop in (s for s in body if isinstance(s, Loop)):
            for place in places(self.printer, loop).values():
                outer, inner = filling(self.printer, loop, place) or ("", "")
                once = readers[outer] == 1 and outer not in self.results
                if once and outer in products and len(self.product(products[outer], place)) + 4 <= WIDTH:
                    found[outer] = replace(place, filled=inner)
        return found

    def product(self, s: Assign, place: Place, free: frozenset[str] = frozenset()) -> str:
        """A product as it is written to a loop's place."""
        self.allow(s, free)
        x, y = plain_factors(self.printer, s.value) or ("", "")
        return f"runtime.product({x}, {y}, out={place.results})"

    def allow(self, s: Assign, free: frozenset[str]) -> None:
        """Lets a statement write over values; one that stands in it twice is still needed."""
        self.printer.allow(self.in_place, frozenset(name for name, n in occurrences(s.value, free).items() if n == 1))

    def places(self, loop: Loop) -> dict[str, Place]:
        """Where a loop's values go, by the names of what is stacked."""
        if not self.in_place:
            return {}
        early = {p.rows: p for p in self.early.values()}
        return {name: early.get(name, p) for name, p in places(self.printer, loop, self.depth).items()}

    def names(self, s: Statement) -> list[str]:
        """The names of a statement's tensors that outlive it, a loop's last slices included."""
        if isinstance(s, Assign):
            return [] if s.name in self.early else [s.name]
        if isinstance(s, Repeat):
            return [*(x.leaf.name for x in s.found), *(name for inner in s.body for name in self.names(inner))]
        found = self.places(s).values()
        slots = [name for p in found for name in (p.start, p.written) if name]
        return [name for _, name in s.sliced if name not in {p.filled for p in found}] + slots + [leaf.name for leaf, _ in s.stacked]

    def body(self) -> list[str]:
        """All statements; names that nothing reads any more are deleted a few at a time."""
        last = {name: i for i, s in enumerate(self.kernel.body) for name in (*self.names(s), *reads(s))}
        own = {name for s in self.kernel.body for name in self.names(s)} - self.results
        ends: dict[int, list[str]] = {}
        for name in sorted(own & last.keys()):
            ends.setdefault(last[name], []).append(name)
        lines: list[str] = []
        dead: list[str] = []
        free = spent(self.kernel.body, self.results)
        for i, s in enumerate(self.kernel.body):
            if dead and (not isinstance(s, Assign) or len(dead) >= DEAD):
                lines += _deleted(dead)
                dead = []
            new = self.statement(s, free[i])
            lines += new
            dead += ends.get(i, []) if new else []
        return lines

    def statement(self, s: Statement, free: frozenset[str]) -> list[str]:
        """free: the values that it may write over."""
        if isinstance(s, Assign) and (place := self.early.get(s.name)):
            return [self.room(place), self.product(s, place, free)]
        if isinstance(s, Assign):
            return self.assign(s, 4, free)
        return self.repeat(s) if isinstance(s, Repeat) else self.loop(s)

    def repeat(self, s: Repeat) -> list[str]:
        """An iteration to the solution; what is left is measured for each sequence and head."""
        lines = [f"{x.leaf.name} = {x.first.name}" for x in s.found]
        self.depth += 4
        free = spent(s.body, {leaf.name for x in s.found for leaf in (x.leaf, x.residual, x.step)})
        inner = [line for part, names in zip(s.body, free, strict=True) for line in self.statement(part, names)]
        self.depth -= 4
        for x in s.found:
            axes = self.printer.axes(x.leaf)
            gone = ", ".join(str(i) for i, a in enumerate(axes) if a not in (BATCH, HEADS))
            inner.append(f"{x.leaf.name} = solver.added({x.leaf.name}, {x.residual.name}, {x.step.name}, ({gone}))")
        return [*lines, "while solver.goes_on():", *(f"    {line}" if line else "" for line in inner)]

    def as_declared(self, leaf: Expr) -> str:
        """A result with its axes as the text declares them; inside, every tensor has the kernel's order."""
        have = self.printer.axes(leaf)
        return leaf.name if have == leaf.axes else f"{leaf.name}.permute({', '.join(str(have.index(a)) for a in leaf.axes)})"

    def prologue(self, body: list[str]) -> list[str]:
        """Sizes and masks that the body names, from the shapes of the inputs."""
        printer = self.printer
        masks = []
        for m, name in printer.masks.items():
            numbers = f"{m.per_row}, {m.step}, {m.offset}, {m.per_column}"
            masks.append(f"{name} = runtime.mask({printer.length(m.row)}, {printer.length(m.column)}, {numbers}, {printer.like})")
        rules = [line for kernel, name in printer.rules.items() for line in _rule(kernel, name)]
        text = "\n".join((*body, *masks, *rules))
        found: dict[str, str] = {}
        lines = []
        for leaf in self.kernel.inputs:
            want = printer.axes(leaf)
            if want != leaf.axes and (leaf.name in self.read or re.search(rf"(?<![\w.]){leaf.name}\b", text)):
                lines.append(f"{leaf.name} = {leaf.name}.permute({', '.join(str(leaf.axes.index(a)) for a in want)})")
            else:
                want = leaf.axes  # it is asked for its sizes only
            for i, a in enumerate(want):
                found.setdefault(printer.length(a), f"{leaf.name}.shape[{i}]")
        for word, where in found.items():
            if word.isidentifier() and re.search(rf"(?<![\w.]){word}\b(?!\s*=[^=])", text):
                lines.append(f"{word} = {where}")
        return lines + masks + rules

    def _shorter(self, s: Assign) -> tuple[Assign, Assign] | None:
        """A statement that is too long for a line as two: its longest operand gets a name of its own."""
        parts = [a for a in s.value.args if a.args and self.printer.is_tensor(a)]
        if not parts:
            return None
        longest = max(parts, key=lambda a: len(self.printer.expr(a)[0]))
        name, n = f"{s.name}_part", 1
        while name in self.taken:
            n += 1
            name = f"{s.name}_part{n}"
        self.taken.add(name)
        leaf = ops.var(name, longest.axes, longest.type.dtype)
        rest = make(s.value.op, tuple(leaf if a is longest else a for a in s.value.args), s.value.attr)
        return Assign(name, longest), Assign(s.name, rest, s.note)

    def assign(self, s: Assign, indent: int, free: frozenset[str] = frozenset()) -> list[str]:
        """A value as a line, or two. free: the values that it may write over."""
        printer = self.printer
        self.allow(s, free)
        text, _ = printer.expr(s.value)
        indent += self.depth
        if len(f"{s.name} = {text}") + indent > WIDTH and (halves := self._shorter(s)):
            part, rest = halves
            lines = self.assign(part, indent - self.depth, free - reads(rest))
            return lines + self.assign(rest, indent - self.depth, free | ({part.name} if is_fresh(part.value) else set()))
        if not printer.is_tensor(s.value):
            text = f"runtime.scalar({text}, {printer.like})"
        if s.name == text:
            return []
        note = f"  # {s.note}" if s.note else ""
        line = f"{s.name} = {text}{note}"
        if len(line) + indent > WIDTH and note:
            return [f"# {s.note}", f"{s.name} = {text}"]
        return [line]

    def room(self, place: Place) -> str:
        return f"{place.rows} = {self.printer.like}.new_empty({place.shape})"

    def loop(self, loop: Loop) -> list[str]:
        printer, found = self.printer, self.places(loop)
        started = {p.start: p.rows for p in found.values() if p.start}
        held = {p.written: p.filled for p in found.values()}
        loop = replace(loop, sliced=tuple((outer, name) for outer, name in loop.sliced if name not in held.values()))
        lines = [self.room(p) for p in found.values() if not p.filled]
        for name, init, _, _ in loop.carried:
            value = self._merged(loop, init)
            if name in started:
                value = f"{started[name]}[{-1 if loop.reverse else 0}].copy_({value})"
            lines.append(f"{name} = {value}")
        listed = [(outer, value) for outer, value in loop.stacked if outer.name not in found]
        lines += [f"{outer.name} = []" for outer, _ in listed]
        inner: list[str] = []
        kept = {new for _, _, new, _ in loop.carried} | {value for _, value in loop.stacked}
        for s, free in zip(loop.body, spent(loop.body, kept), strict=True):
            self.allow(s, frozenset())
            inner += (into(printer, s.value, s.name, held[s.name]) or []) if s.name in held else self.assign(s, 8, free)
        inner += [f"{outer.name}.append({value})" for outer, value in listed]
        inner, widened = _widened_outside(inner + _steps(loop), [name for _, name in loop.sliced])
        lines += self._head(loop, list(found.values()), widened)
        lines += [f"    {line}" for line in inner]
        for name, init, new, end in loop.carried:
            if end in self.read:
                value = f"{name}.clone()" if new in held else name  # a row would keep all rows in memory
                lines.append(f"{end} = {self._parted(loop, value, printer.axes(init))}")
        for outer, _ in loop.stacked:
            axes = printer.axes(outer)
            if outer.name in found:
                whole = found[outer.name].firsts
            else:
                order = f"{outer.name}[::-1]" if loop.reverse else outer.name
                whole = f"torch.stack({order}, {self._along(loop, axes)})"
            value = self._parted(loop, whole, axes)
            lines += [f"{outer.name} = {value}"] if value != outer.name else []
        return lines

    def _head(self, loop: Loop, found: list[Place], widened: Mapping[str, str]) -> list[str]:
        """The loop's first lines: tensors give their slices along the first axis, which is the loop's."""
        slices = [(name, self._slices(loop, leaf, widened.get(name, ""))) for leaf, name in loop.sliced]
        slices += [(p.written, p.results) for p in found]
        if not slices:
            return [f"for _ in range({self.printer.length(loop.axis)}):"]
        names, outer = ", ".join(name for name, _ in slices), [text for _, text in slices]
        start, end = ("reversed([*", "])") if loop.reverse else ("", "")
        steps = outer[0] if len(outer) == 1 else f"zip({', '.join(outer)}, strict=True)"
        line = f"for {names} in {start}{steps}{end}:"
        if len(line) + 4 + self.depth <= WIDTH:
            return [line]
        lines = [f"steps = zip({', '.join(outer)}, strict=True)"]
        if len(lines[0]) + 4 + self.depth > WIDTH:
            lines = ["steps = zip(", *(f"    {x}," for x in outer), "    strict=True,", ")"]
        line = f"for {names} in {start}steps{end}:"
        if len(line) + 4 + self.depth <= WIDTH:
            return [*lines, line]
        return [*lines, f"for step in {start}steps{end}:", *_unpacked([name for name, _ in slices])]

    def _slices(self, loop: Loop, outer: Expr, more: str) -> str:
        """What gives a value's slices one after the other: the tensor itself if its first axis is the loop's. more: axes of length 1."""
        at = self._along(loop, self.printer.axes(outer))
        return self._merged(loop, outer) + more + (f".unbind({at})" if at else "")

    def _along(self, loop: Loop, axes: tuple[str, ...]) -> int:
        """Where the loop's axis stands once sequences and heads are one axis, if the loop has them so."""
        at = axes.index(loop.axis)
        return at - 1 if loop.merged and BATCH in axes[:at] else at

    def _merged(self, loop: Loop, outer: Expr) -> str:
        """A value from outside, its sequences and heads as one axis if the loop has them so."""
        text, precedence = self.printer.expr(outer)
        if not self.printer.is_tensor(outer):
            return f"runtime.scalar({text}, {self.printer.like})"
        if not loop.merged or BATCH not in outer.axes:
            return text
        first = self.printer.axes(outer).index(BATCH)
        return f"{wrap(text, precedence, ATOM)}.flatten({first}, {first + 1})"

    def _parted(self, loop: Loop, text: str, axes: tuple[str, ...]) -> str:
        """A value of the loop with its sequences and heads apart again."""
        if not loop.merged or BATCH not in axes:
            return text
        return f"{text}.unflatten({axes.index(BATCH)}, ({self.printer.length(BATCH)}, {self.printer.length(HEADS)}))"


def _steps(loop: Loop) -> list[str]:
    names = ", ".join(name for name, _, _, _ in loop.carried)
    values = ", ".join(new for _, _, new, _ in loop.carried)
    return [f"{names} = {values}"] if loop.carried else []


def _widened_outside(lines: list[str], names: list[str]) -> tuple[list[str], dict[str, str]]:
    """A loop's body, and the axes of length 1 that all its readers of a slice append to it: they are appended once, before the loop."""
    widened = {}
    for name in names:
        uses = re.compile(rf"(?<![\w.]){name}\b(\[[^]]*])?")
        found = {m.group(1) or "" for line in lines for m in uses.finditer(line)}
        if len(found) == 1 and re.fullmatch(r"\[\.\.\.(, None)+]", suffix := found.pop()):
            lines, widened[name] = [uses.sub(name, line) for line in lines], suffix
    return lines, widened
