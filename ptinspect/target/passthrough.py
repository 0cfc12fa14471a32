"""Which commands of GDB and of QEMU's monitor a session lets through."""

from __future__ import annotations

import re

from ptinspect.errors import UserError

_GDB_REFUSED = {
    "kill": "it would end QEMU; quit leaves ptinspect",
    "quit": "quit without 'gdb' leaves ptinspect",
    "exit": "quit without 'gdb' leaves ptinspect",
    "detach": "detach without 'gdb' leaves the guest as it was found",
    "disconnect": "detach --stop leaves the guest stopped",
    "target": "attach connects to another guest",
    "run": "continue makes the guest run",
    "start": "continue makes the guest run",
    "shell": "it has no terminal here",
    "python-interactive": "it has no terminal here",
    "inferior": "a session has one machine",
}
_GDB_SHORT = {"q": "quit", "k": "kill", "r": "run", "pi": "python-interactive", "!": "shell", "tar": "target"}
_PACKET = re.compile(r"^maint(enance)?\s+packet\s+(k|vKill|D|R|r|bs|bc|Qqemu\.PhyMemMode:[^0])")
_MONITOR_REFUSED = {
    "cont": "continue makes the guest run, and GDB knows of it",
    "c": "continue makes the guest run, and GDB knows of it",
    "gdbserver": "it would end this session",
}
_MONITOR_LOOKS = frozenset(
    (
        "info",
        "gva2gpa",
        "gpa2hva",
        "gpa2hpa",
        "xp",
        "x",
        "print",
        "p",
        "help",
        "?",
        "cpu",
        "memsave",
        "pmemsave",
    )
)


def check_gdb_command(line: str) -> None:
    """Raise UserError on a command that would end the session or QEMU behind its back."""
    words = line.split()
    if not words:
        raise UserError("gdb: which command?")
    name = _GDB_SHORT.get(words[0], words[0])
    if name in _GDB_REFUSED:
        raise UserError(f"gdb {name} is not passed on", _GDB_REFUSED[name])
    if _PACKET.match(line.strip()):
        raise UserError("this packet is not passed on", "it would end QEMU, the session, or mix up addresses")


def check_monitor_command(line: str) -> bool:
    """Return whether the command only looks. Raises UserError on one that GDB must not miss."""
    words = line.split()
    if not words:
        raise UserError("monitor: which command?")
    if words[0] in _MONITOR_REFUSED:
        raise UserError(f"monitor {words[0]} is not passed on", _MONITOR_REFUSED[words[0]])
    return words[0] in _MONITOR_LOOKS
