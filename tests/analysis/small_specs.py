"""Short texts about one memory S[K, V] and how to read them."""

from __future__ import annotations

import re

from seqc.compiler import Checked, check_source
from seqc.source import Source

SIZES = ("K = 4", "V = 3", "n = 2")


def layer(body: str) -> Checked:
    """A layer with the sizes that its body names. `MEMORY` stands for the usual inputs and the memory, `READ` for its output."""
    lines = body.strip().replace("MEMORY", "input q[K], k[K], v[V]\n  memory S[K, V] = 0").replace("READ", "output o[V] = S(q)").split("\n")
    text = "\n".join(f"  {line.strip()}" if line.strip() not in ("end",) else "  end" for line in lines)
    used = [s for s in SIZES if re.search(rf"\b{s[0]}\b", text)]
    return check_source(Source("small.seq", f"seqc 1\n\nlayer small({', '.join(used)})\n\n{text}\n"))
