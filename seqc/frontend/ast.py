"""The text as a tree: what was written, where, and nothing about what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from seqc.source import Source, Span


@dataclass(frozen=True, slots=True)
class Name:
    id: str
    span: Span


# --- Expressions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number:
    """`text` as written, `value` exact (1e-3 is 1/1000)."""

    value: Fraction
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Ref:
    """A name used as a value."""

    id: str
    span: Span


@dataclass(frozen=True, slots=True)
class Call:
    """`f(a, b, n = 1)`; `f[K](a)` has an Index as its function."""

    function: Expr
    args: tuple[Expr, ...]
    named: tuple[tuple[Name, Expr], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Index:
    """`x[i]`, `sum[n]`, `eye[N]`, `linear[16]`: brackets after a name."""

    base: Expr
    items: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Binary:
    """op: + - * / @ ^ or a comparison <= >= == < >."""

    op: str
    left: Expr
    right: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Negate:
    value: Expr
    span: Span


Expr = Number | Ref | Call | Index | Binary | Negate


# --- Parts of declarations -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Axis:
    """`K`, or `n: N`, an axis N with an index n bound in the initial value or body."""

    name: str
    index: str | None
    span: Span


@dataclass(frozen=True, slots=True)
class Domain:
    """`unit`, `integer`, `complex` (kind), or an interval (kind `interval`) with its ends and whether they are open."""

    kind: str
    low: Expr | None
    high: Expr | None
    open_low: bool
    open_high: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Signal:
    """A name with axes: an input, or a result's place. `scopes` are the words after `per`."""

    name: Name
    axes: tuple[Axis, ...]
    domains: tuple[Domain, ...]
    scopes: tuple[Name, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Tensor:
    """A name with axes (or `like` another) and an initial value."""

    name: Name
    axes: tuple[Axis, ...]
    like: Name | None
    domains: tuple[Domain, ...]
    init: Expr
    scopes: tuple[Name, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Method:
    """A library call after `by`: `descent(rate = beta)`."""

    name: Name
    args: tuple[Expr, ...]
    named: tuple[tuple[Name, Expr], ...]
    span: Span


# --- Statements ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declare:
    """`param`, `state` or `memory` (kind) with one or more tensors."""

    kind: str
    tensors: tuple[Tensor, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Inputs:
    signals: tuple[Signal, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class DeepMemory:
    """`memory M(z[D]) = body with W[D, E] = init, ...`"""

    name: Name
    formal: Formal
    body: Expr
    tensors: tuple[Tensor, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Let:
    name: Name
    axes: tuple[Axis, ...]
    value: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Output:
    name: Name
    axes: tuple[Axis, ...]
    value: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Update:
    name: Name
    value: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Retain:
    memory: Name
    method: Method
    span: Span


@dataclass(frozen=True, slots=True)
class Learn:
    memory: Name
    method: Method
    objective: Expr
    point: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Append:
    items: tuple[tuple[Expr, Name], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Fold:
    """`order` is None (claimed associative), `left` or `tree`."""

    name: Name
    value: Expr
    order: Name | None
    span: Span


@dataclass(frozen=True, slots=True)
class For:
    index: Name
    count: Expr
    body: tuple[Statement, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Result:
    """`slope`, `link` or `return` (kind) in a library definition."""

    kind: str
    value: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Equation:
    """`a, b = expr` in a project section."""

    targets: tuple[Name, ...]
    value: Expr
    span: Span


Statement = Declare | Inputs | DeepMemory | Let | Output | Update | Retain | Learn | Append | Fold | For | Result | Equation


# --- Definitions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Size:
    name: Name
    default: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Formal:
    name: Name
    axes: tuple[Axis, ...]
    default: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Project:
    inputs: tuple[Signal, ...]
    result: Name
    body: tuple[Statement, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Layer:
    name: Name
    sizes: tuple[Size, ...]
    doc: tuple[str, ...]
    body: tuple[Statement, ...]
    project: Project | None
    span: Span


@dataclass(frozen=True, slots=True)
class Definition:
    """kind: objective, retention, algorithm or function. `value` for the one-line form, else `body`."""

    kind: str
    name: Name
    formals: tuple[Formal, ...]
    doc: tuple[str, ...]
    body: tuple[Statement, ...]
    value: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class File:
    """A parsed file: its edition and definitions in order, the layer (if any) among them."""

    source: Source
    edition: int
    definitions: tuple[Layer | Definition, ...] = field(default=())
