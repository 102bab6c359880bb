"""A compilation's outcome -> the lines that a user reads."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path

from seqc.backends.torch.module import class_name
from seqc.ir.model import Model
from seqc.proof.certificate import Certificate


def import_line(path: Path, model: Model) -> str:
    """How a package, or the file without its suffix, is imported: from the current folder where its path can be written as a module's."""
    names = model.name if model.project is None else f"{model.name}, {class_name(model.name)}"
    dotted = ".".join(path.parts)
    if not path.is_absolute() and all(part.isidentifier() for part in path.parts):
        return f"from {dotted} import {names}"
    return f"from {path.name} import {names}    # with {path.parent} on sys.path"


def certificate_line(c: Certificate) -> str:
    """A certificate that is ok, in one line."""
    sides = f"; choices met on one side only: {len(c.one_sided)}, which `seqc prove` lists" if c.one_sided else ""
    return f"proved: {_listed(c.forms)}, with {_also(c)}, at {c.points} points of a prime field; {_chance(c)}{sides}"


def certificate_page(c: Certificate) -> Iterator[str]:
    """A certificate that is ok, in full."""
    yield f"{c.name}: {_listed(c.forms)} {'is' if len(c.forms) == 1 else 'are'} equal to the recurrence"
    yield f"  compared    {', '.join(c.stages)}"
    yield f"  points      {c.points} random points of a prime field, first states too, at each of {len(c.sizes)} sizes, without tolerance"
    for sizes in c.sizes:
        yield f"  sizes       {', '.join(f'{name} = {n}' for name, n in sizes)}"
    if len(c.sizes) > 1:  # some form has chunks
        yield f"  tokens      a chunk {_lengths(c)}"
    for fact in c.facts:
        yield f"  fact        {_listed(tuple(f'`{n}`' for n in fact.states))}: {fact.words}"
    for one in c.one_sided:
        yield f"  one side    {one}"
    if c.oracles:
        yield f"  functions   {c.oracles} values per token pass through functions that a field does not have: any function in their place"
    yield f"  error       {_chance(c)}"
    yield f"  seed        {c.seed[:16]} (the hash of the content)"


def certificate_said(c: Certificate) -> Iterator[str]:
    """Why a certificate is not ok."""
    for fact in (f for f in c.facts if not f.holds):
        yield f"error: {fact}"
    for failure in c.failures:
        yield f"error: {failure}"
    for gap in c.gaps:
        yield f"error: `{gap.form}` could not be examined: {gap.reason}"
    if not c.failures and not c.gaps and all(f.holds for f in c.facts):
        yield "error: no form was examined"
    yield f"`{c.name}` is not proved."


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "nothing"


def _lengths(c: Certificate) -> str:
    """How the lengths of sequences lie to chunks."""
    pairs = {(n, dict(s)["chunk"]) for s in c.sizes for name, n in s if name in ("tokens", "shortest")}
    kinds = {
        "divides": sorted({n for n, chunk in pairs if not n % chunk}),
        "does not divide": sorted({n for n, chunk in pairs if n % chunk and n > chunk}),
        "is longer than": sorted({n for n, chunk in pairs if n < chunk}),
    }
    said = tuple(f"{words} {_listed(tuple(map(str, lengths)))}" for words, lengths in kinds.items() if lengths)
    return _listed(said)


def _also(c: Certificate) -> str:
    return "first and second gradients" if any("second" in s for s in c.stages) else "gradients" if len(c.stages) > 1 else "outputs"


def _chance(c: Certificate) -> str:
    return f"the points hide a difference with a chance below 2^{ceil(c.log2_error)}"
