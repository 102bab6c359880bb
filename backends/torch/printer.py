"""Kernel -> the text of a PyTorch function.

Every value lies in memory with its axes in the kernel's order, so elementwise operations align by position and a
contraction of two tensors is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from string import ascii_letters, digits

from seqc.diagnostics import InternalError
from seqc.ir import ops
from seqc.ir.expr import Expr, Mask, make, walk
from seqc.ir.kernel import Assign, Kernel, Loop
from seqc.ir.program import GROUPS, HEADS, LEAD
from seqc.ir.rules import union
from seqc.schedule.linear import layout

WIDTH = 140
NAME = frozenset(ascii_letters + digits + "_.")  # the characters of names and numbers

# Precedence of Python's operators, for parentheses: atoms and calls bind tightest.
COMPARISON, SUM, PRODUCT, UNARY, POWER, ATOM = range(6)

FUNCTIONS = {
    "exp": "torch.exp", "log": "torch.log", "sqrt": "torch.sqrt", "abs": "torch.abs", "sign": "torch.sign", "sin": "torch.sin",
    "cos": "torch.cos", "tanh": "torch.tanh", "sigmoid": "torch.sigmoid", "softplus": "runtime.softplus", "relu": "torch.relu",
    "erf": "torch.erf", "expm1": "torch.expm1", "log1p": "torch.log1p", "floor": "torch.floor", "ceil": "torch.ceil",
    "stop_gradient": "torch.detach", "conj": "torch.conj", "re": "torch.real", "im": "torch.imag",
    "trailing_zeros": "runtime.trailing_zeros",
}  # fmt: skip
OPERATORS = {"add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT)}
RELATIONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}


class Printer:
    """Prints the expressions of one kernel. Collects the masks that they need."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.masks: dict[Mask, str] = {}
        self.like = kernel.inputs[0].name
        self.read = _read(kernel)
        self.taken = {*self.read, *(s.name for s in _assigns(kernel))}

    # --- Layout ----------------------------------------------------------------------------------------------------

    def axes(self, e: Expr) -> tuple[str, ...]:
        """The axes of a value as its tensor has them."""
        return layout(self.kernel.order, e.axes)

    def fit(self, text: str, precedence: int, have: tuple[str, ...], want: tuple[str, ...]) -> tuple[str, int]:
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
        return f"{_wrap(text, precedence, ATOM)}[{index}]", ATOM

    def operand(self, e: Expr, want: tuple[str, ...]) -> tuple[str, int]:
        text, precedence = self.expr(e)
        return self.fit(text, precedence, self.axes(e), want)

    def length(self, axis: str) -> str:
        """The text of an axis' length."""
        for name, counted, factor in self.kernel.widths:
            if name == ops.base(axis):
                return str(factor) if not counted else self.length(counted) if factor == 1 else f"{factor} * {self.length(counted)}"
        word = ops.base(axis)
        if "*" in word:
            return " * ".join(self.length(part) for part in word.split("*"))
        return dict(self.kernel.words).get(word, word)

    # --- Expressions -----------------------------------------------------------------------------------------------

    def expr(self, e: Expr) -> tuple[str, int]:
        name = e.op.name
        if name == "var":
            return e.name, ATOM
        if name == "const":
            return number(Fraction(e.attr))  # type: ignore[arg-type]
        if name in OPERATORS:
            return self._operator(e)
        if name in FUNCTIONS:
            return f"{FUNCTIONS[name]}({self._tensor(e.args[0])})", ATOM
        method: Callable[[Expr], tuple[str, int]] | None = getattr(self, f"_{name}", None)
        if method is None:
            raise InternalError(f"the PyTorch printer has no entry for `{name}`")
        return method(e)

    def _tensor(self, e: Expr) -> str:
        """A value where a tensor is needed, not a Python number."""
        text, _ = self.expr(e)
        return f"runtime.scalar({text}, {self.like})" if not self._is_tensor(e) else text

    def _is_tensor(self, e: Expr) -> bool:
        return any(n.op.name in ("var", "iota", "eye", "broadcast") for n in walk(e))

    def _operator(self, e: Expr) -> tuple[str, int]:
        sign, level = OPERATORS[e.op.name]
        want = self.axes(e)
        x, y = e.args
        if sign in "+-" and y.op.name == "neg":
            sign, y = "-" if sign == "+" else "+", y.args[0]
        fused = self._fused(sign, x, y, want) if sign in "+-" else None
        if fused is not None:
            return fused, ATOM
        left = _wrap(*self.operand(x, want), level)
        right = _wrap(*self.operand(y, want), level + (sign in "-/"))
        return f"{left} {sign} {right}", level

    def _fused(self, sign: str, x: Expr, y: Expr, want: tuple[str, ...]) -> str | None:
        """z + x * y in one pass over memory, where all three are tensors and z is as wide as the result."""
        if y.op.name != "mul" and x.op.name == "mul" and sign == "+":
            x, y = y, x
        if y.op.name != "mul" or self.axes(x) != want or not all(self._is_tensor(a) for a in (x, *y.args)) or len(want) < 4:
            return None
        texts = [self.operand(a, want)[0] for a in (x, *y.args)]
        return f"torch.addcmul({', '.join(texts)}{', value=-1' if sign == '-' else ''})"

    def _constant(self, e: Expr) -> tuple[str, int]:
        return {"pi": ("math.pi", ATOM), "inf": ("math.inf", ATOM)}[str(e.attr)]

    def _size(self, e: Expr) -> tuple[str, int]:
        return self.length(str(e.attr)), ATOM if "*" not in self.length(str(e.attr)) else PRODUCT

    def _iota(self, e: Expr) -> tuple[str, int]:
        return f"torch.arange({self.length(e.axes[0])}, dtype={self.like}.dtype, device={self.like}.device)", ATOM

    def _eye(self, e: Expr) -> tuple[str, int]:
        return f"torch.eye({self.length(e.axes[0])}, dtype={self.like}.dtype, device={self.like}.device)", ATOM

    def _neg(self, e: Expr) -> tuple[str, int]:
        return f"-{_wrap(*self.expr(e.args[0]), ATOM if e.args[0].op.name == 'power' else UNARY)}", UNARY

    def _power(self, e: Expr) -> tuple[str, int]:
        want = self.axes(e)
        base, exponent = self.operand(e.args[0], want), self.operand(e.args[1], want)
        left, right = _wrap(*base, POWER + 1), _wrap(*exponent, POWER)
        simple = all(set(x) <= NAME for x in (left, right))
        return (f"{left}**{right}" if simple else f"{left} ** {right}"), POWER

    def _maximum(self, e: Expr) -> tuple[str, int]:
        want = self.axes(e)
        x, y = e.args
        if ops.is_number(y):
            return f"{_wrap(*self.operand(x, want), ATOM)}.clamp(min={self.expr(y)[0]})", ATOM
        if ops.is_number(x):
            return f"{_wrap(*self.operand(y, want), ATOM)}.clamp(min={self.expr(x)[0]})", ATOM
        return f"torch.maximum({self.operand(x, want)[0]}, {self.operand(y, want)[0]})", ATOM

    def _modulo(self, e: Expr) -> tuple[str, int]:
        want = self.axes(e)
        return f"torch.remainder({self.operand(e.args[0], want)[0]}, {self.operand(e.args[1], want)[0]})", ATOM

    def _compare(self, e: Expr) -> tuple[str, int]:
        want = self.axes(e)
        x, y = (_wrap(*self.operand(a, want), SUM) for a in e.args)
        return f"{x} {RELATIONS[str(e.attr)]} {y}", COMPARISON

    def _where(self, e: Expr) -> tuple[str, int]:
        want = self.axes(e)
        condition, x, y = (self.operand(a, want)[0] for a in e.args)
        return f"torch.where({condition}, {x}, {y})", ATOM

    def _max_over(self, e: Expr) -> tuple[str, int]:
        (x,) = e.args
        axes = self.axes(x)
        dims = ", ".join(str(axes.index(a) - len(axes)) for a in e.attr)  # type: ignore[union-attr]
        return f"{_wrap(*self.expr(x), ATOM)}.amax(({dims},))", ATOM

    # --- Contractions ----------------------------------------------------------------------------------------------

    def _contract(self, e: Expr) -> tuple[str, int]:
        if len(e.args) == 1:
            return self._sum(e.args[0], e)
        x, y = e.args
        summed = [a for a in union((x.type, y.type)) if a not in e.axes]
        inner = [a for a in summed if a in x.axes and a in y.axes]
        left = [a for a in x.axes if a not in y.axes and a not in LEAD and a in e.axes]
        right = [a for a in y.axes if a not in x.axes and a not in LEAD and a in e.axes]
        if len(inner) == len(summed) == 1 and inner[0] not in LEAD and len(left) <= 1 and len(right) <= 1 and (left or right):
            found = self._matrix_product(e, x, y, inner[0], left, right)
            if found is not None:
                return found
        if not (left and right and summed):
            return self._product_sum(e, x, y)
        return self._einsum(e)

    def _matrix_product(self, e: Expr, x: Expr, y: Expr, k: str, left: list[str], right: list[str]) -> tuple[str, int] | None:
        """[.., m, k] @ [.., k, n], operands swapped or transposed so that the result lies in the kernel's order."""
        if left and right and self.axes(e).index(left[0]) > self.axes(e).index(right[0]):
            x, y, left, right = y, x, right, left
        shared = [a for a in self.axes(e) if a not in (*left, *right)]
        if [a for a in self.axes(e) if a in (*left, *right)] != list(self.axes(e)[len(shared) :]):
            return None  # a named batch axis lies behind the matrix axes
        a = self._matrix(x, left[0] if left else None, k, shared)
        b = self._matrix(y, k, right[0] if right else None, shared)
        if a is None or b is None:
            return None
        text = f"{_wrap(*a, PRODUCT)} @ {_wrap(*b, PRODUCT + 1)}"
        if not left:
            return f"({text})[..., 0, :]", ATOM
        return (text, PRODUCT) if right else (f"({text})[..., 0]", ATOM)

    def _matrix(self, e: Expr, row: str | None, column: str | None, shared: list[str]) -> tuple[str, int] | None:
        """A tensor as batch axes, then [row, column]; a missing one gets length 1."""
        axes = self.axes(e)
        wanted = [a for a in (row, column) if a is not None]
        if set(axes[len(axes) - len(wanted) :]) != set(wanted):
            return None
        text, precedence = self.expr(e)
        batch = axes[: len(axes) - len(wanted)]
        if len(wanted) == 2 and list(axes[-2:]) != wanted:
            text, precedence = _transposed(text, precedence)
        if row is None:
            text, precedence = f"{_wrap(text, precedence, ATOM)}[..., None, :]", ATOM
        if column is None:
            text, precedence = f"{_wrap(text, precedence, ATOM)}[..., None]", ATOM
        present = [a for a in shared if a in batch]
        if list(batch) != present:
            return None
        gaps = [a not in batch for a in shared]
        while gaps and gaps[0]:
            gaps.pop(0)
        if any(gaps):
            index = ", ".join("None" if g else ":" for g in gaps)
            return f"{_wrap(text, precedence, ATOM)}[{index}]", ATOM
        return text, precedence

    def _product_sum(self, e: Expr, x: Expr, y: Expr) -> tuple[str, int]:
        """Elementwise product, then the sum over what does not stay."""
        every = layout(self.kernel.order, union((x.type, y.type)))
        text = f"{_wrap(*self.operand(x, every), PRODUCT)} * {_wrap(*self.operand(y, every), PRODUCT)}"
        dims = [i - len(every) for i, a in enumerate(every) if a not in e.axes]
        return (f"({text}).sum({_dims(dims)})", ATOM) if dims else (text, PRODUCT)

    def _sum(self, x: Expr, e: Expr) -> tuple[str, int]:
        axes = self.axes(x)
        dims = [i - len(axes) for i, a in enumerate(axes) if a not in e.axes]
        text, precedence = self.expr(x)
        return (f"{_wrap(text, precedence, ATOM)}.sum({_dims(dims)})", ATOM) if dims else (text, precedence)

    def _einsum(self, e: Expr) -> tuple[str, int]:
        letters: dict[str, str] = {}
        for a in (a for x in e.args for a in self.axes(x)):
            wish = a.lstrip("@")[0].lower()
            free = [c for c in (wish, *"bhctrskvnmdefgijlopquwxyz") if c not in letters.values()]
            letters.setdefault(a, free[0])
        spec = ",".join("".join(letters[a] for a in self.axes(x)) for x in e.args)
        out = "".join(letters[a] for a in self.axes(e))
        return f'torch.einsum("{spec}->{out}", {", ".join(self.expr(x)[0] for x in e.args)})', ATOM

    # --- Rearranging -----------------------------------------------------------------------------------------------

    def _broadcast(self, e: Expr) -> tuple[str, int]:
        (x,) = e.args
        shape = ", ".join(self.length(a) if a not in x.axes else "-1" for a in self.axes(e))
        if not x.axes and not self._is_tensor(x):
            shape = ", ".join(self.length(a) for a in self.axes(e))
            return f"{self.like}.new_full(({shape}{',' if len(e.axes) == 1 else ''}), {self.expr(x)[0]})", ATOM
        text, precedence = self.operand(x, self.axes(e))
        return f"{_wrap(text, precedence, ATOM)}.expand({shape})", ATOM

    def _rename(self, e: Expr) -> tuple[str, int]:
        (x,) = e.args
        table = dict(e.attr)  # type: ignore[arg-type]
        have = tuple(table.get(a, a) for a in self.axes(x))
        return self._permuted(*self.expr(x), have, self.axes(e))

    def _permuted(self, text: str, precedence: int, have: tuple[str, ...], want: tuple[str, ...]) -> tuple[str, int]:
        if have == want:
            return text, precedence
        if have[:-2] == want[:-2]:
            return _transposed(text, precedence)
        return f"{_wrap(text, precedence, ATOM)}.permute({', '.join(str(have.index(a)) for a in want)})", ATOM

    def _at(self, e: Expr, axis: str) -> int:
        axes = self.axes(e)
        return axes.index(axis) - len(axes)

    def _cumsum(self, e: Expr) -> tuple[str, int]:
        axis, reverse = e.attr  # type: ignore[misc]
        d = self._at(e, str(axis))
        text = _wrap(*self.expr(e.args[0]), ATOM)
        return (f"{text}.flip({d}).cumsum({d}).flip({d})" if reverse else f"{text}.cumsum({d})"), ATOM

    def _shift(self, e: Expr) -> tuple[str, int]:
        axis, by = e.attr  # type: ignore[misc]
        return f"runtime.shift({self.expr(e.args[0])[0]}, {self._at(e, str(axis))}, {by})", ATOM

    def _select(self, e: Expr) -> tuple[str, int]:
        axis, index = e.attr  # type: ignore[misc]
        d = self._at(e.args[0], str(axis))
        text = _wrap(*self.expr(e.args[0]), ATOM)
        rest = ", :" * (-1 - d)
        return (f"{text}[..., {index}{rest}]" if -1 - d <= 3 else f"{text}.select({d}, {index})"), ATOM

    def _place(self, e: Expr) -> tuple[str, int]:
        axis, index = e.attr  # type: ignore[misc]
        return f"runtime.place({self.expr(e.args[0])[0]}, {self._at(e, str(axis))}, {index}, {self.length(str(axis))})", ATOM

    def _stack(self, e: Expr) -> tuple[str, int]:
        parts = ", ".join(self.expr(a)[0] for a in e.args)
        return f"torch.stack(({parts}), {self._at(e, str(e.attr[0]))})", ATOM  # type: ignore[index]

    def _flatten(self, e: Expr) -> tuple[str, int]:
        old, new = e.attr  # type: ignore[misc]
        (x,) = e.args
        between = [b for a in self.axes(e) for b in (old if a == new else (a,))]  # type: ignore[union-attr]
        text, precedence = self._permuted(*self.expr(x), self.axes(x), tuple(map(str, between)))
        first = between.index(old[0]) - len(between)  # type: ignore[index]
        return f"{_wrap(text, precedence, ATOM)}.flatten({first}, {first + len(old) - 1})", ATOM  # type: ignore[arg-type]

    def _unflatten(self, e: Expr) -> tuple[str, int]:
        old, new = e.attr  # type: ignore[misc]
        (x,) = e.args
        have = [b for a in self.axes(x) for b in (old if a == new else (a,))]  # type: ignore[union-attr]
        sizes = ", ".join(self.length(str(a)) for a in old)  # type: ignore[union-attr]
        text = f"{_wrap(*self.expr(x), ATOM)}.unflatten({self._at(x, str(new))}, ({sizes}))"
        return self._permuted(text, ATOM, tuple(map(str, have)), self.axes(e))

    def _concat(self, e: Expr) -> tuple[str, int]:
        new, parts = e.attr  # type: ignore[misc]
        texts = []
        for a, p in zip(e.args, parts, strict=True):  # type: ignore[arg-type]
            have = tuple(str(new) if x == p else x for x in self.axes(a))
            texts.append(self._permuted(*self.expr(a), have, self.axes(e))[0])
        return f"torch.cat(({', '.join(texts)}), {self._at(e, str(new))})", ATOM

    def _piece(self, e: Expr) -> tuple[str, int]:
        axis, parts, which = e.attr  # type: ignore[misc]
        (x,) = e.args
        d = self._at(x, str(axis))
        start = " + ".join(self.length(str(p)) for p in parts[:which]) or "0"  # type: ignore[index]
        text = f"{_wrap(*self.expr(x), ATOM)}.narrow({d}, {start}, {self.length(str(parts[which]))})"  # type: ignore[index]
        have = tuple(str(parts[which]) if a == axis else a for a in self.axes(x))  # type: ignore[index]
        return self._permuted(text, ATOM, have, self.axes(e))

    def _spread(self, e: Expr) -> tuple[str, int]:
        return f"runtime.spread({self.expr(e.args[0])[0]}, {self.length(HEADS)} // {self.length(GROUPS)}, {self._at(e, HEADS)})", ATOM

    def _collect(self, e: Expr) -> tuple[str, int]:
        d = self._at(e, GROUPS)
        return f"{_wrap(*self.expr(e.args[0]), ATOM)}.unflatten({d}, ({self.length(GROUPS)}, {self.length(HEADS)} // {self.length(GROUPS)})).sum({d})", ATOM

    # --- Triangular ------------------------------------------------------------------------------------------------

    def mask(self, mask: Mask) -> str:
        """The name of a mask that is not a plain triangle; it is made once, at the top of the function."""
        return self.masks.setdefault(mask, f"mask_{len(self.masks) + 1}")

    def _masked(self, e: Expr) -> tuple[str, int]:
        mask = e.attr
        assert isinstance(mask, Mask)
        plain, have = self._matrices(e.args[0], mask.row, mask.column)
        text = _wrap(*plain, ATOM)
        triangle = (mask.per_row, mask.step, mask.per_column) == (1, 1, 1)
        text += f".tril({mask.offset - 1 or ''})" if triangle else f".masked_fill(~{self.mask(mask)}, 0.0)"
        return self._permuted(text, ATOM, have, self.axes(e))

    def _unit_lower_inverse(self, e: Expr) -> tuple[str, int]:
        row, column = e.attr  # type: ignore[misc]
        (text, _), have = self._matrices(e.args[0], str(row), str(column))
        return self._permuted(f"runtime.unit_lower_inverse({text})", ATOM, have, self.axes(e))

    def _matrices(self, e: Expr, row: str, column: str) -> tuple[tuple[str, int], tuple[str, ...]]:
        """A tensor with its row and column axis last, and all its axes in that order."""
        have = (*(a for a in self.axes(e) if a not in (row, column)), row, column)
        return self._permuted(*self.expr(e), self.axes(e), have), have

    def _decay(self, e: Expr) -> tuple[str, int]:
        mask = e.attr
        assert isinstance(mask, Mask)
        lead = tuple(a for a in self.axes(e) if a not in (mask.row, mask.column))
        upper = self.operand(e.args[0], (*lead, mask.row))[0]
        lower = self.operand(e.args[1], (*lead, mask.column))[0]
        have = (*lead, mask.row, mask.column)
        return self._permuted(f"runtime.decay({upper}, {lower}, {self.mask(mask)})", ATOM, have, self.axes(e))

    def _decayed_solve(self, e: Expr) -> tuple[str, int]:
        mask, transposed = e.attr  # type: ignore[misc]
        assert isinstance(mask, Mask)
        along = mask.column if transposed else mask.row
        (k,) = [a for a in e.args[2].axes if a not in (mask.row, *LEAD)]
        lead = tuple(a for a in LEAD if a in e.axes)
        wants = ((mask.row, mask.column), (along, k), (mask.row, k), (mask.column, k))
        texts = [self._laid(x, lead, want) for x, want in zip(e.args, wants, strict=True)]
        return f"runtime.decayed_solve({', '.join(texts)}, {self.mask(mask)}, {transposed})", ATOM

    def _laid(self, x: Expr, lead: tuple[str, ...], want: tuple[str, str]) -> str:
        """An operand as [lead, want]; leading axes that it lacks have length 1."""
        have = (*(a for a in self.axes(x) if a in LEAD), *want)
        return self.fit(*self._permuted(*self.expr(x), self.axes(x), have), have, (*lead, *want))[0]

    def _decayed(self, e: Expr) -> tuple[str, int]:
        _, mask = e.attr  # type: ignore[misc]
        assert isinstance(mask, Mask)
        row, column = mask.row, mask.column
        first, second, upper, lower = e.args
        (k,) = [a for a in upper.axes if a not in (row, *LEAD)]
        lead = tuple(a for a in LEAD if a in union(tuple(a.type for a in e.args)))

        def by(*axes: str) -> Expr:
            return next(x for x in (first, second) if set(axes) == set(x.axes) - set(LEAD))

        shapes = {frozenset(set(x.axes) - set(LEAD)) for x in (first, second)}
        if shapes == {frozenset((row, k)), frozenset((column, k))}:
            name, operands = "gram", ((by(row, k), (row, k)), (by(column, k), (column, k)))
        elif frozenset((column, k)) in shapes:
            name, operands = "rows", ((by(row, column), (row, column)), (by(column, k), (column, k)))
        else:
            name, operands = "columns", ((by(row, column), (row, column)), (by(row, k), (row, k)))
        operands = (*operands, (upper, (row, k)), (lower, (column, k)))
        texts = [self._laid(x, lead, want) for x, want in operands]
        return f"runtime.decayed_{name}({', '.join(texts)}, {self.mask(mask)})", ATOM


