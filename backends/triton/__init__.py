"""Triton kernels beside the PyTorch ones: from Programs to text."""
