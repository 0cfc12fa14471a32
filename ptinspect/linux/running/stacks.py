"""The kernel stacks of the running guest: where each begins and ends, and which one SP is on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from ptinspect.arch.bits import MASK64, align_down, bit
from ptinspect.arch.sysregs import CpuState, mmu_on, translation_register
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.image.entry import EL1H, EntryCode, entry_of
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.linux.running.member_offsets import STACK_END_MAGIC
from ptinspect.linux.running.stack_pages import Misled, is_own, misled
from ptinspect.linux.running.tasks import Task, Tasks, at_user_border, per_cpu_offset, per_cpu_pointer
from ptinspect.linux.stack_range import StackRange

StackKind = Literal["task", "irq", "overflow", "sdei-normal", "sdei-critical", "idmap", "user", "none"]
"""Which stack SP is on. `idmap`: on no stack that is known, with the MMU off or in the identity map;
`user`: the CPU runs user code, and `none`: nowhere that makes sense."""

TABLE = 0x800
"""Bytes of a vector table (Arm ARM VBAR_EL1)."""
HARDENED = "__bp_harden_el1_vectors"
"""Tables that the kernel uses instead where user code could train the branch predictor (entry.S)."""
MAX_TABLES = 8
STORES = 0x80
"""Bytes from a label of the exception entry on in which it stores the interrupted registers."""


@dataclass(frozen=True)
class Stack(StackRange):
    """A stack of the guest: whose it is, and how its bounds are known."""

    kind: StackKind
    """Which one it is."""
    cpu: int | None = None
    """The CPU that it belongs to; None for a task's."""
    task: Task | None = None
    """The task that it belongs to; None for a CPU's."""
    how: str = ""
    """How its bounds are known."""

    @property
    def owner(self) -> str:
        """The task that it belongs to, `init (1)`, or the CPU, `cpu 0`."""
        return f"cpu {self.cpu}" if self.task is None else self.task.label


@dataclass(frozen=True)
class Position:
    """Where a CPU's stack pointer is."""

    cpu: int
    """The CPU."""
    kind: StackKind
    """Which stack it is on."""
    sp: int
    """The stack pointer; of the kernel's own stack (empty) where the CPU runs user code."""
    stack: Stack | None
    """The stack; None where there is none."""
    task: Task | None
    """The current task; None if it is not known."""
    mmu_on: bool
    """False while the MMU of this CPU is off."""
    identity: bool
    """True if the program counter is a physical address: the identity map, or no map at all."""
    note: str = ""
    """What is special."""

    @property
    def used(self) -> int | None:
        """Bytes of the stack in use."""
        return None if self.stack is None else self.stack.top - self.sp

    @property
    def free(self) -> int | None:
        """Bytes that are left; negative below the base."""
        return None if self.stack is None else self.sp - self.stack.base