def number(value: Fraction) -> tuple[str, int]:
    text = str(int(value)) + ".0" if value.denominator == 1 else repr(float(value))
    return (text, ATOM) if value >= 0 else (text, UNARY)


def _wrap(text: str, precedence: int, needed: int) -> str:
    return text if precedence >= needed else f"({text})"


def _transposed(text: str, precedence: int) -> tuple[str, int]:
    return (text[: -len(".mT")], ATOM) if text.endswith(".mT") and precedence == ATOM else (f"{_wrap(text, precedence, ATOM)}.mT", ATOM)


def _dims(dims: list[int]) -> str:
    return str(dims[0]) if len(dims) == 1 else "(" + ", ".join(map(str, dims)) + ")"


# --- Statements ------------------------------------------------------------------------------------------------------


def print_kernel(kernel: Kernel, name: str, doc: Iterable[str]) -> str:
    """The kernel as a function `name(inputs...) -> tuple of outputs`."""
    printer = Printer(kernel)
    body: list[str] = []
    for s in kernel.body:
        body += _assign(printer, s, 4) if isinstance(s, Assign) else _loop(printer, s)
    results = ", ".join(leaf.name for _, leaf in kernel.outputs)
    head = [f"def {name}({', '.join(i.name for i in kernel.inputs)}):"]
    head += _docstring(doc)
    head += ["    " + line for line in _prologue(printer, body)]
    tail = f"    return ({results},)" if len(kernel.outputs) == 1 else f"    return {results}"
    return "\n".join([*head, *("    " + line if line else "" for line in body), tail]) + "\n"


