"""The bounds of a kernel stack, and where an address lies relative to them."""

from __future__ import annotations

from collections.abc import Iterable

from ptinspect.dataclass import dataclass
from ptinspect.typed import TypeVar


@dataclass(frozen=True)
class StackRange:
    """The bounds of one stack, as the guest has them or as the kernel printed them."""

    kind: str
    """`task`, `irq`, `overflow`, or another name in lower case."""
    base: int
    """The lowest address."""
    top: int
    """The first address past the end of the stack: SP of an empty one."""

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.top - self.base

    def contains(self, address: int) -> bool:
        """Tell whether `address` is a byte of the stack."""
        return self.base <= address < self.top

    def holds_sp(self, sp: int) -> bool:
        """Tell whether `sp` is a stack pointer of this stack: the top itself is an empty stack."""
        return self.base <= sp <= self.top

    def below(self, address: int) -> bool:
        """Tell whether `address` is below the stack by no more than the stack's own size."""
        return self.base - self.size <= address < self.base

    def near(self, sp: int) -> bool:
        """Tell whether `sp` is a stack pointer of this stack, or has run off it."""
        return self.holds_sp(sp) or self.below(sp)


Range = TypeVar("Range", bound=StackRange)


def holding(address: int, stacks: Iterable[Range]) -> Range | None:
    """Return the stack that `address` is on, or has run off by no more than the stack's own size."""
    known = list(stacks)
    inside = next((stack for stack in known if stack.holds_sp(address)), None)
    return inside or next((stack for stack in known if stack.below(address)), None)
