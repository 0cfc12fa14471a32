"""How deep the stack was when the CPU died, what a recursing fault took of it, and the chain of calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ptinspect.dataclass import dataclass
from ptinspect.linux.death import ONE_STEP, Calls, single_bit
from ptinspect.linux.oops.incident import Fault
from ptinspect.linux.releases import exception_frames, parse, releases_with_frame
from ptinspect.linux.stack_range import StackRange, holding
from ptinspect.text import Pattern

_ENTRY = Pattern(
    r"(?:el1_(?:sync|irq|error|fiq)|el1[ht]_64_(?:sync|irq|error|fiq)|vectors)\+0x([0-9a-f]+)/",
    "el1",
    "vectors",
)
_VECTOR = Pattern(r"el1(?:[ht]_64)?_sync\+0x([4-9a-f][0-9a-f]|[1-9a-f][0-9a-f]{2})/", "_sync+0x")
_HANDLERS = frozenset({"__bad_stack", "handle_bad_stack", "panic_bad_stack"})
_PANICS = ("panic", "vpanic", "nmi_panic", "__stack_chk_fail")
_REPORTING = frozenset({"dump_backtrace", "show_stack", "dump_stack", "dump_stack_lvl", *_PANICS})


@dataclass(frozen=True)
class Recursion:
    """A fault of the exception entry itself, again and again."""

    count: int
    """Nested exceptions."""
    frame_size: int
    """Bytes of stack that each took."""
    reasons: tuple[str, ...]
    """Why this size, sentence by sentence."""


def at_exception_entry(symbol: str) -> bool:
    """Tell whether `symbol+0x…/0x…` is where an exception from EL1 begins to store its frame."""
    match = _ENTRY.match(symbol)
    return match is not None and int(match[1], 16) < (0x800 if symbol.startswith("vectors") else 0x60)


def stack_at(fault: Fault) -> StackRange | None:
    """Return the stack that SP is on, or has run off by less than the stack's own size."""
    if fault.sp is None:
        return None
    return holding(fault.sp, (stack for stack in fault.stacks if stack.base)) or _unlisted(fault, fault.sp)


def _unlisted(fault: Fault, sp: int) -> StackRange | None:
    """Return a stack that is not printed (SDEI's, EFI's) if SP has no room on it and x29 is in it.

    They are aligned and as large as the task's, so that SP tells the base (Linux
    arch/arm64/include/asm/vmap_stack.h; kernel_ventry in entry.S tests one bit of SP).
    """
    x29, task = fault.registers.get(29), fault.task_stack
    if x29 is None or task is None or fault.mixed or task.size & (task.size - 1) or not sp >> 63:
        return None
    base = (sp + task.size) & -2 * task.size
    stack = StackRange("unlisted", base, base + task.size)
    return stack if stack.contains(x29) and sp - base < max(exception_frames(parse(fault.release))) else None


