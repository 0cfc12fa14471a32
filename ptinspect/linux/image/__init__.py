"""A kernel file: its container, symbols, types and entry code."""
