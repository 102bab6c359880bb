"""How operands stand in a printed expression: which axes a tensor has in memory, and how it fits another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction

from seqc.backends.torch.reuse import is_fresh
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.kernel import Kernel
from seqc.ir.program import LEAD
from seqc.schedule.linear import layout

# Precedence of Python's operators, for parentheses: atoms and calls bind tightest. Python reads @ and * from left to right;
# here @ stands below *, so that a factor that is a matrix product gets parentheses on either side.
COMPARISON, SUM, MATMUL, PRODUCT, UNARY, POWER, ATOM = range(7)

Text = tuple[str, int]  # an expression and the precedence of its outermost operator


class Operands(ABC):
    """The layout of a kernel's values, and operands in it.

    in_place: operands in memory of their own may be written over. spent: the values that the statement at hand reads last.
    """

    def __init__(self, kernel: Kernel):
        self.kernel, self.in_place = kernel, False
        self.spent: frozenset[str] = frozenset()
        self._texts: dict[Expr, Text] = {}
        self._tensors: dict[Expr, bool] = {}
        self.like = kernel.inputs[0].name  # a tensor with the type and device of the others

    @abstractmethod
    def printed(self, e: Expr) -> Text:
        """An expression."""

    def expr(self, e: Expr) -> Text:
        """An expression, printed once for a statement: what may be one call is tried before it is written out."""
        found = self._texts.get(e)
        if found is None:
            found = self._texts[e] = self.printed(e)
        return found

    def allow(self, in_place: bool, spent: frozenset[str] = frozenset()) -> None:
        """Says what the next statement may write over."""
        if (in_place, spent) != (self.in_place, self.spent):
            self.in_place, self.spent, self._texts = in_place, spent, {}

    def axes(self, e: Expr) -> tuple[str, ...]:
        """The axes of a value as its tensor has them."""
        return layout(self.kernel.order, e.axes)

    def fit(self, text: str, precedence: int, have: tuple[str, ...], want: tuple[str, ...]) -> Text:
        """A tensor with axes `have` so that it broadcasts against one with axes `want`: both in the kernel's order."""
        if not have:
            return text, precedence
        missing = [a not in have for a in want]
        while missing and missing[0]:
            missing.pop(0)
        if not any(missing):
            return text, precedence
        first = next(i for i, m in enumerate(missing) if m)
        index = ", ".join("None" if m else ":" for m in missing)
        if all(missing[first:]) or sum(missing) + len(missing) > 6 or first > 0:
            index = "..., " + ", ".join("None" if m else ":" for m in missing[first:])
        return f"{wrap(text, precedence, ATOM)}[{index}]", ATOM

    def operand(self, e: Expr, want: tuple[str, ...]) -> Text:
        text, precedence = self.expr(e)
        return self.fit(text, precedence, self.axes(e), want)

    def owns(self, e: Expr, want: tuple[str, ...]) -> bool:
        """Whether a result with axes `want` may be written over an operand."""
        if not self.in_place or self.axes(e) != want or e.type.dtype != "real":
            return False
        if e.op.name == "rename" and tuple(dict(e.attr).get(a, a) for a in self.axes(e.args[0])) == want:
            e = e.args[0]  # it lies as it did
        return e.name in self.spent if e.op.name == "var" else is_fresh(e) and self.is_tensor(e)

    def length(self, axis: str) -> str:
        """The text of an axis' length."""
        for name, counted, factor in self.kernel.widths:
            if name == ops.base(axis):
                return str(factor) if not counted else self.length(counted) if factor == 1 else f"{factor} * {self.length(counted)}"
        word = ops.base(axis)
        if "*" in word:
            return " * ".join(self.length(part) for part in word.split("*"))
        return dict(self.kernel.words).get(word, word)

    def is_tensor(self, e: Expr) -> bool:
        found = self._tensors.get(e)
        if found is None:
            found = self._tensors[e] = any(n.op.name in ("var", "iota", "eye", "broadcast") for n in walk(e))
        return found

    # --- Axes in another order -------------------------------------------------------------------------------------

    def permuted(self, text: str, precedence: int, have: tuple[str, ...], want: tuple[str, ...]) -> Text:
        if have == want:
            return text, precedence
        if have[:-2] == want[:-2]:
            return transposed(text, precedence)
        return f"{wrap(text, precedence, ATOM)}.permute({', '.join(str(have.index(a)) for a in want)})", ATOM

    def at(self, e: Expr, axis: str) -> int:
        axes = self.axes(e)
        return axes.index(axis) - len(axes)

    def matrices(self, e: Expr, row: str, column: str) -> tuple[Text, tuple[str, ...]]:
        """A tensor with its row and column axis last, and all its axes in that order."""
        have = (*(a for a in self.axes(e) if a not in (row, column)), row, column)
        return self.permuted(*self.expr(e), self.axes(e), have), have

    def laid(self, x: Expr, lead: tuple[str, ...], want: tuple[str, ...]) -> str:
        """An operand as [lead, want]; leading axes that it lacks have length 1."""
        have = (*(a for a in self.axes(x) if a in LEAD), *want)
        return self.fit(*self.permuted(*self.expr(x), self.axes(x), have), have, (*lead, *want))[0]


def number(value: Fraction) -> Text:
    text = str(int(value)) + ".0" if value.denominator == 1 else repr(float(value))
    return (text, ATOM) if value >= 0 else (text, UNARY)


def wrap(text: str, precedence: int, needed: int) -> str:
    return text if precedence >= needed else f"({text})"


def transposed(text: str, precedence: int) -> Text:
    return (text[: -len(".mT")], ATOM) if text.endswith(".mT") and precedence == ATOM else (f"{wrap(text, precedence, ATOM)}.mT", ATOM)


def dims_of(dims: list[int]) -> str:
    return str(dims[0]) if len(dims) == 1 else "(" + ", ".join(map(str, dims)) + ")"
