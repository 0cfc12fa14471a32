"""Judge a death that did not come through the kernel's bad-stack path."""

from __future__ import annotations

import re

from ptinspect.arch.esr import Esr
from ptinspect.linux.oops.codes import Verdict
from ptinspect.linux.oops.depth import at_exception_entry
from ptinspect.linux.oops.model import Fault, Incident

NEAR = 64 << 10
"""Bytes around SP within which a faulting address may have to do with the stack."""
STACK_ALIGN = 32 << 10
"""Bytes that a stack with a guard is aligned to, at least: twice THREAD_SIZE (THREAD_ALIGN, from 4.14 on)."""
MIN_KERNEL = 1 << 63
"""Addresses of the kernel's half have bit 63 set."""

_CANARY = re.compile(r"stack-protector|[Kk]ernel stack is corrupted in")
_END_MAGIC = re.compile(r"corrupted stack end detected")
_OVERFLOW = re.compile(r"stack overflow|stack guard|[Ss]tack")
_AFTERMATH = re.compile(r"Fatal exception|Oops|Attempted to kill the idle")
_KILLED = re.compile(r"Attempted to kill init! exitcode=0x([0-9a-fA-F]{8})")
_STACK_KASAN = re.compile(r"KASAN: (?:stack|vmalloc)-out-of-bounds|KASAN: stack-")
_OWN_EXIT = re.compile(r"(?:__arm64_sys_exit|do_group_exit|get_signal|sys_exit)")
_DYING = re.compile(r"(?:^|\b)(?:die|make_task_dead|__do_kernel_fault|arm64_notify_die|bug_handler)\+")
_WHAT = {
    "lockup": "a CPU did not get away from what it was doing; it ran on its stack",
    "rcu-stall": "RCU waited for a CPU; nothing faulted",
    "hung-task": "a task slept for too long; nothing faulted",
    "kasan": "KASAN or a tool like it reported an access to memory that is mapped",
}


def interleaved(incident: Incident) -> list[str]:
    """Return why the values of a report that is mixed with another one do not fit together."""
    first = incident.first
    task = first.task_stack
    if first.kind == "bad-stack" and task is not None and first.sp is not None:
        near = any(stack.base - stack.size <= first.sp <= stack.top for stack in first.stacks)
        x29 = first.registers.get(29)
        if not near and (x29 is None or not any(stack.contains(x29) for stack in first.stacks)):
            return [
                "lines of several reports are interleaved, and SP fits none of the stacks printed with it"
            ]
    return []


def other_cause(incident: Incident, esr: Esr | None) -> Verdict:
    """Return the verdict on a panic, an oops, a lockup and the like."""
    first = incident.first
    if first.kind in ("panic", "warning"):
        return _panic(first)
    if first.kind == "kasan" and _STACK_KASAN.search(first.headline):
        return Verdict(
            "stack-corruption", (first.headline,), ("whether anything but this access went wrong",)
        )
    if first.kind in _WHAT:
        return Verdict(
            "not-a-stack-problem",
            (f"the kernel reported: {first.headline}", _WHAT[first.kind]),
            ("why it happened",),
        )
    if first.mixed and {"sp", "pc"} & {*first.doubtful}:
        unknown = ("lines of several CPUs are interleaved: a value may belong to another one",)
        return Verdict("unknown", (first.headline,), unknown)
    if "esr" in first.doubtful:
        esr = None
    if first.kind == "serror":
        return _ordinary(
            first, ["an SError is reported by the memory system or a device, not by a translation"]
        )
    return _fault(first, esr)


def _panic(first: Fault) -> Verdict:
    text = first.panic
    caller = _caller(first)
    evidence = [f"panic() was called with: {text}"] + ([f"by {caller}"] if caller else [])
    killed = _KILLED.search(text)
    if _CANARY.search(text):
        return Verdict(
            "stack-corruption", (*evidence, "the canary of a frame was overwritten"), ("what overwrote it",)
        )
    if _END_MAGIC.search(text):
        note = "the marker at the base of the task's stack (STACK_END_MAGIC) was overwritten"
        return Verdict(
            "stack-corruption",
            (*evidence, note),
            ("whether the stack grew down to it, or a stray write did it",),
        )
    if not text or _AFTERMATH.match(text):
        return Verdict(
            "unknown", tuple(evidence), ("the fault that led to this panic: it is not in the log",)
        )
    if _OVERFLOW.search(text):
        return Verdict(
            "unknown",
            tuple(evidence),
            ("SP, the faulting address and the stacks' bounds: they are not in the log",),
        )
    if killed is not None:
        return _init_died(first, evidence, int(killed[1], 16))
    evidence.append("the log holds no exception before it: the kernel gave up by itself")
    return Verdict(
        "not-a-stack-problem", tuple(evidence), ("what led to it: see the lines before the panic",)
    )


