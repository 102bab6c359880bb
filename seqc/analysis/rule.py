"""What a row writes as a function of what it reads: any expression, with what it finds and what it is given as formal leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from seqc.analysis.chain import Rule
from seqc.ir import ops
from seqc.ir.expr import Expr, substitute, variables, walk

# A state may pass through a rule at every token, and the proof follows exponentials only as deep as a text nests them.
NESTED = ("exp", "expm1", "log", "log1p", "softplus")

if TYPE_CHECKING:
    from seqc.analysis.reader import Reader


def ruled(reader: Reader, e: Expr) -> tuple[Rule, Expr] | None:
    """A value as a rule of one read of the state along its key axes, and that read; None if it is no such function.

    A sum of the read and of what sees no state stands for the read, if the value takes nothing else from the state.
    """
    above, reads = _down_to_reads(reader, e)
    if len(reads) != 1:
        return None
    (read,) = reads
    users = [node for node in above if read in node.args]
    if len(users) == 1 and users[0].op.name in ("add", "sub") and set(users[0].axes) == set(read.axes):
        (read,) = users
    rule = _rule(reader, e, read)
    return None if rule is None else (rule, read)


def _down_to_reads(reader: Reader, e: Expr) -> tuple[list[Expr], list[Expr]]:
    """The nodes above the reads that see the state, and the reads. What a read reads is not looked into."""
    above, reads = dict[Expr, None](), dict[Expr, None]()
    ahead = [e]
    while ahead:
        node = ahead.pop()
        if node in above or node in reads or id(node) not in reader.sees:
            continue
        read = reader.read(node)
        if read is not None and not read.rest and read.over == reader.key:
            reads[node] = None
        else:
            above[node] = None
            ahead += reversed(node.args)
    return list(above), list(reads)


def _rule(reader: Reader, e: Expr, found: Expr) -> Rule | None:
    """The value over formal leaves: `r` for what is found, `p1`, `p2` ... for the largest parts that see no state."""
    table = {found: ops.var("r", found.axes)}
    for node in _given(reader, e, found):
        table[node] = ops.var(f"p{len(table)}", node.axes)
    (body,) = substitute((e,), table)
    formal = {leaf.name for leaf in table.values()}
    if any(v.name not in formal for v in variables(body)) or not set(body.axes) <= set(found.axes):
        return None
    if any(node.op.name in NESTED for node in walk(body)):
        return None
    leaves, given = tuple(table.values()), tuple(table)[1:]
    return Rule(ops.broadcast(body, found.axes), leaves, given)


def _given(reader: Reader, e: Expr, found: Expr) -> Iterator[Expr]:
    """The largest parts that see no state, are real and no numbers, each once."""
    met, ahead = {id(found)}, [e]
    while ahead:
        node = ahead.pop()
        if id(node) in met:
            continue
        met.add(id(node))
        if id(node) in reader.sees or node.type.dtype == "bool":
            ahead += reversed(node.args)
        elif variables(node):
            yield node