def _docstring(doc: Iterable[str]) -> list[str]:
    first, *rest = doc
    if not rest:
        return [f'    """{first}"""']
    return [f'    """{first}', "", *(f"    {line}".rstrip() for line in rest), '    """']


def _prologue(printer: Printer, body: list[str]) -> list[str]:
    """Sizes and masks that the body names, from the shapes of the inputs."""
    import re

    kernel = printer.kernel
    text = "\n".join(body)
    masks = [
        f"{n} = runtime.mask({printer.length(m.row)}, {printer.length(m.column)}, {m.per_row}, {m.step}, {m.offset}, {m.per_column}, {printer.like})"
        for m, n in printer.masks.items()
    ]
    text += "\n".join(masks)
    lines = []
    found: dict[str, str] = {}
    for leaf in kernel.inputs:
        axes = printer.axes(leaf)
        for i, a in enumerate(axes):
            found.setdefault(printer.length(a), f"{leaf.name}.shape[{i}]")
    for word, where in found.items():
        if word.isidentifier() and re.search(rf"(?<![\w.]){word}\b(?!\s*=[^=])", text):
            lines.append(f"{word} = {where}")
    return lines + masks


def _assigns(kernel: Kernel) -> list[Assign]:
    return [s for outer in kernel.body for s in ((outer,) if isinstance(outer, Assign) else outer.body)]


