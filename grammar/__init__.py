"""The language: seq.lark, its messages for syntax errors, and its reference."""
