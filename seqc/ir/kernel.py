"""Kernel: a Program as statements in order, each with a name. How it is spelled is left to a printer.

For a backend with batched tensor operations a kernel is one function over a slab of the sequence: assignments, and
loops for what is sequential. Every value lies in memory with its axes in `order`.
"""

from __future__ import annotations

from dataclasses import dataclass

from seqc.ir.expr import Expr


@dataclass(frozen=True)
class Assign:
    """name = value, an expression over names already given. `note` is printed beside it."""

    name: str
    value: Expr
    note: str = ""


@dataclass(frozen=True)
class Loop:
    """Steps along `axis`. carried: (name, first value, name of the next value, name after the loop).

    sliced: (leaf outside, name inside) of what is seen without the axis. stacked: (leaf outside, name inside).
    merged: inside, sequences and heads are one axis `@n`, so that products are of plain batches of matrices.
    """

    axis: str
    reverse: bool
    carried: tuple[tuple[str, Expr, str, str], ...]
    sliced: tuple[tuple[Expr, str], ...]
    body: tuple[Assign, ...]
    stacked: tuple[tuple[Expr, str], ...]
    merged: bool = False


@dataclass(frozen=True)
class Repeat:
    """Iterations until what is left, and what is added, is small enough. found: what is iterated, in order."""

    found: tuple[Iterate, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Iterate:
    """leaf: its name, and that of what was found. first: where it begins. residual, step: leaves of what is left, and of what is added."""

    leaf: Expr
    first: Expr
    residual: Expr
    step: Expr


Statement = Assign | Loop | Repeat


@dataclass(frozen=True)
class Kernel:
    """One function: inputs and outputs are leaves; `widths` as in Program.

    order: all axes as they lie in memory. words: a name for the length of each axis of time and place.
    """

    name: str
    inputs: tuple[Expr, ...]
    body: tuple[Statement, ...]
    outputs: tuple[tuple[str, Expr], ...]
    order: tuple[str, ...]
    widths: tuple[tuple[str, str, int], ...]
    words: tuple[tuple[str, str], ...]
