"""What is done to strings: those that come from a guest or from a file, and those that are misspelt."""

from __future__ import annotations

from collections.abc import Iterable


def escape(text: str) -> str:
    """Make a string from the guest or from a file safe to print: no control codes, no line breaks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, one: str, several: str = "") -> str:
    """Return a number with what is counted: `1 change`, `2 changes`, or `several` if that ends otherwise."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def similar(word: str, known: Iterable[str], most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the known words that may have been meant by one that is not known, the likeliest first."""
    from difflib import get_close_matches  # it takes longer to import than all that is done at most starts

    return get_close_matches(word, list(known), most, cutoff)
