"""Tell whether somebody is connected to a gdbstub of this machine, without connecting.

A connection that waits in a busy stub's queue is no harmless question: when the other debugger leaves,
QEMU takes it and stops the guest, though nobody is at its other end any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ptinspect.link.address import StubAddress

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TCP_ESTABLISHED = "01"
_TCP_LISTEN = "0A"
_UNIX_CONNECTED = "03"


def is_busy(address: StubAddress, proc: Path = Path("/proc")) -> bool:
    """Return True if a listener here has a connection; False also where that cannot be known.

    Source: proc(5), net/unix and net/tcp; an accepted Unix socket carries its listener's path.
    """
    if address.path:
        rows = list(_rows(proc / "net/unix"))
        return any(row[7:] == [address.path] and row[5] == _UNIX_CONNECTED for row in rows)
    if address.host not in LOOPBACK:
        return False
    states = {
        row[3]
        for name in ("tcp", "tcp6")
        for row in _rows(proc / "net" / name)
        if row[1].rpartition(":")[2] == f"{address.port:04X}"
    }
    return {_TCP_LISTEN, _TCP_ESTABLISHED} <= states


def _rows(path: Path) -> Iterator[list[str]]:
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines()[1:]:
            row = line.split(maxsplit=7)
            if len(row) >= 7:
                yield row
