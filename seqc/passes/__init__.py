"""Rewrites and derivatives: pure functions from an IR to the same IR."""
