"""Which values a statement may write over: results in memory of their own that nothing reads any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from seqc.ir.expr import Expr, variables
from seqc.ir.kernel import Assign, Repeat, Statement

# Ops whose result is a tensor of its own. What the others give may share memory with what they read.
ELEMENTWISE = ("add", "sub", "mul", "div", "neg", "power", "maximum", "modulo", "where")
FUNCTIONS = (
    "exp", "log", "sqrt", "abs", "sign", "sin", "cos", "tanh", "sigmoid", "softplus", "relu", "erf", "expm1", "log1p", "floor", "ceil",
)  # fmt: skip
MATRICES = ("masked", "unit_lower_inverse", "decay", "decayed", "decayed_solve", "strict_solve", "solve", "cumsum", "shift", "place")
FRESH = frozenset((*ELEMENTWISE, *FUNCTIONS, *MATRICES, "stack", "concat", "collect", "max_over"))


def is_fresh(e: Expr) -> bool:
    """Whether an expression makes a tensor that shares no memory with another."""
    if e.op.name == "contract":
        return len(e.args) > 1 or set(e.axes) != set(e.args[0].axes)
    return e.op.name in FRESH


def reads(s: Statement) -> set[str]:
    """The names that a statement reads."""
    if isinstance(s, Assign):
        return {n.name for n in variables(s.value)}
    if isinstance(s, Repeat):
        ends = (leaf for x in s.found for leaf in (x.leaf, x.first, x.residual, x.step))
        return {n.name for n in variables(*ends)}.union(*map(reads, s.body))
    own = {n.name for n in variables(*(first for _, first, _, _ in s.carried), *(a.value for a in s.body))}
    return own | {leaf.name for leaf, _ in s.sliced} | {new for _, _, new, _ in s.carried}


def gives(s: Statement) -> list[str]:
    """The names that later statements may read."""
    if isinstance(s, Assign):
        return [s.name]
    if isinstance(s, Repeat):
        return [*(x.leaf.name for x in s.found), *(name for inner in s.body for name in gives(inner))]
    return [end for _, _, _, end in s.carried] + [leaf.name for leaf, _ in s.stacked]


def spent(body: Sequence[Statement], kept: Collection[str]) -> list[frozenset[str]]:
    """For each statement the values that it reads last and that no other name may share memory with; `kept` is read afterwards.

    Only what one of these statements has made counts: the rest belongs to others.
    """
    seen = [reads(s) for s in body]
    last = {name: i for i, names in enumerate(seen) for name in names} | dict.fromkeys(kept, len(body))
    sharers: dict[str, set[str]] = {}  # by the name of a value: the names that may share its memory
    for s, here in zip(body, seen, strict=True):
        if isinstance(s, Assign) and is_fresh(s.value):
            sharers[s.name] = {s.name}
            continue
        for names in sharers.values():
            if names & here:
                names.update(gives(s))
    found = []
    for i, here in enumerate(seen):
        mine = [x for x in here if x in sharers and last[x] == i]
        found.append(frozenset(x for x in mine if all(last.get(name, -1) < i for name in sharers[x] - {x})))
    return found


def occurrences(e: Expr, names: Iterable[str]) -> dict[str, int]:
    """How often each name stands in an expression when it is written out."""
    count = dict.fromkeys(names, 0)

    def visit(node: Expr) -> None:
        if node.op.name == "var" and node.name in count:
            count[node.name] += 1
        for a in node.args:
            visit(a)

    if count:
        visit(e)
    return count
