"""One death of the kernel as a console log has it: the values found, nothing concluded."""

from __future__ import annotations

from collections.abc import Mapping

from ptinspect.dataclass import dataclass, field
from ptinspect.linux.stack_range import StackRange
from ptinspect.typed import Literal

FaultKind = Literal[
    "bad-stack",
    "fault",
    "oops",
    "bug",
    "panic",
    "serror",
    "lockup",
    "rcu-stall",
    "hung-task",
    "kasan",
    "warning",
]
"""How the kernel introduced a report: by its first line."""

_REWRITE = ("kpti_install_ng_mappings+", "__kpti_install_ng_mappings+", "idmap_kpti_install_ng_mappings+")
_STOPPER = "migration/0"
"""The thread that does the rewrite: the stopper of the boot CPU."""


@dataclass(frozen=True)
class PathEntry:
    """One descriptor of the walk that the kernel printed (`show_pte`)."""

    name: str
    """Linux's name of the level: pgd, p4d, pud, pmd or pte."""
    raw: int
    """The descriptor."""


@dataclass(frozen=True)
class Pagetable:
    """The line `swapper pgtable: 4k pages, 48-bit VAs, pgdp=…`."""

    owner: str
    """`swapper` or `user`."""
    page_size: int
    """Granule in bytes."""
    va_bits: int
    """Width of the virtual addresses that it translates."""
    pgdp: int | None
    """The printed address of the root; None if the kernel hid it (`(ptrval)`)."""


@dataclass(frozen=True)
class Fault:
    """One report of the kernel's, from its first line to the end of its call trace.

    What the log does not hold, or holds damaged, is None or empty.
    """

    kind: FaultKind
    """What the first line was."""
    headline: str
    """The first line."""
    line: int
    """Line of the file where it begins, from 1."""
    time: str = ""
    """Time stamp of the first line, seconds since boot as printed."""
    esr: int | None = None
    """ESR_EL1 as printed."""
    far: int | None = None
    """The faulting address as printed."""
    stacks: tuple[StackRange, ...] = ()
    """Bounds of the CPU's stacks (`Task stack:`, `IRQ stack:`, `Overflow stack:`)."""
    cpu: int | None = None
    """The CPU that printed it."""
    pid: int | None = None
    """The current task's PID."""
    comm: str = ""
    """The current task's name."""
    release: str = ""
    """The kernel's release, `uname -r`."""
    pstate: int | None = None
    """PSTATE as printed."""
    pc: str = ""
    """The interrupted instruction: `symbol+0x0/0xb0`, or a bare address."""
    lr: str = ""
    """The link register, in the same form."""
    sp: int | None = None
    """The stack pointer at the interrupted instruction."""
    registers: Mapping[int, int] = field(default_factory=dict)
    """x0 to x30 by number; those that are missing or damaged are absent."""
    path_address: int | None = None
    """The address whose walk was printed."""
    path: tuple[PathEntry, ...] = ()
    """The printed walk."""
    pagetable: Pagetable | None = None
    """The geometry that was printed with the walk."""
    trace: tuple[str, ...] = ()
    """The call trace, innermost first: `symbol+0x0/0xb0`."""
    panic: str = ""
    """The text after `Kernel panic - not syncing: `, or empty."""
    ended: bool = False
    """True if the end marker of the report was printed."""
    damaged: tuple[str, ...] = ()
    """Values whose digits are incomplete, by name."""
    mixed: bool = False
    """True if its lines are interleaved with those of another report."""
    doubtful: tuple[str, ...] = ()
    """Of a mixed report: the values that were not printed in one piece with SP and pc."""
    elided: bool = False
    """True if the call trace was cut: by `...`, by lost messages, or by a fault while it was printed."""
    notes: tuple[str, ...] = ()
    """What KASAN and the like print about the address: size, object, range."""
    number: int | None = None
    """The kernel's count of oopses, `[#1]`."""

    @property
    def task_stack(self) -> StackRange | None:
        """The task stack's bounds, if they were printed."""
        return next((stack for stack in self.stacks if stack.kind == "task"), None)

    @property
    def rewrite_place(self) -> str:
        """The symbol that places the fault in or right after the rewrite of the tables, or empty."""
        return next((symbol for symbol in (self.lr, self.pc) if symbol.startswith(_REWRITE)), "")

    @property
    def may_rewrite(self) -> bool:
        """True if the CPU may have been the one that did the rewrite."""
        return bool(self.rewrite_place) or self.comm == _STOPPER

    def stack_of(self, address: int) -> StackRange | None:
        """Return the printed stack that `address` is a byte of."""
        return next((stack for stack in self.stacks if stack.contains(address)), None)


@dataclass(frozen=True)
class Incident:
    """A death: the report that began it, and what the kernel printed while it died."""

    first: Fault
    """The report that began it."""
    later: tuple[Fault, ...] = ()
    """Faults inside of the handling of the first one, in order; at most 16 are kept."""
    later_count: int = 0
    """How many there were."""
    banner: str = ""
    """`Linux version …` of this boot, or empty."""
    architecture: str = "arm64"
    """`arm64`, or another one of `messages.FOREIGN` where the log shows its registers, or `unknown`."""
    boot: int = 0
    """Which of the log's boots it is of, from 0."""

    @property
    def bad_stack(self) -> Fault | None:
        """The report of a stack without room, if this death is one."""
        for fault in (self.first, *self.later):
            if fault.kind == "bad-stack" or "kernel stack overflow" in fault.panic:
                return fault
        return None

    @property
    def release(self) -> str:
        """The kernel's release, or its banner, or empty."""
        faults = (self.first, *self.later)
        return next((fault.release for fault in faults if fault.release), "") or self.banner

    @property
    def panic(self) -> str:
        """The text of the panic, or empty."""
        return self.first.panic or next((fault.panic for fault in self.later if fault.panic), "")

    @property
    def message(self) -> str:
        """The line that tells best what happened: the panic's, or the fault's where that only follows."""
        own = self.panic and self.first.kind in ("panic", "bad-stack", "lockup", "rcu-stall", "hung-task")
        return self.panic if own else self.first.headline
