"""Proof that two programs are the same function, over a prime field."""
