"""`ops.py` of a package: the layer as functions over whole sequences, and the torch operators that they call."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from seqc.backends.torch.costs import print_costs
from seqc.backends.torch.package_parts import Triton, full_sizes, head, order_of, quoted
from seqc.backends.torch.statements import print_kernel
from seqc.emit.layer import Layer, Programs
from seqc.forms.base import SHOWN, body_leaves, initial, outer_leaves, state_lead, unseen
from seqc.forms.recurrent import RECURRENT
from seqc.ir import ops
from seqc.ir.lift import lift
from seqc.ir.model import Domain
from seqc.ir.program import BATCH, CHUNKS, HEADS, Equation, Map, Program, Solve
from seqc.schedule.linear import linearise

WHICH = ("forward", "backward", "double_backward")
PARAM_LEADS = {"head": "H", "group": "G", "layer": ""}
STATE_LEADS = {"head": "NH", "group": "NG", "layer": "N"}
LEADS = {"head": "BTH", "group": "BTG", "layer": "BT", "sequence": "NH"}


def _flags(d: Domain) -> str:
    """How an input is kept defined: repeated behind the end, and off an open end at zero."""
    return ", repeat=True" + (", positive=True" if d.positive else "")


def _values(items: list[tuple[str, str, tuple[str, ...]]], flags: Mapping[str, str] = MappingProxyType({})) -> str:
    if not items:
        return "()"
    parts = [f'Value("{n}", "{lead}"{_axes(axes)}{flags.get(n, "")})' for n, lead, axes in items]
    one = f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    return one if len(one) < 110 else "(\n        " + ",\n        ".join(parts) + ",\n    )"


def _axes(axes: tuple[str, ...]) -> str:
    if not axes:
        return ""
    return f", ({', '.join(quoted(ops.base(a)) for a in axes)}{',' if len(axes) == 1 else ''})"


def _fixed(layer: Layer) -> list[tuple[str, int]]:
    """Sizes that the kernels were compiled for and that a tensor shows."""
    rec = layer.recurrence
    given = (*(i.axes for i in rec.inputs), *(p.axes for p in rec.params), *(s.axes for s in rec.states))
    shown = {ops.base(a) for axes in given for a in axes}
    wanted = dict(rec.values) | {a: layer.sizes[a] for p in layer.programs.values() for a in p.lowered.fixed}
    return [(a, n) for a, n in sorted(wanted.items()) if a in shown]


def print_ops(layer: Layer, triton: Triton | None) -> str:
    rec = layer.recurrence
    names = [*(i.name for i in rec.inputs), *(p.name for p in rec.params)]
    first = _initial(layer)
    forms = list(layer.programs)
    walks = ["triton_rows"] if triton is not None and triton.forms else []
    domains = ",\n    ".join(f'"{i.name}": ({_end(i.domain.low)}, {_end(i.domain.high)}, {i.domain.unit})' for i in rec.inputs)
    lines = [
        head(layer, "The layer as a function over whole sequences, registered as torch operators.").rstrip("\n"),
        "",
        *(["import math", ""] if "math." in domains + first else []),
        *(["import torch", ""] if "torch." in first else []),
        f"from . import {', '.join(sorted([*forms, *(['runtime'] if 'runtime.' in first else []), *walks]))}",
        "from . import reference as _reference",
        "from .operators import Operator",
        *(["from .sequence import later"] if triton is not None and triton.forms else []),
        f"from .signature import {'Keeping, ' if triton is not None and any(triton.kept.values()) else ''}Kernels, Signature, Value",
        "",
        f'NAMESPACE = "seqc_{rec.name}_{layer.digest[:12]}"',
        f"CHUNK_SIZE = {layer.options.chunk_size}",
        "",
        "",
        *_signature(layer),
        "",
        "",
        first,
        "",
        "DOMAINS = {",
        f"    {domains},",
        "}",
        "",
        *print_costs(layer, full_sizes(rec, layer.sizes)),
        "",
        *(_triton(layer, triton) if triton is not None and triton.forms else []),
        "OPERATOR = _operator = Operator(",
        "    NAMESPACE,",
        "    {",
        *(line for p in layer.programs.values() for line in _built(p)),
        "    },",
        "    initial_states,",
        "    DOMAINS,",
        "    _reference.steps,",
        "    COSTS,",
        *(["    TRITON,", "    triton_rows,"] if walks else []),
        ")",
        "",
        "",
        *_function(layer, rec.name, names, "_operator(form, backend"),
        "",
        "",
        *_function(layer, "reference", names, "_operator.reference(form, backend"),
        "",
        "",
        *_decode(layer, names),
    ]
    return "\n".join(lines) + "\n"


def _signature(layer: Layer) -> list[str]:
    """The function `signature` of the tokens in a chunk."""
    rec = layer.recurrence
    inputs = [(i.name, LEADS[i.scope], i.axes) for i in rec.inputs]
    params = [(p.name, PARAM_LEADS[p.scope], p.axes) for p in rec.params]
    params += [("sizes", "", ("0", *hidden))] if (hidden := unseen(rec)) else []
    states = [(s.name, STATE_LEADS[s.scope], s.axes) for s in rec.states]
    outputs = [(o.name, "BTH", o.axes) for o in rec.outputs]
    fixed = _fixed(layer)
    sizes = f"({', '.join(f'({quoted(a)}, {n})' for a, n in fixed)}{',' if len(fixed) == 1 else ''})"
    return [
        "def signature(chunk, written=False, blocks=False):",
        '    """What the kernels take and give: leading axes as letters, then the axes of the text."""',
        "    return Signature(",
        f"        inputs={_indent(_values(inputs, {i.name: _flags(i.domain) for i in rec.inputs}))},",
        f"        params={_indent(_values(params))},",
        f"        states={_indent(_values(states, {s.name: ', whole=True' for s in rec.states if s.integer}))},",
        f"        outputs={_indent(_values(outputs))},",
        "        chunk=chunk,",
        f"        sizes={sizes},",
        "        written=written,",
        "        blocks=blocks,",
        "    )",
    ]


def _built(p: Programs) -> list[str]:
    """A form's entry; one that iterates has another form's kernels beside its own."""
    name, call = p.form.name, _called(p)
    own, other = (", ".join(f"{form}.{which}" for which in WHICH) for form in (name, RECURRENT.name))
    if not any(isinstance(s, Solve) for s in p.forward.stages):
        return [f'        "{name}": ({call}, Kernels({own})),']
    return [f'        "{name}": (', f"            {call},", f"            Kernels({own}, Kernels({other})),", "        ),"]


def _called(p: Programs) -> str:
    block = p.lowered.block
    chunk = str(block) if block is not None else "CHUNK_SIZE" if CHUNKS in p.form.axes else "0"
    more = f"{', written=True' if p.form.written else ''}{', blocks=True' if block is not None else ''}"
    return f"signature({chunk}{more})"


def _triton(layer: Layer, triton: Triton) -> list[str]:
    """The forms that have kernels in Triton; a second derivative is PyTorch's."""
    lines = ["TRITON = {"]
    for form in triton.forms:
        p = layer.programs[form]
        other = _kernels_of(RECURRENT.name, "            ") if any(isinstance(s, Solve) for s in p.forward.stages) else []
        lines += [f'    "{form}": (', f"        {_called(p)},", *_kernels_of(form, "        ", other, triton.kept.get(form, 0)), "    ),"]
    return [*lines, "}", ""]


