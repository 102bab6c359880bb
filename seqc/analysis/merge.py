"""Steps as the text has them -> micro-steps: a decay joins the step that follows it, reads of one version are simultaneous."""

from __future__ import annotations

from dataclasses import replace

from seqc.analysis.chain import MicroStep, Raw, Refusal, Row, Version, halves
from seqc.ir import ops
from seqc.ir.expr import Expr


class Merger:
    """Merges the steps of one state. `needed` are the versions of it that something else reads."""

    def __init__(self, state: Expr, key: tuple[str, ...], value: tuple[str, ...], needed: set[int]):
        self.state, self.key, self.value, self.needed = state, key, value, needed

    def merge(self, raw: list[Raw]) -> tuple[list[MicroStep], dict[Expr, Version]]:
        """Raw steps as micro-steps: a decay joins the step that follows it, steps that read one version are simultaneous."""
        steps: list[MicroStep] = []
        start = self.state  # the node that the last micro-step starts from
        boundary: dict[Expr, int] = {self.state: 0}
        decayed: dict[Expr, Version] = {}
        for s in raw:
            read = {id(v) for _, _, reads, _ in s.rows for _, v in reads}
            if steps and self._joins(steps[-1], start, s, read, decayed):
                boundary.pop(s.base, None)
                steps[-1] = self._join(steps[-1], start, s)
            elif read <= {id(s.base)}:
                start = s.base
                steps.append(MicroStep(s.decay, tuple(self._rows(s, None))))
            else:
                raise Refusal(f"one update reads `{self.state.name}` at several lines", s.result)
            boundary[s.result] = len(steps)
            if not s.rows and s.base in boundary:
                decayed[s.result] = Version(boundary[s.base], s.decay)
        versions = {**decayed, **{e: Version(n, None) for e, n in boundary.items()}}
        return steps, versions

    def _joins(self, last: MicroStep, start: Expr, s: Raw, read: set[int], decayed: dict[Expr, Version]) -> bool:
        """Whether a step can be part of the micro-step before it: nothing else reads the state between the two."""
        if id(s.base) in self.needed and s.base not in decayed:
            return False
        if self._by_value(s.decay) and any(r.read is not None for r in last.rows):
            return False  # what is erased would shrink differently along the value axes
        if read <= {id(start)}:
            return True
        return not last.rows and s.decay is None and read <= {id(s.base)} and not self._by_value(last.decay)

    def _by_value(self, decay: Expr | None) -> bool:
        return decay is not None and bool(set(decay.axes) & set(self.value))

    def _join(self, last: MicroStep, start: Expr, s: Raw) -> MicroStep:
        scale = s.decay
        rows = tuple(self._decayed(r, scale) for r in last.rows) if scale is not None else last.rows
        decay = last.decay if scale is None else scale if last.decay is None else ops.mul(last.decay, scale)
        after = {id(v) for _, _, reads, _ in s.rows for _, v in reads}
        through = last.decay if after and after != {id(start)} else None
        return MicroStep(decay, (*rows, *self._rows(s, through)))

    def _decayed(self, row: Row, scale: Expr) -> Row:
        on_key, on_value = halves(scale, self.key, self.value)
        if on_value is not None:
            row = replace(row, value=ops.mul(on_value, row.value if row.value is not None else ops.number(1)))
        return row if on_key is None else replace(row, write=ops.mul(on_key, row.write))

    def _rows(self, s: Raw, through: Expr | None) -> list[Row]:
        """Rows with all their reads against the micro-step's first state, through a decay if they came after it."""
        out = []
        for write, value, reads, rule in s.rows:
            total: Expr | None = None
            for query, _ in reads:
                query = query if through is None else ops.mul(through, query)
                total = query if total is None else ops.add(total, query)
            out.append(Row(write, value, None if total is None else ops.neg(total), rule))
        return out
