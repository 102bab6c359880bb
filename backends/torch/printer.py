"""Expressions of a kernel -> PyTorch.

Every value lies in memory with its axes in the kernel's order, so elementwise operations align by position and a
contraction of two tensors is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from string import ascii_letters, digits

from seqc.backends.torch.contractions import accumulated, contract, grown
from seqc.backends.torch.operands import ATOM, COMPARISON, POWER, PRODUCT, SUM, UNARY, Operands, Text, number, wrap
from seqc.diagnostics import InternalError
from seqc.ir import ops
from seqc.ir.expr import Expr, Mask
from seqc.ir.kernel import Kernel
from seqc.ir.program import GROUPS, HEADS, LEAD
from seqc.ir.rules import union
from seqc.schedule.linear import layout, one_row
from seqc.schedule.rows import accumulates

NAME = frozenset(ascii_letters + digits + "_.")  # the characters of names and numbers

FUNCTIONS = {
    "exp": "torch.exp", "log": "torch.log", "sqrt": "torch.sqrt", "abs": "torch.abs", "sign": "torch.sign", "sin": "torch.sin",
    "cos": "torch.cos", "tanh": "torch.tanh", "sigmoid": "torch.sigmoid", "softplus": "runtime.softplus", "relu": "torch.relu",
    "erf": "torch.erf", "expm1": "torch.expm1", "log1p": "torch.log1p", "floor": "torch.floor", "ceil": "torch.ceil",
    "stop_gradient": "torch.detach", "conj": "torch.conj", "re": "torch.real", "im": "torch.imag",
    "trailing_zeros": "runtime.trailing_zeros",
}  # fmt: skip
OPERATORS = {"add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT)}
RELATIONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}


class Printer(Operands):
    """Prints the expressions of one kernel. Collects the masks that they need."""

    def __init__(self, kernel: Kernel):
        super().__init__(kernel)
        self.masks: dict[Mask, str] = {}
        self.rules: dict[Kernel, str] = {}

    def printed(self, e: Expr) -> Text:
        name = e.op.name
        if name == "var":
            return e.name, ATOM
        if name == "const":
            return number(Fraction(e.attr))
        if name in OPERATORS:
            return self._operator(e)
        if name in FUNCTIONS:
            if FUNCTIONS[name] == f"torch.{name}" and self.owns(e.args[0], self.axes(e)):
                return f"{wrap(*self.expr(e.args[0]), ATOM)}.{name}_()", ATOM
            return f"{FUNCTIONS[name]}({self._tensor(e.args[0])})", ATOM
        method: Callable[[Expr], Text] | None = getattr(self, f"_{name}", None)
        if method is None:
            raise InternalError(f"the PyTorch printer has no entry for `{name}`")
        return method(e)

    def _tensor(self, e: Expr) -> str:
        """A value where a tensor is needed, not a Python number."""
        text, _ = self.expr(e)
        return f"runtime.scalar({text}, {self.like})" if not self.is_tensor(e) else text

    def _operator(self, e: Expr) -> Text:
        sign, level = OPERATORS[e.op.name]
        want = self.axes(e)
        if (total := accumulates(e)) and (one_call := accumulated(self, want, *total)):
            return one_call
        if one_call := grown(self, want, e):
            return one_call
        if found := self.added_product(e):
            z, (x, y), factor = found
            text, more = self.expr(z), ", value=-1" if factor < 0 else ""
            if self.owns(z, want):
                return f"{wrap(*text, ATOM)}.addcmul_({x}, {y}{more})", ATOM
            return f"torch.addcmul({text[0]}, {x}, {y}{more})", ATOM
        if one_call := self._written_over(e):
            return one_call
        first, second = e.args
        if sign in "+-" and second.op.name == "neg":
            sign, second = "-" if sign == "+" else "+", second.args[0]
        left = wrap(*self.operand(first, want), level)
        right = wrap(*self.operand(second, want), level + (sign in "-/"))
        return f"{left} {sign} {right}", level

    def _written_over(self, e: Expr) -> Text | None:
        """One operand, which takes the result; None where none may."""
        if e.type.dtype != "real":
            return None
        (x, y), call = e.args, e.op.name
        if call in ("add", "sub") and y.op.name == "neg":
            y, call = y.args[0], "sub" if call == "add" else "add"
        for one, other in ((x, y), (y, x))[: 2 if call in ("add", "mul") else 1]:
            if self.owns(one, self.axes(e)):
                return f"{wrap(*self.expr(one), ATOM)}.{call}_({self.operand(other, self.axes(e))[0]})", ATOM
        return None

    def added_product(self, e: Expr) -> tuple[Expr, tuple[str, str], int] | None:
        """z, x, y and a sign of a sum z + x * y or z - x * y that is one pass over memory: of tensors, z as wide as the result."""
        if e.op.name not in ("add", "sub"):
            return None
        (z, product), sign, want = e.args, 1 if e.op.name == "add" else -1, self.axes(e)
        if product.op.name == "neg":
            product, sign = product.args[0], -sign
        if product.op.name != "mul" and z.op.name == "mul" and sign > 0:
            z, product = product, z
        if not want or product.op.name != "mul" or self.axes(z) != want or not all(self.is_tensor(a) for a in (z, *product.args)):
            return None
        x, y = (self.operand(a, want)[0] for a in product.args)
        return z, (x, y), sign

    def _constant(self, e: Expr) -> Text:
        return {"pi": ("math.pi", ATOM), "inf": ("math.inf", ATOM)}[str(e.attr)]

    def _size(self, e: Expr) -> Text:
        return self.length(str(e.attr)), ATOM if "*" not in self.length(str(e.attr)) else PRODUCT

    def _iota(self, e: Expr) -> Text:
        return f"torch.arange({self.length(e.axes[0])}, dtype={self.like}.dtype, device={self.like}.device)", ATOM

    def _eye(self, e: Expr) -> Text:
        return f"torch.eye({self.length(e.axes[0])}, dtype={self.like}.dtype, device={self.like}.device)", ATOM

    def _neg(self, e: Expr) -> Text:
        if self.owns(e.args[0], self.axes(e)):
            return f"{wrap(*self.expr(e.args[0]), ATOM)}.neg_()", ATOM
        return f"-{wrap(*self.expr(e.args[0]), ATOM if e.args[0].op.name == 'power' else UNARY)}", UNARY

    def _power(self, e: Expr) -> Text:
        want = self.axes(e)
        base, exponent = self.operand(e.args[0], want), self.operand(e.args[1], want)
        left, right = wrap(*base, POWER + 1), wrap(*exponent, POWER)
        simple = all(set(x) <= NAME for x in (left, right))
        return (f"{left}**{right}" if simple else f"{left} ** {right}"), POWER

    def _maximum(self, e: Expr) -> Text:
        want = self.axes(e)
        x, y = e.args
        if ops.is_number(y):
            return f"{wrap(*self.operand(x, want), ATOM)}.clamp(min={self.expr(y)[0]})", ATOM
        if ops.is_number(x):
            return f"{wrap(*self.operand(y, want), ATOM)}.clamp(min={self.expr(x)[0]})", ATOM
        return f"torch.maximum({self.operand(x, want)[0]}, {self.operand(y, want)[0]})", ATOM

    def _modulo(self, e: Expr) -> Text:
        want = self.axes(e)
        return f"torch.remainder({self.operand(e.args[0], want)[0]}, {self.operand(e.args[1], want)[0]})", ATOM

    def _compare(self, e: Expr) -> Text:
        want = self.axes(e)
        x, y = (wrap(*self.operand(a, want), SUM) for a in e.args)
        return f"{x} {RELATIONS[str(e.attr)]} {y}", COMPARISON

    def _where(self, e: Expr) -> Text:
        want = self.axes(e)
        condition, x, y = (self.operand(a, want)[0] for a in e.args)
        if not any(self.is_tensor(a) for a in e.args[1:]):
            x = f"runtime.scalar({x}, {self.like})"  # two numbers would take torch's default type
        return f"torch.where({condition}, {x}, {y})", ATOM

    def _max_over(self, e: Expr) -> Text:
        (x,) = e.args
        axes = self.axes(x)
        dims = ", ".join(str(axes.index(a) - len(axes)) for a in e.attr)
        return f"{wrap(*self.expr(x), ATOM)}.amax(({dims},))", ATOM

    def _contract(self, e: Expr) -> Text:
        return contract(self, e)

    # --- Rearranging -----------------------------------------------------------------------------------------------


    def _broadcast(self, e: Expr) -> Text:
        (x,) = e.args
        shape = ", ".join(self.length(a) if a not in x.axes else "-1" for a in self.axes(e))
        if not x.axes and not self.is_tensor(x):
            shape = ", ".join(self.length(a) for a in self.axes(e))
            return f"{self.like}.new_full(({shape}{',' if len(e.axes) == 1 else ''}), {self.expr(x)[0]})", ATOM
        text, precedence = self.operand(x, self.axes(e))
        return f"{wrap(text, precedence, ATOM)}.expand({shape})", ATOM

    def _rename(self, e: Expr) -> Text:
        (x,) = e.args
        table = dict(e.attr)
        have = tuple(table.get(a, a) for a in self.axes(x))
        return self.permuted(*self.expr(x), have, self.axes(e))

    def _cumsum(self, e: Expr) -> Text:
        axis, reverse = e.attr
        d = self.at(e, str(axis))
        text = wrap(*self.expr(e.args[0]), ATOM)
        return (f"{text}.flip({d}).cumsum({d}).flip({d})" if reverse else f"{text}.cumsum({d})"), ATOM

    def _shift(self, e: Expr) -> Text:
        axis, by = e.attr
        return f"runtime.shift({self._tensor(e.args[0])}, {self.at(e, str(axis))}, {by})", ATOM

    def _convolve(self, e: Expr) -> Text:
        """Both operands over all axes; the runtime sums over what does not stay."""
        axis, out = e.attr
        every = layout(self.kernel.order, union(tuple(a.type for a in e.args)))
        x, y = (self.operand(a, every)[0] for a in e.args)
        gone = tuple(i - len(every) for i, a in enumerate(every) if a not in out)
        text = f"runtime.{e.op.name}({x}, {y}, {every.index(str(axis)) - len(every)}{f', {gone}' if gone else ''})"
        return self.permuted(text, ATOM, tuple(a for a in every if a in out), self.axes(e))

    _correlate = _convolve

    def _select(self, e: Expr) -> Text:
        axis, index = e.attr
        d = self.at(e.args[0], str(axis))
        text = wrap(*self.expr(e.args[0]), ATOM)
        rest = ", :" * (-1 - d)
        return (f"{text}[..., {index}{rest}]" if -1 - d <= 3 else f"{text}.select({d}, {index})"), ATOM

    def _place(self, e: Expr) -> Text:
        axis, index = e.attr
        return f"runtime.place({self._tensor(e.args[0])}, {self.at(e, str(axis))}, {index}, {self.length(str(axis))})", ATOM

    def _stack(self, e: Expr) -> Text:
        parts = ", ".join(self.expr(a)[0] for a in e.args)
        return f"torch.stack(({parts}), {self.at(e, str(e.attr[0]))})", ATOM

    def _flatten(self, e: Expr) -> Text:
        old, new = e.attr
        (x,) = e.args
        between = [b for a in self.axes(e) for b in (old if a == new else (a,))]
        text, precedence = self.permuted(*self.expr(x), self.axes(x), tuple(map(str, between)))
        first = between.index(old[0]) - len(between)
        return f"{wrap(text, precedence, ATOM)}.flatten({first}, {first + len(old) - 1})", ATOM

    def _unflatten(self, e: Expr) -> Text:
        old, new = e.attr
        (x,) = e.args
        have = [b for a in self.axes(x) for b in (old if a == new else (a,))]
        sizes = ", ".join(self.length(str(a)) for a in old)
        text = f"{wrap(*self.expr(x), ATOM)}.unflatten({self.at(x, str(new))}, ({sizes}))"
        return self.permuted(text, ATOM, tuple(map(str, have)), self.axes(e))

    def _concat(self, e: Expr) -> Text:
        new, parts = e.attr
        texts = []
        for a, p in zip(e.args, parts, strict=True):
            have = tuple(str(new) if x == p else x for x in self.axes(a))
            texts.append(self.permuted(*self.expr(a), have, self.axes(e))[0])
        return f"torch.cat(({', '.join(texts)},), {self.at(e, str(new))})", ATOM

    def _piece(self, e: Expr) -> Text:
        axis, parts, which = e.attr
        (x,) = e.args
        d = self.at(x, str(axis))
        start = " + ".join(self.length(str(p)) for p in parts[:which]) or "0"
        text = f"{wrap(*self.expr(x), ATOM)}.narrow({d}, {start}, {self.length(str(parts[which]))})"
        have = tuple(str(parts[which]) if a == axis else a for a in self.axes(x))
        return self.permuted(text, ATOM, have, self.axes(e))

    def _spread(self, e: Expr) -> Text:
        return f"runtime.spread({self.expr(e.args[0])[0]}, {self.length(HEADS)} // {self.length(GROUPS)}, {self.at(e, HEADS)})", ATOM

    def _collect(self, e: Expr) -> Text:
        d = self.at(e, GROUPS)
        sizes = f"{self.length(GROUPS)}, {self.length(HEADS)} // {self.length(GROUPS)}"
        return f"{wrap(*self.expr(e.args[0]), ATOM)}.unflatten({d}, ({sizes})).sum({d})", ATOM

    # --- Triangular ------------------------------------------------------------------------------------------------

    def mask(self, mask: Mask) -> str:
        """The name of a mask that is not a plain triangle; it is made once, at the top of the function."""
        return self.masks.setdefault(mask, f"mask_{len(self.masks) + 1}")

    def _solve(self, e: Expr) -> Text:
        """[.., row, column] y[.., column] = rhs[.., row], with all other axes of the right side as further columns."""
        row, column = e.attr
        matrix, rhs = e.args
        (text, _), have = self.matrices(matrix, str(row), str(column))
        lead = have[:-2]
        others = tuple(a for a in self.axes(rhs) if a not in lead and a != row)
        flat = (*(a for a in self.axes(rhs) if a in lead), str(row), *others)
        right, precedence = self.permuted(*self.expr(rhs), self.axes(rhs), flat)
        wide = (*lead, str(row), *others)
        right, precedence = self.fit(right, precedence, flat, wide)
        right = wrap(right, precedence, ATOM)
        many = f"{right}[..., None]" if not others else right if len(others) == 1 else f"{right}.flatten({-len(others)})"
        done = f"torch.linalg.solve({text}, {many})"
        lengths = ", ".join(self.length(a) for a in others)
        done += "[..., 0]" if not others else "" if len(others) == 1 else f".unflatten(-1, ({lengths}))"
        return self.permuted(done, ATOM, (*lead, str(column), *others), self.axes(e))

    def _masked(self, e: Expr) -> Text:
        mask = e.attr
        assert isinstance(mask, Mask)
        plain, have = self.matrices(e.args[0], mask.row, mask.column)
        text = wrap(*plain, ATOM)
        triangle = (mask.per_row, mask.step, mask.per_column) == (1, 1, 1)
        call = "_" if self.owns(e.args[0], self.axes(e)) else ""
        text += f".tril{call}({mask.offset - 1 or ''})" if triangle else f".masked_fill{call}(~{self.mask(mask)}, 0.0)"
        return self.permuted(text, ATOM, have, self.axes(e))

    def _unit_lower_inverse(self, e: Expr) -> Text:
        row, column = e.attr
        (text, _), have = self.matrices(e.args[0], str(row), str(column))
        return self.permuted(f"runtime.unit_lower_inverse({text})", ATOM, have, self.axes(e))

    def _decay(self, e: Expr) -> Text:
        mask = e.attr
        assert isinstance(mask, Mask)
        lead = tuple(a for a in self.axes(e) if a not in (mask.row, mask.column))
        upper, lower = (self.laid(x, lead, (along,)) for x, along in zip(e.args, (mask.row, mask.column), strict=True))
        have = (*lead, mask.row, mask.column)
        return self.permuted(f"runtime.decay({upper}, {lower}, {self.mask(mask)})", ATOM, have, self.axes(e))

    def _decayed_solve(self, e: Expr) -> Text:
        mask, transposed = e.attr
        assert isinstance(mask, Mask)
        along = mask.column if transposed else mask.row
        (k,) = [a for a in e.args[2].axes if a not in (mask.row, *LEAD)]
        lead = tuple(a for a in LEAD if a in e.axes)
        wants = ((mask.row, mask.column), (along, k), (mask.row, k), (mask.column, k))
        texts = [self.laid(x, lead, want) for x, want in zip(e.args, wants, strict=True)]
        text = f"runtime.decayed_solve({', '.join(texts)}, {self.mask(mask)}, {transposed})"
        return self.permuted(text, ATOM, (*lead, along, k), self.axes(e))

    def _strict_solve(self, e: Expr) -> Text:
        """The rule is a function of its own, which stands at the top of the kernel's."""
        mask, back, rule, leaves = e.attr
        assert isinstance(mask, Mask)
        along = mask.column if back else mask.row
        lead = tuple(a for a in LEAD if a in e.axes)
        own = [layout(self.kernel.order, x.axes) for x in leaves]
        P, *sides = e.args
        texts = [self.laid(x, lead, (along, *axes)) for x, axes in zip(sides, own, strict=True)]
        found = one_row(self.kernel, rule, leaves, along)
        name = self.rules.setdefault(found, f"rule_{len(self.rules) + 1}")
        matrix = self.laid(P, lead, (mask.row, mask.column))
        behind = tuple(map(len, own))
        more = (f", behind={behind}" if {*behind} != {1} else "") + (", back=True" if back else "")
        text = f"runtime.strict_solve({', '.join((matrix, name, *texts))}{more})"
        return self.permuted(text, ATOM, (*lead, along, *own[0]), self.axes(e))

    def _decayed(self, e: Expr) -> Text:
        _, mask = e.attr
        assert isinstance(mask, Mask)
        row, column = mask.row, mask.column
        first, second, upper, lower = e.args
        (k,) = [a for a in upper.axes if a not in (row, *LEAD)]
        lead = tuple(a for a in LEAD if a in union(tuple(a.type for a in e.args)))

        def by(*axes: str) -> Expr:
            return next(x for x in (first, second) if set(axes) == set(x.axes) - set(LEAD))

        shapes = {frozenset(set(x.axes) - set(LEAD)) for x in (first, second)}
        if shapes == {frozenset((row, k)), frozenset((column, k))}:
            name, pair, out = "gram", ((by(row, k), (row, k)), (by(column, k), (column, k))), (row, column)
        elif frozenset((column, k)) in shapes:
            name, pair, out = "rows", ((by(row, column), (row, column)), (by(column, k), (column, k))), (row, k)
        else:
            name, pair, out = "columns", ((by(row, column), (row, column)), (by(row, k), (row, k))), (column, k)
        operands = (*pair, (upper, (row, k)), (lower, (column, k)))
        texts = [self.laid(x, lead, want) for x, want in operands]
        text = f"runtime.decayed_{name}({', '.join(texts)}, {self.mask(mask)})"
        return self.permuted(text, ATOM, (*lead, *out), self.axes(e))


class RulePrinter(Printer):
    """Prints the rule of a `strict_solve`, whose values have axes in front that it does not know: sizes are given from the back."""

    def _broadcast(self, e: Expr) -> Text:
        (x,) = e.args
        text = self._tensor(x) if not x.axes else self.operand(x, self.axes(e))[0]
        sizes = ", ".join("-1" if a in x.axes else self.length(a) for a in self.axes(e)[1:])
        return f"runtime.widened({text}, {sizes})" if sizes else text, ATOM