def _read(kernel: Kernel) -> set[str]:
    """Every name that a statement or the result reads."""
    loops = [s for s in kernel.body if isinstance(s, Loop)]
    roots = [*(s.value for s in _assigns(kernel)), *(first for s in loops for _, first, _, _ in s.carried), *(leaf for _, leaf in kernel.outputs)]
    names = {n.name for n in walk(*roots) if n.op.name == "var"}
    return names | {n for s in loops for n in (*(leaf.name for leaf, _ in s.sliced), *(next_ for _, _, next_, _ in s.carried))}


def _shorter(printer: Printer, s: Assign) -> tuple[Assign, Assign] | None:
    """A statement that is too long for a line as two: its longest operand gets a name of its own."""
    parts = [a for a in s.value.args if a.args and printer._is_tensor(a)]
    if not parts:
        return None
    longest = max(parts, key=lambda a: len(printer.expr(a)[0]))
    name, n = f"{s.name}_part", 1
    while name in printer.taken:
        n += 1
        name = f"{s.name}_part{n}"
    printer.taken.add(name)
    leaf = ops.var(name, longest.axes, longest.type.dtype)
    rest = make(s.value.op, tuple(leaf if a is longest else a for a in s.value.args), s.value.attr)
    return Assign(name, longest), Assign(s.name, rest, s.note)


