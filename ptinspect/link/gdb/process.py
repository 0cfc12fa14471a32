"""One GDB process and the exchange of GDB/MI commands with it.

Replies are matched to commands by token, so a late or missing reply never becomes the reply to
another command.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ptinspect.dataclass import dataclass, field
from ptinspect.errors import MiError, TargetError, TargetLost, TargetTimeout, UserError
from ptinspect.link.gdb.mi import LINK_ERRORS, Line, Reply, c_string, error_message, parse_payload, split_line
from ptinspect.link.state import QEMU_ENDED, Listener
from ptinspect.processes import die_with_parent

PIPE_BYTES = 1 << 20
CANCEL_SECONDS = 5.0
"""How long GDB may take to give up a command after SIGINT before it is killed."""
TAIL_LINES = 40
UNTOLD = re.compile(r"Error in testing (?:breakpoint )?condition[^\n]*:\n([^\n]*)")
"""What GDB prints before a stop at a breakpoint whose condition it could not evaluate (gdb/breakpoint.c)."""
USUAL = ("warning: No executable has been specified", "determining executable automatically")
"""Beginnings of what GDB prints whenever it connects to a stub; it explains nothing."""
LINE_LIMIT = 256 << 20
"""Longest line that is collected, bytes."""
OF_ITSELF = ("cmd-param-changed", "thread-group-added", "thread-group-started", "thread-created")
"""Events that report what GDB was told to do: many at the start, and nobody asks what is in them."""
LEFT_EVENT = "thread-group-exited"
"""GDB reports it when the stub is lost; from then on it answers reads from the symbol file. A GDB that a
signal ends reports it too, for it leaves the stub first."""


@dataclass
class Pending:
    """One command that waits for its reply."""

    command: str
    event: threading.Event = field(default_factory=threading.Event)
    reply: Reply | None = None
    usable: bool | None = None
    """Whether GDB could still be used when the command was given up; None: it was not."""


class GdbProcess:
    """Run a GDB and exchange commands and records with it; used by several threads."""

    def __init__(
        self,
        command_line: Sequence[str],
        *,
        on_event: Listener = lambda name, fields: None,
        on_lost: Callable[[str], None] = lambda reason: None,
        why_left: Callable[[], str] = lambda: QEMU_ENDED,
        files: Sequence[int] = (),
    ) -> None:
        """Start GDB; it ends (SIGTERM) with the thread that starts it, or when its input ends.

        `on_event(name, fields)` gets `*` and `=` records and results of class running, `on_lost(reason)`
        is called once at the end; both in the reader's thread, in GDB's order, and they must not send
        commands. `why_left` tells why the stub has left GDB, or GDB the stub. `files` are inherited.
        Raises TargetError if the program cannot be started.
        """
        self._on_event, self._on_lost = on_event, on_lost
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._token = 0
        self._pending: dict[int, Pending] = {}
        self._ahead: dict[str, Pending] = {}
        self._text: list[str] = []
        self.lost = ""
        """Why GDB can be used no more; empty while it can."""
        self._leaving = False
        self._has_left = False
        self._why_left = why_left
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        """Last lines that GDB wrote about itself: its log, and lines that are not records."""
        try:
            self.process = subprocess.Popen(
                command_line,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                bufsize=0,
                pass_fds=files,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),  # noqa: PLW1509 - calls prctl only
            )
        except OSError as error:
            raise TargetError(f"cannot start GDB: {command_line[0]}: {error.strerror or error}") from error
        assert self.process.stdin is not None and self.process.stdout is not None
        self._input, self._output = self.process.stdin.fileno(), self.process.stdout.fileno()
        for pipe in (self._input, self._output):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._reader = threading.Thread(target=self._read, name="gdb-reader", daemon=True)
        self._reader.start()

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def request(self, command: str, timeout: float, *, check: bool = True) -> Reply:
        """Send one MI command and return its reply; see GdbLink.

        On a timeout, or when the caller is interrupted, the command is cancelled; a GDB that does not react
        to that is killed.
        """
        pending = self._ahead.pop(command, None)
        try:
            if pending is None:
                pending = Pending(command)
                self._send(pending)
            return self.finish(pending, timeout, check=check)
        except (KeyboardInterrupt, SystemExit):  # at any moment: GDB may be at it already
            if pending is not None:
                self._give_up(pending)
            raise

    def ahead(self, commands: Iterable[str]) -> None:
        """Send commands that are going to be requested: each request only waits for its reply then."""
        for command in commands:
            self._ahead[command] = self.begin(command)

    def finish(self, pending: Pending, timeout: float, *, check: bool = True) -> Reply:
        """Return the reply to a command that was sent, as `request` does."""
        command, answered = pending.command, None
        try:
            answered = pending.event.wait(timeout)
        finally:
            if answered is None:
                self._give_up(pending)
        if not answered:
            gone = not self._give_up(pending)
            what = f"GDB did not answer {_short(command)} within {timeout:g} s"
            raise TargetTimeout(
                f"{what} and was ended" if gone else what, "QEMU may hang or be paused" if gone else ""
            )
        if pending.reply is None:
            raise self._loss()
        if pending.reply.line.name == "error":
            message = error_message(pending.reply)
            if self.lost:
                raise self._loss()
            if LINK_ERRORS.search(message):
                self.kill(f"the link to QEMU failed: {message}")
                raise self._loss()
            if check:
                raise MiError(message)
        return pending.reply

    def cancel(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)

    def post(self, command: str) -> bool:
        if not self._write_lock.acquire(blocking=False):
            return False
        try:
            self._put(f"{command}\n".encode())
        finally:
            self._write_lock.release()
        return True

    def expect_end(self) -> None:
        self._leaving = True

    def kill(self, reason: str) -> None:
        """End GDB at once; every waiting command fails with `reason`."""
        self.lost = self.lost or reason
        if self.process.poll() is None:
            self.process.kill()
        if threading.current_thread() is not self._reader:
            self._reader.join(5)  # it waits for the end of the output, without looking again and again
        self.process.wait(10)
        self._close_pipes()

    def close(self, timeout: float = 2.0) -> None:
        """Ask GDB to end, then kill it. Safe to call twice.

        Where it has left its guest it is killed at once, and its end, which takes 3 ms, is the reader's.
        """
        self.lost = self.lost or "closed"
        if self._has_left:
            self.process.kill()
            return
        with contextlib.suppress(TargetLost), self._write_lock:
            self._put(b"-gdb-exit\n")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        self.kill(self.lost)

    def begin(self, command: str) -> Pending:
        """Send one MI command, whose reply `finish` returns. Raises TargetLost, UserError."""
        pending = Pending(command)
        self._send(pending)
        return pending

    def _send(self, pending: Pending) -> None:
        command = pending.command
        if "\n" in command or "\r" in command:
            raise UserError(f"{_short(command)} holds a line break", "it would be two commands to GDB")
        with self._lock:
            if self.lost:
                raise self._loss()
            if not self._pending:
                self._text = []  # output since the last reply belongs to no command
            self._token += 1
            token = self._token
            self._pending[token] = pending
        sent = False
        try:
            with self._write_lock:
                self._put(f"{token}{command}\n".encode())
            sent = True
        finally:
            if not sent:
                with self._lock:
                    self._pending.pop(token, None)

    def _put(self, data: bytes) -> None:
        """Write to GDB; a line that is cut short by an exception cannot be mended, so GDB is ended."""
        rest = data
        try:
            while rest:
                rest = rest[os.write(self._input, rest) :]
        except OSError as error:
            raise self._loss("GDB takes no more commands") from error
        finally:
            if 0 < len(rest) < len(data):
                self.kill("interrupted while a command was sent")

    def _give_up(self, pending: Pending) -> bool:
        """Cancel a command, which GDB may not have got yet; return whether GDB can still be used."""
        if pending.usable is None:
            pending.usable = self._cancelled()
            if not pending.usable:
                self.kill(f"GDB did not answer {_short(pending.command)} and was ended")
        return pending.usable

    def _cancelled(self) -> bool:
        """Interrupt GDB; False if it does not answer soon what it is sent after that.

        That does nothing, for the signal may come when the command is over, and hit the next one.
        """
        with contextlib.suppress(TargetLost):
            self.cancel()
            last = self.begin("-list-features")
            return last.event.wait(CANCEL_SECONDS) and last.reply is not None
        return False

    def _loss(self, reason: str = "") -> TargetLost:
        return TargetLost(f"the session is over: {reason or self.lost}", "\n".join(list(self.tail)[-5:]))

    def _read(self) -> None:
        """Split GDB's output into lines; the body of the reader thread."""
        try:
            parts: list[bytes] = []
            size = 0
            while size <= LINE_LIMIT and (data := self._more()):
                first, *others = data.split(b"\n")
                parts.append(first)
                size += len(first)
                for piece in others:
                    self._line(b"".join(parts))
                    parts, size = [piece], len(piece)
        finally:
            self._end()

    def _more(self) -> bytes:
        try:
            return os.read(self._output, PIPE_BYTES)
        except OSError:
            return b""

    def _line(self, data: bytes) -> None:
        line = split_line(data.rstrip(b"\r"))
        if line.kind == "^":
            self._result(line)
        elif line.kind in ("*", "="):
            self._event(line)
        elif line.kind:
            text = c_string(line.body)
            self._text.append(text)
            if line.kind == "&":
                self._note(text)
        elif data.strip() not in (b"", b"(gdb)"):
            self._note(data.decode("utf-8", "replace"))

    def _note(self, text: str) -> None:
        lines = text.splitlines()
        self.tail.extend(line for line in lines if line.strip() and not line.startswith(USUAL))

    def _result(self, line: Line) -> None:
        text, self._text = "".join(self._text), []
        if line.name == "running":
            self._on_event("running", {})
        with self._lock:
            pending = None if line.token is None else self._pending.pop(line.token, None)
        if pending is not None:
            pending.reply = Reply(line, text)
            pending.event.set()
        elif line.token is not None and line.name == "error":
            self._on_event("refused", {"text": text})  # after it had reported `running`

    def _event(self, line: Line) -> None:
        if line.name == LEFT_EVENT and self._leaving:
            self._has_left = True
        elif line.name == LEFT_EVENT:
            self.lost = self.lost or self._why_left()
            self._on_lost(self.lost)
        fields: dict[str, Any] = {}
        try:
            fields = {} if line.name in OF_ITSELF else parse_payload(line)
        except MiError as error:
            self._note(error.message)
        if line.name == "stopped" and (failed := UNTOLD.search("".join(self._text))):
            fields = {**fields, "untold": failed[1].strip()}
        self._on_event(line.name, fields)

    def _end(self) -> None:
        """Fail everything that waits: GDB's output has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.poll()
        how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
        with self._lock:
            self.lost = self.lost or f"GDB ended{how}"
            waiting, self._pending = list(self._pending.values()), {}
        for pending in waiting:
            pending.event.set()
        self._on_lost(self.lost)
        if self._has_left:
            self._close_pipes()

    def _close_pipes(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _short(command: str) -> str:
    return repr(command if len(command) <= 60 else command[:57] + "...")
