"""What tells that a call has returned: the return address, the frame, the stack, and the task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import stack_guest as sg
from fakes import FakeSession, Stop, build_registry, run
from stack_guest import FRAME, KERNEL, SIZE
from test_unwind import HANDLER, LEAF, LR_BIG, LR_MIDDLE, LR_OUTER, MIDDLE, OUTER, Guest

from ptinspect.arch.a64 import words
from ptinspect.arch.sysregs import CpuState
from ptinspect.commands.framework.context import Context
from ptinspect.errors import TargetTimeout, UserError
from ptinspect.guest import writer
from ptinspect.stack.depth import start_of_cpu
from ptinspect.stack.kernel_code import Near
from ptinspect.stack.unwind import Caller, strip_pac


class Finish:
    """A guest that stops at these states one after the other, whatever it was told to run to."""

    def __init__(self, guest: Guest, state: CpuState) -> None:
        self.guest, self.state = guest, state
        self.ctx = Context(build_registry())
        session: Any = FakeSession(guest.tree.memory, cpus=[state, replace(state, cpu=1, pc=0)])
        self.session = self.ctx.guest.session = session
        self.ctx.guest._look_at_kernel = lambda: guest.view(*session.cpus)  # type: ignore[method-assign]
        self.stops: list[CpuState] = []
        session.run_until = self._run

    def _run(self, addresses: Any, timeout: float, **options: Any) -> Stop:
        self.session.calls.append(("until", tuple(addresses)))
        if not self.stops:
            raise TargetTimeout("the guest did not stop in time", "the guest was stopped where it is")
        state = self.stops.pop(0)
        self.session.cpus[state.cpu] = state
        return self.session._stopped(Stop("breakpoint-hit", state.cpu, 9, state.pc, ""))

    def run(self, line: str, *stops: CpuState) -> dict[str, Any]:
        self.stops = list(stops)
        return dict(run(self.ctx, line).result)


Code = Callable[[Callable[[int], int]], None]


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Code:
    """Have instructions by their addresses."""

    def at(word: Callable[[int], int]) -> None:
        monkeypatch.setattr(writer, "instruction_at", lambda guest, state, pc: word(pc))

    return at


@pytest.fixture
def guest(code: Code) -> Guest:
    guest = Guest()
    code(lambda va: words(guest.image.text_at(va, 4))[0])
    guest.per_cpu_put(1, sg.IRQ_POINTER, guest.irq)
    guest.link_tasks([guest.me])
    return guest


@pytest.fixture
def at_middle(guest: Guest) -> Finish:
    """In the body of middle, which outer called."""
    sp = guest.chain()
    return Finish(guest, guest.cpu(guest.me, sp, pc=LR_MIDDLE, x29=sp))


def returned(case: Finish, **more: Any) -> CpuState:
    """Outer after the return of middle."""
    sp = case.state.sp + 64
    return replace(case.state, pc=LR_OUTER, sp=sp, x=(*case.state.x[:29], sp, 0), **more)


def other_task(case: Finish) -> CpuState:
    """The same place of another task, at a higher address, on the other CPU."""
    guest = case.guest
    base = guest.new_stack()
    task = guest.task(7, "other", base)
    sp = base + SIZE - FRAME - 96
    return guest.cpu(task, sp, number=1, pc=LR_OUTER, x29=sp)


def test_the_return_of_the_call(at_middle: Finish) -> None:
    found = at_middle.run("finish", returned(at_middle))
    assert (found["pc"], found["cpu"], found["returned"]) == (hex(LR_OUTER), 0, True)
    assert at_middle.session.calls == [("until", (LR_OUTER,))]


def test_another_task_at_the_same_place_goes_on(at_middle: Finish) -> None:
    elsewhere = other_task(at_middle)
    assert elsewhere.sp > at_middle.state.sp
    found = at_middle.run("finish", elsewhere, replace(elsewhere, cpu=0), returned(at_middle))
    assert found["returned"]
    assert at_middle.stops == []


def test_the_task_may_come_back_on_another_cpu(at_middle: Finish) -> None:
    found = at_middle.run("finish", returned(at_middle, cpu=1))
    assert (found["cpu"], found["returned"]) == (1, True)


def test_a_new_task_in_the_same_memory_is_another_one(at_middle: Finish) -> None:
    """A task that ends gives its stack and its task_struct to the next one that is made."""
    back = returned(at_middle)
    run_ = at_middle._run

    def reused(addresses: Any, timeout: float, **options: Any) -> Stop:
        at = at_middle.guest.me + sg.OFFSETS["task_struct.pid"]
        at_middle.guest.write(at, (99).to_bytes(4, "little") * 2)
        return run_(addresses, timeout)

    at_middle.session.run_until = reused
    with pytest.raises(TargetTimeout, match=r"did not return in time; 1 time"):
        at_middle.run("finish", back)


@pytest.mark.parametrize(("sp", "x29"), [(-64, -64), (0, -64), (64, 64), (4096, 0), (-64, 0)])
def test_another_frame_of_the_same_task_goes_on(at_middle: Finish, sp: int, x29: int) -> None:
    """A deeper call of the same function, and one that was left by another way."""
    back = returned(at_middle)
    frame = (*back.x[:29], back.x[29] + x29, 0)
    found = at_middle.run("finish", replace(back, sp=back.sp + sp, x=frame), back)
    assert found["returned"]
    assert at_middle.stops == []


def test_an_interrupt_handler_at_the_same_place_goes_on(at_middle: Finish) -> None:
    """SP_EL0 is still the task: only the frame, on the IRQ stack, is another one."""
    back = returned(at_middle)
    at = at_middle.guest.irq + SIZE - 96
    inner = replace(back, sp=at, x=(*back.x[:29], at, 0))
    assert at_middle.run("finish", inner, back)["returned"]
    assert at_middle.stops == []


def test_what_stops_before_is_no_return(at_middle: Finish) -> None:
    found = at_middle.run("finish", replace(at_middle.state, pc=HANDLER))
    assert not found["returned"]


def test_a_breakpoint_of_the_user_s_at_that_place_stops_every_task(at_middle: Finish) -> None:
    at_middle.session.set_breakpoint(LR_OUTER)
    at_middle.session.breakpoints = (replace(at_middle.session.breakpoints[0], id=9),)
    found = at_middle.run("finish", other_task(at_middle))
    assert (found["cpu"], found["returned"]) == (1, False)


def test_no_function_returns_to_user_mode(guest: Guest) -> None:
    regs = guest.top - FRAME
    record = guest.exception(regs, 0x40_1000, 0x7FFF_0000, 0, pstate=0, user=1)
    case = Finish(guest, guest.cpu(guest.me, regs, pc=sg.EL0_SYNC + 96, x29=record))
    with pytest.raises(UserError, match="no caller"):
        case.run("finish")


def test_from_the_exception_entry_to_what_was_interrupted(guest: Guest) -> None:
    sp = guest.chain()
    guest.exception(sp - FRAME, LR_MIDDLE, sp, sp)
    case = Finish(guest, guest.cpu(guest.me, sp - FRAME, pc=sg.EL1_SYNC + 68, x29=sp - FRAME + 304))
    after = guest.cpu(guest.me, sp, pc=LR_MIDDLE, x29=sp)
    elsewhere = replace(other_task(case), pc=LR_MIDDLE)
    assert case.run("finish", elsewhere, after)["pc"] == hex(LR_MIDDLE)


@pytest.mark.parametrize(
    ("pc", "lowered", "own"),
    [(MIDDLE, 0, False), (MIDDLE + 4, 64, False), (MIDDLE + 52, 0, False), (MIDDLE + 8, 64, True)],
)
def test_in_prologue_and_epilogue(guest: Guest, pc: int, lowered: int, own: bool) -> None:
    caller = guest.chain() + 64
    x29 = caller - 64 if own else caller
    state = guest.cpu(guest.me, caller - lowered, pc=pc, x29=x29, x30=LR_OUTER)
    found = start_of_cpu(guest.view(state), state).caller()
    assert found == Caller(LR_OUTER, caller if not own else x29 + 16, caller, caller)


def test_a_leaf_returns_by_x30(guest: Guest) -> None:
    sp = guest.chain()
    state = guest.cpu(guest.me, sp, pc=LEAF + 8, x29=sp, x30=LR_MIDDLE)
    assert start_of_cpu(guest.view(state), state).caller() == Caller(LR_MIDDLE, sp, sp, sp)


def test_without_symbols_the_frame_record_tells(guest: Guest) -> None:
    sp = guest.chain()
    state = guest.cpu(guest.me, sp, pc=0xFFFF_8000_0900_0000, x29=sp)
    found = start_of_cpu(guest.view(state), state).caller()
    assert found == Caller(LR_OUTER, sp + 16, sp + 64, sp + 64)
    back = replace(state, pc=LR_OUTER, sp=sp + 48, x=(*state.x[:29], sp + 64, 0))
    assert found.reached(back)
    assert not found.reached(replace(back, sp=sp - 16))


@pytest.mark.parametrize("word", [sg.bl(OUTER + 0x1C, MIDDLE), 0xD63F_0020])
def test_nexti_over_a_call(guest: Guest, word: int) -> None:
    guest.image.put(OUTER + 0x1C, [word])
    sp = guest.chain() + 64
    case = Finish(guest, guest.cpu(guest.me, sp, pc=OUTER + 0x1C, x29=sp))
    back = replace(case.state, pc=LR_OUTER)
    deeper = replace(back, sp=sp - 128, x=(*back.x[:29], sp - 128, 0))
    found = case.run("nexti", other_task(case), deeper, back)
    assert (found["returned"], found["pc"]) == (True, hex(LR_OUTER))
    assert case.stops == []


def test_nexti_goes_on_where_the_task_went(guest: Guest) -> None:
    """After a call that slept, the next instruction is the same task's, on the CPU that runs it now."""
    guest.image.put(OUTER + 0x1C, [sg.bl(OUTER + 0x1C, MIDDLE), sg.NOP])
    sp = guest.chain() + 64
    case = Finish(guest, guest.cpu(guest.me, sp, pc=OUTER + 0x1C, x29=sp))
    case.run("nexti 2", replace(case.state, pc=LR_OUTER, cpu=1))
    assert case.session.calls[-1] == ("step", 1, 1)


