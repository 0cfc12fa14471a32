"""Tests for a lost and for a used-up stack that the guest makes itself: code in the vectors' padding.

A breakpoint on the vector would stop the guest at every fault of a user access too, and a stop costs
tens of milliseconds under TCG, because QEMU translates all code anew (gdbstub.c,
gdb_vm_state_change: tb_flush); and one that is never hit still makes all code of its page slow. So
the branch at the end of the vector is led through the rest of its 128 bytes, which only fills them:

    msr par_el1, x0        a place to keep x0: the entry has no other register to spare
    mrs x0, far_el1
    sub x0, x0, #FRAME
    cmp sp, x0             was the faulting address the SP that this exception found?
    b.eq 1f
    mrs x0, par_el1
    b label
 1: b fault                only a store of the entry itself gets here
 2: b net                  and here who would have gone to __bad_stack

`fault` and `net` are in the padding of an interrupt's vector. What stands there loads itself, which a
watchpoint notices, again and again, for a stop is lost where QEMU is stopping the guest at that moment:

    ldr wzr, .
    b .-4

As long as there is any breakpoint QEMU looks for one wherever code goes on that it has translated
(cpu-exec.c, check_for_breakpoints); a watchpoint costs nothing but in accesses to its page.

The flags are free, because SPSR_EL1 holds them. PAR_EL1 is only used between an AT instruction and
the read after it (arch/arm64/mm/fault.c), with nothing in between that could fault. Source: Arm ARM
C6.2 (encodings), D1.3 (exception entry).
"""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch import a64
from ptinspect.dataclass import dataclass
from ptinspect.linux.image.entry import code_length

_TEST = 8
"""Words of the test, up to the branch to `fault`."""
_PAST = 5
"""Those up to the comparison, and the branch that depends on it."""
TRAP = (a64.LDR_WZR_HERE, a64.B_BACK)
"""What stands at `fault`, and after that at `net`."""


@dataclass(frozen=True)
class Probe:
    """The words to write into one vector."""

    patches: tuple[tuple[int, int, int], ...]
    """(offset in the vector, old word, new word), in the order in which they have to be written."""
    first: int
    """Offset of the first word in the padding."""
    end: int
    """Offset past the branch to `net`, the last of them."""
    branch: int
    """Offset of the branch to the label, where a CPU goes on that was in the middle of the test."""

    @property
    def past(self) -> int:
        """Offset of the words after the test, by which one goes on that was led to `fault` without need."""
        return self.first + 4 * _PAST


def traps_at(words: Sequence[int]) -> tuple[int, int]:
    """Return the offsets of `fault` and `net` in an interrupt's vector, behind its probe if they fit."""
    at = code_length(words) + 1
    return 4 * at, 4 * (at + len(TRAP))


def plan(
    words: Sequence[int], va: int, fault: int | None, net: int, tail: Sequence[int] = ()
) -> Probe | None:
    """Return the probe for the vector at `va`; None if it is not as expected or has no room.

    `fault` None: without the test for a recursive fault, as in the vectors of interrupts. `tail`: words that
    are to follow.
    """
    frame = next((size for word in words if (size := a64.lowers_sp(word))), None)
    branch = next((i for i, word in enumerate(words) if a64.branch(word, 0) is not None), None)
    failed = next((i for i, word in enumerate(words) if a64.branch_ne(word, 0) is not None), None)
    free = code_length(words)
    length = (1 if fault is None else _TEST + 1) + len(tail)
    if None in (frame, branch, failed) or len(words) - free < length:
        return None
    assert frame is not None and branch is not None and failed is not None
    code: list[int] = []
    if fault is not None:
        target = a64.branch(words[branch], 4 * branch)
        if target is None or frame >= 1 << 12:
            return None
        code = [
            a64.write_system(a64.PAR_EL1, 0),
            a64.read_system(a64.FAR_EL1, 0),
            a64.subtract(0, 0, frame),
            a64.CMP_SP_X0,
            a64.branch_eq_to(0, 12),
            a64.read_system(a64.PAR_EL1, 0),
            a64.branch_to(4 * (free + 6), target),
            a64.branch_to(va + 4 * (free + 7), fault),
        ]
    end = free + len(code)
    code.append(a64.branch_to(va + 4 * end, net))
    patches = [(4 * (free + i), words[free + i], word) for i, word in enumerate([*code, *tail])]
    patches.append((4 * failed, words[failed], a64.branch_ne_to(4 * failed, 4 * end)))
    if fault is not None:
        patches.append((4 * branch, words[branch], a64.branch_to(4 * branch, 4 * free)))
    return Probe(tuple(patches), 4 * free, 4 * (end + 1), 4 * branch)
