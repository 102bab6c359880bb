"""Loops that write what they stack where it ends up, instead of a list that is copied together afterwards.

A value that a step computes goes to its row of a tensor made before the loop. The rows of a carried value are one more than
the steps: what a step starts from, and behind them the last value.
"""

from __future__ import annotations

from dataclasses import dataclass

from seqc.backends.torch.contractions import factors_of
from seqc.backends.torch.printer import Printer
from seqc.ir.expr import Expr
from seqc.ir.kernel import Loop
from seqc.ir.program import BATCH, HEADS
from seqc.schedule.rows import accumulates

WIDTH = 140
INDENT = 8
CALLS = {"add": "torch.add", "sub": "torch.sub", "mul": "torch.mul", "div": "torch.div"}


@dataclass(frozen=True)
class Place:
    """Where a loop's values go: the tensor's name and shape, the name inside of the value that a step writes, and that of the
    value that it starts from if the rows are those of a carried value."""

    rows: str
    shape: str
    written: str
    start: str = ""


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
        found[outer.name] = Place(outer.name, _shape(printer, loop, outer, bool(start)), written, start)
    return found


def _shape(printer: Printer, loop: Loop, outer: Expr, carried: bool) -> str:
    lengths = [printer.length(loop.axis) + (" + 1" if carried else "")]
    for a in printer.axes(outer)[1:]:
        if loop.merged and a in (BATCH, HEADS):
            lengths += [f"{printer.length(BATCH)} * {printer.length(HEADS)}"] if a == BATCH else []
        else:
            lengths.append(printer.length(a))
    return f"({', '.join(lengths)}{',' if len(lengths) == 1 else ''})"


def into(printer: Printer, value: Expr, slot: str) -> list[str] | None:
    """Statements that compute a value into a tensor of its shape; None where more than calls are needed."""
    if total := accumulates(value):
        x, product, sign = total
        if factors := factors_of(printer, printer.axes(value), product):
            return _added(printer, x, "baddbmm", factors, ", alpha=-1" if sign < 0 else "", slot)
    if found := printer.added_product(value):
        x, pair, sign = found
        return _added(printer, x, "addcmul", pair, ", value=-1" if sign < 0 else "", slot)
    if value.op.name in CALLS and all(printer.is_tensor(a) for a in value.args):
        texts = ", ".join(printer.operand(a, printer.axes(value))[0] for a in value.args)
        return [f"{CALLS[value.op.name]}({texts}, out={slot})"]
    return None


def _added(printer: Printer, x: Expr, call: str, pair: tuple[str, str], more: str, slot: str) -> list[str] | None:
    """x and a product: one call if x is a named value, else x is computed into the place first."""
    texts = ", ".join(pair) + more
    if _named(x):
        return [f"torch.{call}({printer.expr(x)[0]}, {texts}, out={slot})"]
    first = into(printer, x, slot)
    return None if first is None else [*first, f"{slot}.{call}_({texts})"]


def _named(x: Expr) -> bool:
    """Whether a value is a named one, its axes renamed or not."""
    return _named(x.args[0]) if x.op.name == "rename" else x.op.name == "var"