def recursion(fault: Fault, stack: StackRange | None) -> Recursion | None:
    """Return the recursion of a fault in the exception entry itself, if the log proves one.

    The last frame record that a function wrote is at x29; entries that fault write none. So the
    bytes between SP and x29 are a multiple of the exception frame's size.
    """
    x29, sp = fault.registers.get(29), fault.sp
    if x29 is None or sp is None or not at_exception_entry(fault.pc):
        return None
    wrong = _wrong_bit(fault, sp) if stack is None else None
    stack = fault.task_stack if wrong is not None else stack
    sp = sp if wrong is None else sp ^ 1 << wrong
    if stack is None or not stack.contains(x29) or x29 <= sp:
        return None
    gap = x29 - sp
    every = exception_frames(None)
    dividing = [size for size in every if gap % size == 0]
    traced = entries_in_trace(fault.trace)
    reasons = [f"x29 - SP = {x29:#x} - {sp:#x} = {gap:#x} = {gap} bytes"]
    if wrong is not None:
        reasons.append(f"SP is taken with bit {wrong} put right: it was wrong before the first fault")
    if not dividing:
        return _by_trace(fault, gap, traced, reasons)
    if len(dividing) == 1:
        size = dividing[0]
        others = ", ".join(str(other) for other in every if other != size)
        reasons.append(f"of the sizes an exception frame has had, only {size} divides it (not {others})")
    else:
        fitting = [size for size in dividing if size in exception_frames(parse(fault.release))]
        named = [size for size in fitting if traced > 1 and abs(gap // size - traced) <= 1]
        if len(named or fitting) != 1:
            return None
        size = (named or fitting)[0]
        reasons.append(f"{' and '.join(map(str, dividing))} divide it; the release, {fault.release}, decides")
    count = gap // size
    reasons.extend(_era(fault, size))
    if traced > 1 and abs(traced - count) <= 1:
        reasons.append(f"the call trace shows {traced} entries of the exception vector in a row")
    if 0 <= sp - stack.base < size:
        reasons.append(f"one more frame does not fit: {sp - stack.base:#x} bytes are left above the base")
    return Recursion(count, size, tuple(reasons))


def _wrong_bit(fault: Fault, sp: int) -> int | None:
    """Return the bit in which SP alone differs from an address of the task's stack."""
    task = fault.task_stack
    bit = single_bit(sp, task) if task is not None else None
    return bit if bit is not None and task is not None and task.contains(sp ^ 1 << bit) else None


def _by_trace(fault: Fault, gap: int, traced: int, reasons: list[str]) -> Recursion | None:
    """Count by the call trace where SP at the first fault was not at the frame record."""
    sizes = [s for s in exception_frames(parse(fault.release)) if traced * s <= gap < traced * s + ONE_STEP]
    if traced < 3 or len(sizes) != 1:
        return None
    reasons.append(f"the call trace shows {traced} entries of the exception vector in a row")
    reasons.append(
        f"{traced} frames of {sizes[0]} bytes leave {gap - traced * sizes[0]} bytes to the last function"
    )
    reasons.extend(_era(fault, sizes[0]))
    return Recursion(traced, sizes[0], tuple(reasons))


def _era(fault: Fault, size: int) -> list[str]:
    release = parse(fault.release)
    if release is None:
        return []
    if size in exception_frames(release):
        return [f"it is the size of releases {releases_with_frame(size)}, and this is {fault.release}"]
    return [f"it is not the size expected of {fault.release}"]


def entries_in_trace(trace: Sequence[str]) -> int:
    """Return how many exception entries stand in a row in a call trace."""
    best = run = 0
    for symbol in trace:
        run = run + 1 if at_exception_entry(symbol) else 0
        best = max(best, run)
    return best


def function(frame: str) -> str:
    """Return the function of a line of a call trace."""
    return frame.partition("+")[0]


def chain(fault: Fault) -> Calls:
    """Return the calls below the kernel's own reporting, and what proves that they do not end."""
    frames = list(fault.trace)
    for index in range(len(frames) - 1, -1, -1):
        if function(frames[index]) in _HANDLERS:
            frames = frames[index + 1 :]
            break
    else:
        while frames and function(frames[0]) in _REPORTING:
            frames = frames[1:]
    names = [function(frame) for frame in frames if not at_exception_entry(frame)]
    return Calls(tuple(names), whole=not fault.elided, recursion=_same_exception(fault.pc, frames))


def _same_exception(pc: str, frames: Sequence[str]) -> str:
    """Return in words that an exception came inside of the handling of one at the same instruction.

    In a trace the interrupted instruction follows the frame of the vector's code that saved it.
    """
    interrupted = [after for frame, after in pairwise(frames) if _VECTOR.match(frame)]
    if "+" not in pc or pc not in interrupted:
        return ""
    times = interrupted.count(pc) + 1
    return f"the call trace shows an exception at {pc} inside of the handling of one at {pc}, {times} deep"


def used_before(fault: Fault, stack: StackRange | None, nested: Recursion | None) -> int | None:
    """Return the bytes of `stack` that were in use when the first fault came; None if unknown."""
    task = fault.task_stack
    if stack is None and nested is not None and task is not None:
        return task.top - fault.registers[29]
    if stack is None or fault.sp is None:
        return None
    if nested is not None:
        return stack.top - (fault.sp + nested.count * nested.frame_size)
    if at_exception_entry(fault.pc):
        x29 = fault.registers.get(29, 0)
        return stack.top - x29 if stack.contains(x29) else None
    return stack.top - max(fault.sp, stack.base)
