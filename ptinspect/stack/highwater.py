"""The deepest point that a stack ever reached, from the words that were written below SP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.linux.running.member_offsets import STACK_END_MAGIC
from ptinspect.linux.running.stacks import Stack

PAGE = 4096
"""Unit in which stacks are read."""
PAINT = 0x5AA5_C3C3_5AA5_C3C3
"""What free words are filled with: a value that no kernel stores, no address and no counter."""


@dataclass(frozen=True)
class HighWater:
    """How deep a stack has been, at least."""

    lowest: int | None
    """Lowest address that was ever written; None if nothing was, or if it is not known."""
    depth: int | None
    """Bytes from there up to the top; None as above."""
    how: str
    """How it is known, or why it is not."""


def read_stacks(view: GuestView, stacks: Sequence[Stack]) -> Mapping[int, NDArray[np.uint64]]:
    """Read whole stacks in one batch: base -> words, the lowest first.

    A stack that is not mapped, or lies outside RAM, is absent. Raises TargetError if the link failed.
    """
    pages: dict[int, list[int]] = {}
    for stack in stacks:
        first, last = stack.base & -PAGE, (stack.top - 1) & -PAGE
        try:
            pages[stack.base] = [int(view.pa_of(va)) for va in range(first, last + 1, PAGE)]
        except GuestError:
            continue
    addresses = np.unique(np.array([pa for found in pages.values() for pa in found], dtype=np.uint64))
    if not len(addresses):
        return {}
    raw, readable = view.memory.read_tables(addresses, PAGE)
    row = {int(pa): i for i, pa in enumerate(addresses)}
    words = {}
    for stack in stacks:
        found = pages.get(stack.base)
        if found is None or not all(readable[row[pa]] for pa in found):
            continue
        whole = np.concatenate([raw[row[pa]] for pa in found])
        start = (stack.base % PAGE) // 8
        words[stack.base] = whole[start : start + stack.size // 8]
    return words


def high_water(stack: Stack, words: NDArray[np.uint64] | None) -> HighWater:
    """Return the deepest point that the words of a stack show.

    The kernel hands stacks out zeroed (__GFP_ZERO, and memset where one is used again: kernel/fork.c,
    alloc_thread_stack_node), so whatever is not zero was written; the end mark is left out. A function
    that reserved room and stored nothing but zeros there is not noticed.
    """
    if words is None:
        return HighWater(None, None, "the stack cannot be read")
    skip = 1 if stack.kind == "task" and len(words) and int(words[0]) == STACK_END_MAGIC else 0
    painted = bool(np.any(words[skip:] == np.uint64(PAINT)))
    untouched = np.uint64(PAINT if painted else 0)
    written = np.flatnonzero(words[skip:] != untouched)
    how = "below it all words are as painted" if painted else "below it all words are zero, as handed out"
    if not len(written):
        return HighWater(None, 0, "nothing was ever written")
    lowest = stack.base + 8 * (int(written[0]) + skip)
    if int(written[0]) == 0 and not painted:
        how = "it was used down to its base, or something else wrote there"
    return HighWater(lowest, stack.top - lowest, how)


def free_words(view: GuestView, stack: Stack, sp: int) -> list[tuple[int, int]]:
    """Return where the words of a stack below `sp` lie, but the end mark: (physical address, words).

    Raises GuestError if a page of it is not mapped, TargetError.
    """
    start = stack.base + (8 if stack.kind == "task" else 0)
    count = max(sp - start, 0) // 8
    return [(int(view.pa_of(va)), length // 8) for va, length in _pages(start, count * 8)]


def _pages(va: int, length: int) -> Iterator[tuple[int, int]]:
    """Split a range of addresses at page boundaries."""
    end = va + length
    while va < end:
        size = min(PAGE - va % PAGE, end - va)
        yield va, size
        va += size
