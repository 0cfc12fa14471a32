"""The composition root inside a GDB that the user started: `pt COMMAND` runs one command line here.

`gdbscripts/ptinspect.py` starts `python -m ptinspect.gdbhost` and speaks to it over two pipes, see
ptinspect/link/hosted.py. Snapshots stay in this process until GDB ends.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptinspect.errors import EXIT_BUG, TargetLost, UserError
from ptinspect.repl.printer import Printer

if TYPE_CHECKING:
    from ptinspect.commands.framework.command import Command
    from ptinspect.commands.framework.context import Context
    from ptinspect.link.hosted import Host, HostedSession


class _Stream(io.TextIOBase):
    """Send what is written to GDB's terminal."""

    def __init__(self, host: Host, name: str, tty: bool) -> None:
        self._host, self._name, self._tty = host, name, tty

    def write(self, text: str) -> int:
        """Send text."""
        if text:
            self._host.send({self._name: text})
        return len(text)

    def isatty(self) -> bool:
        """Tell whether GDB stands at a terminal."""
        return self._tty


class _Printer(Printer):
    """Print through GDB, and ask through it."""

    def __init__(self, host: Host, *, json: bool, tty: bool) -> None:
        super().__init__(json=json, out=_Stream(host, "text", tty), err=_Stream(host, "error", tty))  # type: ignore[arg-type]
        self._host = host

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question at GDB's prompt."""
        self.end_progress()
        answer = self._host.ask({"question": question}, 3600.0)
        return bool(answer and answer.get("yes"))


class Server:
    """Run command lines for one GDB."""

    def __init__(self, host: Host) -> None:
        from ptinspect.commands.framework.context import Context
        from ptinspect.commands.framework.registry import build_registry

        self._host = host
        self.ctx: Context = Context(build_registry())
        self._key: object = None
        self._serial: object = None

    def serve(self) -> None:
        """Run what GDB sends until it ends."""
        while True:
            try:
                message = self._host.receive(None)
            except KeyboardInterrupt:
                continue
            if message and "run" in message:
                code = self._guarded(message)
                self._host.send({"end": code, "cpu": self._cpu()})
            elif message and "complete" in message:
                self._host.send({"end": 0, "words": self._words(str(message["complete"]))})

    def _guarded(self, message: Mapping[str, Any]) -> int:
        printer = _Printer(self._host, json=bool(message.get("json")), tty=bool(message.get("tty")))
        os.environ["COLUMNS"] = str(message.get("width") or 0)
        self.ctx.interaction, self.ctx.json = printer, printer.json
        printer.options = self.ctx.options
        try:
            return self._run(printer, str(message["run"]), message)
        except KeyboardInterrupt:
            printer.failure("", "interrupted", "interrupted")
            return 130
        except TargetLost:
            raise
        except Exception as error:  # noqa: BLE001 (the bug net)
            printer.failure(
                "", "bug", f"a bug in ptinspect: {type(error).__name__}: {error}", hint=traceback.format_exc()
            )
            return EXIT_BUG
        finally:
            if (session := self._session()) is not None:
                session.settle()

    def _cpu(self) -> int | None:
        """Return the CPU that GDB is to choose again; None if it has no guest."""
        session = self._session()
        return session.current_cpu if session is not None and self.ctx.guest.state == "stopped" else None

    def _session(self) -> HostedSession | None:
        """Return the session of the guest that GDB is connected to; None if there is none, or only a file."""
        from ptinspect.link.hosted import HostedSession

        session = self.ctx.guest.session
        return session if isinstance(session, HostedSession) else None

    def _run(self, printer: _Printer, line: str, message: Mapping[str, Any]) -> int:
        from ptinspect.repl.runner import attempt
        from ptinspect.script.statements import Line

        def follow(command: Command) -> None:
            if command.not_in_gdb:
                raise UserError(f"{command.name}: not inside GDB", command.not_in_gdb)
            if command.name == "continue" and {"-b", "--background"} & set(line.split()):
                raise UserError("continue --background: not inside GDB", "its prompt waits for the guest")
            self._follow(message)

        asks = bool(message.get("asks"))
        return attempt(self.ctx, printer, Line(line), found=follow, asks=asks).outcome.code

    def _follow(self, message: Mapping[str, Any]) -> None:
        """Follow what the user of GDB did since the last command."""
        from ptinspect.link.hosted import open_session

        cwd, program = message.get("cwd"), message.get("program")
        if cwd:
            os.chdir(str(cwd))
        if program and self.ctx.guest.kernel_path is None and Path(str(program)).is_file():
            self.ctx.guest.use_kernel(Path(str(program)))
        key = (message.get("connection"), message.get("details"))
        dead = self.ctx.guest.session is not None and self.ctx.guest.state == "dead"
        if key != self._key or dead:
            self.ctx.guest.drop_session()
            self._key = None
            if message.get("details"):
                version = str(message.get("version", ""))
                self.ctx.guest.open_session(open_session(self._host, str(message["details"]), version))
            self._key = key
        if (session := self._session()) is not None:
            changed = message.get("serial") != self._serial
            session.begin(max(int(message.get("thread") or 1) - 1, 0), changed, message.get("stop"))
        self._serial = message.get("serial")

    def _words(self, text: str) -> list[str]:
        """Return the next words of commands that begin with `text`."""
        words = text.split(" ")
        done = tuple(words[:-1])
        known = [c for c in self.ctx.registry if not c.not_in_gdb and c.words[: len(done)] == done != c.words]
        return sorted({c.words[len(done)] for c in known if c.words[len(done)].startswith(words[-1])})


def main() -> int:
    """Serve the GDB that started this process until it ends."""
    from ptinspect.link.hosted import Host

    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    server = Server(Host(os.fdopen(os.dup(0), "rb", buffering=0), sink, os.getppid()))
    try:
        server.serve()
    except TargetLost:
        pass
    finally:
        server.ctx.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
