"""`stack guard` on a fake guest: what it arms, what it answers, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import stack_guest as sg
from fakes import FakeSession, FakeSlots, State, Stop, context, run, text
from stack_guest import KERNEL, SIZE, VECTORS, StackGuest

from ptinspect.arch.sysregs import CpuState
from ptinspect.commands.framework.context import Context
from ptinspect.errors import TargetError, TargetTimeout, UserError
from ptinspect.guest.stacks import stack_guard
from ptinspect.link.gdb.slots import watch_fault

SYNC = VECTORS + 0x200
TRAPS = VECTORS + 0x280 + 4 * 22
"""The vector of interrupts has 21 words of code, and a branch of the probe's."""
IMAGE = sg.IMAGE


@dataclass
class GuardSession(FakeSession):
    """Keep watchpoints, registers that were set, and a list of stops to come."""

    watches: dict[int, int] = field(default_factory=dict)
    traps: dict[int, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    stops: list[Any] = field(default_factory=list)
    kept: bool = True
    words: list[str] = field(default_factory=list)
    inserted: bool = False

    def watch_access(self, address: int, length: int, purpose: Any) -> int:
        assert watch_fault(address, length) == "" and self.slots.left["watchpoint"] > 0
        self.slots.left["watchpoint"] -= 1
        number = 200 + len(self.watches)
        self.watches[number] = address
        return number

    def registers(self, cpu: int, only: Collection[str] = ()) -> dict[str, int]:
        return {"PAR_EL1": 5} if self.kept else {}

    def gdb_command(self, line: str) -> str:
        self.words.append(line)
        if line.startswith("set breakpoint"):
            self.inserted = line.endswith("on")
        return f"Always inserted breakpoint mode is {'on' if self.inserted else 'off'}.\n"

    def watch_areas(self, areas: Sequence[tuple[int, int]]) -> list[int]:
        """Give traps the numbers -1, -2, and stacks -100, -101, ..."""
        found = []
        for address, size in areas:
            kind = self.traps if size == 4 else self.watches
            found.append(-len(kind) - (1 if size == 4 else 100))
            kind[found[-1]] = address
            self.sizes.append(size)
        return found

    def unwatch_areas(self) -> None:
        self.traps.clear()
        self.watches = {number: at for number, at in self.watches.items() if number > 0}

    def forget(self, number: int) -> None:
        if self.slots.limited and number in self.watches:
            self.slots.left["watchpoint"] += 1
        self.watches.pop(number, None)
        self.breakpoints = tuple(b for b in self.breakpoints if b.id != number)

    def delete_breakpoint(self, number: int) -> None:
        self.forget(number)

    def wait_stop(self, timeout: float) -> Stop:
        if not self.stops:
            raise TargetTimeout("not in time")
        stop = self.stops.pop(0)
        if stop is None:
            raise TargetTimeout("not in time")
        return self._stopped(stop(self) if callable(stop) else stop)


class Guest(StackGuest):
    """Init and a shell; the shell runs."""

    placed = True

    def __init__(self) -> None:
        super().__init__()
        self.init_base, self.base = self.new_stack(), self.new_stack()
        self.init = self.task(0, "swapper/0", self.init_base)
        self.shell = self.task(7, "sh", self.base, parent=self.init)
        self.link_tasks([self.init, self.shell])
        self.image.symbols |= {"panic_bad_stack": [KERNEL + 0x7000]}
        self.tree.memory.write(IMAGE, bytes(self.image.code[:0x10_0000]))
        self.states = [self.cpu(self.shell, self.base + 0x3000)]
        self.session = GuardSession(self.tree.memory, cpus=self.states)

    def code(self) -> bytes:
        return self.tree.memory.read(IMAGE + VECTORS - KERNEL, 0x800)

    def context(self) -> Context:
        ctx = context()
        self.attach(ctx.guest, self.session)
        return ctx

    def view(self, *states: CpuState) -> Any:
        found = super().view(*states)
        found.placed = self.placed
        return found

    def stop_at(self, number: int, **more: int) -> Any:
        """Make a stop at a breakpoint, with the registers of the CPU."""

        def make(session: GuardSession) -> Stop:
            session.cpus[0] = self.cpu(self.shell, more.pop("sp", self.base + 0x3000), **more)
            return Stop("breakpoint-hit", 0, number, session.cpus[0].pc, "")

        return make


@pytest.fixture
def guest() -> Guest:
    return Guest()


def nothing_left(guest: Guest, before: bytes) -> None:
    assert guest.code() == before
    assert guest.session.watches == {}
    assert guest.session.breakpoints == () and guest.session.traps == {}


def test_a_cpu_that_faults_at_its_own_vector_is_not_quiet(guest: Guest) -> None:
    """The kernel's image itself is lost: no store is made, and no wire is met."""
    before, ctx = guest.code(), guest.context()
    registers = {"VBAR_EL1": VECTORS, "ELR_EL1": SYNC, "SPSR_EL1": 0x3C5, "ESR_EL1": 0x8600_0004}
    guest.session.cpus[0] = guest.cpu(guest.shell, guest.base + 0x3000, pc=SYNC, **registers)
    found = run(ctx, "stack guard --timeout 1")
    assert (found.result["way"], found.result["quiet"], found.exit_code) == ("recursive-fault", False, 1)
    nothing_left(guest, before)


@pytest.mark.parametrize("inserted", [False, True])
def test_a_quiet_run(guest: Guest, inserted: bool) -> None:
    before = guest.code()
    seen: list[Any] = []

    def look(session: GuardSession) -> Stop:
        seen.append((guest.code() != before, dict(session.watches), [*session.traps.values()]))
        assert session.inserted
        return Stop("breakpoint-hit", 0, 77, KERNEL, "")

    guest.session.stops, guest.session.inserted = [look], inserted
    result = run(guest.context(), "stack guard --timeout 5").result
    assert guest.session.inserted is inserted, "of GDB's user"
    assert (result["way"], result["quiet"], result["entry"], result["stacks_watched"]) == (
        "other",
        True,
        "probe",
        2,
    )
    patched, watches, traps = seen[0]
    assert patched
    assert sorted(watches.values()) == [guest.init_base + 32, guest.base + 32]
    assert traps == [TRAPS, TRAPS + 8]
    nothing_left(guest, before)


def test_the_time_is_over(guest: Guest) -> None:
    before = guest.code()
    result = run(guest.context(), "stack guard --timeout 0.05").result
    assert (result["way"], result["quiet"]) == ("time", True)
    nothing_left(guest, before)


def test_no_time_at_all_is_as_if_none_was_given(guest: Guest) -> None:
    guest.session.stops = [None, guest.stop_at(77)]
    assert run(guest.context(), "stack guard --timeout 0").result["way"] == "other"


def test_a_tripped_wire_that_cannot_be_explained_is_not_quiet_either(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = guest.context()
    guest.session.stops = [guest.stop_at(77), guest.stop_at(-101, sp=guest.base + 0x700)]
    run(ctx, "stack guard")
    assert run(ctx, "expect guard quiet").exit_code == 0

    def lost(*_: object) -> None:
        raise TargetError("the link failed")

    monkeypatch.setattr("ptinspect.guest.stacks.fault.judge_cpu", lost)
    with pytest.raises(TargetError):
        run(ctx, "stack guard")
    assert run(ctx, "expect guard quiet").exit_code == 1


def test_a_recursive_fault(guest: Guest) -> None:
    before = guest.code()
    low = guest.base + 0x3000
    guest.session.stops = [
        guest.stop_at(-1, sp=low, pc=TRAPS + 4, ELR_EL1=sg.EL1_SYNC, ESR_EL1=0x9600_0046, FAR_EL1=low + 0x150)
    ]
    report = run(guest.context(), "stack guard")
    assert (report.exit_code, report.result["way"], report.result["quiet"]) == (1, "recursive-fault", False)
    assert report.result["stack"]["free"] == 0x3000
    assert f"set $pc = {SYNC + 0x18:#x}" in guest.session.words
    assert "set $x0 = $PAR_EL1" in guest.session.words
    nothing_left(guest, before)


def test_a_fault_that_only_looks_like_one_is_passed(guest: Guest) -> None:
    guest.session.stops = [
        guest.stop_at(-1, pc=TRAPS + 4, ELR_EL1=KERNEL + 0x5000, ESR_EL1=0x9600_0046),
        guest.stop_at(77, pc=KERNEL),
    ]
    result = run(guest.context(), "stack guard").result
    assert (result["way"], result["false_hits"]) == ("other", 1)
    assert f"set $pc = {SYNC + 4 * (21 + 5):#x}" in guest.session.words, "past the test"


def test_the_kernels_own_overflow_test(guest: Guest) -> None:
    before = guest.code()
    guest.session.stops = [guest.stop_at(-2, sp=guest.base - 0x10, pc=TRAPS + 12)]
    result = run(guest.context(), "stack guard").result
    assert result["way"] == "bad-stack"
    assert f"set $pc = {sg.BAD_STACK:#x}" in guest.session.words
    assert "set $x0 = $PAR_EL1" not in guest.session.words
    nothing_left(guest, before)


def test_a_store_into_the_margin(guest: Guest) -> None:
    guest.session.stops = [guest.stop_at(-101, sp=guest.base + 0x700)]
    report = run(guest.context(), "stack guard")
    assert (report.result["way"], report.result["stack"]["free"], report.exit_code) == ("margin", 0x700, 1)
    assert "way margin" in text(report)
    said = "no fault of the stack has happened: 1792 bytes are left on the stack of "
    assert report.result["why"]["text"].startswith(said), report.result["why"]
    assert report.result["why"]["text"].endswith(", and the margin is 2048")
    assert report.result["why"]["unknown"] == []
    assert "nothing proves a fault" not in text(report)


def test_the_irq_stack_of_a_cpu_is_guarded_too(guest: Guest) -> None:
    irq = guest.new_stack()
    guest.per_cpu_put(0, sg.IRQ_POINTER, irq)
    guest.session.stops = [guest.stop_at(-102, sp=irq + 0x700)]
    found = run(guest.context(), "stack guard").result
    assert (found["way"], found["stacks_watched"], found["stack"]["kind"]) == ("margin", 3, "irq")
    assert found["alarm"] == "1792 bytes are left on the IRQ stack of cpu 0, and the margin is 2048"
    assert run(guest.context(), "stack guard --task 7 --timeout 1").result["stacks_watched"] == 1


def test_above_the_margin_is_no_alarm(guest: Guest) -> None:
    guest.session.stops = [guest.stop_at(-101, sp=guest.base + 2048), guest.stop_at(77)]
    found = run(guest.context(), "stack guard").result
    assert (found["way"], found["false_hits"]) == ("other", 1)


def test_memory_that_is_nobodys_stack_any_more_is_let_go(guest: Guest) -> None:
    left: list[Any] = []

    def look(session: GuardSession) -> Stop:
        left.append(sorted(session.watches.values()))
        return Stop("breakpoint-hit", 0, 77, KERNEL, "")

    guest.session.stops = [guest.stop_at(-100, sp=guest.base + 0x3000), look]
    result = run(guest.context(), "stack guard").result
    assert (result["way"], result["false_hits"]) == ("other", 1)
    assert left == [[guest.base + 32]]


def test_tasks_that_come_later_are_watched_if_they_stay(guest: Guest) -> None:
    """The stack of one that ends at once is soon another's, who clears it."""
    seen: list[Any] = []
    stack = guest.new_stack()
    late = guest.task(9, "late", stack, parent=guest.init)
    brief = guest.task(10, "brief", guest.new_stack(), parent=guest.init)

    def then(*tasks: int) -> Callable[[GuardSession], Stop]:
        def stop(session: GuardSession) -> Stop:
            seen.append(len(session.watches))
            guest.link_tasks([guest.init, guest.shell, *tasks])
            raise TargetTimeout("not in time")

        return stop

    def look(session: GuardSession) -> Stop:
        seen.append(sorted(session.watches.values())[2:])
        return Stop("breakpoint-hit", 0, 77, KERNEL, "")

    guest.session.stops = [then(late, brief), then(late), look]
    run(guest.context(), "stack guard --timeout 30")
    assert seen == [2, 2, [stack + 32]]


def test_stacks_that_are_too_many_are_counted_once(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptinspect.guest.stacks.stack_guard.MAX_STACKS", 1)
    guest.session.stops = [None, None, None, None, guest.stop_at(77)]
    result = run(guest.context(), "stack guard --timeout 30").result
    assert (result["stacks_watched"], result["stacks_skipped"]) == (1, 1)


def test_from_reset_on_the_stack_on_which_the_kernel_begins_is_watched_before_tasks_are_known(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Runner:
        def __init__(self, *_: object) -> None: ...

        def place_kernel(self) -> None:
            guest.placed = True

    def margin(session: GuardSession) -> Stop:
        assert list(session.watches.values()) == [guest.base + 32]
        raise TargetTimeout("not in time")

    guest.placed = False
    monkeypatch.setattr("ptinspect.guest.stacks.stack_guard.Runner", Runner)
    guest.session.stops = [margin, guest.stop_at(-100, sp=guest.base + 0x700)]
    found = run(guest.context(), "stack guard --timeout 30").result
    assert found["way"] == "margin"
    assert "on the stack of sh (7)" in found["alarm"], "whose it is was found meanwhile"


@pytest.mark.parametrize(("whose", "bases"), [("current", ["base"]), ("7", ["base"]), ("0", ["init_base"])])
def test_one_task_only(guest: Guest, whose: str, bases: list[str]) -> None:
    seen: list[Any] = []

    def look(session: GuardSession) -> Stop:
        seen.append(sorted(session.watches.values()))
        return Stop("breakpoint-hit", 0, 77, KERNEL, "")

    guest.session.stops = [look]
    run(guest.context(), f"stack guard --task {whose}")
    assert seen == [[getattr(guest, name) + 32 for name in bases]]


@pytest.mark.parametrize("more", ["--task 999", "--task x", "--margin 100%", "--entry x"])
def test_wrong_arguments(guest: Guest, more: str) -> None:
    before = guest.code()
    with pytest.raises(UserError):
        run(guest.context(), f"stack guard {more}")
    nothing_left(guest, before)


@pytest.mark.parametrize("reason", ["kvm", "register", "room", "code"])
def test_where_no_probe_can_be_had_a_breakpoint_takes_its_place(guest: Guest, reason: str) -> None:
    if reason == "kvm":
        guest.session.accel = "kvm"
    elif reason == "register":
        guest.session.kept = False
    elif reason == "room":
        guest.tree.memory.write(IMAGE + SYNC - KERNEL + 0xF8, b"\1\2\3\4")
    else:
        guest.tree.memory.write(IMAGE + SYNC - KERNEL + 0x60, b"\1\2\3\4" * 8)
    before = guest.code()
    with pytest.raises(TargetError, match="no probe"):
        run(guest.context(), "stack guard --entry probe")
    addresses: list[Any] = []

    def look(session: GuardSession) -> Stop:
        addresses.extend(b.address for b in session.breakpoints)
        return Stop("breakpoint-hit", 0, 77, KERNEL, "")

    guest.session.stops = [look]
    report = run(guest.context(), "stack guard")
    assert report.result["entry"] == "breakpoint"
    assert addresses == [sg.EL1_SYNC, KERNEL + 0x7000]
    assert guest.code() == before


def test_the_few_watchpoints_of_kvm_go_to_tasks_that_run(guest: Guest) -> None:
    guest.session.accel = "kvm"
    guest.session.slots = FakeSlots({"breakpoint": 4, "watchpoint": 1})
    seen: list[Any] = []

    def switch(session: GuardSession) -> Stop:
        seen.append(dict(session.watches))
        session.cpus[0] = guest.cpu(guest.init, guest.init_base + 0x3000)
        raise TargetTimeout("not in time")

    def look(session: GuardSession) -> Stop:
        seen.append(dict(session.watches))
        return Stop("breakpoint-hit", 0, 77, KERNEL, "")

    guest.session.stops = [switch, look]
    result = run(guest.context(), "stack guard --timeout 30").result
    assert seen == [{200: guest.base + 0x400}, {200: guest.init_base + 0x400}]
    assert (result["entry"], result["stacks_watched"], result["stacks_skipped"]) == ("breakpoint", 1, 1)
    assert guest.session.watches == {}


def test_a_breakpoint_that_costs_too_much_rests(guest: Guest) -> None:
    benign = {"ELR_EL1": KERNEL + 0x5000, "ESR_EL1": 0x9600_0046, "pc": sg.EL1_SYNC}
    counts: list[int] = []

    def look(session: GuardSession) -> Stop:
        counts.append(len(session.breakpoints))
        return Stop("breakpoint-hit", 0, 77, KERNEL, "")

    guest.session.stops = [*[guest.stop_at(1, **benign) for _ in range(8)], look]
    run(guest.context(), "stack guard --entry breakpoint")
    assert counts == [1]


def test_ctrl_c_ends_it_with_nothing_left_behind(guest: Guest) -> None:
    before = guest.code()

    def press(session: GuardSession) -> Stop:
        raise KeyboardInterrupt

    guest.session.stops = [press]
    result = run(guest.context(), "stack guard").result
    assert (result["way"], result["quiet"]) == ("interrupted", True)
    assert guest.session.state is State.STOPPED
    nothing_left(guest, before)


def test_a_failing_link_is_reported_and_what_can_be_is_taken_away(guest: Guest) -> None:
    before = guest.code()

    def fail(session: GuardSession) -> Stop:
        session.state = State.STOPPED
        raise TargetError("the link failed")

    guest.session.stops = [fail]
    with pytest.raises(TargetError, match="the link failed"):
        run(guest.context(), "stack guard")
    nothing_left(guest, before)


def test_stack_size_is_that_of_the_watch(guest: Guest) -> None:
    guest.session.stops = [guest.stop_at(77)]
    run(guest.context(), "stack guard --margin 25%")
    assert guest.session.sizes == [4, 4, SIZE // 4 - 32, SIZE // 4 - 32]


def test_before_tasks_are_known_the_entry_is_guarded_all_the_same(guest: Guest) -> None:
    """A kernel file without types, early in the boot: memory does not tell yet where a task keeps what."""
    guest.image.types = sg.Types({})
    guest.session.stops = [guest.stop_at(77)]
    report = run(guest.context(), "stack guard")
    found = report.result
    assert (found["way"], found["entry"], found["stacks_watched"]) == ("other", "probe", 0)
    assert "tasks are not known: no task_struct.stack" in " ".join(text(report).split())


def test_only_the_first_that_come_later_are_looked_for_again_soon(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of them stay; those who come when the boot goes on may end, and their stacks be cleared."""
    found: list[set[tuple[int, int]]] = [set(), {(1, 1)}, {(2, 2)}, {(3, 3)}]
    monkeypatch.setattr("ptinspect.guest.stacks.stack_guard.time.monotonic", lambda: 100.0)
    monkeypatch.setattr(stack_guard._Run, "look", lambda run: setattr(run, "newcomers", found.pop(0)))
    looking, after = stack_guard._Run(guest, 2048, "any"), []
    while found:
        looking.look_in_time(stack_guard.LOOK)
        after.append(round(looking.due - 100.0, 6))
    assert after == [stack_guard.LOOK, stack_guard.PROBATION, stack_guard.LOOK, stack_guard.LOOK]
