"""Compiles the Triton kernels of every layer for GPUs that are not there, and tables what they need.

    python examples/compile_kernels.py                        all layers, all targets, K = V = 64, 128, 256: hours
    python examples/compile_kernels.py gla --target sm_90     some of it
    python examples/compile_kernels.py --records FILE.jsonl   a line for each form; of the same kernels it is read there

Every form that has kernels, forward and backward, in bfloat16, at the default length of chunks. A layer with sizes K and V has them at
64, 128 and 256, but its own K where features grow as the square of K; recurrent cells have heads of 16, 64 and 128; other layers have
their own sizes, memories that are networks an inner size of at most 64. Registers and stack (bytes that a thread spills) are the largest
of a form's kernels, shared memory is the largest of a block. A kernel that does not compile, or needs more shared memory than a block of
the target has, is shown as failed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import seqc
from seqc.backends.triton.targets import TARGETS
from seqc.diagnostics import SpecError
from seqc.inspection import Call, inspected
from seqc.options import Options
from seqc.terminal import Terminal

SPECS = Path(__file__).parents[1] / "specs"
SIZES = (64, 128, 256)
CELLS = (16, 64, 128)
INNER = 64  # of memories that are networks
FRESH = 40  # forms after which a process makes room for another: the compiler does not give its memory back
HOW = ("plan", "LARGEST", "LINES", "WAYS", "INSTEAD", "Asked", "chosen", "fits", "spilled", "exact", "most_warps", "MISCOMPILED")
WORD = re.compile(r"\w+")
HEAD = "| layer | form | sizes | target | kernels | registers | stack (kernels) | shared |\n|---|---|---|---|---|---|---|---|"


def asked(name: str) -> list[dict[str, int]]:
    """The sizes at which a layer is compiled."""
    own = {s.name: s.formula or "" for s in seqc.check(name).model.sizes}
    squares = any("K^2" in formula for formula in own.values())  # features that a memory of 256 keys has 65,793 of: K stays as it is
    keys = [n for n in ("K", "V") if n in own and own[n] != "K" and not (n == "K" and squares)]
    if keys:
        return [dict.fromkeys(keys, n) for n in SIZES]
    if own.get("N") == "model / heads":
        return [{"N": n} for n in CELLS]
    return [{"E": INNER} if own.get("E", "").endswith("* D") else {}]


def forms_of(name: str) -> dict[str, str]:
    """The forms with kernels, and a digest of what decides how each one's are compiled: their text, the functions of tiles that they call,
    and how lengths of blocks, stages and warps are found."""
    package = seqc.load(name, backend="triton")
    there = Path(package.__file__).parent
    tiles, launching = (parts((there / f"triton_{module}.py").read_text()) for module in ("tiles", "launching"))
    found = {}
    for form in package.MANIFEST["triton"]["forms"]:
        kernels = [part for part in parts((there / f"triton_{form}.py").read_text()).values() if part.startswith(("@triton.jit", "_"))]
        text = "".join([*(launching[x] for x in HOW), *kernels])
        found[form] = sha256("".join([text, *called(text, tiles)]).encode()).hexdigest()[:16]
    return found


def parts(text: str) -> dict[str, str]:
    """What a module defines, by name."""
    found = {}
    for node in ast.parse(text).body:
        targets = [n for t in node.targets for n in ast.walk(t)] if isinstance(node, ast.Assign) else []
        names = [t.id for t in targets if isinstance(t, ast.Name)] or [getattr(node, "name", "")]
        found |= dict.fromkeys(names, ast.unparse(node))
    return found


def called(text: str, tiles: dict[str, str]) -> list[str]:
    """The definitions whose names a text, or a definition that it needs, contains."""
    found: dict[str, str] = {}
    texts = [text]
    while texts:
        new = {n: tiles[n] for n in WORD.findall(texts.pop()) if n in tiles and n not in found}
        found |= new
        texts += new.values()
    return [found[n] for n in sorted(found)]


def compiled(one: dict[str, Any]) -> dict[str, Any]:
    """What the kernels of one form need."""
    began, found, name, sizes = time.monotonic(), one, one["layer"], one["sizes"]
    options = Options(sizes=tuple(sizes.items()), backend="triton")
    try:
        checked = seqc.check(name, sizes=sizes)
        said = inspected(Terminal("inspect", json=True, color="never"), name, checked, options, Call(one["target"], one["form"]))
    except Exception as error:  # whatever it is, it is what the table shows, and hours of others follow
        reason = error.diagnostics[0].message if isinstance(error, SpecError) else f"{type(error).__name__}: {error}"
        return {**found, "failed": reason.split("\n")[0][:200], "seconds": round(time.monotonic() - began, 1)}
    kernels = [k for k in said.kernels if k.kind == "triton"]
    beyond = [k.name for k in kernels if not k.fits]
    numbers = {what: max(getattr(k, what) or 0 for k in kernels) for what in ("registers", "stack", "shared")}
    spilling = len({k.name for k in kernels if k.stack})
    failed = {"failed": f"{', '.join(beyond)}: {numbers['shared']} bytes of shared memory"} if beyond else {}
    return {**found, **numbers, "kernels": len({k.name for k in kernels}), "spilling": spilling, **failed,
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def key(record: dict[str, Any]) -> str:
    return json.dumps([record[x] for x in ("layer", "form", "target", "sizes")])


def every(layers: list[str], targets: list[str]) -> Iterator[dict[str, Any]]:
    forms = [(name, form, digest) for name in layers for form, digest in forms_of(name).items()]
    for target in targets:
        for name, form, digest in forms:
            for sizes in asked(name):
                yield {"layer": name, "form": form, "target": target, "sizes": sizes, "digest": digest}


def shown(record: dict[str, Any]) -> str:
    sizes = ", ".join(f"{a} = {n}" for a, n in record["sizes"].items())
    head = f"| {record['layer']} | {record['form']} | {sizes} | {record['target']} |"
    if "kernels" not in record:
        return f"{head} | | | | failed: {record['failed']} |"
    spills = f"{record['stack']} ({record['spilling']})" if record["stack"] else "0"
    numbers = f"{record['kernels']} | {record['registers']} | {spills} | {record['shared'] // 1024} KiB"
    return f"{head} {numbers} |{' failed: ' + record['failed'] + ' |' if 'failed' in record else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", metavar="LAYER")
    parser.add_argument("--target", action="append", choices=tuple(TARGETS))
    parser.add_argument("--records", type=Path, help="a file of results: of the same kernels they are read there, others are added")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    layers = options.layers or sorted(p.stem for p in SPECS.glob("*.seq"))
    there: dict[str, dict[str, Any]] = {}
    if options.records and options.records.exists():
        there = {key(r): r for r in map(json.loads, options.records.read_text().splitlines())}
    asked_for = list(every(layers, options.target or list(TARGETS)))
    missing = [one for one in asked_for if there.get(key(one), {}).get("digest") != one["digest"]]
    with get_context("spawn").Pool(options.jobs, maxtasksperchild=FRESH) as pool:
        for record in pool.imap_unordered(compiled, missing):
            there[key(record)] = record
            print(*(record[x] for x in ("layer", "form", "target", "sizes", "seconds")), file=sys.stderr, flush=True)
            if options.records:
                with options.records.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    if options.records:  # one line for each, where kernels that changed had two
        options.records.write_text("".join(json.dumps(there[k]) + "\n" for k in sorted(there)))
    records = [there[key(one)] for one in asked_for]
    failed = sum("failed" in r for r in records)
    print("\n".join([HEAD, *map(shown, records), "", f"{failed} of {len(records)} failed."]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
