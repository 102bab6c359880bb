"""The function that makes a program's tensors and launches its kernels."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from seqc.analysis.chain import Refusal
from seqc.backends.triton.cuts import is_product
from seqc.backends.triton.kernel import print_launch
from seqc.backends.triton.launches import Iteration, Launch, apart, copied, flat, result
from seqc.backends.triton.meanings import meaning, needs
from seqc.backends.triton.micro import nodes
from seqc.backends.triton.text import product
from seqc.backends.triton.writer import Given, Namer, Sizes, Writer
from seqc.forms.base import VALID
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import BATCH, CHUNKS, TOKENS, Program

EXPONENTS = ("exp", "log", "decay", "decayed", "decayed_solve", "strict_solve", "cumsum")
NOTHING: Mapping[str, Given] = {}


@dataclass(frozen=True)
class Setting:
    """A program with its launches. leaves: every name outside of loops. given: inputs with tokens as the caller has them.

    chunk: tokens of a chunk, 0 if there are none. like_inputs: an output has the type of the input at its place, else of all inputs.
    in_place: last states can be written where the first ones are. kept: outputs behind the results, which the backward reads, and whether
    each is stored in the type of products' factors.
    """

    program: Program
    launches: tuple[Launch | Iteration, ...]
    leaves: Mapping[str, Expr]
    given: Mapping[str, Given]
    chunk: int
    like_inputs: bool
    in_place: bool = False
    kept: Mapping[str, bool] = field(default_factory=dict)

    @property
    def results(self) -> list[str]:
        """The names of the tensors that are given back."""
        apart = copied(self.program)
        return [result(e.name) if e in apart else e.value.name for e in self.program.outputs if e.name not in self.kept]


def print_functions(
    name: str, setting: Setting, hints: Mapping[Expr, str], sizes: Sizes, printed: dict[str, str] | None = None
) -> list[str]:  # fmt: skip
    """The kernels, how their tiles lie, and the function that launches them. printed: names of kernels by text, those of earlier calls."""
    native = [*setting.results, *_each(setting)]
    given = {**setting.given, **{n: Given() for n in native if TOKENS in setting.leaves[n].axes and setting.chunk}}
    writers = [Writer(launch, setting.leaves, given, hints, sizes, needs, meaning) for launch in flat(setting.launches)]
    texts = [print_launch(w) + "\n\n" + _cut(w) for w in writers]
    known = printed if printed is not None else {}
    kernels = []
    for w, text in zip(writers, texts, strict=True):
        anonymous = text.replace(w.launch.name, "kernel")
        if anonymous not in known:
            kernels.append(text)
        w.kernel = known.setdefault(anonymous, w.launch.name)
    return [*kernels, *([_shapes(name, setting, sizes)] if setting.kept else []), _host(name, setting, writers, sizes)]


def _cut(w: Writer) -> str:
    """The tiles of a kernel, the largest ones, by the words of their axes."""
    launch, word = w.launch, w.sizes.word
    shapes = {tuple(word(a) for a in w.dims(n, dict.fromkeys(launch.grid, ""))) for n in nodes(launch.values)}
    shapes = {tuple(a for a in s if a in w.blocks) for s in shapes}
    most = sorted(s for s in shapes if s and not any({*s} < {*other} for other in shapes))
    parts = [_tuple([_tuple([f'"{a}"' for a in s]) for s in most])]
    for what, axes in (("split", launch.split), ("walked", launch.walked)):
        if own := [word(a) for a in axes if word(a) in w.blocks]:
            parts.append(f"{what}={_tuple([repr(a) for a in own])}".replace("'", '"'))
    if own := [a for a in launch.split if word(a) in w.blocks]:
        without = [[str(i) for i, name in enumerate(w.pointers) if not _has(w.leaves[name], a)] for a in own]
        parts.append(f"lacking={_tuple([_tuple(places) for places in without])}")
    return f"{launch.name}_cut = gpu.Cut({', '.join(parts)})\n"


def _has(leaf: Expr, axis: str) -> bool:
    """Whether a tensor has an axis, or another of its length by which it is read."""
    return ops.base(axis) in {ops.base(a) for a in leaf.axes}


def _tuple(items: list[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def _host(name: str, s: Setting, writers: list[Writer], sizes: Sizes) -> str:
    namer, narrow = Namer(("tl", "tiles", "gpu", "triton", "launch", "rows", "solver")), _narrow(s)
    names = {leaf.name: namer(leaf.name) for leaf in s.program.inputs if leaf.name != VALID}
    types = dict.fromkeys(s.results, "rows.result")
    if s.like_inputs:
        arguments = (i for i in s.program.inputs if i.name != VALID)
        types |= {r: f"{names[leaf.name]}.dtype" for r, leaf in zip(s.results, arguments, strict=False)}
    body, own, each = list[str](), iter(writers), _each(s)
    read = {n.name for w in writers for v in w.launch.values for n in walk(v) if n.op.name == "var"}
    types |= {own_each: f"{types[whole]} if {_one_head(s, whole, sizes)} else gpu.FULL" for own_each, whole in each.items()}
    last = _last_states(s)
    over = {name: i for i, name in enumerate(last) if _overwrites(s, name)}

    def launched(launch: Launch, indent: str = "", named: Container[str] = ()) -> None:
        w = next(own)
        for leaf in _made(launch, s.leaves):
            if leaf.name in w.pointers and (leaf.name not in names or leaf.name in named):
                names[leaf.name] = names.get(leaf.name) or namer(leaf.name)
                native = leaf.name in types and TOKENS in leaf.axes and (s.chunk > 0 or launch.place == TOKENS)
                native_type = native or (s.like_inputs and leaf.name in s.results and leaf.name not in read)
                dtype = types[leaf.name] if native_type else "rows.dtype" if leaf.name in narrow else ""
                made = _tensor(leaf, dtype, launch.place, sizes, native)
                if leaf.name in over:
                    made = f"into[{over[leaf.name]}] if into else {made}"
                body.append(f"{indent}{names[leaf.name]} = {made}")
        tensors = _tuple([names[t] for t in w.pointers])
        lengths = "".join(f", n_{word}=n_{word}" for word in w.lengths)
        body.append(f"{indent}gpu.launch({w.kernel}, {w.kernel}_cut, {_programs(launch, sizes)}, {tensors}, rows{lengths})")

    for x in s.launches:
        if isinstance(x, Launch):
            sums = {whole: own_each for own_each, whole in each.items() for e in x.equations if e.name == whole}
            if sums:
                names |= {whole: namer(whole) for whole in sums}
                body.append(f"if {_one_head(s, next(iter(sums)), sizes)}:")
                body.append(f"    {', '.join(names[n] for n in sums)} = {', '.join(names[n] for n in sums.values())}")
                body.append("else:")
            launched(x, "    " if sums else "", sums)
            continue
        for unknown, first, _, _ in x.found:
            names[unknown] = namer(unknown)
            body.append(f"{names[unknown]} = {names[first]}")
        body += ["solver = rows.solver()", "while solver.goes_on():"]
        for launch in x.launches:
            launched(launch, "    ")
        for unknown, _, left, step in x.found:
            body.append(f"    {names[unknown]} = solver.measured({names[unknown]}, {names[left]}, {names[step]}, rows.largest)")
    tensors = dict.fromkeys(names[t] for w in writers for t in w.pointers if t in {i.name for i in s.program.inputs})
    given = ", ".join(tensors)
    lines = [f"def {name}({', '.join('rows' if i.name == VALID else names[i.name] for i in s.program.inputs)}):"]
    if last:
        lines = [lines[0].replace("):", ", into=()):")]
        body += [f"if into:\n        into[{i}].copy_({names[n]})" for i, n in enumerate(last) if n not in over]
    if VALID not in {i.name for i in s.program.inputs}:
        lines = [lines[0].replace("):", ", rows):")]
    lines += _lengths(s, names, sizes, "\n".join(body))
    lines += [f"    {given}{',' if len(tensors) == 1 else ''} = gpu.contiguous({given})"] if tensors else []
    lines += [f"    {line}" for line in body]
    iterates = any(isinstance(x, Iteration) for x in s.launches)
    lines.append(f"    return {_tuple([*(names[n] for n in (*s.results, *s.kept)), *(['solver'] if iterates else [])])}")
    return "\n".join(lines) + "\n"


def _shapes(name: str, s: Setting, sizes: Sizes) -> str:
    """The function that makes what is kept, and computes nothing: compilers ask for the shapes."""
    namer = Namer(("tl", "tiles", "gpu", "triton", "launch", "rows"))
    names = {leaf.name: namer(leaf.name) for leaf in s.program.inputs if leaf.name != VALID}
    place = flat(s.launches)[0].place
    made = [_tensor(s.leaves[n], "rows.dtype" if narrow else "", place, sizes) for n, narrow in s.kept.items()]
    lines = [f"def {name}_shapes({', '.join('rows' if i.name == VALID else names[i.name] for i in s.program.inputs)}):"]
    if VALID not in {i.name for i in s.program.inputs}:
        lines = [lines[0].replace("):", ", rows):")]
    body = f"    return {_tuple(made)}"
    return "\n".join([*lines, *_lengths(s, names, sizes, body), body]) + "\n"


def _tensor(leaf: Expr, dtype: str, place: str, sizes: Sizes, native: bool = False) -> str:
    """The call that makes the tensor of a value."""
    return f"gpu.made(rows, {_shape(leaf, native, place, sizes)}{f', {dtype}' if dtype else ''})"


def _each(s: Setting) -> dict[str, str]:
    """Values of every head that are summed over those of each group, and nothing else is done with the sums: the result of each."""
    found = [e for x in flat(s.launches) for e in x.equations if e.value.op.name == "collect"]
    return {e.value.args[0].name: e.name for e in found if e.value.args[0].op.name == "var" and e.value.args[0].name == apart(e.name)}


def _one_head(s: Setting, whole: str, sizes: Sizes) -> str:
    """Whether each group has one head."""
    value = next(e.value for x in flat(s.launches) for e in x.equations if e.name == whole)
    groups, heads = value.attr
    return f"n_{sizes.word(str(groups))} == n_{sizes.word(str(heads))}"


def _last_states(s: Setting) -> list[str]:
    """The results that first states can be overwritten with."""
    return [n for n in s.results if TOKENS not in s.leaves[n].axes] if s.in_place else []


def _overwrites(s: Setting, name: str) -> bool:
    """Whether a last state can be written where the first one is: one loop has both, nothing else reads the first, and no two programs
    have the same part of it."""
    loops = [x for x in flat(s.launches) if x.loop is not None and any(k.final == name for k in x.loop.carried)]
    if len(loops) != 1 or loops[0].loop is None:
        return False
    first = next(k.init for k in loops[0].loop.carried if k.final == name)
    if first.op.name != "var" or first.axes != s.leaves[name].axes or not {*loops[0].grid, *loops[0].split} <= {*first.axes}:
        return False
    read = [x for x in flat(s.launches) if any(n.op.name == "var" and n.name == first.name for n in walk(*x.values))]
    return len(read) == 1 and sum(n is first or (n.op.name == "var" and n.name == first.name) for n in walk(*read[0].values)) == 1


def _programs(launch: Launch, sizes: Sizes) -> str:
    joined = {launch.place, BATCH} <= {*launch.grid}
    axes = [a for a in launch.grid if not joined or a not in (launch.place, BATCH)]
    return product([*(["rows.places"] if joined else []), *(f"n_{sizes.word(a)}" for a in axes)]) or "1"


def _shape(leaf: Expr, native: bool, place: str, sizes: Sizes) -> str:
    """Of a tensor that a kernel makes: with tokens as the caller wants it, or place by place."""
    joined = {place, BATCH} <= {*leaf.axes}
    axes = [a for a in leaf.axes if not (joined and a in (place, BATCH)) and not (native and a == TOKENS)]
    lead = ["*rows.shape"] if native else ["rows.places"] if joined else []
    return _tuple([*lead, *(f"n_{sizes.word(a)}" for a in axes)])


def _made(launch: Launch, leaves: Mapping[str, Expr]) -> list[Expr]:
    """The tensors that a launch writes."""
    finals = [k.final for k in launch.loop.carried] if launch.loop else []
    return [leaves[n] for n in (*finals, *(e.name for e in (*launch.equations, *launch.behind)))]


def _narrow(s: Setting) -> set[str]:
    """What kernels hand on as matrices: it is stored in the type of the factors of products, unless it is an exponent's.

    Token by token there are no products of matrices, whose factors are rounded anyway: there nothing is.
    """
    if not s.chunk:
        return set()
    made = {leaf.name for launch in flat(s.launches) for leaf in _made(launch, s.leaves)} - {*s.results, *s.kept}
    matrices, exponents = read_as(flat(s.launches))
    iterated = {name for x in s.launches if isinstance(x, Iteration) for names in x.found for name in names}
    return ((made & matrices) - {*_each(s)} - exponents - iterated) | {n for n, narrow in s.kept.items() if narrow}


def read_as(launches: Iterable[Launch]) -> tuple[set[str], set[str]]:
    """The names of what is read as matrices, and of what reaches exponents."""
    matrices, exponents = set[str](), set[str]()
    for launch in launches:
        nodes = list(walk(*launch.values))
        exponents |= _exponents(nodes, launch)
        matrices |= {n.name for n in nodes if n.op.name == "var" and sum(a not in launch.lead for a in n.axes) > 1}
    return matrices, exponents


def _exponents(nodes: list[Expr], launch: Launch) -> set[str]:
    """The leaves that reach an exponent other than through a product of matrices."""
    reached, names = set[int](), set[str]()
    for n in reversed(nodes):
        if n.op.name in EXPONENTS or id(n) in reached:
            if n.op.name == "var":
                names.add(n.name)
                reached |= {id(launch.folded[n.name])} if n.name in launch.folded else set()
            elif not is_product(n, launch.lead):
                reached |= {id(a) for a in n.args}
    return names


def _lengths(s: Setting, names: Mapping[str, str], sizes: Sizes, body: str) -> list[str]:
    """The lengths of axes that the body names: of rows and places, the chunk's, and those that the inputs show."""
    place = flat(s.launches)[0].place
    shown = {BATCH: "rows.count", place: "rows.most"} | ({TOKENS: str(s.chunk)} if s.chunk else {})
    for leaf in s.program.inputs:
        if leaf.name == VALID or (s.chunk and leaf.name not in s.given and place in leaf.axes):
            continue
        native = leaf.name in s.given
        axes = [BATCH, TOKENS, *(a for a in leaf.axes if a not in (BATCH, TOKENS, CHUNKS))] if native else list(leaf.axes)
        for i, a in enumerate(axes):
            shown.setdefault(ops.base(a), f"{names[leaf.name]}.shape[{i}]")
    widths = {a: (counted, factor) for a, counted, factor in s.program.widths}

    def length(axis: str) -> str:
        axis = ops.base(axis)
        if axis in shown:
            return shown[axis]
        if axis in widths:
            counted, factor = widths[axis]
            return f"{factor} * {length(counted)}" if counted else str(factor)
        if axis.isdigit():
            return axis
        if "*" in axis:
            return " * ".join(length(part) for part in axis.split("*"))
        raise Refusal(f"the length of the axis `{axis}` is shown by no argument")

    return [f"    n_{word} = {length(axis)}" for axis, word in sizes.words.items() if re.search(rf"\bn_{word}\b", body)]