def test_code_at_physical_addresses_belongs_to_a_cpu(guest: Guest, code: Code) -> None:
    """The boot has no tasks; a call that leaves EL2 comes back at EL1, with another SP."""
    at = sg.IMAGE + 0x5000
    case = Finish(guest, replace(guest.cpu(0, 0x4100_0000, pc=at, x29=0), pstate=0x3C9))
    code(lambda va: sg.bl(at, at + 0x100))
    lower = replace(case.state, pc=at + 4, sp=0x4200_0000, pstate=0x3C5)
    assert case.run("nexti", replace(lower, cpu=1), lower)["returned"]
    assert case.stops == []


def test_processes_are_told_apart_in_user_mode(guest: Guest, code: Code) -> None:
    state = guest.cpu(0, 0x7FFF_0000, pc=0x40_0000, x29=0x7FFF_0010, pstate=0, TTBR0_EL1=0x4100_0000)
    case = Finish(guest, state)
    code(lambda va: sg.bl(va, va + 0x100))
    back = replace(state, pc=0x40_0004)
    other = replace(back, system={**state.system, "TTBR0_EL1": 0x4200_0000})
    thread = replace(back, system={**state.system, "TPIDR_EL0": 0x1000})
    same = replace(back, system={**state.system, "TTBR0_EL1": 0x7_0000_4100_0001})
    assert case.run("nexti", other, thread, same)["returned"]
    assert case.stops == []


