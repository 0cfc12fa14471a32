"""What has a number among the breakpoints, and is no breakpoint at a symbol."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from ptinspect.dataclass import dataclass
from ptinspect.linux.image.c_types import CType


@dataclass(frozen=True)
class Watched:
    """What a watchpoint watches."""

    number: int
    text: str
    """As typed."""
    type: CType
    address: int


class Other(Protocol):
    """Something that is made of breakpoints and watchpoints, and has a number among them."""

    enabled: bool

    @property
    def numbers(self) -> Collection[int]:
        """GDB's numbers of what it is made of: they are not listed by themselves."""

    @property
    def words(self) -> str:
        """What it stops at."""

    @property
    def hits(self) -> int:
        """How often it has stopped the guest."""

    def enable(self, on: bool) -> None:
        """Have it stop the guest, or not."""

    def delete(self) -> None:
        """Take it away."""
