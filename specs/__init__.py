"""The shipped library: layers, objectives, retentions, algorithms, functions."""
