"""What a verdict reads from a stopped guest."""

from __future__ import annotations

from typing import Any

import pytest
import stack_guest as sg
from stack_guest import EL1_SYNC, FRAME, StackGuest
from test_unwind import HANDLER, Guest

from ptinspect.linux.running.stacks import Stacks
from ptinspect.stack.depth import depth_of_cpu
from ptinspect.stack.verdict import explain
from ptinspect.stack.verdict_facts import collect


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_an_overflow_stack_that_is_not_mapped_is_no_stack_with_room() -> None:
    """The entry of the linear map was lost, which holds the overflow stack and the task_struct."""
    guest = StackGuest()
    overflow = guest.per_cpu(0) + sg.OVERFLOW & (1 << 64) - 1
    lost: dict[str, int] = {
        "pc": sg.BAD_STACK,
        "ESR_EL1": 0x9600_0006,
        "FAR_EL1": overflow,
        "ELR_EL1": sg.EL1_SYNC + 8,
    }
    state = guest.cpu(overflow, overflow + 0x1000, TTBR1_EL1=guest.tree.root, **lost)
    view: Any = guest.view(state)
    guest.tree.set(overflow, 2, 0)
    stacks = Stacks(view)
    found = collect(stacks, state, depth_of_cpu(stacks, state), ())
    assert found.stack is not None and found.stack.kind == "overflow"
    assert found.gone is not None and found.gone.walk.fault_level == 2
    assert explain(found).code == "stack-mapping-lost"


def test_a_stack_below_a_table_that_is_not_in_ram_is_lost() -> None:
    """A dump may lack a table that the guest has: then nothing is said of the stack."""
    guest = StackGuest()
    base = guest.new_stack()
    state = guest.cpu(
        guest.task(0, "test", base), base + 0x3000, TTBR1_EL1=guest.tree.root, pc=sg.VECTORS + 0x200
    )
    guest.tree.set(base, 2, 0xDEAD_B003)
    for ram, code in ((guest.view().ram, "stack-mapping-lost"), ((), "not-a-stack-problem")):
        view: Any = guest.view(state)
        view.ram = ram
        stacks = Stacks(view)
        assert explain(collect(stacks, state, depth_of_cpu(stacks, state), ())).code == code


def test_an_irq_stack_that_overflows_is_the_one_that_is_told(guest: Guest) -> None:
    """At the kernel's own test, and later, when it has saved the registers on the overflow stack."""
    base = guest.irq
    overflow = guest.per_cpu(0) + sg.OVERFLOW & (1 << 64) - 1
    guest.exception(overflow + 0x1000 - FRAME, EL1_SYNC, base, base + 64)
    system = {"ELR_EL1": EL1_SYNC, "ESR_EL1": 0x9600_0047, "FAR_EL1": base - 16, "TPIDR_EL0": base - FRAME}
    for pc, sp in ((sg.BAD_STACK, overflow + 0x1000), (HANDLER + 0x10, overflow + 0x800)):
        state = guest.cpu(guest.me, sp, pc=pc, x29=base + 64, TTBR1_EL1=guest.tree.root, **system)
        stacks: Any = Stacks(guest.view(state))
        found = collect(stacks, state, depth_of_cpu(stacks, state), ())
        assert found.stack is not None and (found.stack.kind, found.sp, found.gone) == ("irq", base, None)
        assert explain(found).code in ("guard-page-hit", "deep-call-chain")
