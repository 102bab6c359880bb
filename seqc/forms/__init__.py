"""Recurrence -> Program, one file per form."""
