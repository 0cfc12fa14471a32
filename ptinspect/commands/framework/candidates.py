"""What may be typed for an argument, each with a word of help; the guest is never asked for it.

Completion runs beside the prompt: everything here comes from what is known already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ptinspect.arch.bits import MASK64
from ptinspect.arch.sysregs import SYSTEM_REGISTERS
from ptinspect.commands.framework.arguments import FIXED
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.options import OPTIONS, find, written
from ptinspect.commands.framework.registry import RESULTS
from ptinspect.errors import UserError
from ptinspect.linux.image.image import KernelImage
from ptinspect.output.model import escape
from ptinspect.reference import guests
from ptinspect.script.shipped import shipped_scripts
from ptinspect.snapshot.model import Snapshot

Candidate = tuple[str, str]
"""What may be typed, and a word about it."""

REGISTERS: Mapping[str, str] = {
    **{f"x{n}": "argument, result" if n == 0 else "argument" for n in range(8)},
    "x8": "address of a large result; number of a system call",
    **{f"x{n}": "scratch" for n in range(9, 16)},
    **{f"x{n}": "scratch between calls (IP)" for n in (16, 17)},
    "x18": "platform; shadow call stack",
    **{f"x{n}": "kept across calls" for n in range(19, 29)},
    "x29": "frame pointer",
    "x30": "link register: return address",
    "sp": "stack pointer in use",
    "pc": "program counter",
    "fp": "frame pointer, x29",
    "lr": "return address, x30",
    "pstate": "flags, masks, EL, stack selection",
}
"""Source: AAPCS64, section 6.1.1."""

SYSTEM: Mapping[str, str] = {
    "TTBR0": "root of the lower half",
    "TTBR1": "root of the upper half, ASID",
    "TCR": "granules and sizes of both halves",
    "MAIR": "memory types by index",
    "SCTLR": "MMU and caches on or off",
    "VBAR": "exception vectors",
    "ESR": "syndrome of the last exception",
    "FAR": "faulting address",
    "ELR": "where the exception came from",
    "SPSR": "PSTATE before the exception",
    "SP": "stack pointer",
    "TPIDR": "software's own: per-CPU offset, thread",
    "TPIDRRO": "software's own; kpti: x30 of EL0",
    "CONTEXTIDR": "context of the process",
    "HCR": "hypervisor configuration",
    "HCRX": "more of it: who may use TCR2_EL1",
    "TCR2": "indirect permissions, overlays, on or off",
    "PIR": "what each index lets the kernel do",
    "PIRE0": "what each index lets EL0 do",
    "POR": "what an overlay leaves of permissions",
    "MAIR2": "memory types 8 to 15",
}
"""Name without the exception level -> what it is. Source: Arm ARM, chapter D23."""

ROOTS: tuple[Candidate, ...] = (
    ("swapper", "the kernel's own table"),
    ("ttbr0", "what TTBR0 holds"),
    ("ttbr1", "what TTBR1 holds"),
    ("ttbr0_el2", "a hypervisor's table; the host's user table with VHE"),
    ("ttbr1_el2", "the kernel's table with VHE"),
    ("ttbr0_el1", "what TTBR0_EL1 holds, whoever runs"),
    ("ttbr1_el1", "what TTBR1_EL1 holds, whoever runs"),
    ("user", "tables of the current task"),
    ("task:", "PID or NAME: tables of a task"),
    ("idmap", "identity map"),
    ("tramp", "trampoline of KPTI"),
)

LEVELS: tuple[Candidate, ...] = (
    *((str(n), f"level {n}") for n in range(4)),
    ("pgd", "the root's level"),
    ("p4d", "level 0"),
    ("pud", "level 1"),
    ("pmd", "level 2"),
    ("pte", "level 3, pages"),
)


SYMBOLS = {"t": "code", "w": "code", "d": "data", "b": "data", "r": "read-only data", "a": "constant"}
"""Letter of nm -> what it is."""


def candidates(ctx: Context, kind: str, current: str = "", before: Sequence[str] = ()) -> Iterator[Candidate]:
    """Return what an argument of a kind (`arguments.completion_kind`) may be.

    `current` is what is typed of it, `before` the words before it.
    """
    if kind == "snapshot":
        yield from ((name, _snapshot(snapshot)) for name, snapshot in ctx.guest.snapshots.items())
    elif kind == "register":
        yield from registers(ctx)
    elif kind == "root":
        yield from ROOTS
        if current.startswith("task:"):
            yield from ((f"task:{pid}", comm) for pid, comm in _tasks(ctx))
    elif kind == "level":
        yield from LEVELS
    elif kind == "cpu" and ctx.guest.session is not None:
        yield from ((str(number), f"CPU {number}") for number in range(ctx.guest.session.cpu_count))
    elif kind == "guest":
        yield from _guests()
    elif kind == "script":
        yield from ((f"@{script.name}", script.summary) for script in shipped_scripts())
    elif kind in FIXED:
        yield from FIXED[kind].items()
    elif kind == "option":
        yield from ((name, option.meaning) for name, option in OPTIONS.items())
    elif kind == "option-value":
        yield from _values(ctx, before[-1])


def registers(ctx: Context) -> Iterator[Candidate]:
    """Return the registers, with the system registers of the stub where a guest is attached."""
    yield from REGISTERS.items()
    if ctx.guest.session is None:
        return

    for name in SYSTEM_REGISTERS:
        stem, _, level = name.rpartition("_")
        meaning = SYSTEM.get(stem, "what the CPU can do" if name.startswith("ID_") else "system register")
        yield name, f"{meaning} ({level})"


def symbol_meaning(ctx: Context, kernel: KernelImage, name: str) -> str:
    """Say what a symbol of the kernel file is and where: at run time where that is known."""
    kind = SYMBOLS.get(kernel.kind_of(name).lower(), "symbol")
    places = kernel.symbols[name]
    if len(places) > 1:
        return f"{kind}, {len(places)} of this name"
    offset = ctx.guest.known_offset
    if offset is None:
        return f"{kind}, linked at {places[0]:#x}"
    return f"{kind} {(places[0] + offset) & MASK64:#x}"


def _snapshot(snapshot: Snapshot | None) -> str:
    if snapshot is None:
        return "snapshot"
    return f"{len(snapshot.tables)} tables, captured {snapshot.meta.created[11:19]} UTC"


def _tasks(ctx: Context) -> Iterator[Candidate]:
    """Return the tasks that a listing at this stop has shown."""
    kept = ctx.guest.kept.get(RESULTS)
    stop, report = kept.get("stack tasks", (None, None)) if isinstance(kept, dict) else (None, None)
    if report is None or stop != ctx.guest.stop_token:
        return
    for task in report.result.get("tasks", ()):
        yield f"{task['pid']}", escape(f"{task['comm']}")


def _values(ctx: Context, name: str) -> Iterator[Candidate]:
    try:
        option = find(name)
    except UserError:
        return
    now = written(ctx.options[option.name])
    yield from ((choice, "now" if choice == now else option.meaning) for choice in option.choices)
    yield "default", f"back to {written(option.default)}"


def _guests() -> Iterator[Candidate]:
    for guest in guests.installed_guests():
        yield guest.name, guest.note or "installed"
