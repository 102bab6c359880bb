"""Value -> Python: the expressions of a module's `forward` and of its initial values, over tensors in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from seqc.diagnostics import InternalError
from seqc.frontend.intervals import INF
from seqc.frontend.project_types import Value, walk
from seqc.ir.ops import base

Axes = tuple[str, ...]
WIDTH = 140

# How tightly a text binds: a comparison, a sum, a product, a sign, anything with its own brackets.
COMPARISON, SUM, PRODUCT, SIGN, ATOM = range(5)

# Dimensions before the axes: none for what stays the same, the sequence, or batch and time.
LEAD = {"static": 0, "sequence": 1, "token": 2}

UNARY = {
    "exp": "torch.exp", "log": "torch.log", "sqrt": "torch.sqrt", "abs": "torch.abs", "sign": "torch.sign", "sin": "torch.sin",
    "cos": "torch.cos", "tanh": "torch.tanh", "sigmoid": "torch.sigmoid", "log_sigmoid": "F.logsigmoid", "softplus": "softplus",
    "softplus_inverse": "softplus_inverse", "relu": "F.relu", "gelu": "F.gelu", "silu": "F.silu", "elu": "F.elu",
    "expm1": "torch.expm1", "log1p": "torch.log1p", "ceil": "torch.ceil", "floor": "torch.floor",
}  # fmt: skip
NUMBER = {name: f"math.{name}" for name in ("exp", "log", "sqrt", "sin", "cos", "tanh", "expm1", "log1p", "ceil", "floor")} | {"abs": "abs"}
ALONG = {
    "sum": "{x}.sum({axes})", "mean": "{x}.mean({axes})", "max": "{x}.amax({axes})", "min": "{x}.amin({axes})",
    "norm": "torch.linalg.vector_norm({x}, dim={axes})", "logsumexp": "torch.logsumexp({x}, {axes})", "cumsum": "{x}.cumsum({axes})",
    "softmax": "torch.softmax({x}, {axes})", "log_softmax": "torch.log_softmax({x}, {axes})",
}  # fmt: skip
BINDING = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT}


@dataclass(frozen=True)
class Text:
    text: str
    binds: int = ATOM

    def within(self, binds: int) -> str:
        """The text, in brackets if it binds less tightly."""
        return self.text if self.binds >= binds else f"({self.text})"


@dataclass
class Block:
    """The lines of one function body. `like`: a tensor with the device and dtype of the result."""

    names: Callable[[str], str]  # of values
    members: Callable[[str], str]  # of targets and sizes on the module
    like: str
    target: str = ""
    indent: int = 8
    lines: list[str] = field(default_factory=list)
    parts: set[str] = field(default_factory=set)
    taken: dict[int, str] = field(default_factory=dict)  # values that have a name of their own, by identity

    def use(self, part: str) -> str:
        self.parts.add(part)
        return part

    def line(self, text: str) -> None:
        self.lines.append(" " * self.indent + text)

    # --- Statements --------------------------------------------------------------------------------------------

    def assign(self, target: str, value: Value, place: Axes, when: str, shape: str, wrap: str = "{}") -> None:
        """`target = value`, with all the axes of its place. Long lines give names to their largest parts."""
        self.carried(value)
        while True:
            text = wrap.format(self.placed(value, place, when, shape))
            long = self.indent + len(target) + len(text) > WIDTH
            part = self.largest(value) if long else None
            if part is None:
                break
            name = f"part_{len(self.taken) + 1}"
            self.line(f"{name} = {self.text(part).text}")
            self.taken[id(part)] = name
        self.line(f"{target}{text}")

    def largest(self, value: Value) -> Value | None:
        """The largest part that fits a line: what to name so that a long line becomes shorter."""
        parts = [v for a in value.args for v in walk(a) if v.args and id(v) not in self.taken]
        room = WIDTH - self.indent - len("part_100 = ")
        return max((v for v in parts if len(self.text(v).text) <= room), key=lambda v: len(self.text(v).text), default=None)

    def carried(self, value: Value) -> None:
        """Names what carries values from call to call, inner ones first: those calls give two results."""
        for a in value.args:
            self.carried(a)
        if value.op not in ("conv", "shift", "first") or id(value) in self.taken:
            return
        path = str(value.attr[0])
        key, name = f'"{self.target}.{path}"', f"{self.target}_{path}"
        (x,) = value.args
        if value.op == "first":
            call = f"{self.use('first')}({self.text(x).text}, {self.size(value.axes[0])}, state[{key}], cu_seqlens)"
            self.line(f"{name} = new[{key}] = {call}")
        elif value.op == "shift":
            self.line(f"{name}, new[{key}] = {self.use('shift')}({self.text(x).text}, state[{key}], cu_seqlens)")
        else:
            self.line(
                f"{name}, new[{key}] = self.{self.members(self.target)}.{path}({self.flat(x, len(x.axes))}, state[{key}], cu_seqlens)"
            )
            name = self.unflat(Text(name), value.axes)
        self.taken[id(value)] = name

    # --- Expressions -------------------------------------------------------------------------------------------

    def text(self, v: Value) -> Text:
        if id(v) in self.taken:
            return Text(self.taken[id(v)])
        match v.op:
            case "number" | "constant" | "size" | "count" | "iota":
                return self.leaf(v)
            case "name":
                return Text(self.names(str(v.attr[0])))
            case "rename":
                return self.text(v.args[0])
            case "neg":
                return Text(f"-{self.text(v.args[0]).within(SIGN)}", SIGN)
            case "+" | "-" | "*" | "/":
                binds = BINDING[v.op]
                left, right = self.operands(v)
                return Text(f"{left.within(binds)} {v.op} {right.within(binds + (v.op in '-/'))}", binds)
            case "compare":
                left, right = self.operands(v)
                return Text(f"{left.within(SUM)} {v.attr[0]} {right.within(SUM)}", COMPARISON)
            case "^" | "max" | "min" | "where" | "lerp" if len(v.args) > 1:
                return Text(self.combined(v))
            case "uniform" | "log_uniform" | "normal":
                low, high = (self.text(a).text for a in v.args)
                return Text(f"{self.use(v.op)}({low}, {high}, {self.like})")
            case _ if v.op in UNARY:
                return Text(self.unary(v))
        return Text(self.call(v))

    def leaf(self, v: Value) -> Text:
        name = str(v.attr[0])
        if v.op == "number":
            assert isinstance(v.attr[0], Fraction)
            return Text(str(v.attr[0]) if v.attr[0].denominator == 1 else repr(float(v.attr[0])))
        if v.op == "iota" or name == "head":
            return Text(f"{self.use('count')}({self.size('heads' if name == 'head' else name)}, {self.like})")
        if name == "position":
            return Text("positions")
        return Text(f"math.{name}" if v.op == "constant" else self.size(name))

    def size(self, axis: str) -> str:
        """A size, or the length of an axis that is only a number."""
        return axis if axis.isdigit() else f"self.{self.members(base(axis))}"

    def operands(self, v: Value) -> tuple[Text, ...]:
        return tuple(self.aligned(a, v) for a in v.args)

    def aligned(self, a: Value, v: Value) -> Text:
        """An argument such that it broadcasts against the result."""
        text = self.text(a)
        if a.when == "sequence" and v.when == "token":
            length = f"{self.like}.shape[1]"
            text = Text(f"{self.use('per_token')}({text.text}, {length}, cu_seqlens)")
        return self.reordered(text, a.axes, v.axes, LEAD[a.when if a.when == "static" else v.when])

    def reordered(self, text: Text, axes: Axes, place: Axes, lead: int) -> Text:
        """Axes in the order of the place, with an axis of length 1 for each that is missing behind another."""
        own = tuple(a for a in place if a in axes)
        if own != axes:
            order = (*range(lead), *(lead + axes.index(a) for a in own))
            text = Text(f"{text.within(ATOM)}.permute({', '.join(map(str, order))})")
        missing = [i for i, a in enumerate(place) if a not in own and (lead or any(b in own for b in place[:i]))]
        if (not own and not lead) or not missing:
            return text
        index = ", ".join(":" if a in own else "None" for a in place[missing[0] :])
        return Text(f"{text.within(ATOM)}[..., {index}]")

    def unary(self, v: Value) -> str:
        (x,) = v.args
        text = self.text(x).text
        if not x.is_number:
            function = UNARY[v.op]
            return f"{self.use(function) if '.' not in function else function}({text})"
        if v.op in NUMBER:
            return f"{NUMBER[v.op]}({text})"
        if v.range.low == v.range.high and abs(v.range.low) != INF:
            return repr(v.range.low)
        function = UNARY[v.op]
        return f"{self.use(function) if '.' not in function else function}(torch.tensor(float({text})))"

    def combined(self, v: Value) -> str:
        """Functions of several arguments that are applied entry by entry."""
        texts = [t.text for t in self.operands(v)]
        if v.op in ("max", "min"):
            if all(a.is_number for a in v.args):
                return f"{v.op}({', '.join(texts)})"
            numbers = [t for t, a in zip(texts, v.args, strict=True) if a.is_number]
            if not numbers:
                return f"torch.{v.op}imum({', '.join(texts)})"
            (tensor,) = (t for t, a in zip(self.operands(v), v.args, strict=True) if not a.is_number)
            return f"{tensor.within(ATOM)}.clamp({'min' if v.op == 'max' else 'max'}={numbers[0]})"
        if v.op == "lerp":
            return f"{self.use('lerp')}({', '.join(texts)})"
        if v.op == "where":
            condition = f"torch.tensor({texts[0]})" if v.args[0].is_number else texts[0]
            return f"torch.where({condition}, {texts[1]}, {texts[2]})"
        return f"{'math' if v.is_number else 'torch'}.pow({', '.join(texts)})"

    def call(self, v: Value) -> str:
        """Functions along axes and functions with weights."""
        x = v.args[0]
        path = f"self.{self.members(self.target)}.{v.attr[0]}" if v.attr else ""
        match v.op:
            case "linear":
                return self.unflat(Text(f"{path}({self.side_by_side(v.args, 0)})"), v.axes)
            case "headwise":
                return self.unflat(Text(f"{path}({self.side_by_side(v.args, 1)})"), v.axes[1:])
            case "rmsnorm" | "layernorm" | "groupnorm":
                return f"{path}({self.text(x).text})"
            case "rope":
                axis = "" if x.axes[-1] == v.attr[0] else f", {dims((str(v.attr[0]),), x.axes)}"
                return f"{self.use('rope')}({self.text(x).text}, positions{axis})"
            case "reshape":
                return self.unflat(Text(self.flat(x, len(x.axes))), v.axes)
            case "l2norm" | "standardize":
                axes, eps = v.attr
                assert isinstance(axes, tuple) and isinstance(eps, Fraction)
                usual = 1e-6 if v.op == "l2norm" else 1e-5
                axis = "" if axes == x.axes[-1:] else f", {dims(axes, x.axes)}"
                return f"{self.use(v.op)}({self.text(x).text}{axis}{f', eps={float(eps)}' if float(eps) != usual else ''})"
            case _ if v.op in ALONG:
                axes = v.attr[0]
                assert isinstance(axes, tuple)
                inner = self.text(x)
                return ALONG[v.op].format(x=inner.within(ATOM) if ALONG[v.op].startswith("{x}") else inner.text, axes=dims(axes, x.axes))
        raise InternalError(f"no text for {v.op}")

    def side_by_side(self, args: tuple[Value, ...], kept: int) -> str:
        """The arguments of a map as one: their axes, but for the first `kept`, in a row."""
        texts = [self.flat(a, len(a.axes) - kept) for a in args]
        return texts[0] if len(texts) == 1 else f"torch.cat([{', '.join(texts)}], -1)"

    def flat(self, v: Value, n: int) -> str:
        """The value with its last n axes in a row."""
        text = self.text(v)
        if n == 0:
            return f"{text.within(ATOM)}[..., None]"
        if n == 1:
            return text.text
        end = self.unflat(Text(""), v.axes)
        if v.op in ("linear", "conv") and text.text.endswith(end):
            return text.text.removesuffix(end)
        return f"{text.within(ATOM)}.flatten(-{n})"

    def unflat(self, text: Text, axes: Axes) -> str:
        """The last axis taken apart."""
        if len(axes) == 1:
            return text.text
        if not axes:
            return f"{text.within(ATOM)}.squeeze(-1)"
        return f"{text.within(ATOM)}.unflatten(-1, ({', '.join(self.size(a) for a in axes)}))"

    def placed(self, v: Value, place: Axes, when: str, shape: str) -> str:
        """The value with every axis of its place; `shape` is the text of what comes before them."""
        if v.is_number and (place or shape):
            sizes = ", ".join(filter(None, (shape, *(self.size(a) for a in place))))
            comma = "" if "," in sizes else ","
            return f"torch.full(({sizes}{comma}), {self.text(v).text}, dtype={self.like}.dtype, device={self.like}.device)"
        if set(v.axes) == set(place) and v.when == when:
            return self.reordered(self.text(v), v.axes, place, LEAD[when]).text
        text = self.aligned(v, Value("", (), (), place, "token" if when == "token" else v.when))
        sizes = ", ".join(filter(None, (shape, *(self.size(a) for a in place))))
        return f"{text.within(ATOM)}.expand({sizes})"


def dims(axes: Axes, of: Axes) -> str:
    """Axes counted from the last."""
    found = sorted(of.index(a) - len(of) for a in axes)
    return str(found[0]) if len(found) == 1 else f"({', '.join(map(str, found))})"
