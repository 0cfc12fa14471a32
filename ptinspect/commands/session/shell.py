"""`shell`: run a command of the shell's."""

from __future__ import annotations

import subprocess

from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.dataclass import dataclass
from ptinspect.errors import EXIT_CHECK, EXIT_OK, UserError
from ptinspect.output.encode import ABSENT, Absent
from ptinspect.output.model import Note, Report, escape
from ptinspect.processes import ctrl_c_left_to_child

MAX_OUTPUT = 1 << 20
"""Bytes of a command's output that are kept where it does not go to the terminal."""


@dataclass(frozen=True)
class ShellResult:
    """How a command of the shell's ended."""

    status: int
    """Its exit code; negative: the signal that ended it."""
    output: str | Absent = ABSENT
    """What it printed, where that did not go to the terminal."""


@command(
    "shell",
    group="Session",
    summary="Run a command of the shell's",
    example="shell ls -l",
    result=ShellResult,
    details="At the prompt !COMMAND does the same, unless it calls back a line of the history; ! COMMAND "
    "always does. The exit code is 1 if the command's is not 0. COMMAND | SHELL gives what a command "
    "prints to the shell, COMMAND > FILE and >> FILE to a file, and A; B runs one after the other; for "
    "commands that take such signs themselves (gdb, monitor): | COMMAND | SHELL.",
    passthrough=True,
    recorded=False,
    not_in_gdb="GDB has shell itself",
)
def shell(ctx: Context, *, line: str) -> Report:
    """Run a line by the shell; at the prompt it has the terminal."""
    if not line.strip():
        raise UserError("shell: which command?", "for example: shell ls -l")
    with ctrl_c_left_to_child():
        child = subprocess.Popen(
            line,
            shell=True,
            stdin=None if ctx.interactive else subprocess.DEVNULL,
            stdout=None if ctx.interactive else subprocess.PIPE,
        )
        said, _ = child.communicate()
    status = child.returncode
    notes = [Note(f"exit code {status}", "bad")] if status else []
    output: str | Absent = ABSENT
    if said is not None:
        output = said[:MAX_OUTPUT].decode("utf-8", "replace")
        if text := "\n".join(escape(part) for part in output.splitlines()):
            notes.insert(0, Note(text))
    return Report(ShellResult(status, output), notes, EXIT_CHECK if status else EXIT_OK)