@pytest.mark.parametrize(
    ("signed", "bits", "plain"),
    [
        (0x5FAA_AAC0_1008_1000, 39, 0xFFFF_FFC0_1008_1000),
        (0x5AD7_8000_1000_0000 | 1 << 55, 48, 0xFFFF_8000_1000_0000),
        (0xFFB5_0000_1000_0000, 52, 0xFFF5_0000_1000_0000),
        (0xFFFF_8000_1000_0000, 48, 0xFFFF_8000_1000_0000),
        (0x0012_0000_0040_0000, 48, 0x0000_0000_0040_0000),
        (0x7F7F_FFFF_FFFF_F000, 39, 0x0000_007F_FFFF_F000),
        (0x005F_AAC0_1008_1000, None, 0x005F_AAC0_1008_1000),
    ],
)
def test_pointer_authentication_codes_are_removed(signed: int, bits: int | None, plain: int) -> None:
    assert strip_pac(signed, *((36, bits) if signed >> 55 & 1 else (bits, 36))) == plain


def test_big_frames_end_where_their_prologue_says(guest: Guest) -> None:
    caller = guest.chain()
    sp = caller - 0x1000
    guest.put(sp + 16, caller, LR_MIDDLE)
    state = guest.cpu(guest.me, sp, pc=LR_BIG, x29=sp + 16)
    assert start_of_cpu(guest.view(state), state).caller() == Caller(LR_MIDDLE, sp + 32, caller, caller)
    assert KERNEL < LR_BIG


def test_bt_shows_what_stack_shows(guest: Guest) -> None:
    """Through an exception on the IRQ stack, with the record that each address was read from."""
    sp = guest.chain()
    record = guest.exception(sp - FRAME, LR_MIDDLE, sp, sp)
    handler = guest.irq + SIZE - 48
    guest.put(handler, record, sg.EL1_IRQ + 4 * 25)
    case = Finish(guest, guest.cpu(guest.me, handler, pc=HANDLER + 0x10, x29=handler))
    found = case.run("bt")
    assert [(f["pc"], f["kind"], f["record"]) for f in found["frames"]] == [
        (hex(HANDLER + 0x10), "function", None),
        (hex(sg.EL1_IRQ + 100), "exception", hex(handler)),
        (hex(LR_MIDDLE), "function", hex(record)),
        (hex(LR_OUTER), "function", hex(sp)),
        (hex(OUTER + 0x800), "function", hex(sp + 64)),
    ]
    assert found["ended"] == "a frame record of zero"


def test_bt_names_the_function_that_called_last(guest: Guest) -> None:
    """A call that never returns is a function's last instruction: the return address is the next one's."""
    sp = guest.chain()
    guest.put(sp, sp + 64, HANDLER)
    guest.image.symbols["middle"] = [HANDLER - 8]
    case = Finish(guest, guest.cpu(guest.me, sp, pc=LR_MIDDLE, x29=sp))
    case.ctx.guest.nearest = lambda va, *_, **__: Near(*guest.image.nearest(va))  # type: ignore[method-assign]
    assert case.run("bt")["frames"][1]["place"] == f"{HANDLER:#x} (middle+0x8)"
