"""Frames on made-up stacks: plain chains, leaves, exceptions, changes of stack, and damage."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import stack_guest as sg
from builders import cpu_state
from stack_guest import EL1_IRQ, EL1_SYNC, FRAME, IRQ_POINTER, KERNEL, SIZE, StackGuest

from ptinspect.errors import GuestError
from ptinspect.linux.running.stacks import Stacks
from ptinspect.stack.depth import Depth, depth_of_cpu, depth_of_task, with_true_sp

OUTER, MIDDLE, LEAF, BIG, HANDLER = (KERNEL + 0x5000 + 0x1000 * i for i in range(5))
LR_OUTER, LR_MIDDLE, LR_BIG = OUTER + 0x20, MIDDLE + 0x20, BIG + 0x20


class Guest(StackGuest):
    """Functions: outer (96 bytes) calls middle (64), that calls leaf (none) or big (0x1020)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = self.new_stack()
        self.top = self.base + SIZE
        self.me = self.task(0, "test", self.base)
        self.irq = self.new_stack()
        self.per_cpu_put(0, IRQ_POINTER, self.irq)
        body = [sg.NOP] * 10
        for at, size, name in ((OUTER, 96, "outer"), (MIDDLE, 64, "middle"), (HANDLER, 48, "handler")):
            self.image.put(at, [sg.push_record(size), sg.MOV_FP_SP, *body], name)
            self.image.put(at + 48, [sg.pop_record(size), sg.RET])
        self.image.put(LEAF, [*[sg.NOP] * 4, sg.RET], "leaf")
        self.image.put(BIG, [0xD14007FF, 0xA9017BFD, sg.add(29, 31, 16), *body], "big")

    def chain(self) -> int:
        """Outer, called by nobody, calls middle: return SP of middle."""
        outer = self.top - FRAME - 96
        self.put(outer, 0, OUTER + 0x800)
        self.put(outer - 64, outer, LR_OUTER)
        return outer - 64

    def depth(self, sp: int, **more: int) -> Depth:
        state = self.cpu(self.me, sp, **more)
        return depth_of_cpu(Stacks(self.view(state)), state)

    def exception(self, at: int, pc: int, sp: int, x29: int, **more: int) -> int:
        """Store pt_regs at `at` as the entry does; return the frame record's address."""
        self.put(at + 29 * 8, x29, more.get("x30", 0), sp, pc, more.get("pstate", 0x5))
        self.put(at + 304, *((0, 0) if more.get("user") else (x29, pc)))
        return at + 304


@pytest.fixture
def guest() -> Guest:
    return Guest()


def shape(depth: Depth) -> list[tuple[int, int, str]]:
    return [(frame.pc, frame.size, frame.kind) for frame in depth.unwound.frames]


def check_sum(depth: Depth) -> None:
    """The frames on the stack that SP is on add up to what is used of it."""
    stack = depth.position.stack
    assert stack is not None
    on_it = [frame.size for frame in depth.unwound.frames if stack.contains(frame.sp)]
    assert sum(on_it) == depth.position.used
    assert all(frame.exact for frame in depth.unwound.frames)


def test_a_chain_of_functions_adds_up(guest: Guest) -> None:
    sp = guest.chain()
    found = guest.depth(sp, pc=LR_MIDDLE, x29=sp)
    end = OUTER + 0x800
    assert shape(found) == [(LR_MIDDLE, 64, "function"), (LR_OUTER, 96, "function"), (end, FRAME, "end")]
    assert [frame.sp for frame in found.unwound.frames] == [sp, sp + 64, sp + 160]
    assert found.unwound.complete
    check_sum(found)


def test_a_leaf_has_no_record(guest: Guest) -> None:
    sp = guest.chain()
    found = guest.depth(sp, pc=LEAF + 8, x29=sp, x30=LR_MIDDLE)
    assert shape(found)[:2] == [(LEAF + 8, 0, "function"), (LR_MIDDLE, 64, "function")]
    check_sum(found)


@pytest.mark.parametrize("x30", [0, LEAF + 4])
def test_x30_of_a_call_that_has_returned_names_no_caller(guest: Guest, x30: int) -> None:
    """As in head.S, which keeps no frames: the records alone count."""
    sp = guest.chain()
    found = guest.depth(sp, pc=LEAF + 8, x29=sp, x30=x30)
    assert [pc for pc, _, kind in shape(found) if kind == "function"][:2] == [LEAF + 8, LR_OUTER]


