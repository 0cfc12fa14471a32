"""One GDB process, spoken to over GDB/MI.

Replies are matched to commands by token, so a late or missing reply never becomes the reply to
another command. pygdbmi parses small records; everything else about the process is done here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pygdbmi import gdbmiparser

from ptinspect.errors import MiError, TargetError, TargetLost, TargetTimeout
from ptinspect.target.child import die_with_parent
from ptinspect.target.mitext import Line, c_string, split_line, string_field, well_formed

PIPE_BYTES = 1 << 20
CANCEL_SECONDS = 2.0
"""How long GDB may take to give up a command after SIGINT before it is killed."""
PARSE_LIMIT = 4 << 20
"""Longest record that is parsed as a whole, bytes."""
TAIL_LINES = 40


def parse_payload(line: Line) -> dict[str, Any]:
    """Parse the fields of a result or event record. Raises MiError if they make no sense."""
    if not line.body:
        return {}
    if len(line.body) > PARSE_LIMIT or not well_formed(line.body):
        raise MiError(
            f"GDB sent a {line.name!r} record that cannot be read", line.body[:200].decode("latin-1")
        )
    text = f"^{line.name},{line.body.decode('utf-8', 'replace')}"
    try:
        payload = gdbmiparser.parse_response(text)["payload"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise MiError(f"GDB sent a {line.name!r} record that cannot be read: {error}", text[:200]) from error
    return payload if isinstance(payload, dict) else {}


@dataclass
class Reply:
    """Hold what GDB answered to one command."""

    name: str
    """`done`, `running`, `connected`, `error` or `exit`."""
    line: Line
    """The result record."""
    text: str
    """Console, log and target output that came before it."""

    @property
    def payload(self) -> dict[str, Any]:
        """The parsed fields. Raises MiError."""
        return parse_payload(self.line)

    def field(self, name: str) -> bytes:
        """Return the first field, raw, without parsing the record. Raises MiError if it has another name."""
        value = string_field(self.line.body, name.encode())
        if value is None:
            raise MiError(f"GDB's answer has no field {name!r}", self.line.body[:200].decode("latin-1"))
        return value


@dataclass
class _Pending:
    """One command that waits for its reply."""

    command: str
    event: threading.Event = field(default_factory=threading.Event)
    reply: Reply | None = None
    lost: str = ""


class GdbProcess:
    """Run a GDB and exchange commands and records with it; used by several threads."""

    def __init__(
        self,
        command_line: Sequence[str],
        *,
        on_event: Callable[[str, Mapping[str, Any]], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_text: Callable[[str, str], None] | None = None,
    ) -> None:
        """Start GDB.

        `on_event(name, fields)` gets `*` and `=` records and results of class running, `on_text(kind,
        text)` all text, `on_lost(reason)` is called once at the end; all in the reader's thread, in
        GDB's order, and must not send commands. Raises TargetError if the program cannot be started.
        """
        self.command_line = tuple(command_line)
        self._on_event, self._on_lost, self._on_text = on_event, on_lost, on_text
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._token = 0
        self._pending: dict[int, _Pending] = {}
        self._text: list[str] = []
        self._lost = ""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        """Last lines of text that GDB wrote."""
        try:
            self.process = subprocess.Popen(
                self.command_line,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                bufsize=0,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - calls prctl only
            )
        except OSError as error:
            raise TargetError(
                f"cannot start GDB: {self.command_line[0]}: {error.strerror or error}"
            ) from error
        assert self.process.stdout is not None
        self._output = self.process.stdout.fileno()
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._reader = threading.Thread(target=self._read, name="gdb-reader", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """GDB's process number."""
        return self.process.pid

    @property
    def lost(self) -> str:
        """Why GDB can be used no more; empty while it can."""
        return self._lost

    def request(self, command: str, timeout: float, *, check: bool = True) -> Reply:
        """Send one MI command (or CLI command) and return its reply.

        Raises MiError if GDB answers with an error (unless not `check`), TargetTimeout if there is
        no answer in `timeout` seconds, TargetLost if GDB has gone. On a timeout, or when the caller
        is interrupted, the command is cancelled; a GDB that does not react to that is killed.
        """
        pending = self._send(command)
        try:
            answered = pending.event.wait(timeout)
        except BaseException:
            self._give_up(pending)
            raise
        if not answered:
            gone = not self._give_up(pending)
            what = f"GDB did not answer {_short(command)} within {timeout:g} s"
            raise TargetTimeout(
                f"{what} and was ended" if gone else what, "QEMU may hang or be paused" if gone else ""
            )
        if pending.reply is None:
            raise self._loss(pending.lost)
        if check and pending.reply.name == "error":
            raise MiError(error_message(pending.reply), pending.reply.text.strip()[:2000])
        return pending.reply

    def cancel(self) -> None:
        """Make GDB give up the command it works on (SIGINT); safe in a signal handler."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)

    def post(self, command: str) -> None:
        """Send a command whose reply nobody waits for. Raises TargetLost."""
        self._write(f"{command}\n".encode())

    def kill(self, reason: str) -> None:
        """End GDB at once; every waiting command fails with `reason`."""
        if not self._lost:
            self._lost = reason
        if self.process.poll() is None:
            self.process.kill()
        self._finish()

    def close(self, timeout: float = 2.0) -> None:
        """End GDB; it is asked first, then killed. Safe to call twice."""
        self._lost = self._lost or "closed"
        with contextlib.suppress(TargetLost, OSError):
            self._write(b"-gdb-exit\n", even_if_lost=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        if self.process.poll() is None:
            self.process.kill()
        self._finish()

    def _finish(self) -> None:
        self.process.wait(10)
        if threading.current_thread() is not self._reader:
            self._reader.join(5)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _send(self, command: str) -> _Pending:
        pending = _Pending(command)
        with self._lock:
            if self._lost:
                raise self._loss(self._lost)
            self._token += 1
            token = self._token
            self._pending[token] = pending
        try:
            self._write(f"{token}{command}\n".encode())
        except BaseException:
            with self._lock:
                self._pending.pop(token, None)
            raise
        return pending

    def _write(self, data: bytes, *, even_if_lost: bool = False) -> None:
        assert self.process.stdin is not None
        with self._write_lock:
            if self._lost and not even_if_lost:
                raise self._loss(self._lost)
            try:
                fd = self.process.stdin.fileno()
                while data:
                    data = data[os.write(fd, data) :]
            except (OSError, ValueError) as error:
                raise self._loss("it takes no more commands") from error

    def _give_up(self, pending: _Pending) -> bool:
        """Cancel a command; return whether GDB can still be used."""
        self.cancel()
        if pending.event.wait(CANCEL_SECONDS) and pending.reply is not None:
            # The signal may come when the command is over: let it hit a command that does nothing.
            idle = self._send("-list-features")
            if idle.event.wait(CANCEL_SECONDS):
                return True
        self.kill(f"GDB did not answer {_short(pending.command)} and was ended")
        return False

    def _loss(self, reason: str) -> TargetLost:
        last = "\n".join(list(self.tail)[-5:])
        return TargetLost(f"the session is over: {reason}", last)

    def _read(self) -> None:
        """Take GDB's output apart; the body of the reader thread."""
        parts: list[bytes] = []
        while True:
            try:
                data = os.read(self._output, PIPE_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            first, *others = data.split(b"\n")
            parts.append(first)
            for piece in others:
                self._line(b"".join(parts))
                parts = [piece]
        self._end()

    def _line(self, data: bytes) -> None:
        line = split_line(data.rstrip(b"\r"))
        if line.kind == "^":
            self._result(line)
        elif line.kind in ("*", "="):
            self._event(line)
        elif line.kind:
            text = c_string(line.body)
            self._note(text)
            self._text.append(text)
            if self._on_text is not None:
                self._on_text(line.kind, text)
        elif data.strip() not in (b"", b"(gdb)"):
            self._note(data.decode("utf-8", "replace"))

    def _note(self, text: str) -> None:
        self.tail.extend(part for part in text.splitlines() if part.strip())

    def _result(self, line: Line) -> None:
        text, self._text = "".join(self._text), []
        if line.name == "running" and self._on_event is not None:
            self._on_event("running", {})
        with self._lock:
            pending = None if line.token is None else self._pending.pop(line.token, None)
        if pending is not None:
            pending.reply = Reply(line.name, line, text)
            pending.event.set()

    def _event(self, line: Line) -> None:
        if self._on_event is None:
            return
        try:
            fields = parse_payload(line)
        except MiError as error:
            self._note(error.message)
            fields = {}
        self._on_event(line.name, fields)

    def _end(self) -> None:
        """Fail everything that waits: GDB's output has ended."""
        deadline = time.monotonic() + 2
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        code = self.process.poll()
        how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
        with self._lock:
            self._lost = self._lost or f"GDB ended{how}"
            waiting, self._pending = list(self._pending.values()), {}
        for pending in waiting:
            pending.lost = self._lost
            pending.event.set()
        if self._on_lost is not None:
            self._on_lost(self._lost)


def error_message(reply: Reply) -> str:
    """Return GDB's error message."""
    value = string_field(reply.line.body, b"msg")
    try:
        return str(reply.payload.get("msg", ""))
    except MiError:
        return "GDB reports an error" if value is None else c_string(value)


def _short(command: str) -> str:
    return repr(command if len(command) <= 60 else command[:57] + "...")
