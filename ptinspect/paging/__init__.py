"""Translation tables as arrays: capture, walk, summary, map, search."""
