"""Project: the checked project section. Every expression knows its axes, whether it varies in time, its range and its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from seqc.frontend import ast
from seqc.frontend.intervals import ANY, Interval
from seqc.source import Span

# A value is the same at every token, given once per sequence, or given at every token.
When = Literal["static", "sequence", "token"]
ORDER: tuple[When, ...] = ("static", "sequence", "token")

Attr = str | int | Fraction | None | tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """One operation of the section. `axes` are all of its axes, heads and groups too; a tensor in time has batch and time first.

    op and attr:
      number (value) · constant (`pi`, `inf`) · size (name) · count (`head`, `heads`, `depth`, `depths`, `position`) · name (what it names)
      the elementwise functions, `+ - * / ^ max min where lerp`, `compare` (operator)
      the functions along axes (their axes) · rope (axis) · reshape · first (tokens) · shift (tail)
      linear, headwise, conv, rmsnorm, layernorm, groupnorm (owner) · uniform, log_uniform, normal (a draw)
    """

    op: str
    args: tuple[Value, ...] = ()
    attr: tuple[Attr, ...] = ()
    axes: tuple[str, ...] = ()
    when: When = "static"
    range: Interval = ANY

    @property
    def is_number(self) -> bool:
        """Whether it is a plain number: no tensor below it."""
        return (
            self.op in ("number", "constant", "size")
            or (self.op == "count" and self.attr[0] in ("heads", "depth", "depths"))
            or (
                bool(self.args)
                and not self.axes
                and self.when == "static"
                and all(a.is_number for a in self.args)
                and not self.op.endswith(("uniform", "normal"))
            )
        )


def walk(value: Value) -> Iterator[Value]:
    """The value and everything below it, users first."""
    yield value
    for a in value.args:
        yield from walk(a)


@dataclass(frozen=True)
class Given:
    """An input of the module."""

    name: str
    axes: tuple[str, ...]
    when: When
    span: Span


@dataclass(frozen=True)
class Learned:
    """A param of the section, with its initial value; draws are `uniform`, `log_uniform` and `normal` inside it."""

    name: str
    axes: tuple[str, ...]
    init: Value
    span: Span


@dataclass(frozen=True)
class Owner:
    """A function's weights, at `target.path`: `q.conv`.

    `inputs` are the axes of each argument of a linear or headwise map, the channels of a convolution, what a norm runs along;
    `outputs` the axes of the result, `width` the taps of a convolution.
    """

    target: str
    path: str
    kind: str
    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...]
    bias: bool
    width: int | str | None = None
    eps: Fraction | None = None

    @property
    def name(self) -> str:
        return f"{self.target}.{self.path}"


@dataclass(frozen=True)
class Tail:
    """What the module carries from call to call: the last `length` values of a convolution's or shift's argument, or `first`'s result."""

    name: str
    kind: Literal["conv", "shift", "first"]
    axes: tuple[str, ...]
    length: int | str


@dataclass(frozen=True)
class Assign:
    """One target of an equation or a `let`. `late`: it needs the layer's outputs. `owners` and `tails` in the order of the text."""

    role: Literal["input", "let", "result"]
    name: str
    axes: tuple[str, ...]
    value: Value
    late: bool
    owners: tuple[Owner, ...]
    tails: tuple[Tail, ...]
    span: Span


@dataclass(frozen=True)
class Project:
    """The checked section. `sizes` are the layer's sizes with their defaults as written (None: it must be given)."""

    inputs: tuple[Given, ...]
    params: tuple[Learned, ...]
    assigns: tuple[Assign, ...]
    result: str
    sizes: tuple[tuple[str, ast.Expr | None], ...]
    span: Span

    @property
    def owners(self) -> tuple[Owner, ...]:
        return tuple(o for a in self.assigns for o in a.owners)

    @property
    def tails(self) -> tuple[Tail, ...]:
        return tuple(t for a in self.assigns for t in a.tails)

    @property
    def positions(self) -> bool:
        """Whether it counts tokens."""
        return any(v.op == "rope" or (v.op == "count" and v.attr[0] == "position") for a in self.assigns for v in walk(a.value))