def _kernels_of(form: str, indent: str, instead: Iterable[str] = (), kept: int = 0) -> list[str]:
    own = [f"{indent}    {line}" for line in (*(f"{_later(form, which)}," for which in WHICH[:2]), f"{form}.{WHICH[2]},")]
    keeping = f"keeping=Keeping({_later(form, 'forward_kept')}, {_later(form, 'forward_kept_shapes')}, {kept}),"
    return [f"{indent}Kernels(", *own, *instead, *([f"{indent}    {keeping}"] if kept else []), f"{indent}),"]


def _later(form: str, function: str) -> str:
    return f'later(__package__, "triton_{form}", "{function}")'


def _indent(text: str) -> str:
    return text.replace("\n", "\n    ")


def _end(x: float) -> str:
    return {float("inf"): "math.inf", float("-inf"): "-math.inf"}.get(x, repr(x))


def _function(layer: Layer, name: str, names: list[str], call: str) -> list[str]:
    rec = layer.recurrence
    doc = rec.doc[0].strip('"') if rec.doc else rec.name
    shapes = [f"    {x.name}: {_shape(x.scope, x.axes)}" for x in rec.inputs]
    shapes += [f"    {p.name}: [{', '.join((*PARAM_LEADS[p.scope], *p.axes))}]" for p in rec.params]
    results = [f"    {o.name}: {_shape('head', o.axes)}" for o in rec.outputs]
    states = [f"    {s.name}: [{', '.join((*STATE_LEADS[s.scope], *map(ops.base, s.axes)))}]" for s in rec.states]
    outputs = ", ".join(o.name for o in rec.outputs)
    hidden = unseen(rec)
    given = [*(x.name for x in rec.params), *([f"{rec.inputs[0].name}.new_empty((0, {', '.join(hidden)}))"] if hidden else [])]
    what = "token by token in plain PyTorch, any dtype, differentiated by autograd" if name == "reference" else "by the form asked for"
    return [
        f"def {name}(",
        *(f"    {n}," for n in names),
        "    *,",
        *(f"    {n}{_default(layer, n)}," for n in hidden),
        "    initial_state=None,",
        "    output_final_state=False,",
        "    cu_seqlens=None,",
        '    form="auto",',
        '    backend="auto",',
        "    check=False,",
        "    return_info=False,",
        "):",
        f'    """{doc}',
        "",
        f"    Computed {what}. Returns ({outputs if len(rec.outputs) == 1 else f'({outputs})'}, final state or None).",
        "",
        "    Arguments:",
        *("    " + s for s in shapes),
        "    Results:",
        *("    " + s for s in results),
        "    States, kept in float32 (float64 for float64 arguments):",
        *("    " + s for s in states),
        "",
        "    cu_seqlens: [N + 1], ends of N sequences packed into one row (B = 1). check: test the declared domains.",
        "    Raises ValueError where shapes disagree, TypeError for tensors that are not floating-point.",
        '    """',
        f"    _inputs = ({', '.join(x.name for x in rec.inputs)}{',' if len(rec.inputs) == 1 else ''})",
        f"    _params = ({', '.join(given)}{',' if len(given) == 1 else ''})",
        f"    return {call}, _inputs, _params, initial_state, output_final_state, cu_seqlens, check, return_info)",
    ]


