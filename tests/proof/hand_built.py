"""Recurrences written as expressions, one for each way in which a state may change: what the proof is tried on."""

from __future__ import annotations

from collections.abc import Mapping

from seqc.forms import Lowered
from seqc.forms.chunkwise import CHUNKWISE
from seqc.forms.recurrent import RECURRENT
from seqc.ir import ops
from seqc.ir.expr import Expr
from seqc.ir.model import Domain, Init, Input, Param, Scope
from seqc.ir.ops import contract, var
from seqc.ir.recurrence import Output, Recurrence, State
from seqc.source import Source, Span

SIZES = {"K": 3, "V": 4, "n": 2}
HERE = Span(Source("hand_built", "x"), 0, 1)
KV = ("K", "V")
ANY, LOG = Domain(), Domain(high=0)

q, k, v, e = var("q", ("K",)), var("k", ("K",)), var("v", ("V",)), var("e", ("K",))
g, beta, S = var("g"), var("beta"), var("S", KV)
by_key, by_value = var("g", ("K",)), var("g", ("V",))
keys, values, rates = var("k", ("n", "K")), var("v", ("n", "V")), var("beta", ("n",))


def state(name: str, axes: tuple[str, ...], after: Expr, scope: Scope = "head") -> State:
    return State(name, axes, scope, "real", ops.broadcast(ops.number(0), axes), after, "declared", HERE)


def given(name: str, axes: tuple[str, ...] = (), domain: Domain = ANY, scope: Scope = "head") -> Input:
    return Input(name, axes, scope, "real", domain, HERE)


def recurrence(name: str, inputs: list[Input], states: list[State], output: Expr, params: tuple[Param, ...] = ()) -> Recurrence:
    outputs = (Output("o", output.axes, output, HERE),)
    return Recurrence(name, (), (), (("n", 2),), tuple(inputs), params, tuple(states), outputs, (), (), HERE)


def read(X: Expr, key: Expr = q) -> Expr:
    return contract((key, X), ("V",))


def erased(X: Expr, rate: Expr, key: Expr, value: Expr) -> Expr:
    """X - rate k (k X - v)"""
    return ops.sub(X, ops.mul(rate, contract((key, ops.sub(read(X, key), value)), KV)))


def decayed(by: Expr, X: Expr = S) -> Expr:
    return ops.mul(ops.exp(by), X)


def written(X: Expr) -> Expr:
    return ops.add(X, contract((k, v), KV))


QKV = [given("q", ("K",)), given("k", ("K",)), given("v", ("V",))]
SHARED = [given("q", ("K",), scope="group"), given("k", ("K",)), given("v", ("V",), scope="layer")]
PAIRS = [given("q", ("K",)), given("k", ("n", "K")), given("v", ("n", "V")), given("beta", ("n",)), given("g", (), LOG)]


def in_turn() -> Expr:
    X = decayed(g)
    for i in range(2):
        X = erased(X, ops.select(rates, "n", i), ops.select(keys, "n", i), ops.select(values, "n", i))
    return X


def at_once() -> Expr:
    step = contract((keys, rates, ops.sub(contract((keys, S), ("n", "V")), values)), KV)
    return ops.sub(decayed(g), step)


def in_series() -> tuple[State, State, Expr]:
    """A second memory, keyed by what is read from the first."""
    M, X = var("M", ("V", "V'")), written(S)
    seen = ops.rename(ops.unary("tanh", read(X, k)), {"V": "V'"})
    after = ops.add(decayed(g, M), contract((v, seen), ("V", "V'")))
    output = ops.rename(contract((read(X), after), ("V'",)), {"V'": "V"})
    return state("S", KV, X), state("M", ("V", "V'"), after), output


def built() -> dict[str, Recurrence]:
    """Every recurrence by name, both forms of which apply."""
    log_g, log_K, log_V, rate = given("g", (), LOG), given("g", ("K",), LOG), given("g", ("V",), LOG), given("beta")
    X, Y, Z = erased(decayed(g), beta, k, v), erased(decayed(by_key), beta, k, v), written(decayed(by_key))
    first, second, series = in_series()
    after = ops.add(var("z", ("K",)), k)
    both = written(ops.sub(decayed(by_key), contract((ops.mul(var("a", ("K",)), e), read(S, e)), KV)))
    apart = [*QKV, given("e", ("K",)), given("a", ("K",)), log_K]
    h = ops.add(decayed(by_value, var("h", ("V",))), v)
    gain = Param("gain", ("V",), "head", Init(ops.number(1)), HERE)
    keep = ops.unary("sigmoid", ops.mul(var("gain", ("V",)), var("x", ("V",))))
    slow = ops.add(ops.mul(keep, var("h", ("V",))), v)
    between = ops.add(read(decayed(g)), read(S, k))
    all_of = (
        recurrence("scalar decay, erase", [*QKV, rate, log_g], [state("S", KV, X)], read(X)),
        recurrence("key decay, erase, shared", [*SHARED, rate, log_K], [state("S", KV, Y)], read(Y)),
        recurrence("key decay", [*QKV, log_K], [state("S", KV, Z)], read(Z)),
        recurrence("value decay, read before", [*QKV, log_V], [state("S", KV, written(decayed(by_value)))], read(S)),
        recurrence("erases in turn", PAIRS, [state("S", KV, in_turn())], read(in_turn())),
        recurrence("erases at once", PAIRS, [state("S", KV, at_once())], read(at_once())),
        recurrence("erase apart from write", apart, [state("S", KV, both)], read(both)),
        recurrence("ratio", QKV, [state("S", KV, written(S)), state("z", ("K",), after)],
                   ops.div(read(written(S)), ops.add(contract((q, after), ()), ops.number(30)))),
        recurrence("series", [*QKV, log_g], [first, second], series),
        recurrence("vector", [given("q", ("V",)), given("v", ("V",)), log_V], [state("h", ("V",), h)], ops.mul(var("q", ("V",)), h)),
        recurrence("sigmoid decay", [given("x", ("V",)), given("v", ("V",))], [state("h", ("V",), slow)], slow, (gain,)),
        recurrence("read between", [*QKV, rate, log_g], [state("S", KV, X)], between),
    )  # fmt: skip
    return {r.name: r for r in all_of}


RECURRENCES = built()


def lowered(rec: Recurrence, sizes: Mapping[str, int] = SIZES) -> dict[str, Lowered]:
    return {form.name: form.lower(rec, sizes) for form in (RECURRENT, CHUNKWISE)}
