"""Which commands of GDB and of QEMU's monitor a session passes on."""

from __future__ import annotations

import re

from ptinspect.errors import UserError

_OUTPUT = "what it prints would mix with GDB's own answers"
_GDB_REFUSED = {
    "kill": (1, "it would end QEMU; quit leaves ptinspect"),
    "quit": (1, "quit without 'gdb' leaves ptinspect"),
    "exit": (3, "quit without 'gdb' leaves ptinspect"),
    "detach": (3, "detach without 'gdb' leaves the guest as it was found"),
    "disconnect": (5, "detach --stop leaves the guest stopped"),
    "target": (2, "attach connects to another guest"),
    "run": (1, "continue makes the guest run"),
    "starti": (4, "continue makes the guest run"),
    "shell": (3, _OUTPUT),
    "!": (1, _OUTPUT),
    "make": (3, _OUTPUT),
    "pipe": (3, _OUTPUT),
    "|": (1, _OUTPUT),
    "python-interactive": (8, "it has no terminal here"),
    "pi": (2, "it has no terminal here"),
    "inferior": (6, "a session has one machine"),
}
"""Command -> how many of its letters GDB accepts for it, and why it is not passed on."""
_BACK = re.compile(r"r(everse-\w*|c|si?|ni?)\b|set\s+exec-dir")
"""Ways back of GDB's own. QEMU 7.2 ends itself on the packets bs and bc outside a replay, and in one where
states were saved."""
_OTHERS = re.compile(
    r"(?:(?:with|w)\s.*?\s--|(?:thread|frame)\s+apply\s+\S+(?:\s+-\S+)*|t?faas|taas|"
    r"interpreter-exec\s+\S+|while\s.*|if\s.*)\s+(.+)",
    re.DOTALL,
)
"""Commands that run another one."""
_PACKET = re.compile(r"^maint(enance)?\s+packet\s+(k|vKill|D|R|r|bs|bc|Qqemu\.PhyMemMode:[^0])")
_CONTINUES = re.compile(r"(?:c|cont|conti|contin|continu|continue|fg|jump|signal)(?:\s|&|$)")
_MONITOR_REFUSED = {
    "cont": "continue makes the guest run, and GDB knows of it",
    "c": "continue makes the guest run, and GDB knows of it",
    "gdbserver": "it would end this session",
    "replay_seek": "timeline goto leads to a position, and GDB knows of it",
}
_MONITOR_LOOKS = {
    "info", "gva2gpa", "gpa2hva", "gpa2hpa", "xp", "x", "print", "p", "help", "?", "cpu", "memsave",
    "pmemsave",
}  # fmt: skip
"""Commands of the monitor that change nothing in the guest."""


def check_gdb_command(line: str) -> None:
    """Raise UserError on a command that would end the session or QEMU without its knowledge."""
    line = line.strip()
    if not line:
        raise UserError("gdb: which command?")
    _check_text(line)
    _check_one(line)
    while (inner := _OTHERS.match(line)) is not None:
        line = inner[1].strip("\"' \t")
        _check_one(line)


def continues(line: str) -> bool:
    """Tell whether a command of GDB's lets the guest go on, and not by steps."""
    return _CONTINUES.match(line.strip()) is not None


def _check_one(line: str) -> None:
    """Raise UserError on a command that is not passed on, whatever it runs besides itself."""
    word = re.match(r"[!|]|[\w-]+", line)
    for name, (letters, why) in _GDB_REFUSED.items():
        if word is not None and name.startswith(word[0]) and len(word[0]) >= letters:
            raise UserError(f"gdb {name} is not passed on", why)
    if _BACK.match(line):
        raise UserError(
            "GDB's own way back is not passed on",
            "rc, rsi and reverse-finish without 'gdb' go back in a replay",
        )
    if _PACKET.match(line):
        raise UserError("this packet is not passed on", "it would end QEMU, the session, or mix up addresses")


def _check_text(line: str) -> None:
    """Raise UserError where a line would be more than one."""
    if any(ord(character) < 32 and character != "\t" for character in line):
        raise UserError(f"{line!r} holds a control character", "one command, on one line")


def check_monitor_command(line: str) -> bool:
    """Return whether the command changes nothing. Raises UserError on one that GDB must not miss."""
    words = line.split()
    if not words:
        raise UserError("monitor: which command?")
    _check_text(line)
    if words[0] in _MONITOR_REFUSED:
        raise UserError(f"monitor {words[0]} is not passed on", _MONITOR_REFUSED[words[0]])
    return words[0] in _MONITOR_LOOKS
