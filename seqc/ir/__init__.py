"""Recurrence, Program and the expression language they share."""
