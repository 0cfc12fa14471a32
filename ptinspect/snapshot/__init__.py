"""Snapshots of translation tables: the model, files, and diffs."""