@pytest.mark.parametrize(("offset", "record", "lowered"), [(0, False, 0), (4, False, 64), (8, True, 64)])
def test_in_the_prologue(guest: Guest, offset: int, record: bool, lowered: int) -> None:
    sp = guest.chain()
    caller = sp + 64
    found = guest.depth(caller - lowered, pc=MIDDLE + offset, x29=sp if record else caller, x30=LR_OUTER)
    assert shape(found)[:2] == [(MIDDLE + offset, lowered, "function"), (LR_OUTER, 96, "function")]
    check_sum(found)


@pytest.mark.parametrize(("offset", "left"), [(44, 64), (48, 64), (52, 0)])
def test_in_the_epilogue(guest: Guest, offset: int, left: int) -> None:
    sp = guest.chain()
    caller = sp + 64
    found = guest.depth(caller - left, pc=MIDDLE + offset, x29=sp if left else caller, x30=LR_OUTER)
    assert shape(found)[:2] == [(MIDDLE + offset, left, "function"), (LR_OUTER, 96, "function")]
    check_sum(found)


def test_a_record_that_is_not_at_the_bottom_of_its_frame(guest: Guest) -> None:
    caller = guest.chain()
    sp = caller - 0x1000
    guest.put(sp + 16, caller, LR_MIDDLE)
    found = guest.depth(sp, pc=LR_BIG, x29=sp + 16)
    assert shape(found)[:2] == [(LR_BIG, 0x1000, "function"), (LR_MIDDLE, 64, "function")]
    check_sum(found)


def test_room_taken_later_belongs_to_its_function(guest: Guest) -> None:
    sp = guest.chain()
    found = guest.depth(sp - 0x200, pc=LR_MIDDLE, x29=sp)
    assert shape(found)[0] == (LR_MIDDLE, 0x240, "function")
    check_sum(found)


def test_code_without_symbols_goes_by_the_records(guest: Guest) -> None:
    sp = guest.chain()
    module = 0xFFFF_8000_0900_0000
    guest.put(sp - 32, sp, LR_MIDDLE)
    found = guest.depth(sp - 32, pc=module, x29=sp - 32)
    assert shape(found)[0] == (module, 32, "function")
    assert not found.unwound.frames[0].exact


def test_authenticated_return_addresses(guest: Guest) -> None:
    sp = guest.chain()
    guest.put(sp + 8, LR_OUTER ^ 0x5A << 56 ^ 0x3 << 48)
    found = guest.depth(sp, pc=LR_MIDDLE, x29=sp)
    assert shape(found)[1][0] == LR_OUTER


def test_an_interrupt_on_the_task_stack(guest: Guest) -> None:
    sp = guest.chain()
    regs = sp - FRAME
    record = guest.exception(regs, LR_MIDDLE, sp, sp)
    guest.put(regs - 48, record, EL1_IRQ + 80)
    found = guest.depth(regs - 48, pc=HANDLER + 0x10, x29=regs - 48)
    assert [s[1:] for s in shape(found)][:3] == [(48, "function"), (FRAME, "exception"), (64, "function")]
    check_sum(found)


def test_an_interrupt_on_the_irq_stack(guest: Guest) -> None:
    sp = guest.chain()
    regs = sp - FRAME
    record = guest.exception(regs, LR_MIDDLE, sp, sp)
    handler = guest.irq + SIZE - 48
    guest.put(handler, record, EL1_IRQ + 4 * 25)
    found = guest.depth(handler, pc=HANDLER + 0x10, x29=handler)
    assert found.position.kind == "irq"
    assert [(f.stack, f.size, f.kind) for f in found.unwound.frames] == [
        ("irq", 48, "function"),
        ("task", FRAME, "exception"),
        ("task", 64, "function"),
        ("task", 96, "function"),
        ("task", FRAME, "end"),
    ]
    assert [stack.kind for stack in found.other_stacks] == ["task"]
    check_sum(found)


def test_a_leaf_that_was_interrupted(guest: Guest) -> None:
    sp = guest.chain()
    regs = sp - FRAME
    record = guest.exception(regs, LEAF + 4, sp, sp, x30=LR_MIDDLE)
    guest.put(regs - 48, record, EL1_IRQ + 80)
    found = guest.depth(regs - 48, pc=HANDLER + 0x10, x29=regs - 48)
    assert [s[0] for s in shape(found)][2:4] == [LEAF + 4, LR_MIDDLE]
    check_sum(found)


