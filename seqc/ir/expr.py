"""The one expression node of all IRs: immutable, interned, over named axes.

Structurally equal values are the same object, so they compare with `is` and common subexpressions are free.
Spans are not part of a node (two places of a text may share one): they sit on the equations that hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from seqc.ir.ops import OpDef


@dataclass(frozen=True, slots=True)
class Mask:
    """Keeps entry (i, j) of [row, column] iff j // per_column < (i // per_row) * step + offset.

    Plain causal masks are (1, 1, 0, 1) for j < i and (1, 1, 1, 1) for j <= i; the divisors count the rows that one
    micro-step holds, `step` the micro-steps of one token.
    """

    row: str
    column: str
    per_row: int = 1
    step: int = 1
    offset: int = 0
    per_column: int = 1


# What an op needs besides its arguments, hashable: a number, a name, a Mask, or a tuple of such. Its rule in seqc.ir.rules
# says which, and checks it.
Attr: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class TensorType:
    """Named axes, each once, in order, and `real`, `complex` or `bool`. A second axis of size K is `K'`."""

    axes: tuple[str, ...] = ()
    dtype: str = "real"

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(self.axes)}]"


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Expr:
    """A value: a row of the op table, its arguments, its attribute and its type."""

    op: OpDef
    args: tuple[Expr, ...]
    attr: Attr
    type: TensorType

    @property
    def axes(self) -> tuple[str, ...]:
        return self.type.axes

    @property
    def name(self) -> str:
        """The name of a `var` leaf."""
        assert self.op.name == "var" and isinstance(self.attr, tuple)
        return str(self.attr[0])

    def __repr__(self) -> str:
        from seqc.ir.text import show

        return show(self)


_interned: WeakValueDictionary[tuple[Any, ...], Expr] = WeakValueDictionary()
_interning = RLock()  # again by a type rule that makes nodes, or a destructor that runs in between


def _typed(attr: Attr) -> Any:
    """An attribute with its type, since 1 == True in Python and must not share a node."""
    return tuple(map(_typed, attr)) if isinstance(attr, tuple) else (type(attr), attr)


def make(op: OpDef, args: tuple[Expr, ...] = (), attr: Attr = ()) -> Expr:
    """The node for `op(args)`, typed by the op's rule. Raises InternalError if the rule refuses."""
    key = (op.name, tuple(map(id, args)), _typed(attr))
    found = _interned.get(key)
    if found is None or found.args != args:
        with _interning:  # another thread may be making the same node: there must be one
            found = _interned.get(key)
            if found is None or found.args != args:
                found = Expr(op, args, attr, op.infer(tuple(a.type for a in args), attr))
                _interned[key] = found
    return found


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every node below the roots once, arguments before their users, in a fixed order. No recursion."""
    seen: set[Expr] = set()
    stack = [*reversed(roots)]
    while stack:
        node = stack[-1]
        if node in seen:
            stack.pop()
            continue
        if node.args and (waiting := [a for a in reversed(node.args) if a not in seen]):
            stack += waiting
            continue
        stack.pop()
        seen.add(node)
        yield node


def rebuild(roots: Iterable[Expr], rule: Callable[[Expr, tuple[Expr, ...]], Expr]) -> tuple[Expr, ...]:
    """Each root with `rule(node, new arguments)` applied bottom-up, each node once."""
    roots = tuple(roots)
    new: dict[Expr, Expr] = {}
    for node in walk(*roots):
        new[node] = rule(node, tuple([new[a] for a in node.args]))
    return tuple(new[r] for r in roots)


def substitute(roots: Iterable[Expr], replacements: Mapping[Expr, Expr]) -> tuple[Expr, ...]:
    """The roots with nodes replaced. A replacement is not searched again."""

    def rule(node: Expr, args: tuple[Expr, ...]) -> Expr:
        if node in replacements:
            return replacements[node]
        return node if args == node.args else node.op.build(args, node.attr)

    return rebuild(roots, rule)


def variables(*roots: Expr) -> tuple[Expr, ...]:
    """The `var` leaves below the roots, in the order of first use."""
    return tuple(e for e in walk(*roots) if e.op.name == "var")


def depends(root: Expr, on: Iterable[Expr]) -> bool:
    """Whether any of `on` occurs below root."""
    wanted = {id(e) for e in on}
    return any(id(e) in wanted for e in walk(root))
