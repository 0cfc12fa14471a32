"""The names of a kernel file in order: those with a prefix are found without a look at the others."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

END = "\U0010ffff"
"""Sorts behind every letter of a name."""


class SymbolIndex:
    """Hold names sorted once; a look-up bisects."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)

    def with_prefix(self, prefix: str, limit: int) -> tuple[list[str], int]:
        """Return the first `limit` names that begin with `prefix`, and how many more there are."""
        first = bisect.bisect_left(self._names, prefix)
        last = bisect.bisect_left(self._names, prefix + END, first)
        shown = min(last, first + limit)
        return self._names[first:shown], last - shown
