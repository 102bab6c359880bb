"""The table of backends."""
