"""Open a session: start GDB, ask the stub what it is, connect the two."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ptinspect.errors import ConnectError, MiError, TargetError
from ptinspect.link.address import StubAddress
from ptinspect.link.gdb.agent import LAYOUT, VIRTUAL, Agent, heir_command
from ptinspect.link.gdb.mi import GdbLink, console, console_command, quote
from ptinspect.link.gdb.process import GdbProcess
from ptinspect.link.gdb.program import Gdb
from ptinspect.link.gdb.registers import NAMES, RegisterReader
from ptinspect.link.gdb.starting import MARK, Starting
from ptinspect.link.journal import attaching, step_is_open
from ptinspect.link.lanes.hostmem import questions
from ptinspect.link.qemu.listener import is_stopped, listeners
from ptinspect.link.qemu.monitor import parse_mtree
from ptinspect.link.qemu.stub_probe import FREE_SECONDS, StubFacts, leave, probe, wait_until_free
from ptinspect.link.replay import mode_of
from ptinspect.link.state import QEMU_ENDED, RunTracker
from ptinspect.processes import has_ended, running_with, wake_orphans

KVM_SETTINGS = ("set breakpoint auto-hw on", "mem 0 0 ro")
"""Under KVM: all memory counts as read-only, so that GDB compares addresses in hardware for every
breakpoint, those of its own too, and never writes BRK into the guest (gdb/breakpoint.c)."""
REPLAY, MEMORY, THREADS = "monitor info replay", "monitor info mtree -f", "-thread-list-ids"
QUESTIONS = (VIRTUAL, console_command(REPLAY), NAMES, console_command(MEMORY), THREADS, LAYOUT)
"""What a Link asks, in its order, and the first look at registers: sent at once."""
SYMBOL_SECONDS = 120.0
HEIR = "ptinspect.link.heir"
RELAY = "ptinspect.link.relay"
HEIR_SECONDS = 30.0
"""How long one that leaves a guest for a debugger that died is waited for."""
GDB_LEFT = "GDB has left the guest; a signal may have ended it"
CLOSE_SECONDS = 10.0
"""How long a QEMU that ends may keep a socket open, after it has closed another."""


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
        self.recorded = mode_of(console(process, REPLAY, timeout))
        """Whether QEMU records or replays."""
        relay = [sys.executable, "-m", RELAY, str(address)]
        self.holds_interrupts = facts.holds_interrupts or (self.recorded != "replay" and agent.relay(relay))
        """No interrupt is taken while an instruction is stepped: by the stub, or by a relay before it. In a
        replay they come where the recording has them, and nothing may hold them back."""
        self.registers = RegisterReader(process, agent if self.pipelined else None)
        self.ram = parse_mtree(console(process, MEMORY, timeout))
        self.cpu_count = _count_cpus(process, timeout)
        self.close = close
        """Gives back what the session holds beside GDB."""


def connect(address: StubAddress, starting: Starting, symbol_file: Path | None, timeout: float) -> Link:
    """Attach a GDB to the stub; the guest is stopped. Raises ConnectError; nothing is left of it then."""
    try:
        with contextlib.ExitStack() as undo:
            undo.callback(starting.end, "attaching failed")
            if symbol_file is not None:  # they take their time, in which the guest may run
                starting.ready(timeout)
                _load_symbols(starting.process, symbol_file)
            with contextlib.suppress(TargetError):  # of what is no GDB: another one takes its place
                starting.process.ahead([heir_command(heir(address, None))])
            facts = probe(address, timeout)  # while GDB starts
            if facts.was_running:
                undo.callback(_let_run, starting, address)
            gdb = starting.ready(timeout)
            process, tracker = starting.process, starting.tracker
            starting.why_left = partial(why_left, address, process.process.pid)
            agent = Agent(process, starting.file)
            agent.frames(plain=True)
            agent.bequeath(heir(address, None))
            agent.bequeath(heir(address, facts.was_running))
            if step_is_open(address):
                from ptinspect.link.relay import put_back

                put_back(address)
            select, locking = f"-target-select remote {address}", "-gdb-set scheduler-locking step"
            process.ahead((select, locking, *QUESTIONS))
            next(starting.meanwhile, None)
            process.request(select, timeout)
            process.request(locking, timeout)
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
                close=starting.close,
            )
            if facts.peer is not None:
                asked = (line for block in link.ram for line in questions(block).values())
                process.ahead(console_command(f"monitor {line}") for line in asked)
                next(starting.meanwhile, None)
            undo.pop_all()
            return link
    except ConnectError:
        raise
    except TargetError as error:
        raise ConnectError(f"{address}: {error.message}", error.hint) from error


def _load_symbols(process: GdbProcess, file: Path) -> None:
    try:
        process.request(f"-file-exec-and-symbols {quote(str(file))}", SYMBOL_SECONDS)
    except MiError as error:
        raise ConnectError(f"GDB cannot use {file}: {error.message}") from error


def why_left(address: StubAddress, debugger: int) -> str:
    """Tell whether it was QEMU that ended, or GDB that left it: then GDB ends, and QEMU still listens."""
    deadline = time.monotonic() + CLOSE_SECONDS
    while listeners(address):
        if has_ended(debugger) or time.monotonic() > deadline:
            return GDB_LEFT
        time.sleep(0.02)
    return QEMU_ENDED


def heir(address: StubAddress, running: bool | None) -> list[str]:
    """Return the command that leaves the guest as it was found; None: how that is, is not known yet."""
    how = {True: "running", False: "stopped", None: "unknown"}[running]
    return [sys.executable, "-m", HEIR, str(address), how]


def clear(address: StubAddress, timeout: float) -> None:
    """Have debuggers whose ptinspect has died leave their guests, and wait for those who put this one right.

    One that a signal had stopped continues; somebody else may have seen to that. It starts its heir before
    it leaves the stub. Raises ConnectError if a debugger stays connected.
    """
    orphans = wake_orphans(MARK)
    deadline = time.monotonic() + HEIR_SECONDS
    while not all(map(has_ended, orphans)) and time.monotonic() < deadline:
        time.sleep(0.05)
    with attaching(address, timeout):  # who is leaving the guest in this moment may take longer than others
        pass
    wait_until_free(address, min(timeout, FREE_SECONDS))
    while running_with(HEIR, str(address)) and not is_stopped(address) and time.monotonic() < deadline:
        time.sleep(0.05)


def _let_run(starting: Starting, address: StubAddress) -> None:
    """Undo what attaching did to a guest that ran."""
    starting.process.kill("attaching failed")
    with contextlib.suppress(ConnectError):
        leave(address, True)


def _count_cpus(process: GdbLink, timeout: float) -> int:
    """Return how many CPUs GDB sees. Raises TargetError if there is none."""
    body = process.request(THREADS, timeout).line.body
    found = re.search(rb'number-of-threads="([0-9]+)"', body)
    if found is None or int(found[1]) < 1:
        raise TargetError("GDB sees no CPU")
    return int(found[1])
