"""Pieces of the text of expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable


def atom(text: str) -> str:
    """The text, in parentheses unless it is a name, a number or one call."""
    return text if re.fullmatch(r"[\w.]+(\(.*\))?", text) and _closed(text) else f"({text})"


def product(factors: Iterable[str]) -> str:
    return " * ".join(atom(f) for f in factors)


def _closed(text: str) -> bool:
    """Whether a call is one: its first parenthesis closes at the end."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and c == ")" and i < len(text) - 1:
            return False
    return True