def _assign(printer: Printer, s: Assign, indent: int) -> list[str]:
    text, _ = printer.expr(s.value)
    if len(f"{s.name} = {text}") + indent > WIDTH and (halves := _shorter(printer, s)):
        return [line for half in halves for line in _assign(printer, half, indent)]
    if not printer._is_tensor(s.value):
        text = f"runtime.scalar({text}, {printer.like})"
    if s.name == text:
        return []
    note = f"  # {s.note}" if s.note else ""
    line = f"{s.name} = {text}{note}"
    if len(line) + indent > WIDTH and note:
        return [f"# {s.note}", f"{s.name} = {text}"]
    return [line]


def _loop(printer: Printer, loop: Loop) -> list[str]:
    index = printer.kernel.index
    lines = [f"{name} = {printer.expr(init)[0]}" for name, init, _, _ in loop.carried]
    for outer, name in loop.sliced:
        lines.append(f"{name}s = {outer.name}.unbind({printer.axes(outer).index(loop.axis)})")
    lines += [f"{outer.name} = []" for outer, _ in loop.stacked]
    count = f"range({printer.length(loop.axis)})"
    lines.append(f"for {index} in {f'reversed({count})' if loop.reverse else count}:")
    inner = [f"{name} = {name}s[{index}]" for _, name in loop.sliced]
    for s in loop.body:
        inner += _assign(printer, s, 8)
    inner += [f"{outer.name}.append({value})" for outer, value in loop.stacked]
    lines += [f"    {line}" for line in inner + _steps(loop)]
    for outer, _ in loop.stacked:
        order = f"{outer.name}[::-1]" if loop.reverse else outer.name
        lines.append(f"{outer.name} = torch.stack({order}, {printer.axes(outer).index(loop.axis)})")
    return lines + [f"{last} = {name}" for name, _, _, last in loop.carried if last in printer.read]


def _steps(loop: Loop) -> list[str]:
    names = ", ".join(name for name, _, _, _ in loop.carried)
    values = ", ".join(new for _, _, new, _ in loop.carried)
    return [f"{names} = {values}"] if loop.carried else []
