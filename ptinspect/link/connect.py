"""Open a session: start GDB, ask the stub what it is, connect the two."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ptinspect.errors import ConnectError, MiError, TargetError
from ptinspect.link.address import StubAddress
from ptinspect.link.gdb.agent import Agent
from ptinspect.link.gdb.mi import GdbLink, console, quote
from ptinspect.link.gdb.process import GdbProcess
from ptinspect.link.gdb.program import Gdb, find_gdb
from ptinspect.link.gdb.registers import RegisterReader
from ptinspect.link.qemu.listener import listeners
from ptinspect.link.qemu.monitor import parse_mtree
from ptinspect.link.qemu.stub_probe import StubFacts, leave, probe
from ptinspect.link.relay import put_back
from ptinspect.link.state import QEMU_ENDED, RunTracker
from ptinspect.processes import has_ended, running_with, wake_orphans

SETTINGS = (
    "confirm off", "pagination off", "width 0", "height 0", "mi-async on", "non-stop off",
    "print frame-arguments none", "print entry-values no", "python print-stack none",
    "remotetimeout 30", "tcp auto-retry on", "tcp connect-timeout 5",
)  # fmt: skip
"""`remotetimeout`: longer than any wait of ptinspect, because GDB mixes up replies after its own."""
KVM_SETTINGS = ("set breakpoint auto-hw on", "mem 0 0 ro")
"""Under KVM: all memory counts as read-only, so that GDB compares addresses in hardware for every
breakpoint, those of its own too, and never writes BRK into the guest (gdb/breakpoint.c)."""
OPTIONAL_SETTINGS = ("auto-load off", "debuginfod enabled off", "style enabled off")
SYMBOL_SECONDS = 120.0
HEIR = "ptinspect.link.heir"
RELAY = "ptinspect.link.relay"
HEIR_SECONDS = 30.0
"""How long one that leaves a guest for a debugger that died is waited for."""
MARK = "ptinspect"
"""Name of the memory file through which a GDB passes on what it reads."""
GDB_LEFT = "GDB has left the guest; a signal may have ended it"
CLOSE_SECONDS = 0.3
"""How long a process that ends may keep a socket open, after it has closed another."""


class Link:
    """What a session is made of: a GDB that is connected to a stub, and what the two answered."""

    def __init__(
        self,
        address: StubAddress,
        process: GdbLink,
        agent: Agent,
        *,
        gdb: Gdb,
        facts: StubFacts,
        tracker: RunTracker,
        timeout: float,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Ask for registers, RAM and CPUs. Raises TargetError."""
        self.address, self.gdb, self.process, self.agent = address, gdb, process, agent
        self.facts, self.tracker = facts, tracker
        self.pipelined = agent.leave_physical_mode()
        """Physical reads go through the socket's pipeline."""
        self.holds_interrupts = facts.holds_interrupts or agent.relay(
            [sys.executable, "-m", RELAY, str(address)]
        )
        """No interrupt is taken while an instruction is stepped: by the stub, or by a relay before it."""
        self.registers = RegisterReader(process)
        self.ram = parse_mtree(console(process, "monitor info mtree -f", timeout))
        self.cpu_count = _count_cpus(process, timeout)
        self.close = close
        """Gives back what the session holds beside GDB."""


def connect(
    address: StubAddress,
    gdb_path: str | None,
    symbol_file: Path | None,
    timeout: float,
) -> Link:
    """Attach a new GDB to the stub; the guest is stopped. Raises ConnectError; nothing is left of it then."""
    try:
        gdb = find_gdb(gdb_path)
    except TargetError as error:
        raise ConnectError(error.message, error.hint) from error
    tracker = RunTracker()
    try:
        with contextlib.ExitStack() as undo:
            held = undo.enter_context(contextlib.ExitStack())
            file = os.memfd_create(MARK)
            held.callback(os.close, file)
            process = GdbProcess(
                [gdb.path, "-nx", "-q", "--interpreter=mi3"],
                on_event=tracker.event,
                on_lost=tracker.lost,
                why_left=partial(why_left, address),
                files=[file],
            )
            undo.callback(process.kill, "attaching failed")
            undo.callback(tracker.lost, "attaching failed")
            agent = _prepare(process, file, symbol_file, timeout)
            agent.bequeath(heir(address, None))
            facts = probe(address, timeout)
            if facts.was_running:
                undo.callback(_let_run, process, address)
            agent.bequeath(heir(address, facts.was_running))
            put_back(address)
            process.request(f"-target-select remote {address}", timeout)
            process.request("-gdb-set scheduler-locking step", timeout)
            for setting in KVM_SETTINGS if facts.accel == "kvm" else ():
                console(process, setting, timeout)
            tracker.attached()
            link = Link(
                address,
                process,
                agent,
                gdb=gdb,
                facts=facts,
                tracker=tracker,
                timeout=timeout,
                close=held.close,
            )
            undo.pop_all()
            return link
    except ConnectError:
        raise
    except TargetError as error:
        raise ConnectError(f"{address}: {error.message}", error.hint) from error


def why_left(address: StubAddress) -> str:
    """Tell whether it was QEMU that ended, or GDB that left it: then QEMU still listens."""
    deadline = time.monotonic() + CLOSE_SECONDS
    while listeners(address):
        if time.monotonic() > deadline:
            return GDB_LEFT
        time.sleep(0.02)
    return QEMU_ENDED


def heir(address: StubAddress, running: bool | None) -> list[str]:
    """Return the command that leaves the guest as it was found; None: how that is, is not known yet."""
    how = {True: "running", False: "stopped", None: "unknown"}[running]
    return [sys.executable, "-m", HEIR, str(address), how]


def clear(address: StubAddress) -> None:
    """Let debuggers that were stopped by a signal when their ptinspect died leave their guests now."""
    orphans = wake_orphans(MARK)
    deadline = time.monotonic() + HEIR_SECONDS
    while orphans and time.monotonic() < deadline:
        time.sleep(0.05)
        if all(map(has_ended, orphans)) and not running_with(HEIR, str(address)):
            return


def _let_run(process: GdbProcess, address: StubAddress) -> None:
    """Undo what attaching did to a guest that ran."""
    process.kill("attaching failed")
    with contextlib.suppress(ConnectError):
        leave(address, True)


def _prepare(process: GdbProcess, file: int, symbol_file: Path | None, timeout: float) -> Agent:
    for setting in SETTINGS:
        process.request(f"-gdb-set {setting}", timeout)
    for setting in OPTIONAL_SETTINGS:
        process.request(f"-gdb-set {setting}", timeout, check=False)
    if symbol_file is not None:
        try:
            process.request(f"-file-exec-and-symbols {quote(str(symbol_file))}", SYMBOL_SECONDS)
        except MiError as error:
            raise ConnectError(f"GDB cannot use {symbol_file}: {error.message}") from error
    return Agent(process, file)


def _count_cpus(process: GdbLink, timeout: float) -> int:
    """Return how many CPUs GDB sees. Raises TargetError if there is none."""
    body = process.request("-thread-list-ids", timeout).line.body
    found = re.search(rb'number-of-threads="([0-9]+)"', body)
    if found is None or int(found[1]) < 1:
        raise TargetError("GDB sees no CPU")
    return int(found[1])
