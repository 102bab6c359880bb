"""Kernel -> the text of a PyTorch function."""

from __future__ import annotations

import re
from collections.abc import Iterable

from seqc.backends.torch.printer import Printer
from seqc.ir import ops
from seqc.ir.expr import Expr, make, walk
from seqc.ir.kernel import Assign, Kernel, Loop

WIDTH = 140


def print_kernel(kernel: Kernel, name: str, doc: Iterable[str]) -> str:
    """The kernel as a function `name(inputs...) -> tuple of outputs`."""
    writer = _Writer(kernel)
    body: list[str] = []
    for s in kernel.body:
        body += writer.assign(s, 4) if isinstance(s, Assign) else writer.loop(s)
    results = ", ".join(writer.as_declared(leaf) for _, leaf in kernel.outputs)
    head = [f"def {name}({', '.join(i.name for i in kernel.inputs)}):"]
    head += _docstring(doc)
    head += ["    " + line for line in writer.prologue(body)]
    tail = f"    return ({results},)" if len(kernel.outputs) == 1 else f"    return {results}"
    return "\n".join([*head, *("    " + line if line else "" for line in body), tail]) + "\n"


def _docstring(doc: Iterable[str]) -> list[str]:
    first, *rest = doc
    if not rest:
        return [f'    """{first}"""']
    return [f'    """{first}', "", *(f"    {line}".rstrip() for line in rest), '    """']


def _assigns(kernel: Kernel) -> list[Assign]:
    return [s for outer in kernel.body for s in ((outer,) if isinstance(outer, Assign) else outer.body)]


def _read(kernel: Kernel) -> set[str]:
    """Every name that a statement or the result reads."""
    loops = [s for s in kernel.body if isinstance(s, Loop)]
    firsts = [first for s in loops for _, first, _, _ in s.carried]
    roots = [*(s.value for s in _assigns(kernel)), *firsts, *(leaf for _, leaf in kernel.outputs)]
    names = {n.name for n in walk(*roots) if n.op.name == "var"}
    return names | {n for s in loops for n in (*(leaf.name for leaf, _ in s.sliced), *(next_ for _, _, next_, _ in s.carried))}


class _Writer:
    """The lines of one function; names for what a line has no room for."""

    def __init__(self, kernel: Kernel):
        self.kernel, self.printer = kernel, Printer(kernel)
        self.read = _read(kernel)
        self.taken = {*self.read, *(s.name for s in _assigns(kernel))}

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
        text = "\n".join(body) + "\n".join(masks)
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
        return lines + masks

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

    def assign(self, s: Assign, indent: int) -> list[str]:
        printer = self.printer
        text, _ = printer.expr(s.value)
        if len(f"{s.name} = {text}") + indent > WIDTH and (halves := self._shorter(s)):
            return [line for half in halves for line in self.assign(half, indent)]
        if not printer.is_tensor(s.value):
            text = f"runtime.scalar({text}, {printer.like})"
        if s.name == text:
            return []
        note = f"  # {s.note}" if s.note else ""
        line = f"{s.name} = {text}{note}"
        if len(line) + indent > WIDTH and note:
            return [f"# {s.note}", f"{s.name} = {text}"]
        return [line]

    def loop(self, loop: Loop) -> list[str]:
        printer, index = self.printer, self.kernel.index
        lines = [f"{name} = {printer.expr(init)[0]}" for name, init, _, _ in loop.carried]
        for outer, name in loop.sliced:
            lines.append(f"{name}s = {outer.name}.unbind({printer.axes(outer).index(loop.axis)})")
        lines += [f"{outer.name} = []" for outer, _ in loop.stacked]
        count = f"range({printer.length(loop.axis)})"
        lines.append(f"for {index} in {f'reversed({count})' if loop.reverse else count}:")
        inner = [f"{name} = {name}s[{index}]" for _, name in loop.sliced]
        for s in loop.body:
            inner += self.assign(s, 8)
        inner += [f"{outer.name}.append({value})" for outer, value in loop.stacked]
        lines += [f"    {line}" for line in inner + _steps(loop)]
        for outer, _ in loop.stacked:
            order = f"{outer.name}[::-1]" if loop.reverse else outer.name
            lines.append(f"{outer.name} = torch.stack({order}, {printer.axes(outer).index(loop.axis)})")
        return lines + [f"{last} = {name}" for name, _, _, last in loop.carried if last in self.read]


def _steps(loop: Loop) -> list[str]:
    names = ", ".join(name for name, _, _, _ in loop.carried)
    values = ", ".join(new for _, _, new, _ in loop.carried)
    return [f"{names} = {values}"] if loop.carried else []
