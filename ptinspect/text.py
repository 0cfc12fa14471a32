"""What is done to strings: those that come from a guest or from a file, and those that are misspelt."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property


def holds(text: str, words: Iterable[str]) -> bool:
    """Tell whether a text holds one of these words."""
    for word in words:  # noqa: SIM110 (any() takes three times as long)
        if word in text:
            return True
    return False


class Pattern:
    """A regular expression that is compiled when a text first holds one of the words that a match needs.

    Compiling all that the kernel may print takes longer than reading a log that holds little of it.
    """

    def __init__(self, pattern: str, *words: str) -> None:
        self.pattern = pattern
        self.words = words or ("",)
        """Each match holds one of them."""

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        """The compiled expression, which is asked directly from now on."""
        found = re.compile(self.pattern)
        vars(self).update(search=found.search, match=found.match, finditer=found.finditer)
        return found

    def search(self, text: str, start: int = 0, end: int = sys.maxsize) -> re.Match[str] | None:
        """Return the first match in a text, or None."""
        return self.compiled.search(text, start, end) if holds(text, self.words) else None

    def match(self, text: str, start: int = 0) -> re.Match[str] | None:
        """Return the match at `start`, or None."""
        return self.compiled.match(text, start) if holds(text, self.words) else None

    def finditer(self, text: str, start: int = 0) -> Iterator[re.Match[str]]:
        """Yield each match."""
        return self.compiled.finditer(text, start) if holds(text, self.words) else iter(())


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
