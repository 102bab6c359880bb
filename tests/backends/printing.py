"""One expression through the scheduler and the printer, executed, beside the interpreter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from seqc.backends.torch import runtime
from seqc.backends.torch.reuse import is_fresh
from seqc.backends.torch.statements import print_kernel
from seqc.ir.execute import execute
from seqc.ir.expr import Expr, variables, walk
from seqc.ir.interp import Reals
from seqc.ir.ops import base, var
from seqc.ir.program import LEAD, TOKENS, Equation, Map, Program
from seqc.ir.rules import extent
from seqc.schedule.linear import linearise

Array = np.ndarray
NAMED = ("K", "V", "J", "P", "2", "K*V", "V*K")
ORDERS: tuple[tuple[str, ...], ...] = (NAMED, ("V", "P", "K", "2", "J", "V*K", "K*V"), ("2", "J", "V*K", "K*V", "P", "V", "K"))


def like(e: Expr) -> Expr:
    """A leaf that shows the length of every axis below an expression: what other inputs of a kernel would show."""
    axes = {base(a) for node in walk(e) for a in node.axes} | {str(n.attr) for n in walk(e) if n.op.name == "size"}
    axes |= {p for n in walk(e) if n.op.name == "piece" for p in n.attr[1]}  # type: ignore[index, union-attr, misc]
    axes |= {part for a in axes for part in a.split("*")}
    axes = {TOKENS if a[0] == "@" and a[1] in "rsmt" else a for a in axes}  # rows are counted by tokens
    return var("like", sorted(a for a in axes if "*" not in a and not a.isdigit()))


def source(e: Expr, named: Sequence[str], widths: tuple[tuple[str, str, int], ...]) -> tuple[str, Program, tuple[str, ...]]:
    """The text of a function that computes e, its program, and the order of axes in memory."""
    order = (*LEAD, TOKENS, *(a for a, _, _ in widths), *named)
    leaf = var("made", e.axes, e.type.dtype)
    program = Program(
        "one",
        (like(e), *(v for v in variables(e) if v.name != "like")),
        (Map((Equation("made", e),)),),
        (Equation("made_out", leaf),),
        widths,
    )
    return print_kernel(linearise(program, {}, order), "compute", ("One value.",)), program, order


def compare(e: Expr, given: Mapping[str, Array], sizes: Mapping[str, int], named: Sequence[str] = NAMED, tolerance: float = 1e-12) -> str:
    """Asserts that the printed function gives the interpreter's value, finite and in the declared layout. Returns the text.

    What may be written over, by its op, lies in memory of its own.
    """
    widths = tuple(
        (a, TOKENS, n)
        for a, n in (("@r", 1), ("@s", 1), ("@m", 1), ("@r6", 2), ("@s6", 2), ("@s9", 3))
        if any(a in n.axes for n in walk(e))
    )
    text, program, _ = source(e, named, widths)
    values = {
        **given,
        "like": np.zeros([extent({**sizes, **{a: sizes[TOKENS] * n for a, _, n in widths}}, a) for a in program.inputs[0].axes]),
    }
    with np.errstate(all="ignore"):
        want = execute(program, Reals, values, sizes)["made_out"]
    space: dict[str, object] = {"torch": torch, "runtime": runtime, "math": math}
    exec(compile(text, "<kernel>", "exec"), space)
    tensors = [torch.from_numpy(np.array(values[v.name], order="C")) for v in program.inputs]
    (found,) = space["compute"](*tensors)  # type: ignore[operator]
    shape = list(np.shape(want))
    wanted = np.asarray(want)
    assert tuple(found.shape) == tuple(shape), (found.shape, shape, text)
    np.testing.assert_allclose(found.resolve_conj().numpy(), wanted, rtol=tolerance, atol=tolerance, err_msg=text)
    if is_fresh(e):
        held = {x.untyped_storage().data_ptr() for x in tensors}
        repeated = any(n > 1 and step == 0 for n, step in zip(found.shape, found.stride(), strict=True))
        assert found.untyped_storage().data_ptr() not in held and not repeated, f"others see this memory\n{text}"
    return text
