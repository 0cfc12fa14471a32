"""A session in a GDB that somebody else started: its Python carries MI commands to it and back.

`gdbscripts/ptinspect.py` and `ptinspect_mi.py` run inside that GDB and start this package in a process
of its own, so that GDB's Python needs nothing installed. The two exchange one JSON object per line;
every question has a number, and an answer to an older question is dropped.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from ptinspect.errors import ConnectError, MiError, TargetError, TargetLost, TargetTimeout
from ptinspect.link.address import StubAddress
from ptinspect.link.connect import Link
from ptinspect.link.escort import Escort
from ptinspect.link.gdb.agent import BASE_SECONDS, Agent, load_command
from ptinspect.link.gdb.mi import (
    LINK_ERRORS,
    SECONDS,
    Line,
    Reply,
    c_string,
    console,
    error_message,
    split_line,
)
from ptinspect.link.gdb.program import Gdb
from ptinspect.link.gdb.slots import REFUSED
from ptinspect.link.live import LiveSession
from ptinspect.link.qemu.monitor import accelerator, status
from ptinspect.link.qemu.stub_probe import StubFacts
from ptinspect.link.state import QEMU_ENDED, RunState, RunTracker, StopInfo

LINE_LIMIT = 64 << 20
"""Longest line from GDB, bytes."""
STOP_SECONDS = 10.0
"""How long GDB may take to stop the guest after SIGINT."""
DONE = Line(None, "^", "done", b"")
_STEP = re.compile(r"-exec-step-instruction --thread (\d+) (\d+)")


class Host:
    """The GDB at the other end of the two pipes."""

    def __init__(self, source: BinaryIO, sink: BinaryIO, pid: int) -> None:
        """`pid` is GDB's process, to which SIGINT is sent when the guest must stop."""
        self._source, self._sink, self.pid = source, sink, pid
        self._buffer = b""
        self._number = 0

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message that needs no answer. Raises TargetLost."""
        try:
            self._sink.write(json.dumps(message).encode() + b"\n")
            self._sink.flush()
        except OSError as error:
            raise TargetLost("GDB has ended") from error

    def receive(self, timeout: float | None) -> dict[str, Any] | None:
        """Return the next message; None if none came in `timeout` seconds. Raises TargetLost at the end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([self._source], [], [], left)[0]:
                return None
            data = os.read(self._source.fileno(), 1 << 20)
            if not data or len(self._buffer) > LINE_LIMIT:
                raise TargetLost("GDB has ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise TargetLost(f"GDB's Python sent a line that cannot be read: {error}") from error
        return message if isinstance(message, dict) else {}

    def ask(self, message: Mapping[str, Any], timeout: float, after: float = 0.0) -> dict[str, Any] | None:
        """Send a question and return its answer; None if there is none in time.

        With `after`, GDB then gets SIGINT and that many more seconds. Raises TargetLost.
        """
        self._number += 1
        self.send({**message, "number": self._number})
        answer = self._answer(timeout)
        if answer is None and after:
            os.kill(self.pid, signal.SIGINT)
            answer = self._answer(after)
            if answer is not None:
                answer["late"] = True
        return answer

    def peer(self, timeout: float) -> int | None:
        """Return the process that GDB's Unix socket leads to; None if that is not known."""
        pid = (self.ask({"peer": True}, timeout) or {}).get("pid")
        return pid if isinstance(pid, int) else None

    def _answer(self, timeout: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + timeout
        while (answer := self.receive(max(deadline - time.monotonic(), 0))) is not None:
            if answer.get("number") == self._number:
                return answer
        return None


class HostedGdb:
    """Speak MI with the host; commands that make the guest run wait until the tracker is asked."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.on_event = RunTracker().event
        """Gets `running` and `stopped`."""
        self._run: list[str] = []
        self._late: dict[str, Any] | None = None

    @property
    def busy(self) -> bool:
        return False

    def request(self, command: str, timeout: float, *, check: bool = True) -> Reply:
        step = _STEP.fullmatch(command)
        if command == "-exec-continue" or step:
            self._run = [f"thread {step[1]}", f"stepi {step[2]}"] if step else ["continue"]
            self.on_event("running", {})
            return Reply(Line(None, "^", "running", b""), "")
        if command == "-exec-interrupt":
            self.settle()
            return Reply(DONE, "")
        answer = self._host.ask({"mi": command}, timeout, STOP_SECONDS)
        if answer is None:
            raise TargetLost(f"GDB did not answer {command[:60]!r} within {timeout:g} s")
        reply = _reply(str(answer.get("out", "")))
        if reply.line.name == "error":
            message = error_message(reply)
            if LINK_ERRORS.search(message):
                raise TargetLost(f"the link to QEMU failed: {message}")
            if check:
                raise MiError(message)
        return reply

    def wait(self, timeout: float) -> None:
        """Run the guest as asked before, until it stops. Raises TargetTimeout; it is stopped then."""
        if self._late is not None:
            raise TargetTimeout(f"the guest did not stop within {timeout:g} s", "")
        commands, self._run = self._run, []
        if not commands:
            return
        try:
            answer = self._host.ask({"go": commands}, timeout, STOP_SECONDS)
        except KeyboardInterrupt:
            self._late = {"reason": "signal-received", "signal-name": "SIGINT"}
            raise
        if answer is None:
            raise TargetLost("GDB could not stop the guest", "QEMU may hang")
        if "stop" not in answer:
            error = str(answer.get("error") or QEMU_ENDED)
            if not re.search(REFUSED, error):
                raise TargetLost(error)
            self.on_event("refused", {"text": error})
            return
        if answer.get("late"):
            self._late = answer["stop"]
            raise TargetTimeout(f"the guest did not stop within {timeout:g} s", "it was stopped")
        self.on_event("stopped", answer["stop"])

    def settle(self) -> None:
        """Tell the tracker that the guest has stopped: it never runs while GDB shows its prompt."""
        stop, self._late = self._late, None
        if self._run and stop is None:  # it never ran
            self._run, stop = [], {"reason": "signal-received", "signal-name": "SIGINT"}
        if stop is not None:
            self.on_event("stopped", stop)

    def post(self, command: str) -> bool:
        """Do nothing: Ctrl-C reaches GDB by itself."""
        return False

    def cancel(self) -> None:
        """Do nothing: GDB cancels what it does by itself."""

    def expect_end(self) -> None:
        """Do nothing: the session belongs to the user of GDB."""

    def close(self) -> None:
        """Do nothing: the GDB belongs to its user."""


class HostedTracker(RunTracker):
    """Let the guest run only while somebody waits for it."""

    def __init__(self, gdb: HostedGdb) -> None:
        super().__init__()
        self._gdb = gdb
        self.escort: Escort | None = None
        """Who goes with the guest while somebody waits for it."""
        gdb.on_event = self.event

    def wait(self, timeout: float, whole: float | None = None) -> StopInfo:
        """Run the guest until it stops. Raises TargetTimeout, TargetLost."""
        deadline = time.monotonic() + timeout
        while self.state is RunState.RUNNING:
            try:
                self._go(max(deadline - time.monotonic(), 0))
            except TargetLost as error:
                self.lost(error.message)
                raise
            except TargetTimeout as error:
                what = f"the guest did not stop within {whole or timeout:g} s"
                raise TargetTimeout(what, error.hint) from None
            stop = self.await_visit(0)
            if stop is not None and self.escort is not None:
                self.escort.serve(stop)
        return super().wait(0)

    def _go(self, left: float) -> None:
        """Run the guest until it stops, or the escort wants to look at it. Raises TargetTimeout."""
        pause = None if self.escort is None else self.escort.pause
        if pause is None or pause >= left:
            self._gdb.wait(left)
            return
        try:
            self._gdb.wait(pause)
        except TargetTimeout:
            self.glimpse = True
            self._gdb.settle()


class HostedSession(LiveSession):
    """A session whose GDB is the user's own; leaving it changes nothing there."""

    notices_that_nothing_runs = False

    def __init__(self, link: Link, gdb: HostedGdb) -> None:
        super().__init__(link)
        self._hosted = gdb
        self.was_running = False
        self.escort.everywhere = False
        assert isinstance(self._tracker, HostedTracker)
        self._tracker.escort = self.escort

    def begin(self, cpu: int, changed: bool, stop: Mapping[str, Any] | None = None) -> None:
        """Take over what the user of GDB did since the last command: which CPU is chosen, what moved.

        `stop` has MI's fields of the last stop, if GDB knows why the guest stopped.
        """
        if changed and stop:
            self._tracker.event("stopped", stop)
        elif changed:
            self._tracker.touch()
        self._tracker.cpu = cpu

    def look(self) -> str:
        """Return nothing: the user of GDB may have let the guest run, and `begin` tells of it."""
        return ""

    def settle(self) -> None:
        """End a command: GDB shows its prompt only when the guest has stopped."""
        self._hosted.settle()
        if self.state is RunState.STOPPED:
            self.escort.rest()

    def _leave_without_gdb(self) -> str:
        """Leave the guest alone: it is with the user of GDB."""
        return ""

    def detach(self, resume: bool | None = None) -> None:
        """Give back what the lanes hold; GDB stays connected."""
        self._left = True
        self.lanes.close()


def open_session(host: Host, details: str, version: str) -> HostedSession:
    """Return a session on the stub that the host's GDB is connected to. Raises ConnectError."""
    address = StubAddress.parse(details)
    gdb = HostedGdb(host)
    tracker = HostedTracker(gdb)

    def monitor(command: str) -> str:
        return console(gdb, f"monitor {command}", SECONDS)

    try:
        gdb.request(load_command(), BASE_SECONDS)
        agent = Agent(gdb)
        facts = StubFacts(
            "aarch64",
            monitor("info version").strip(),
            status(monitor),
            stopped_by_us=False,
            peer=host.peer(SECONDS),
            accel=accelerator(monitor),
            holds_interrupts="NOIRQ" in console(gdb, "maintenance packet qqemu.sstepbits", SECONDS),
        )
        link = Link(address, gdb, agent, gdb=Gdb("", version), facts=facts, tracker=tracker, timeout=SECONDS)
    except TargetError as error:
        raise ConnectError(f"{details}: {error.message}", error.hint) from error
    return HostedSession(link, gdb)


def _reply(out: str) -> Reply:
    """Parse what GDB printed for one MI command."""
    result, text = DONE, []
    for raw in out.encode("utf-8", "surrogateescape").split(b"\n"):
        line = split_line(raw)
        if line.kind == "^":
            result = line
        elif line.kind in ("~", "@", "&"):
            text.append(c_string(line.body))
        elif not line.kind and raw:
            text.append(raw.decode("utf-8", "replace") + "\n")
    return Reply(result, "".join(text))
