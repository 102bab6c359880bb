"""`seqc new`: texts to start from, one per kind of memory. Each checks and compiles as it stands."""

from __future__ import annotations

import re

NAME = re.compile(r"[a-z][a-z0-9_]*\Z", re.ASCII)

MATRIX = """seqc 1

layer NAME(heads = 4, K = 64, V = 64)
  "What the layer does, and where it comes from."

  # What the layer is given at every token, with the values that may be relied on.
  input   q[K], k[K] in unit, v[V], beta in (0, 1)
  input   g in (-inf, 0)                     # log decay

  # The memory and its value before the first token. S(z) reads it along K.
  memory  S[K, V] = 0

  # The lines below happen at every token, in this order: forget, correct, read.
  retain  S by decay(exp(g))
  learn   S by descent(rate = beta) on l2(S(k), v)
  output  o[V] = S(q)

  # How a model makes the inputs from its stream x, and the result from o.
  project x -> y
    q = l2norm(silu(conv(linear(x), 4))) / sqrt(K)
    k = l2norm(silu(conv(linear(x), 4)))
    v = silu(conv(linear(x), 4))
    beta = sigmoid(linear(x))
    g = -softplus(linear(x))
    y = linear(rmsnorm(o) * silu(linear(x)))
"""

DIAGONAL = """seqc 1

layer NAME(heads = 4, D = 64)
  "What the layer does, and where it comes from."

  # What the layer is given at every token, with the values that may be relied on.
  input   x[D]
  input   g[D] in (-inf, 0)                  # log decay, one per channel

  # The state and its value before the first token.
  state   h[D] = 0

  # The lines below happen at every token, in this order.
  update  h = exp(g) * h + (1 - exp(g)) * x
  output  o[D] = h

  # How a model makes the inputs from its stream u, and the result from o.
  project u -> y
    x = linear(u)
    g = -softplus(linear(u))
    y = linear(rmsnorm(o) * silu(linear(u)))
"""

DEEP = """seqc 1

layer NAME(heads = 4, D = 32, E = 2 * D)
  "What the layer does, and where it comes from."

  # What the layer is given at every token, with the values that may be relied on.
  input   q[D], k[D], v[D], eta in (0, 1), keep in (0, 1)

  # The memory is a small network; W1 and W2 are its state, and learned before the first token.
  memory  M(z[D]) = z + silu(z @ W1) @ W2 with W1[D, E] = learned, W2[E, D] = learned

  # The lines below happen at every token, in this order: forget, correct, read.
  retain  M by decay(keep)
  learn   M by descent(rate = eta) on l2(M(k), v)
  output  o[D] = M(q)

  # How a model makes the inputs from its stream x, and the result from o.
  project x -> y
    q = l2norm(linear(x))
    k = l2norm(linear(x))
    v = linear(x)
    eta = sigmoid(linear(x))
    keep = sigmoid(linear(x))
    y = linear(rmsnorm(o))
"""

TEXTS = {"matrix": MATRIX, "diagonal": DIAGONAL, "deep": DEEP}


def name_problem(name: str) -> str | None:
    """Why a layer cannot have this name, or None."""
    import keyword

    from seqc.frontend.check_functions import BUILT_IN_NAMES
    from seqc.frontend.check_scope import NOT_FOR_LAYERS, RESERVED
    from seqc.frontend.library import shipped_layers

    if not NAME.match(name):
        return f"`{name}` is no layer's name: write lower-case letters, digits and `_`, and begin with a letter"
    if name in RESERVED or name in BUILT_IN_NAMES or name in NOT_FOR_LAYERS or keyword.iskeyword(name) or _is_keyword(name):
        return f"`{name}` is reserved"
    if name in shipped_layers():
        return f"`{name}` comes with seqc, and two layers of one name are easily confused: choose another name, such as `my_{name}`"
    return None


def _is_keyword(name: str) -> bool:
    """Whether the language itself uses the word."""
    from seqc.frontend.grammar import load

    return name.upper() in {t.name for t in load().terminals}