class Stacks:
    """Find stacks at one stop of the guest."""

    def __init__(self, view: GuestView) -> None:
        """Prepare. Raises GuestError or KernelFileError without a kernel file that has types."""
        self.view = view
        self.tasks = Tasks(view)
        self._misled: dict[int, Misled | None] = {}

    @cached_property
    def entry(self) -> EntryCode:
        """The kernel's entry code, at link-time addresses. Raises GuestError, KernelFileError."""
        return entry_of(self.view)

    @cached_property
    def entry_ranges(self) -> list[tuple[int, int]]:
        """Where the exception entry stores registers at run time: (first, one past the last)."""
        labels = [(label + self.view.kaslr_offset) & MASK64 for label in self.entry.labels]
        return [(label, (label + STORES) & MASK64) for label in labels]

    @cached_property
    def thread_size(self) -> int:
        """Bytes of a task's stack. Raises GuestError if the entry code does not tell."""
        size = self.entry.thread_size or self.entry.irq_stack_size
        if size is None:
            raise GuestError("the size of a stack is not known: the entry code does not test for overflow")
        return size

    @cached_property
    def vector_tables(self) -> tuple[int, ...]:
        """Link-time addresses of the vector tables of kernel mode: `vectors`, and the hardened ones.

        Those end where the code of their vectors is no longer that of `vectors`.
        """
        image, own = self.tasks.image, self.entry.sync.va
        found = [own - EL1H]
        for start in image.symbols.get(HARDENED, []):
            for table in range(start, start + MAX_TABLES * TABLE, TABLE):
                try:
                    same = image.text_at(table + EL1H, 16) == image.text_at(own, 16)
                except KernelFileError:
                    break
                if not same:
                    break
                found.append(table)
        return tuple(found)

    @property
    def how_size(self) -> str:
        """How the size of a task's stack is known."""
        tested = self.entry.thread_size is not None
        return "the entry code's overflow test" if tested else "the size of the IRQ stack in the entry code"

    def of_task(self, task: Task) -> Stack:
        """Return a task's stack."""
        return Stack(
            "task",
            task.stack,
            task.stack + self.thread_size,
            None,
            task,
            f"task_struct.stack, {self.how_size}",
        )

    def of_cpu(self, state: CpuState) -> list[Stack]:
        """Return the stacks that a CPU has besides its tasks'; those not set up yet are left out."""
        found = []
        size = self.entry.irq_stack_size
        names: tuple[tuple[StackKind, str], ...] = (
            ("irq", "irq_stack_ptr"),
            ("sdei-normal", "sdei_stack_normal_ptr"),
            ("sdei-critical", "sdei_stack_critical_ptr"),
        )
        for kind, name in names:
            base = per_cpu_pointer(self.view, state, name, self.entry)
            if base and size and bit(base, 55) and not base % 16:
                found.append(Stack(kind, base, base + size, state.cpu, None, f"per-CPU {name}"))
        if self.entry.overflow_stack is not None:
            link, length = self.entry.overflow_stack
            base = (link + self.view.kaslr_offset + per_cpu_offset(state)) & MASK64
            found.append(Stack("overflow", base, base + length, state.cpu, None, "per-CPU overflow_stack"))
        return found

    def locate(self, state: CpuState) -> Position:
        """Return which stack the SP of a CPU is on."""
        on, identity = mmu_on(state) is not False, not bit(state.pc, 55)
        task = self.tasks.current(state)
        if state.el == 0:
            return self._user(state, task)
        sp = state.sp

        def found(kind: StackKind, stack: Stack | None, note: str = "") -> Position:
            return Position(state.cpu, kind, sp, stack, task, on, identity, note)

        candidates = ([] if task is None else [self.of_task(task)]) + self.of_cpu(state)
        border = "at the border of user mode: SP_EL0 is the user's stack pointer, __entry_task names the task"
        for stack in candidates:
            if stack.holds_sp(sp):
                return found(stack.kind, stack, border if task is not None and at_user_border(state) else "")
        if task is not None and 0 < task.stack - sp <= self.thread_size:
            below = f"SP is {task.stack - sp} bytes below the base of the task's stack"
            return found("none", candidates[0], below)
        if identity and not bit(sp, 55):
            return found(
                "idmap", None, "SP is a physical address, of the boot's own stack" if sp else "SP is 0"
            )
        other = self._other(sp)
        if other is not None:
            return found("task", other, "the stack is another task's: in the middle of a switch")
        return found("none", None, "SP is on no stack that is known")

    def _user(self, state: CpuState, task: Task | None) -> Position:
        """Return the empty kernel stack that the next exception from user mode will use: SP_EL1."""
        sp = state.system.get(translation_register(state, "SP"), 0)
        stack = self.of_task(task) if task is not None else None
        if stack is None and bit(sp, 55):
            base = align_down(sp - 1, self.thread_size)
            stack = Stack("task", base, base + self.thread_size, None, None, f"SP_EL1, {self.how_size}")
        if stack is not None and not stack.holds_sp(sp):
            sp = stack.top
        note = "the CPU runs user code: the kernel stack is empty"
        return Position(state.cpu, "user", sp, stack, task, True, False, note)

    def _other(self, sp: int) -> Stack | None:
        """Return the stack of any task that SP is on."""
        try:
            listed = self.tasks.all().tasks
        except GuestError:
            return None
        return next((s for s in map(self.of_task, listed) if s.holds_sp(sp)), None)

    def end_magic(self, stack: Stack) -> bool | None:
        """Tell whether the end mark of a task's stack is intact.

        None for other stacks, and where its address cannot be read or leads to other memory.
        Source: set_task_stack_end_magic, kernel/fork.c. The other stacks carry no mark.
        """
        if stack.kind != "task":
            return None
        try:
            if self.view.read_u64(stack.base) == STACK_END_MAGIC:
                return True
        except GuestError:
            return None
        return None if self.misled(stack) is not None else False

    def is_own(self, stack: Stack) -> bool:
        """Tell whether a task's stack is known to lead to its own memory."""
        return stack.task is not None and is_own(self.view, stack.task.address, stack.base, stack.size)

    def _bases(self, but: int) -> Iterator[tuple[int, int]]:
        """Yield task and base of all stacks of tasks but one."""
        return ((task.address, task.stack) for task in self.tasks.all().tasks if task.stack != but)

    def misled(self, stack: Stack) -> Misled | None:
        """Return where a task's stack leads to memory that is not its own; None if nothing tells so."""
        if stack.task is None:
            return None
        if stack.base not in self._misled:
            self._misled[stack.base] = misled(
                self.view, stack.task.address, stack.base, stack.size, lambda: self._bases(stack.base)
            )
        return self._misled[stack.base]
