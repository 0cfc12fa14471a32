"""Lists that may end early, and say so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


class Bounded(list[T]):
    """A list with the reason why it is not complete; empty if it is."""

    def __init__(self, items: Iterable[T] = (), truncated: str = "") -> None:
        super().__init__(items)
        self.truncated = truncated
