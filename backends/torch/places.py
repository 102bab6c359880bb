"""Loops that write what they stack where it ends up, instead of a list that is copied together afterwards.

A value that a step computes goes to its row of a tensor made before the loop. The rows of a carried value are one more than
the steps: what a step starts from, and behind them the last value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from seqc.backends.torch.contractions import factors_of
from seqc.backends.torch.printer import Printer
from seqc.ir.expr import Expr, variables
from seqc.ir.kernel import Loop
from seqc.ir.program import BATCH, HEADS
from seqc.schedule.rows import accumulates, is_product, renamed

WIDTH = 140
INDENT = 8
CALLS = {"add": "torch.add", "sub": "torch.sub", "mul": "torch.mul", "div": "torch.div"}


@dataclass(frozen=True)
class Place:
    """Where a loop's values go: the tensor's name and shape, the name inside of the value that a step writes, and that of the
    value that it starts from if the rows are those of a carried value. filled: the slice that a row holds before its step."""

    rows: str
    shape: str
    written: str
    start: str
    reverse: bool
    filled: str = ""

    @property
    def firsts(self) -> str:
        """Of the rows of a carried value those that steps start from."""
        return self.rows + ("" if not self.start else "[1:]" if self.reverse else "[:-1]")

    @property
    def results(self) -> str:
        """The rows that steps write."""
        return self.rows + ("" if not self.start else "[:-1]" if self.reverse else "[1:]")


def places(printer: Printer, loop: Loop, depth: int = 0) -> dict[str, Place]:
    """The places of a loop by the name of what is stacked, for all that a step can write in place. depth: of indentation around it."""
    body = {s.name: s for s in loop.body}
    nexts = {name: new for name, _, new, _ in loop.carried}
    found: dict[str, Place] = {}
    for outer, inner in loop.stacked:
        written = nexts.get(inner, inner)
        shared = list(nexts.values()).count(written) > 1 or any(p.written == written for p in found.values())
        if shared or written not in body or printer.axes(outer)[0] != loop.axis or outer.type.dtype != "real":
            continue
        lines = into(printer, body[written].value, written)
        if lines is None or max(map(len, lines)) + INDENT + depth > WIDTH:
            continue
        start = inner if inner in nexts else ""
        found[outer.name] = Place(outer.name, _shape(printer, loop, outer, bool(start)), written, start, loop.reverse)
    return found


def _shape(printer: Printer, loop: Loop, outer: Expr, carried: bool) -> str:
    lengths = [printer.length(loop.axis) + (" + 1" if carried else "")]
    for a in printer.axes(outer)[1:]:
        if loop.merged and a in (BATCH, HEADS):
            lengths += [f"{printer.length(BATCH)} * {printer.length(HEADS)}"] if a == BATCH else []
        else:
            lengths.append(printer.length(a))
    return f"({', '.join(lengths)}{',' if len(lengths) == 1 else ''})"


def filling(printer: Printer, loop: Loop, place: Place) -> tuple[str, str] | None:
    """The value that may be computed into a place before the loop, and its slice: the first term of what a step writes there."""
    values = {s.name: s.value for s in loop.body}
    value = values.pop(place.written)
    elsewhere = {v.name for v in variables(*values.values())} | {name for _, name in loop.stacked} | {n for _, _, n, _ in loop.carried}
    mine = {v.name for v in variables(value) if printer.axes(v) == printer.axes(value)} - elsewhere
    for outer, name in loop.sliced:
        lines = "\n".join(into(printer, value, place.written, name) or [name])
        if name in mine and not re.search(rf"(?<![\w.]){name}\b", lines) and [x for x, _ in loop.sliced].count(outer) == 1:
            return outer.name, name
    return None


def into(printer: Printer, value: Expr, slot: str, filled: str = "") -> list[str] | None:
    """Statements that compute a value into a tensor of its shape; None where more than calls are needed. filled: what it holds."""
    if total := accumulates(value):
        x, product, sign = total
        if factors := factors_of(printer, printer.axes(value), product):
            return _added(printer, x, "baddbmm", (*factors, *(["alpha=-1"] if sign < 0 else [])), slot, filled)
    if is_product(product := renamed(value)) and (factors := factors_of(printer, printer.axes(value), product)):
        return [f"torch.bmm({', '.join(factors)}, out={slot})"]
    if found := printer.added_product(value):
        x, pair, sign = found
        return _added(printer, x, "addcmul", (*pair, *(["value=-1"] if sign < 0 else [])), slot, filled)
    if value.op.name in CALLS and all(printer.is_tensor(a) for a in value.args):
        one, other = (printer.operand(a, printer.axes(value))[0] for a in value.args)
        if other == filled and value.op.name in ("add", "mul"):
            one, other = other, one
        return [f"{slot}.{value.op.name}_({other})" if one == filled else f"{CALLS[value.op.name]}({one}, {other}, out={slot})"]
    return None


def _added(printer: Printer, x: Expr, call: str, given: tuple[str, ...], slot: str, filled: str) -> list[str] | None:
    """x and a product: one call if x is a named value, else x is computed into the place first. given: the call's other arguments."""
    there = printer.expr(x)[0] == filled
    if _named(x) and not there:
        return [f"torch.{call}({printer.expr(x)[0]}, {', '.join(given)}, out={slot})"]
    first = [] if there else into(printer, x, slot, filled)
    return None if first is None else [*first, f"{slot}.{call}_({', '.join(given)})"]


def _named(x: Expr) -> bool:
    """Whether a value is a named one, its axes renamed or not."""
    return _named(x.args[0]) if x.op.name == "rename" else x.op.name == "var"
