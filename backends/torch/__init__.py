"""Kernels -> PyTorch text."""
