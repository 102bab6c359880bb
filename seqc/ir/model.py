"""Model: the checked spec. Names, axes, roles and domains are resolved; the Miras quadruple still stands.

Expressions are IR nodes over `var` leaves that carry a name's value *at that line* of the body, which runs from top to
bottom once per token. Axes are unique inside a node: the second K of `H[K, K]` is `K'`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from seqc.ir.expr import Expr
from seqc.source import Span

Scope = Literal["head", "group", "layer", "sequence"]


@dataclass(frozen=True)
class Domain:
    """What may be assumed of a value: an interval with open or closed ends, and the words that were written."""

    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = True
    open_high: bool = True
    unit: bool = False
    integer: bool = False
    complex: bool = False

    @property
    def positive(self) -> bool:
        """Whether it begins at zero, which is no part of it: logarithms exist."""
        return self.low == 0 and self.open_low

    @property
    def empty(self) -> bool:
        """Whether no number lies in it."""
        if self.low > self.high or (self.low == self.high and (self.open_low or self.open_high)):
            return True
        if not self.integer or math.inf in (-self.low, self.high):
            return False
        first = math.floor(self.low) + 1 if self.open_low else math.ceil(self.low)
        last = math.ceil(self.high) - 1 if self.open_high else math.floor(self.high)
        return first > last

    def within(self, low: float, open_low: bool, high: float, open_high: bool) -> Domain:
        """What lies in an interval as well: of two ends that are the same number, the open one; an infinite one is open."""
        low, open_low = max((low, open_low or low == -math.inf), (self.low, self.open_low))
        high, closed = min((high, not (open_high or high == math.inf)), (self.high, not self.open_high))
        return replace(self, low=low, open_low=open_low, high=high, open_high=not closed)


@dataclass(frozen=True)
class Size:
    """A size of the layer: an axis name and a number.

    `default` is None where the spec gives none; `formula` is its text in terms of other sizes and `model`.
    `static` sizes are compile options (used by `for`, `start`, `phase`, `window` or an iteration count).
    """

    name: str
    formula: str | None
    default: Fraction | None
    static: bool
    span: Span | None


@dataclass(frozen=True)
class Input:
    """Given at every token (or once per sequence)."""

    name: str
    axes: tuple[str, ...]
    scope: Scope
    dtype: str
    domain: Domain
    span: Span


@dataclass(frozen=True)
class Param:
    """Learned. `init` is an expression over sizes, params above and draws; `draw` leaves are vars named `uniform(a, b)` etc."""

    name: str
    axes: tuple[str, ...]
    scope: Scope
    init: Init
    span: Span


@dataclass(frozen=True)
class Draw:
    """uniform, log_uniform or normal with two numeric arguments; kind `learned` draws normal(0, 1/sqrt(first axis))."""

    name: str  # of the var leaf that stands for it
    kind: str
    args: tuple[Expr, ...]


@dataclass(frozen=True)
class Init:
    """An initial value: an expression, and the draws whose `var` leaves occur in it. Index binders are `iota` nodes."""

    value: Expr
    draws: tuple[Draw, ...] = ()


@dataclass(frozen=True)
class State:
    """A tensor carried from token to token: `S` of a plain memory or state, `M.W1` of a deep memory.

    `init` may use params and per-sequence inputs. `growing` names the axis that `append` lengthens.
    """

    name: str
    axes: tuple[str, ...]
    scope: Scope
    dtype: str
    init: Expr
    growing: str | None
    memory: str | None  # the memory it belongs to; None for a plain state
    span: Span


# --- The body, in order ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Let:
    name: str
    value: Expr
    span: Span


@dataclass(frozen=True)
class Update:
    """S becomes `value`, an expression over the values at this line (state leaves are named `S`)."""

    state: str
    value: Expr
    span: Span


@dataclass(frozen=True)
class Retain:
    """Each tensor of the memory becomes the retention's value."""

    memory: str
    library: str  # the retention's name
    args: tuple[tuple[str, Expr], ...]
    updates: tuple[Update, ...]  # the library text, applied to each tensor
    span: Span


@dataclass(frozen=True)
class Learn:
    """Each tensor W of the memory becomes the algorithm's value on W and the gradient of `objective` in W at `point`."""

    memory: str
    library: str  # the algorithm's name
    args: tuple[tuple[str, Expr], ...]
    objective: Expr
    objective_text: str
    point: str  # here, start, start(C), start(inf), next
    updates: tuple[Update, ...]  # the library text, gradient derived
    span: Span


@dataclass(frozen=True)
class Append:
    items: tuple[tuple[str, Expr], ...]
    span: Span


@dataclass(frozen=True)
class Fold:
    state: str
    value: Expr
    operand: Expr  # the input that enters
    order: Literal["claimed", "left", "tree"]
    span: Span


@dataclass(frozen=True)
class Output:
    name: str
    axes: tuple[str, ...]
    value: Expr
    span: Span


Step = Let | Update | Retain | Learn | Append | Fold | Output


@dataclass(frozen=True)
class Hidden:
    """State that the text implies: carried, handed over, reset by packing.

    kind `position`: tokens since the start, leaf `position`.
    kind `shift`: leaf `name` is `value` one token ago. kind `window`: its last `length` values, oldest first, along `axis`.
    kind `start`: leaf `name` is `state` before the current block of `length` tokens (None: before the first token).
    """

    name: str
    kind: Literal["position", "shift", "window", "start"]
    axes: tuple[str, ...] = ()
    axis: str | None = None
    length: int | None = None
    value: Expr | None = None
    state: str | None = None
    dtype: str = "real"
    scope: Scope = "head"


@dataclass(frozen=True)
class Text:
    """A text that the meaning of the layer rests on; its hash goes into the manifest."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Model:
    """One layer. `steps` run in order at every token (loops are unrolled).

    Leaves in step expressions: an input, param or let by name; a state's value at that line by its name; `S@start` for
    the value before this token; a hidden state's leaf by its name; `head`, `heads`, `depth`, `depths` as numbers.
    `project` is the checked project section (seqc.frontend.project), or None.
    """

    name: str
    doc: tuple[str, ...]
    sizes: tuple[Size, ...]
    values: tuple[tuple[str, int], ...]  # the static sizes' values
    inputs: tuple[Input, ...]
    params: tuple[Param, ...]
    states: tuple[State, ...]  # declared, then the algorithms', in the order of `learn`
    hidden: tuple[Hidden, ...]
    steps: tuple[Step, ...]
    project: object | None
    texts: tuple[Text, ...]
    span: Span