def test_a_function_of_the_kernel_called_from_user_mode(guest: Guest) -> None:
    regs = guest.top - FRAME
    record = guest.exception(regs, 0x40_1000, 0x7FFF_0000, 0, pstate=0, user=1)
    guest.put(regs - 48, record, sg.EL0_SYNC + 96)
    found = guest.depth(regs - 48, pc=HANDLER + 0x10, x29=regs - 48)
    assert [s[1:] for s in shape(found)] == [(48, "function"), (FRAME, "user")]
    assert found.unwound.complete
    check_sum(found)


def test_zeros_below_a_record_are_no_exception(guest: Guest) -> None:
    """Memory below the record of a function that changes the stack is zero: pc 0 in user mode?"""
    sp = guest.chain()
    handler = guest.irq + SIZE - 48
    guest.put(handler, sp, LR_MIDDLE)
    found = guest.depth(handler, pc=HANDLER + 0x10, x29=handler)
    assert [s[2] for s in shape(found)] == ["function", "function", "function", "end"]


@pytest.mark.parametrize("step", range(6))
def test_inside_of_the_overflow_test_sp_is_scrambled(guest: Guest, step: int) -> None:
    """kernel_ventry: sub sp; add sp, sp, x0; sub x0, sp, x0; tbnz; sub x0, sp, x0; sub sp, sp, x0."""
    sp = guest.chain()
    x0 = 0x1234
    low = sp - FRAME
    sp_now, x0_now = [(sp, x0), (low, x0), (low + x0, x0), (low + x0, low), (low + x0, low), (low + x0, x0)][
        step
    ]
    state = guest.cpu(guest.me, sp_now, pc=guest_vector(step), x29=sp, x30=LR_MIDDLE, ELR_EL1=LR_MIDDLE)
    state = type(state)(state.cpu, (x0_now, *state.x[1:]), sp_now, state.pc, state.pstate, state.system)
    found = depth_of_cpu(Stacks(guest.view(state)), state)
    assert found.position.sp == (sp if step == 0 else low)
    assert [s[1:] for s in shape(found)][-3:] == [(64, "function"), (96, "function"), (FRAME, "end")]
    check_sum(found)


def guest_vector(step: int) -> int:
    return sg.VECTORS + 0x200 + 4 * step


@pytest.mark.parametrize("count", [1, 2, 45])
def test_exceptions_of_the_entry_itself_could_not_be_stored(guest: Guest, count: int) -> None:
    good = guest.chain()
    sp = good - count * FRAME
    found = guest.depth(sp, pc=guest_vector(0), x29=good, x30=LR_MIDDLE, ELR_EL1=EL1_SYNC)
    frames = found.unwound.frames
    assert (frames[1].kind, frames[1].count, frames[1].size) == ("unwritten", count, count * FRAME)
    assert frames[1].pc == EL1_SYNC
    assert frames[2].pc == LR_MIDDLE
    check_sum(found)


def test_an_exception_at_the_vector_itself_takes_nothing(guest: Guest) -> None:
    """The vectors are not mapped: the same exception for ever, and nobody lowers SP."""
    good = guest.chain()
    at = guest_vector(0)
    found = guest.depth(good, pc=at, x29=good, x30=LR_MIDDLE, ELR_EL1=at)
    first, second = found.unwound.frames[:2]
    assert (first.kind, first.size, second.sp, second.record) == ("exception", 0, good, good)


def test_from_the_overflow_stack_back_to_the_lost_one(guest: Guest) -> None:
    good = guest.chain()
    sp = good - 40 * FRAME
    overflow = sg.OVERFLOW + guest.per_cpu(0) & (1 << 64) - 1
    regs = overflow + 0x1000 - FRAME
    record = guest.exception(regs, EL1_SYNC, sp, good, x30=LR_MIDDLE)
    guest.put(regs - 48, record, sg.BAD_STACK + 0x9C)
    guest.image.put(sg.BAD_STACK, [*[sg.NOP] * 27, sg.add(29, 31, 0x130), *[sg.NOP] * 12], "__bad_stack")
    found = guest.depth(regs - 48, pc=HANDLER + 0x10, x29=regs - 48)
    assert found.position.kind == "overflow"
    kinds = [(frame.kind, frame.stack, frame.count) for frame in found.unwound.frames]
    assert kinds[:3] == [("function", "overflow", 1), ("exception", "overflow", 1), ("unwritten", "task", 40)]


