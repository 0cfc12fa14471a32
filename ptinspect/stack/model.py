"""Frames of a kernel stack, and what finding them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FrameKind = Literal["function", "exception", "user", "end", "unwritten"]
"""`exception`: pt_regs of an exception; `user`: of the entry from user mode; `end`: what lies above
the last frame; `unwritten`: exceptions whose frames could not be stored."""


class Code(Protocol):
    """What is known of the kernel's code; addresses are those that the program counter has."""

    def start(self, pc: int) -> int | None:
        """Return where the function at `pc` begins; None if it is not known."""
        ...

    def words(self, va: int, count: int) -> Sequence[int]:
        """Return up to `count` instructions at `va`; fewer where they cannot be read."""
        ...


@dataclass(frozen=True)
class RegsLayout:
    """Offsets in struct pt_regs."""

    size: int
    """Its size: the exception frame."""
    sp: int
    """Of the interrupted stack pointer."""
    pc: int
    """Of the interrupted program counter."""
    pstate: int
    """Of the interrupted PSTATE."""
    stackframe: int
    """Of the frame record."""


@dataclass(frozen=True)
class Frame:
    """One frame."""

    pc: int
    """Where it is: the program counter, the return address into it, or the interrupted instruction."""
    sp: int
    """Its lowest address: SP while it ran."""
    size: int
    """Bytes of stack that are its own."""
    kind: FrameKind
    """What it is."""
    stack: str
    """Kind of the stack it lies on; empty if on none that is known."""
    record: int | None = None
    """Address of its frame record; None if it has none."""
    exact: bool = True
    """True if the size comes from the function's prologue or the exception's registers."""
    count: int = 1
    """How many frames it stands for."""
    returns: bool = False
    """True if `pc` is a return address: the call is the instruction before."""


@dataclass(frozen=True)
class Unwound:
    """All frames, and where they end."""

    frames: tuple[Frame, ...]
    """The innermost first."""
    ended: str
    """Why there are no more."""
    complete: bool = False
    """True if the chain was followed to its own end."""
    last: Frame | None = None
    """Where the chain ends, without a frame of its own that is known: 0 bytes; None at a limit."""
