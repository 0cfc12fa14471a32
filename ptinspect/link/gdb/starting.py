"""A GDB that starts while the program that is going to use it is still being imported.

GDB takes a tenth of a second until it answers, and so does the import of numpy: with two processors both
happen at the same time. What GDB has to do first is sent in one go, and its answers are looked at later.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from ptinspect.errors import TargetError
from ptinspect.link.gdb.agent import BASE_SECONDS, load_command
from ptinspect.link.gdb.mi import console_command
from ptinspect.link.gdb.process import GdbProcess
from ptinspect.link.gdb.program import ASK, Gdb, answered, candidates, find_gdb
from ptinspect.link.state import QEMU_ENDED, RunTracker

SETTINGS = (
    "confirm off", "pagination off", "width 0", "height 0", "mi-async on", "non-stop off",
    "print frame-arguments none", "print entry-values no", "python print-stack none",
    "remotetimeout 30", "tcp auto-retry on", "tcp connect-timeout 5",
)  # fmt: skip
"""`remotetimeout`: longer than any wait of ptinspect, because GDB mixes up replies after its own."""
OPTIONAL_SETTINGS = ("auto-load off", "debuginfod enabled off", "style enabled off")
CHECKS = ("-gdb-set architecture aarch64", "-gdb-set architecture auto", console_command(ASK))
"""What only a GDB that can be used answers as it should (program.check_gdb)."""
MARK = "ptinspect"
"""Name of the memory file through which a GDB passes on what it reads."""


class Starting:
    """A GDB that was started, and how it is to be used; it ends with the thread that starts it."""

    def __init__(self, path: str | None) -> None:
        """Start the first GDB that may serve (program.find_gdb). Raises TargetError if there is none."""
        self._path = path
        self.why_left: Callable[[], str] = lambda: QEMU_ENDED
        """Tells why the stub has left GDB, or GDB the stub."""
        self.meanwhile: Iterator[None] = iter(())
        """What is to be done while GDB connects, and then while it asks where QEMU has the guest's RAM."""
        first = next(candidates(path), None)
        try:
            self._begin(Gdb(first, "") if first is not None else find_gdb(path))
        except TargetError:
            self._begin(find_gdb(path))

    def _begin(self, gdb: Gdb) -> None:
        self.gdb = gdb
        """The program; its version is empty until it has told."""
        self.tracker = RunTracker()
        self.file = os.memfd_create(MARK)
        """What GDB reads for us is in this file; it inherits it."""
        try:
            self.process = GdbProcess(
                [gdb.path, "-nx", "-q", "--interpreter=mi3"],
                on_event=self.tracker.event,
                on_lost=self.tracker.lost,
                why_left=self._why,
                files=[self.file],
            )
        except TargetError:
            os.close(self.file)
            raise
        begin = self.process.begin
        try:
            self._checks = [begin(command) for command in CHECKS]
            self._settings = [begin(f"-gdb-set {setting}") for setting in SETTINGS]
            self._optional = [begin(f"-gdb-set {setting}") for setting in OPTIONAL_SETTINGS]
            self._script = begin(load_command())
        except TargetError:
            self.end("it takes no commands")
            raise

    def ready(self, timeout: float) -> Gdb:
        """Return the GDB when it has done all that it was sent; each answer may take `timeout` seconds.

        One that cannot be used makes way for one that can. Raises TargetError.
        """
        finish = self.process.finish
        if not self.gdb.version:
            try:
                *_, said = [finish(check, timeout) for check in self._checks]
                self.gdb = Gdb(self.gdb.path, answered(said.text))
            except TargetError:
                self.end("it cannot be used")
                self._begin(find_gdb(self._path))
                finish = self.process.finish
        for setting in self._settings:
            finish(setting, timeout)
        for setting in self._optional:
            finish(setting, timeout, check=False)
        finish(self._script, BASE_SECONDS)
        return self.gdb

    def _why(self) -> str:
        return self.why_left()

    def end(self, reason: str) -> None:
        """End GDB at once. Safe to call twice."""
        self.process.kill(reason)
        self.tracker.lost(reason)
        self.close()

    def close(self) -> None:
        """Give back the file. Safe to call twice."""
        file, self.file = self.file, -1
        if file >= 0:
            os.close(file)


def begun(path: str | None) -> Starting | None:
    """Start the GDB of an attach that is to come, which takes as long as all that is imported meanwhile.

    None if that fails: what is wrong is reported by that attach, which tries it again.
    """
    with contextlib.suppress(TargetError):
        return Starting(path)
    return None
