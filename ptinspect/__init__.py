"""Look at, snapshot and diff the translation tables and kernel stacks of an arm64 Linux guest."""

__version__ = "0.1.0"