def _decode(layer: Layer, names: list[str]) -> list[str]:
    rec, hidden = layer.recurrence, unseen(layer.recurrence)
    given = [*(x.name for x in rec.params), *([f"{rec.inputs[0].name}.new_empty((0, {', '.join(hidden)}))"] if hidden else [])]
    return [
        "def decode(",
        *(f"    {n}," for n in names),
        "    *,",
        *(f"    {n}{_default(layer, n)}," for n in hidden),
        "    state,",
        '    backend="auto",',
        "):",
        '    """One token of each sequence: arguments and results as above without T. The states are overwritten in place.',
        "",
        "    state: as a call gives it with output_final_state=True. There is no gradient.",
        "    Raises TypeError where a state is not contiguous or not float32 (float64 for float64 arguments).",
        '    """',
        f"    _inputs = ({', '.join(x.name for x in rec.inputs)}{',' if len(rec.inputs) == 1 else ''})",
        f"    _params = ({', '.join(given)}{',' if len(given) == 1 else ''})",
        "    return _operator.decode(backend, _inputs, _params, state)",
    ]


def _default(layer: Layer, size: str) -> str:
    """The default of a size that is given by name: the text's, where it is a number."""
    known = {"depth": 0, "depths": 1, **layer.sizes}
    return f"={known[size]}" if size in known else ""


def _shape(scope: str, axes: tuple[str, ...]) -> str:
    lead = {"head": "B, T, H", "group": "B, T, G", "layer": "B, T", "sequence": "N, H"}[scope]
    return f"[{', '.join((lead, *map(ops.base, axes)))}]"


def _initial(layer: Layer) -> str:
    """The text's initial values as a function of params and per-sequence inputs."""
    rec = layer.recurrence
    outer = outer_leaves(rec, ())
    table = body_leaves(rec, outer, None)
    given = [i for i in rec.inputs if i.scope == "sequence"]
    equations = []
    table |= {ops.var(s.name, s.axes): ops.var(initial(s.name), (*state_lead(s.scope), *s.axes)) for s in rec.states}
    for s in rec.states:
        value = lift((s.init,), table)[0]
        equations.append(Equation(initial(s.name), ops.broadcast(value, (*state_lead(s.scope), *s.axes))))
    like = ops.var("@like", (BATCH, HEADS))
    names = [*(p.name for p in rec.params), *([SHOWN] if SHOWN in outer else []), *(i.name for i in given)]
    inputs = (like, *(outer[n] for n in names))
    program = Program("initial", inputs, (Map(()),), tuple(equations))
    kernel = linearise(program, {}, order_of(layer, program))
    sizes = sorted({ops.base(a) for s in rec.states for a in s.axes})
    body = print_kernel(kernel, "initial_states", ("The states before the first token. like: [N, H]; sizes of the state's axes by name.",))
    return _as_initial(body, [leaf.name for leaf in kernel.inputs], sizes)


def _as_initial(body: str, names: list[str], sizes: list[str]) -> str:
    """The printed function with the sizes of the states' axes as keywords. What states are made of has their type."""
    lines = body.split("\n")
    lines = _without_sizes(lines[1 + next(i for i, line in enumerate(lines) if line.endswith("):")) :], sizes)
    keywords = f", *, {', '.join(sizes)}" if sizes else ""
    at = next(i for i, line in enumerate(lines) if not line.strip().startswith('"""'))
    used = [n for n in names[1:] if re.search(rf"\b{n}\b", "\n".join(lines[at:]))]
    lines[at:at] = [f"    {n} = {n}.to({names[0]}.dtype)" for n in used]
    return f"def initial_states({', '.join(names)}{keywords}):\n" + "\n".join(lines)


def _without_sizes(lines: list[str], sizes: list[str]) -> list[str]:
    return [line for line in lines if not any(line.strip().startswith(f"{n} = ") and ".shape[" in line for n in sizes)]
