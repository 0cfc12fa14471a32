"""What is done to every string that comes from a guest or from a file."""

from __future__ import annotations


def escape(text: str) -> str:
    """Make a string from the guest or from a file safe to print: no control codes, no line breaks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
