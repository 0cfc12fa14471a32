"""Which stack SP is on, and what the bounds of each are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import stack_guest as sg
from stack_guest import (
    ENTRY_TASK,
    IRQ_POINTER,
    KERNEL,
    LINEAR,
    MAGIC,
    OVERFLOW,
    PER_CPU,
    SIZE,
    VECTORS,
    StackGuest,
)

from ptinspect.errors import GuestError
from ptinspect.linux.running.stacks import Position, Stacks
from ptinspect.stack.depth import depth_of_cpu


class Guest(StackGuest):
    """Two tasks, one CPU with an IRQ stack."""

    def __init__(self) -> None:
        super().__init__()
        self.base = self.new_stack()
        self.init = self.task(0, "swapper/0", self.new_stack())
        self.shell = self.task(7, "sh", self.base, parent=self.init)
        self.link_tasks([self.init, self.shell])
        self.irq = self.new_stack()
        self.per_cpu_put(0, IRQ_POINTER, self.irq)

    def at(self, sp: int, **more: int) -> Position:
        state = self.cpu(more.pop("task", self.shell), sp, **more)
        return Stacks(self.view(state)).locate(state)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_task_stack(guest: Guest) -> None:
    found = guest.at(guest.base + 0x3CC0)
    assert (found.kind, found.used, found.free) == ("task", 0x340, 0x3CC0)
    assert found.stack is not None
    assert (found.stack.base, found.stack.top, found.stack.size) == (guest.base, guest.base + SIZE, SIZE)
    assert found.task is not None
    assert (found.task.comm, found.task.pid, found.task.cpu) == ("sh", 7, 0)


@pytest.mark.parametrize(
    ("offset", "kind"), [(0, "task"), (SIZE, "task"), (-16, "none"), (SIZE + 16, "none")]
)
def test_the_ends_of_a_stack(guest: Guest, offset: int, kind: str) -> None:
    assert guest.at(guest.base + offset).kind == kind


def test_just_below_the_base_is_told(guest: Guest) -> None:
    found = guest.at(guest.base - 0x60)
    assert found.note == "SP is 96 bytes below the base of the task's stack"
    assert found.free == -0x60


def test_the_irq_stack(guest: Guest) -> None:
    found = guest.at(guest.irq + 0x3F00)
    assert (found.kind, found.used) == ("irq", 0x100)
    assert found.task is not None and found.task.comm == "sh"


def test_the_overflow_stack(guest: Guest) -> None:
    base = OVERFLOW + guest.per_cpu(0) & (1 << 64) - 1
    found = guest.at(base + 0x800)
    assert (found.kind, found.free) == ("overflow", 0x800)
    assert found.stack is not None and found.stack.size == 0x1000


def test_an_irq_stack_that_is_not_set_up_yet(guest: Guest) -> None:
    guest.per_cpu_put(0, IRQ_POINTER, 0)
    assert guest.at(guest.irq + 0x3F00).kind == "none"


def test_the_mmu_off_changes_nothing(guest: Guest) -> None:
    found = guest.at(guest.base + 0x3CC0, pc=0x4020_1000, SCTLR_EL1=0)
    assert (found.kind, found.used, found.mmu_on, found.identity) == ("task", 0x340, False, True)


def test_a_physical_sp_in_early_boot(guest: Guest) -> None:
    found = guest.at(0x4025_0000, pc=0x4020_1000, SCTLR_EL1=0)
    assert (found.kind, found.stack) == ("idmap", None)


def test_user_code_leaves_the_kernel_stack_empty(guest: Guest) -> None:
    guest.per_cpu_put(0, ENTRY_TASK, guest.shell)
    found = guest.at(0x7FFF_0000, pstate=0, pc=0x40_0000, SP_EL1=guest.base + SIZE, task=0x7FFF_0000)
    assert (found.kind, found.used, found.free) == ("user", 0, SIZE)
    assert found.task is not None and found.task.pid == 7


def test_user_code_of_a_task_that_cannot_be_named(guest: Guest) -> None:
    found = guest.at(0x7FFF_0000, pstate=0, pc=0x40_0000, SP_EL1=guest.base + SIZE)
    assert found.task is None
    assert found.stack is not None and found.stack.base == guest.base


def test_another_tasks_stack_in_the_middle_of_a_switch(guest: Guest) -> None:
    found = guest.at(guest.base + 0x3000, task=guest.init)
    assert found.kind == "task"
    assert found.stack is not None and found.stack.base == guest.base
    assert "switch" in found.note


@pytest.mark.parametrize("task", [0, 0x1234, LINEAR + 0x3FF0_0000, KERNEL + 8, (1 << 64) - 16])
def test_a_current_task_that_makes_no_sense_is_none(guest: Guest, task: int) -> None:
    found = guest.at(guest.base + 0x3000, task=task)
    assert found.task is None
    assert found.kind == "none"


def test_the_end_mark(guest: Guest) -> None:
    state = guest.cpu(guest.shell, guest.base + 0x3000)
    stacks = Stacks(guest.view(state))
    stack = stacks.locate(state).stack
    assert stack is not None
    assert stacks.end_magic(stack) is True
    guest.put(guest.base, MAGIC ^ 1)
    assert stacks.end_magic(stack) is False
    guest.put(guest.base, MAGIC | 1 << 40)
    assert stacks.end_magic(stack) is False
    guest.tree.set(guest.base, 3, 0)
    assert stacks.end_magic(stack) is None
    assert stacks.end_magic(stacks.of_cpu(state)[0]) is None


def test_entry_code_from_memory_where_no_symbol_names_it(guest: Guest) -> None:
    del guest.image.symbols["vectors"]
    guest.tree.memory.write(0x4020_0000, bytes(guest.image.code[:0x2_0000]))
    state = guest.cpu(guest.shell, guest.base + 0x3000, VBAR_EL1=VECTORS)
    stacks = Stacks(guest.view(state))
    assert stacks.thread_size == SIZE
    assert PER_CPU < stacks.entry.pointers["irq_stack_ptr"] < PER_CPU + 0x1000


def test_no_vectors_at_all(guest: Guest) -> None:
    del guest.image.symbols["vectors"]
    state = guest.cpu(guest.shell, guest.base + 0x3000, VBAR_EL1=0)
    with pytest.raises(GuestError, match="exception vectors"):
        Stacks(guest.view(state)).locate(state)


@pytest.mark.parametrize(
    ("pc", "used"),
    [
        (0xFFFF_FDFF_FE5F_A400, 0),  # the trampoline of KPTI
        (sg.VECTORS + 0x400, 0),
        (sg.VECTORS + 0x404, sg.FRAME),
        (sg.EL0_SYNC + 8, sg.FRAME),
    ],
)
def test_the_entry_from_user_mode_is_on_the_stack_of_its_task(guest: Guest, pc: int, used: int) -> None:
    """SP_EL0 is the user's stack pointer until the entry has read __entry_task."""
    guest.per_cpu_put(0, ENTRY_TASK, guest.shell)
    sp = guest.base + SIZE - used
    state = guest.cpu(0x7FFF_F000, sp, pc=pc, x29=0x7FFF_F100, ELR_EL1=0x40_1000)
    stacks = Stacks(guest.view(state))
    found = stacks.locate(state)
    assert (found.kind, found.used) == ("task", used)
    assert found.task is not None and found.task.comm == "sh"
    assert "at the border of user mode" in found.note
    assert stacks.tasks.read(guest.shell).cpu == 0
    unwound = depth_of_cpu(stacks, state).unwound
    assert [(f.kind, f.size) for f in unwound.frames] == ([("user", used)] if used else [])
    assert unwound.complete
    assert unwound.ended == ("the entry from user mode" if used else "the stack is empty")


