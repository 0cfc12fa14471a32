"""A session without GDB and a kernel file without a file, for tests of commands and of the REPL."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import cached_property
from pathlib import Path
from typing import Any

from builders import RAM, TreeBuilder, cpu_state, regime_4k
from fake_kernel import IMAGE, KERNEL, KernelFile, View

from ptinspect.arch.sysregs import CpuState
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import Registry, build_registry
from ptinspect.errors import KernelFileError, MiError, OutOfSlots, TargetTimeout, UserError
from ptinspect.link.changes import Changes
from ptinspect.link.gdb.breakpoints import HardwareSlots
from ptinspect.link.gdb.slots import Purpose
from ptinspect.link.journal import Journal
from ptinspect.link.session import Breakpoint, Capability, Session, StopInfo
from ptinspect.link.session import RunState as State
from ptinspect.output.model import Report

TCR_48 = 16 | 16 << 16 | 2 << 30 | 5 << 32
"""4K granules, 48-bit addresses in both halves, 48-bit output addresses."""


@dataclass(frozen=True)
class Stop(StopInfo):
    reason: str = "signal-received"
    cpu: int = 0
    breakpoint: int | None = None
    pc: int = KERNEL
    signal: str = "SIGINT"


class FakeSlots(HardwareSlots):
    """Slots without limit, or this many of each kind."""

    def __init__(self, left: dict[str, int] | None = None) -> None:
        no_gdb: Any = None
        self.left = left or {}
        super().__init__(no_gdb, limited=bool(self.left), dfr0=lambda: None)

    def free(self, kind: str) -> int | None:
        return self.left.get(kind)

    def claim(self, addresses: Iterable[int]) -> None:
        wanted = len(set(addresses))
        if self.left.get("breakpoint", wanted) < wanted:
            raise OutOfSlots("too few", "delete 1")


class FakeEscort:
    """Takes no thread: what the steward wants is done when the guest is to run."""

    everywhere = True
    inside = False
    command = staticmethod(lambda line, seconds: "0 no: this is none")

    def __init__(self) -> None:
        self.stewards: list[Any] = []

    def rest(self) -> None:
        for steward in self.stewards:
            steward.rest()

    def depart(self) -> None:
        for steward in self.stewards:
            steward.depart()


@dataclass
class FakeSession:
    """Behave like a session; what was asked of it is in `calls`."""

    memory: Any
    ram: Sequence[Any] = (RAM,)
    address: str = ":1234"
    was_running: bool = True
    state: State = State.STOPPED
    stop_token: int = 1
    stop: Stop = field(default_factory=Stop)
    current_cpu: int = 0
    qemu_version: str = "7.2.22"
    gdb_version: str = "13.1"
    accel: str = "tcg"
    holds_interrupts: bool = True
    used: Any = None
    stub: dict[str, int] = field(default_factory=dict)
    slots: FakeSlots = field(default_factory=FakeSlots)
    cpus: list[CpuState] = field(default_factory=list)
    breakpoints: tuple[Breakpoint, ...] = ()
    capabilities: frozenset[Capability] = frozenset(Capability)
    lanes: Any = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    listeners: list[Callable[..., None]] = field(default_factory=list)
    on_wait: Callable[[], Stop] | None = None
    reserved: int = 0
    known_as: dict[int, int] = field(default_factory=dict)
    escort: Any = field(default_factory=FakeEscort)
    replay: Any = None

    @property
    def cpu_count(self) -> int:
        return len(self.cpus)

    @cached_property
    def changes(self) -> Changes:
        """What is changed, in a journal that is never written."""
        return Changes(self, Journal(self.address, Path(os.devnull, "none")))

    def look(self) -> str:
        return ""

    def notices(self) -> tuple[str, ...]:
        return ()

    def cpu_state(self, cpu: int) -> CpuState:
        if cpu >= len(self.cpus):
            raise UserError(f"no CPU {cpu}")
        return self.cpus[cpu]

    def registers(self, cpu: int, only: Collection[str] = ()) -> dict[str, int]:
        return dict(self.stub)

    def slots_used(self) -> Any:
        return self.used

    def set_breakpoint(self, address: int, **options: Any) -> Breakpoint:
        self.calls.append(("break", address, options))
        number = 1 + max((b.id for b in self.breakpoints), default=0)
        found = Breakpoint(number, address, condition=options.get("condition") or "")
        if options.get("of"):
            self.known_as[number] = options["of"]
        self.breakpoints = (*self.breakpoints, found)
        return found

    def delete_breakpoint(self, number: int) -> None:
        self.breakpoints = tuple(b for b in self.breakpoints if b.id != number)

    delete_place = delete_breakpoint

    @property
    def places(self) -> dict[int, int]:
        return {b.id: b.hits for b in self.breakpoints}

    def alter_place(
        self,
        number: int,
        *,
        enabled: bool | None = None,
        condition: str | None = None,
        ignore: int | None = None,
    ) -> None:
        self.calls.append(("alter", number, enabled, condition))
        wanted = {"enabled": enabled, "condition": condition, "ignore": ignore}
        more: Any = {name: value for name, value in wanted.items() if value is not None}
        self.breakpoints = tuple(changed(b, **more) if b.id == number else b for b in self.breakpoints)

    def reserve_breakpoint(self) -> int:
        self.reserved += 1
        return 1000 + self.reserved

    def watch_access(
        self, address: int, length: int, purpose: Purpose = Purpose.USER, of: int = 0, **how: str
    ) -> int:
        number = 1 + max((b.id for b in self.breakpoints), default=0)
        kind = {"write": "watchpoint", "read": "read watchpoint", "access": "acc watchpoint"}
        what = f"*({how.get('type', '')}){address:#x}"
        self.breakpoints += (Breakpoint(number, address, kind=kind[how.get("access", "access")], what=what),)
        return number

    def watch_areas(self, areas: Sequence[tuple[int, int]]) -> list[int]:
        return [-1 - n for n in range(len(areas))]

    def unwatch_areas(self) -> None:
        self.calls.append(("unwatch",))

    def write_physical(self, *parts: tuple[int, bytes]) -> None:
        self.stop_token += 1
        for pa, data in parts:
            self.memory.write(pa, data)

    def gva2gpa(self, va: int, cpu: int | None = None) -> int | None:
        raise NotImplementedError

    def resume(self) -> None:
        self.escort.depart()
        self.calls.append(("resume",))
        self.state = State.RUNNING

    def _stopped(self, stop: Stop) -> Stop:
        self.state, self.stop_token, self.stop = State.STOPPED, self.stop_token + 1, stop
        return stop

    def wait_stop(self, timeout: float) -> Stop:
        self.calls.append(("wait", timeout))
        if self.on_wait is None:
            raise TargetTimeout("the guest did not stop in time")
        return self._stopped(self.on_wait())

    def interrupt(self, timeout: float = 5.0) -> Stop:
        self.calls.append(("interrupt",))
        return self._stopped(Stop())

    def step_instructions(self, count: int, cpu: int) -> Stop:
        self.calls.append(("step", count, cpu))
        return self._stopped(Stop("end-stepping-range", cpu, None, KERNEL + 4 * count, ""))

    def run_until(self, addresses: Sequence[int], timeout: float, **options: Any) -> Stop:
        before = {b.id for b in self.breakpoints}
        self.escort.depart()
        made = [b.address for b in self.breakpoints if b.id not in before]
        addresses = [*addresses, *(at for at in made if at is not None)]
        self.calls.append(("until", tuple(addresses)))
        return self._stopped(Stop("breakpoint-hit", 0, 1, addresses[0], ""))

    def monitor(self, line: str) -> str:
        self.calls.append(("monitor", line))
        return f"monitor {line}\n"

    def gdb_command(self, line: str, timeout: float = 120.0) -> str:
        self.calls.append(("gdb", line))
        self.stop_token += 1
        return f"\x1b[2Jgdb {line}\n"

    def disassemble(self, address: int, code: bytes) -> str:
        raise MiError("Undefined MI command: ptinspect-disassemble")

    def on_event(self, listener: Callable[..., None]) -> None:
        self.listeners.append(listener)

    def cancel(self) -> None:
        self.calls.append(("cancel",))

    def detach(self, resume: bool | None = None) -> None:
        self.calls.append(("detach", resume))

    def close(self) -> None:
        self.calls.append(("close",))


_: type[Session] = FakeSession


class FakeKernel(KernelFile):
    """A kernel file with a few symbols, and no types."""

    symbols = {  # noqa: RUF012
        "_text": [KERNEL],
        "start_kernel": [KERNEL + 0x1000],
        "swapper_pg_dir": [KERNEL + 0x10_0000],
    }

    @property
    def types(self) -> Any:
        raise KernelFileError("no types (BTF)")


class FakeView(View):
    """Where the kernel of `kernel_tree` is; its symbols are known without a file."""

    ram = ()

    @property
    def state(self) -> CpuState:
        return cpu(self._tree)

    def symbol(self, name: str) -> int:
        return FakeKernel().lookup(name)


def kernel_tree() -> TreeBuilder:
    """A small kernel: 4 MiB image in 2M blocks, 16 pages of linear map, a lone page."""
    tree = TreeBuilder(regime_4k(48))
    tree.map(KERNEL, IMAGE, size=4 << 20, level=2)
    tree.map(0xFFFF_0000_0000_0000, 0x4000_0000, size=16 << 12, level=3)
    tree.map(0xFFFF_8000_2000_0000, 0x4010_0000, size=1 << 12, level=3)
    return tree


def cpu(tree: TreeBuilder, number: int = 0, **system: int) -> CpuState:
    """A CPU at EL1 with the MMU on and the tree in TTBR1."""
    registers = {
        "TTBR0_EL1": 0,
        "TTBR1_EL1": tree.root,
        "TCR_EL1": TCR_48,
        "SCTLR_EL1": 1,
        "MAIR_EL1": 0x0C_0400FF,
    }
    return cpu_state(number, **(registers | system))


def declare(registry: Registry, name: str, handler: Any, **more: Any) -> None:
    """Add a command that a test made."""
    declared = command(name, group="Session", **{"summary": "S", "example": name, **more})(handler)
    registry.add(declared.__command__)


def context(tree: TreeBuilder | None = None, kernel: Any = None, **more: Any) -> Context:
    """A context, attached to a stopped guest if there is a tree; `kernel` is its kernel file."""
    ctx = Context(build_registry(), **more)
    ctx.guest._kernel = kernel
    if tree is not None:
        ctx.guest.session = FakeSession(tree.memory, cpus=[cpu(tree)])
        ctx.guest._look_at_kernel = lambda: FakeView(tree)  # type: ignore[method-assign,assignment,return-value]
    return ctx


def run(ctx: Context, line: str) -> Report:
    """Run a line as every entry does; what it says must be readable on a terminal of 80 columns."""
    report = ctx.registry.run(ctx, line)
    assert wider(report, 80) == []
    return report


def wider(report: Report, columns: int) -> list[str]:
    """The lines that are wider than the terminal though they could be broken."""
    from ptinspect.output.text import render

    lines = render(report, width=columns).splitlines()
    return [line for line in lines if len(line) > columns and len(line.split()) > 1]


def text(report: Report) -> str:
    """The report as plain text."""
    from ptinspect.output.text import render

    return render(report)
