"""Launch -> the text of a Triton kernel: its indices, its equations block by block, its loop."""

from __future__ import annotations

from seqc.backends.triton import memory, sums
from seqc.backends.triton.cuts import expanded
from seqc.backends.triton.writer import WIDTH, Block, Env, Scope, Tile, Writer
from seqc.ir import ops
from seqc.ir.expr import Expr, walk
from seqc.ir.program import BATCH, Equation, outer_of


def print_launch(w: Writer) -> str:
    """The kernel's text, its decorator included."""
    launch = w.launch
    others = [ops.base(a) for v in launch.values for n in walk(v) for a in n.axes if a not in launch.lead]
    alike = {*others, *(ops.base(a) for a in launch.grid for b in launch.grid if a != b and ops.base(a) == ops.base(b))}
    env: dict[str, str] = {a: w.namer(f"at_{w.sizes.word(a)}") if ops.base(a) in alike else f"i_{w.sizes.word(a)}" for a in launch.grid}
    env |= {a: Block(w.namer(f"at_{w.sizes.word(a)}")) for a in launch.split}
    if launch.loop is None:
        orders = dict.fromkeys(tuple(a for a in launch.walked if a in e.value.axes) for e in launch.equations)
        for walked in orders:
            own = [e for e in launch.equations if tuple(a for a in launch.walked if a in e.value.axes) == walked]
            w.wanted = dict.fromkeys(walk(*expanded([e.value for e in own], launch.folded)))
            _stores(w, own, env, w.root, walked)
    else:
        _loop(w, env)
    head = [*_grid(w, env), *_axes(w)]
    arguments = [*w.pointers.values(), *_scalars(w), *_constants(w)]
    free = [x for x in _scalars(w) if not x.startswith("p_")]
    decorator = f"@triton.jit(do_not_specialize=[{', '.join(map(repr, free))}])".replace("'", '"') if free else "@triton.jit"
    lines = [decorator, *_signature(launch.name, arguments)]
    return "\n".join([*lines, *(f"    {line}" for line in [*head, *w.root.lines])]) + "\n"


def _stores(w: Writer, equations: list[Equation], env: Env, scope: Scope, walked: tuple[str, ...]) -> None:
    """Equations into memory, block by block along axes that are walked. What other equations sum along the axis is summed in the walk."""
    if not walked:
        for e in equations:
            memory.written(w, ops.var(e.name, e.value.axes, e.value.type.dtype), e.value, env, scope)
        return
    axis = walked[0]
    names = sums.begun(w, sums.beside(w, [e.value for e in equations], env, axis), env) if scope is w.root else {}

    def block(child: Scope, i: str) -> None:
        _stores(w, equations, {**env, axis: i}, child, walked[1:])
        sums.added(w, names, {**env, axis: i}, axis, child)

    w.each(scope, axis, env, block)
    sums.given(w, names, env)


def _grid(w: Writer, env: Env) -> list[str]:
    """The lines that find a program's indices."""
    launch, place = w.launch, w.launch.place
    lines = ["origin = tl.full((), 0, tl.int64)", "rest = origin + tl.program_id(0)"]
    for a in launch.split:
        blocks = f"tl.cdiv({w.n(a)}, {w.b(a)})"
        lines += [f"{env[a]} = (rest % {blocks}).to(tl.int32)", f"rest = rest // {blocks}"]
    joined = {place, BATCH} <= {*launch.grid}
    for a in reversed(launch.grid):
        if not (joined and a in (place, BATCH)):
            lines += [f"{env[a]} = rest % {w.n(a)}", f"rest = rest // {w.n(a)}"]
    if joined:
        table = f"{w.number('p_rows')}, {w.n(BATCH)}, {w.n(place)}, {w.number('EVEN')}"
        lines += [f"{env[BATCH]} = tiles.row(rest, {table})", f"if {env[BATCH]} >= {w.n(BATCH)}:", "    return"]
        lines += [f"{env[place]} = rest - tiles.first({env[BATCH]}, {table})"]
    return lines