@pytest.mark.parametrize(
    ("x29", "why"),
    [(0x1234_5678, "no stack"), (0xFFFF_8000_1200_3F01, "not aligned"), (-16, "below the frame")],
)
def test_damaged_records_end_the_chain(guest: Guest, x29: int, why: str) -> None:
    sp = guest.chain()
    found = guest.depth(sp, pc=LR_MIDDLE, x29=sp + x29 if x29 < 0 else x29)
    assert why in found.unwound.ended
    assert not found.unwound.complete


def test_a_record_that_points_down_ends_the_chain(guest: Guest) -> None:
    sp = guest.chain()
    guest.put(sp, sp - 0x40, LR_OUTER)
    found = guest.depth(sp, pc=LR_MIDDLE, x29=sp)
    assert "does not lie above" in found.unwound.ended


def test_a_stack_that_is_not_mapped(guest: Guest) -> None:
    sp = guest.chain()
    guest.tree.set(sp, 3, 0)
    found = guest.depth(sp, pc=LR_MIDDLE, x29=sp)
    assert "not mapped" in found.unwound.ended
    assert found.position.used == guest.top - sp


def test_the_limit(guest: Guest) -> None:
    sp = guest.chain()
    state = guest.cpu(guest.me, sp, pc=LR_MIDDLE, x29=sp)
    found = depth_of_cpu(Stacks(guest.view(state)), state, limit=1)
    assert (len(found.unwound.frames), found.unwound.ended) == (1, "limit of 1 frame")


def test_a_task_that_sleeps(guest: Guest) -> None:
    sp = guest.chain()
    context = guest.me + sg.OFFSETS["task_struct.thread.cpu_context"]
    guest.put(context + sg.OFFSETS["cpu_context.fp"], sp)
    guest.put(context + sg.OFFSETS["cpu_context.pc"], LR_MIDDLE)
    guest.put(guest.me + sg.OFFSETS["task_struct.thread.cpu_context.sp"], sp)
    stacks = Stacks(guest.view(guest.cpu(0, 0)))
    found = depth_of_task(stacks, stacks.tasks.read(guest.me))
    assert shape(found)[0] == (LR_MIDDLE, 64, "function")
    check_sum(found)


@pytest.mark.parametrize("fill", [0, sg.NOP, 0xD4200020])
def test_past_the_code_of_a_vector_sp_is_what_it_says(guest: Guest, fill: int) -> None:
    """Where the guard has put instructions of its own into what fills the slot."""
    at = sg.VECTORS + 0x200
    words = sg.vector(at, EL1_SYNC, sg.OVERFLOW + 0x1000)
    guest.image.put(at + 4 * len(words), [fill] * (32 - len(words)))
    sp = guest.chain()
    found = guest.depth(sp - FRAME, pc=at + 4 * 25, x29=sp, x30=LR_MIDDLE, ELR_EL1=LR_MIDDLE)
    assert found.position.sp == sp - FRAME
    check_sum(found)


def test_the_hardened_vectors_are_vectors_too(guest: Guest) -> None:
    table = sg.KERNEL + 0x1_8000
    for i in range(4):
        at = table + 0x200 + 0x80 * i
        guest.image.put(at, sg.vector(at, EL1_SYNC, sg.OVERFLOW + 0x1000))
    guest.image.symbols["__bp_harden_el1_vectors"] = [table]
    sp = guest.chain()
    low = sp - FRAME
    state = guest.cpu(guest.me, low + 0x1234, pc=table + 0x208, x29=sp, x30=LR_MIDDLE, ELR_EL1=LR_MIDDLE)
    state = replace(state, x=(0x1234, *state.x[1:]))
    found = depth_of_cpu(Stacks(guest.view(state)), state)
    assert found.position.sp == low
    check_sum(found)


def test_sp_is_as_it_is_where_nobody_knows_where_the_vectors_run() -> None:
    class Damaged:
        @property
        def kaslr_offset(self) -> int:
            raise GuestError("no table was found that maps it")

    state = cpu_state()
    stacks: Any = SimpleNamespace(view=Damaged(), vector_tables=[KERNEL])
    assert with_true_sp(stacks, state) is state
