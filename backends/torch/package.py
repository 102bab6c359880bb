"""A layer -> the files of its PyTorch package."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any

from seqc.analysis.cost import cost, state_size
from seqc.backends.torch.module import class_name, print_module
from seqc.backends.torch.package_ops import print_ops
from seqc.backends.torch.package_parts import VERSION, Triton, full_sizes, head, order_of, quoted
from seqc.backends.torch.statements import print_kernel
from seqc.emit.layer import GeneratedFile, Layer, Programs
from seqc.forms import Applies, Refuses
from seqc.forms.base import unseen
from seqc.ir.program import CHUNKS
from seqc.schedule.linear import linearise

COPIED = (
    "runtime.py", "signature.py", "packing.py", "sequence.py", "checks.py", "registration.py", "operators.py", "decoding.py", "base.py",
    "rtrl.py",
)  # fmt: skip


def emit(layer: Layer, triton: Triton | None = None) -> tuple[GeneratedFile, ...]:
    """The package: one file of kernels per form, the operator, the reference, the module, the manifest; and kernels in Triton."""
    out = [GeneratedFile(f"{p.form.name}.py", _kernels(layer, p)) for p in layer.programs.values()]
    out.append(GeneratedFile("reference.py", _reference(layer)))
    out.append(GeneratedFile("ops.py", print_ops(layer, triton)))
    out += triton.files if triton is not None else ()
    if layer.model.project is not None:
        out.append(GeneratedFile("module.py", print_module(layer.model, unseen(layer.recurrence), layer.recurrence)))
    out += [GeneratedFile(name, _copied(name)) for name in COPIED]
    out.append(GeneratedFile("__init__.py", _init(layer)))
    hashes = {f.name: hashlib.sha256(f.text.encode()).hexdigest() for f in sorted(out, key=lambda f: f.name)}
    out.append(GeneratedFile("manifest.json", json.dumps(_manifest(layer, hashes, triton), indent=2) + "\n"))
    return tuple(out)


def _copied(name: str) -> str:
    text = files("seqc.backends.torch").joinpath(name).read_text("utf-8")
    return f"# Generated with this package by seqc {VERSION}; the same in every package.\n{text}"


# --- Kernels -----------------------------------------------------------------------------------------------------------


def _kernels(layer: Layer, p: Programs) -> str:
    order = order_of(layer, p.forward)
    parts = (
        (p.forward, "forward", "The outputs and last states."),
        (p.backward, "backward", "The adjoints of all arguments, derived from `forward`."),
        (p.double_backward, "double_backward", "The adjoints of the arguments of `backward`, derived from it."),
    )
    texts = []
    for program, name, doc in parts:
        kernel = linearise(program, p.hints, order)
        texts.append(print_kernel(kernel, name, (doc,), in_place=True))
    body = "\n\n".join(texts)
    return head(layer, *p.form.notes) + _imports(body) + "\n\n" + body


def _imports(body: str, package: tuple[str, ...] = ("runtime",)) -> str:
    lines = ["import math", ""] if "math." in body else []
    lines += ["import torch", ""] if "torch." in body.replace("runtime.torch", "") else []
    used = [n for n in package if f"{n}." in body]
    lines += [f"from . import {', '.join(used)}"] if used else []
    text = "\n".join(lines).strip("\n")
    return f"\n{text}\n" if text else ""


def _reference(layer: Layer) -> str:
    """The recurrence in plain PyTorch, uncut: what the forms are checked against by whoever reads them."""
    p = layer.programs["recurrent"]
    kernel = linearise(p.lowered.program, {}, order_of(layer, p.lowered.program))
    body = print_kernel(kernel, "steps", ("One batch of sequences, token by token: [tokens, B, H, ...].",))
    first = head(layer, "The recurrence itself, differentiated by autograd: slow, and the meaning of everything else.")
    return first + _imports(body) + "\n\n" + body


# --- The rest ------------------------------------------------------------------------------------------------------------


def _init(layer: Layer) -> str:
    rec = layer.recurrence
    refused = {n: v.reason for n, v in layer.verdicts.items() if isinstance(v, Refuses)}
    forms = tuple(layer.programs)
    doc = rec.doc[0].strip('"') if rec.doc else rec.name
    lines = [head(layer, doc).rstrip("\n"), "", "import json", "from pathlib import Path", ""]
    names = ["FORMS", "MANIFEST", "REFUSED"]
    if layer.model.project is not None:
        classes = ["Layer", class_name(rec.name)]
        lines.append(f"from .module import {', '.join(sorted(classes))}")
        names += classes
    names += [rec.name, "decode", "reference"]
    lines += [f"from .ops import {', '.join(sorted([rec.name, 'decode', 'reference']))}", ""]
    lines.append(f"FORMS = ({', '.join(map(quoted, forms))}{',' if len(forms) == 1 else ''})")
    lines += ["REFUSED = {", *(f"    {quoted(n)}: {json.dumps(why)}," for n, why in refused.items()), "}"] if refused else ["REFUSED = {}"]
    lines.append('MANIFEST = json.loads(Path(__file__).with_name("manifest.json").read_text(encoding="utf-8"))')
    lines += ["", f"__all__ = [{', '.join(map(quoted, sorted(names)))}]"]
    return "\n".join(lines) + "\n"


def _manifest(layer: Layer, hashes: dict[str, str], triton: Triton | None) -> dict[str, Any]:
    rec = layer.recurrence
    sizes = full_sizes(rec, layer.sizes)
    costs = {}
    for name, p in layer.programs.items():
        chunk = (p.lowered.block or layer.options.chunk_size) if CHUNKS in p.form.axes else 1
        c = cost(p.forward, sizes, chunk)
        costs[name] = {"flops": round(c.flops), "bytes": round(c.bytes)}
    return {
        "name": rec.name,
        "doc": [d.strip('"') for d in rec.doc],
        "seqc": VERSION,
        "edition": 1,
        "digest": layer.digest,
        "spec": layer.source.text,
        "texts": {t.name: t.sha256 for t in layer.model.texts},
        "options": layer.options.model_dump(mode="json"),
        "sizes": dict(layer.sizes),
        "forms": {n: list(v.evidence) for n, v in layer.verdicts.items() if isinstance(v, Applies)},
        "refused": {n: v.reason for n, v in layer.verdicts.items() if isinstance(v, Refuses)},
        **({} if triton is None else {"triton": {"forms": list(triton.forms), "refused": dict(triton.refused)}}),
        "certificate": layer.certificate.as_json(),
        "equations": [{"line": e.span.line, "text": layer.source.line(e.span.line).strip()} for e in rec.lines],
        "state_size_per_head": state_size(rec, sizes),
        "costs_per_token_and_head": costs,
        "files": hashes,
    }


__all__ = ["Triton", "emit"]