def _init_died(first: Fault, evidence: list[str], code: int) -> Verdict:
    signal = code & 0x7F
    evidence.append(
        f"init was killed by signal {signal}" if signal else f"init left with status {code >> 8 & 0xFF}"
    )
    if any(_DYING.search(frame) for frame in first.trace):
        return Verdict(
            "unknown",
            tuple(evidence),
            ("the fault inside of the kernel that killed init: it is not in the log",),
        )
    if signal and not any(_OWN_EXIT.match(frame) for frame in first.trace):
        return Verdict("unknown", tuple(evidence), ("whether a fault inside of the kernel killed init",))
    evidence.append("it left by itself or by a signal of its own: the kernel did not fault")
    return Verdict("not-a-stack-problem", tuple(evidence), ("why init ended",))


def _caller(first: Fault) -> str:
    """Return the function that called panic(), from the call trace."""
    for index, frame in enumerate(first.trace[:-1]):
        if frame.startswith(("panic+", "vpanic+")) and not first.trace[index + 1].startswith("panic+"):
            return first.trace[index + 1]
    return ""


def _fault(first: Fault, esr: Esr | None) -> Verdict:  # noqa: PLR0911 (one return for each ground)
    """Judge a fault or BUG that the kernel reported in the ordinary way."""
    evidence = [first.headline]
    if esr is not None and esr.fault:
        evidence.append(f"ESR {esr.raw:#x}: {esr.class_text}, {esr.fault}")
    if first.sp is None:
        return Verdict("unknown", tuple(evidence), ("SP: not in the log, or damaged",))
    zeros = [number for number in range(19, 30) if first.registers.get(number) == 0]
    if len(zeros) == 11 and first.pc == first.lr == "0x0":
        evidence.append(
            "pc, lr and x19 to x29 are all zero: what was restored from the stack was a frame of zeros"
        )
        unknown = "whether the stack was overwritten, or its mapping leads to other memory now"
        return Verdict("stack-corruption", tuple(evidence), (unknown,))
    if at_exception_entry(first.pc):
        evidence.append(f"pc {first.pc} is an exception entry")
        return Verdict("unknown", tuple(evidence), ("why the entry faulted",))
    guard = _below_base(first, esr)
    if guard is not None:
        return guard
    if first.far is not None and abs(first.far - first.sp) <= NEAR:
        evidence.append(f"FAR {first.far:#x} is {abs(first.far - first.sp)} bytes from SP {first.sp:#x}")
        return Verdict(
            "unknown",
            tuple(evidence),
            ("whether FAR is in the stack or in its guard: its bounds are not in the log",),
        )
    if first.far is not None:
        evidence.append(f"FAR {first.far:#x} is nowhere near SP {first.sp:#x}{_kind_of(first.far)}")
    if not re.match(r"[A-Za-z_]", first.pc) and not re.match(r"[A-Za-z_]", first.lr):
        return Verdict(
            "unknown", tuple(evidence), ("where the CPU came from: neither pc nor lr is in a known function",)
        )
    return _ordinary(first, evidence)


def _below_base(first: Fault, esr: Esr | None) -> Verdict | None:
    """Judge an unmapped address in the page right below the stack that SP is on.

    The bounds are not printed with an ordinary fault, but follow: a stack with a guard begins at a
    multiple of STACK_ALIGN, and is mapped from there up to SP.
    """
    if first.far is None or first.sp is None or esr is None or esr.fault != "translation fault":
        return None
    page = first.pagetable.page_size if first.pagetable is not None else 4096
    base = first.sp & -STACK_ALIGN
    if not base - page <= first.far < base or first.sp < MIN_KERNEL:
        return None
    evidence = [
        f"FAR {first.far:#x} is {base - first.far:#x} bytes below {base:#x} and not mapped",
        f"stacks with a guard begin at multiples of {STACK_ALIGN:#x}, and SP {first.sp:#x} is in one, mapped "
        f"up to SP: {base:#x} is its base, and FAR is in the guard",
        f"SP itself is {first.sp - base} bytes above the base: a pointer left the stack, not its depth",
    ]
    unknown = ("which pointer it was: see the code at pc", "the stack's bounds as the kernel has them")
    return Verdict("guard-page-hit", (first.headline, *evidence), unknown)


def _kind_of(far: int) -> str:
    if far < 4096:
        return ": the first page, a NULL pointer"
    return ": not an address of the kernel's half" if far < MIN_KERNEL else ""


def _ordinary(first: Fault, evidence: list[str]) -> Verdict:
    """Conclude from an ordinary report that the stack was there: the exception's frame was stored on it."""
    if first.sp is None or first.sp < MIN_KERNEL or first.sp % 16:
        return Verdict("unknown", tuple(evidence), ("SP: it is no kernel stack pointer, or not in the log",))
    evidence.append(
        f"the exception's frame was stored at SP {first.sp:#x} and the report printed in the "
        "ordinary way: the stack was mapped and had room"
    )
    if first.pc:
        evidence.append(f"pc {first.pc}" + (f", called from {first.lr}" if first.lr else ""))
    return Verdict("not-a-stack-problem", tuple(evidence), ("the cause of the fault itself",))
