"""What a proof says: which forms it covers, at which sizes, with what chance of error, and what it does not cover."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Failure:
    """A form that differs from the recurrence: in which stage, in which output, and the smallest sizes that show it."""

    form: str
    stage: str
    output: str
    sizes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        sizes = ", ".join(f"{name}={n}" for name, n in self.sizes)
        return f"`{self.form}` differs in `{self.output}` ({self.stage}) at {sizes}"


@dataclass(frozen=True)
class Gap:
    """What could not be examined, and why."""

    form: str
    reason: str


@dataclass(frozen=True)
class Fact:
    """What the analysis says of the next values of `states`, declared in `line`, and whether the step itself agrees."""

    states: tuple[str, ...]
    words: str
    line: int
    holds: bool

    def __str__(self) -> str:
        names = ", ".join(f"`{n}`" for n in self.states)
        return f"the step of {names} (line {self.line}) is taken to be {self.words}, and is not"


@dataclass(frozen=True)
class OneSided:
    """What the text, in `line`, chooses by and comes out in one way at all points, so that what it chooses otherwise is not examined."""

    condition: str
    always: bool
    line: int

    def __str__(self) -> str:
        found = "true" if self.always else "false"
        return f"`{self.condition}` (line {self.line}) is {found} at all points; the other side is not examined"


@dataclass(frozen=True)
class Certificate:
    """The outcome of a proof. Equal inputs and seeds give equal certificates.

    forms: those proved. sizes: of every trial. oracles: nodes of one token's step that stand for a random function.
    log2_error: of the bound on the chance that the points hide a difference. facts: of the analysis, on which forms rely.
    one_sided: choices of the text of which only one side was met.
    """

    name: str
    seed: str
    points: int
    forms: tuple[str, ...]
    stages: tuple[str, ...]
    sizes: tuple[tuple[tuple[str, int], ...], ...]
    oracles: int
    log2_error: float
    gaps: tuple[Gap, ...]
    failures: tuple[Failure, ...]
    facts: tuple[Fact, ...] = ()
    one_sided: tuple[OneSided, ...] = ()

    @property
    def ok(self) -> bool:
        """Everything was examined and agrees."""
        return bool(self.forms) and not self.gaps and not self.failures and all(f.holds for f in self.facts)

    def as_json(self) -> dict[str, Any]:
        """The certificate as plain data."""
        data = asdict(self)
        data["sizes"] = [dict(s) for s in self.sizes]
        data["failures"] = [{**asdict(f), "sizes": dict(f.sizes)} for f in self.failures]
        data["one_sided"] = [asdict(x) for x in self.one_sided]
        data["facts"] = [{**asdict(f), "states": list(f.states)} for f in self.facts]
        return {"ok": self.ok, **data, "forms": list(self.forms), "stages": list(self.stages), "gaps": [asdict(g) for g in self.gaps]}