def _axes(w: Writer) -> list[str]:
    return [line for a in w.whole_axes for line in (f"i_{a} = tl.arange(0, b_{a})", f"m_{a} = i_{a} < n_{a}")]


def _scalars(w: Writer) -> list[str]:
    """Numbers of the call: lengths of leading axes, tokens in all; and where rows begin."""
    return [*(x for x in ("p_rows", "n_T") if x in w.extra), *(f"n_{x}" for x in w.lengths if x in _counted(w))]


def _counted(w: Writer) -> set[str]:
    """The words of axes of which no tile has more than one index: a kernel is compiled for the lengths of tiles."""
    return {w.sizes.word(a) for a in w.launch.lead} - {*w.blocks}


def _constants(w: Writer) -> list[str]:
    names = [f"n_{x}" for x in w.lengths if x not in _counted(w)] + [f"b_{x}" for x in w.blocks]
    return [f"{name}: tl.constexpr" for name in (*names, *(x for x in ("EVEN", "DOT") if x in w.extra))]


def _loop(w: Writer, env: Env) -> None:
    launch, loop = w.launch, w.launch.loop
    assert loop is not None
    w.body = Scope(w.root)
    states = {k.name for k in loop.carried}
    values = [*(k.next for k in loop.carried), *(e.value for e in loop.equations)]
    for node in walk(*values):
        seen = node.op.name == "var" and (node.name in states or _sliced(w, node))
        if seen or any(id(a) in w.inner for a in node.args):
            w.inner[id(node)] = w.body
    step, i = w.namer("step"), w.namer(f"at_{w.sizes.word(loop.axis)}")
    w.loop_index, w.scopes[i] = i, w.body
    names = []
    for k in loop.carried:
        dims = w.dims(k.next, env)
        name = w.namer(k.name)
        w.root.lines.append(f"{name} = {w.whole(w.tile(k.init, env), dims)}")
        for v in (n for n in walk(*values) if n.op.name == "var" and n.name == k.name):
            w.body.known[w.key(v, env)] = Tile(name, dims)
        names.append((name, dims))
    n = w.count(loop.axis, env)
    w.body.lines.append(f"{i} = origin + {f'({n} - 1 - {step})' if loop.reverse else step}")
    nexts = [w.tile(k.next, env) for k in loop.carried]
    for e in (e for e in loop.equations if e.name not in launch.held):
        memory.written(w, outer_of(e, loop.axis), e.value, {**env, loop.axis: i}, w.body)
    at = {**env, loop.axis: i}
    for e in launch.behind:
        memory.written(w, ops.var(e.name, e.value.axes, e.value.type.dtype), e.value, at, w.body)
    fresh = []
    for k, t, (_, dims) in zip(loop.carried, nexts, names, strict=True):
        fresh.append(w.namer(f"{k.name}_next"))
        w.body.lines.append(f"{fresh[-1]} = {w.whole(t, dims)}")
    w.body.lines += [f"{name} = {new}" for (name, _), new in zip(names, fresh, strict=True)]
    w.root.lines.append(f"for {step} in range(0, {n}):")
    w.root.lines += [f"    {line}" for line in w.body.lines]
    for k, (name, dims) in zip(loop.carried, names, strict=True):
        memory.store(w, ops.var(k.final, k.init.axes), Tile(name, dims), env, w.root)


def _sliced(w: Writer, leaf: Expr) -> bool:
    loop = w.launch.loop
    assert loop is not None
    return loop.axis in w.leaves[leaf.name].axes and loop.axis not in leaf.axes


def _signature(name: str, arguments: list[str]) -> list[str]:
    line = f"def {name}({', '.join(arguments)}):"
    return [line] if len(line) <= WIDTH else [f"def {name}(", *(f"    {a}," for a in arguments), "):"]
