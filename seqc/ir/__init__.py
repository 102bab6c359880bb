"""Recurrence, Program and the expression language they share."""

from seqc.ir import table as table  # whatever is imported from here, the op table is full