@pytest.mark.parametrize("step", range(1, 7))
def test_the_vectors_of_user_mode_scramble_sp_too(guest: Guest, step: int) -> None:
    at = sg.VECTORS + 0x400
    guest.image.put(at, sg.vector(at, sg.EL0_SYNC, OVERFLOW + 0x1000))
    guest.per_cpu_put(0, ENTRY_TASK, guest.shell)
    low, x0 = guest.base + SIZE - sg.FRAME, 0x1234
    sp, x0 = [(low, x0), (low + x0, x0), (low + x0, low), (low + x0, low), (low + x0, x0), (low, x0)][
        step - 1
    ]
    state = guest.cpu(0x7FFF_F000, sp, pc=at + 4 * step, x29=0x7FFF_F100, ELR_EL1=0x40_1000)
    state = replace(state, x=(x0, *state.x[1:]))
    found = depth_of_cpu(Stacks(guest.view(state)), state)
    assert (found.position.kind, found.position.used) == ("task", sg.FRAME)
    assert [f.kind for f in found.unwound.frames] == ["user"]


def test_before_there_are_tasks_none_is_named(guest: Guest) -> None:
    guest.per_cpu_put(0, ENTRY_TASK, 0)
    assert guest.at(guest.base + 0x3000, task=0).task is None
