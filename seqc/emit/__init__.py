"""Texts -> a package on disk."""
