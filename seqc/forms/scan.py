"""Recurrence -> Program with an associative scan: chunks side by side from zero, then from chunk to chunk, then both together.

Inside a chunk, token by token and all chunks at once, two things are carried: the states that start from zero, and what the
chunk's first states are multiplied with (the transitions composed). A chunk's end of both is its summary; a Carry over chunks
composes the summaries; then every token's state is what it is from zero plus what the chunk's first state contributes:

    h_t = A_t h_(t-1) + b_t        local: l_t = A_t l_(t-1) + b_t,  P_t = A_t P_(t-1)        h_t = l_t + P_t h_start

A_t is elementwise, couples several states (momentum, the parts of a complex number) or mixes a small axis. States that are folded
by another associative operator are joined in the same two levels (`seqc.forms.monoid`).
The two levels are those of Blelloch 1990, Prefix sums and their applications; for linear recurrences Martin & Cundy 2018,
arXiv:1709.04057.
"""

from __future__ import annotations

from collections.abc import Mapping

from seqc.analysis.chain import Refusal
from seqc.analysis.monoid import parts
from seqc.analysis.structure import in_normal_form, span_of
from seqc.forms import recurrent
from seqc.forms.base import Applies, Form, Lowered, Refuses
from seqc.forms.groups import add, words
from seqc.forms.series import Series
from seqc.ir.program import CHUNKS, TOKENS, Program
from seqc.ir.recurrence import Recurrence


def applies(rec: Recurrence, sizes: Mapping[str, int]) -> Applies | Refuses:
    """Every group of states affine in itself, mixing no more than a small axis, or folded by an associative operator."""
    verdict = recurrent.regrouped(rec, sizes)
    if isinstance(verdict, Refuses):
        return verdict
    block = next((s for s in rec.states if s.clock.every is not None), None)
    if block is not None:  # a call may begin inside a block, where this form's chunks do not
        return Refuses(f"`{block.name}` changes only every {block.clock.every} tokens", block.span)
    matrix = next((s for s in rec.states if len(s.axes) > 1 and s.role not in ("hidden", "stabiliser")), None)
    if matrix is not None and in_normal_form(rec, sizes):
        return Refuses(f"it would write out `{matrix.name}` at every token, which the `chunkwise` form does not", matrix.span)
    try:
        evidence = [words(rec, c, sizes) for c in parts(rec, sizes)]
        if not evidence:
            return Refuses("the layer carries no state", rec.span)
        lower(rec, sizes)
    except Refusal as r:
        return Refuses(r.reason, span_of(rec, r.cause, rec.span), r.helps)
    return Applies(tuple(evidence))


def lower(rec: Recurrence, sizes: Mapping[str, int]) -> Lowered:
    """Every group of states in turn."""
    series = Series(rec, sizes)
    for c in parts(rec, sizes):
        add(series, c)
    outputs = series.outputs()
    return Lowered(Program("scan", series.inputs, tuple(series.stages), outputs), {})


NOTES = (
    "The scan form: inside each chunk from zero, all chunks at once; then from chunk to chunk; then both together.",
    "Values lie as [tokens, chunks, B, H, ...]. With h_t = A_t h_(t-1) + b_t a chunk carries l_t = A_t l_(t-1) + b_t from 0 and",
    "P_t = A_t P_(t-1) from 1, and h_t = l_t + P_t h_start.",
)

SCAN = Form("scan", applies, lower, (CHUNKS, TOKENS), NOTES, written=True)

