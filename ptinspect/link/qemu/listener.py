"""Who listens at a gdbstub's address, and whether somebody is connected to it: by inode, never by name.

This opens no connection. One that waits in the queue of a busy stub does harm: when the other debugger
leaves, QEMU accepts it and stops the guest, although nobody is at its other end any more.

Source: proc(5), net/unix and net/tcp; an accepted Unix socket carries its listener's path.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

from ptinspect.link.address import StubAddress
from ptinspect.processes import holders, stopped

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROC = Path("/proc")
_TCP_ESTABLISHED, _TCP_LISTEN = "01", "0A"
_UNIX_CONNECTED = "03"
_ACCEPTS = "00010000"  # __SO_ACCEPTCON
_CREDENTIALS = struct.Struct("iII")


def socket_pid(sock: socket.socket) -> int | None:
    """Return the process at the other end of a connected Unix socket, or None (unix(7), SO_PEERCRED)."""
    if sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid = int(_CREDENTIALS.unpack(data)[0])
    return pid if pid > 0 else None


def listeners(address: StubAddress, proc: Path = PROC) -> list[int]:
    """Return the processes of this machine that listen at an address, on a Unix socket or a port of loopback.

    Empty if they are elsewhere, or their descriptors cannot be listed.
    """
    if address.path:
        found = {row[6] for row in _unix(address.path, proc) if row[3] == _ACCEPTS}
    else:
        states = (_TCP_ESTABLISHED, _TCP_LISTEN)
        found = {row[9] for row in _tcp(address, proc) if row[3] in states and row[9] != "0"}
    return holders({f"socket:[{inode}]" for inode in found}, proc)


def is_listening(path: Path) -> bool:
    """Tell whether a Unix socket takes connections; where that cannot be known, whether there is one."""
    known = os.access(PROC / "net/unix", os.R_OK)
    return path.exists() and (not known or any(row[3] == _ACCEPTS for row in _unix(str(path), PROC)))


def is_busy(address: StubAddress, proc: Path = PROC) -> bool:
    """Return True if a listener here has a connection; False also where that cannot be known."""
    if address.path:
        return any(row[5] == _UNIX_CONNECTED for row in _unix(address.path, proc))
    return {_TCP_LISTEN, _TCP_ESTABLISHED} <= {row[3] for row in _tcp(address, proc)}


def is_stopped(address: StubAddress, proc: Path = PROC) -> bool:
    """Tell whether all that listen at an address are stopped by a signal (SIGSTOP) or a debugger."""
    still = stopped(proc)  # there is none mostly, and who listens takes longer to find out
    found = listeners(address, proc) if still else []
    return bool(found) and still.keys() >= set(found)


def _unix(path: str, proc: Path) -> list[list[str]]:
    """Return the rows of the Unix sockets at a path."""
    return [row for row in _rows(proc / "net/unix", 8) if row[7:] == [path]]


def _tcp(address: StubAddress, proc: Path) -> list[list[str]]:
    """Return the rows of the TCP sockets at a port, if it is one of this machine."""
    return [
        row
        for name in (("tcp", "tcp6") if address.host in LOOPBACK else ())
        for row in _rows(proc / "net" / name, 11)
        if row[1].rpartition(":")[2] == f"{address.port:04X}"
    ]


def _rows(table: Path, columns: int) -> list[list[str]]:
    """Split a table of proc(5); a path that is the last column may hold blanks."""
    with contextlib.suppress(OSError):
        lines = table.read_text(errors="replace").splitlines()[1:]
        return [row for line in lines if len(row := line.split(maxsplit=columns - 1)) >= columns]
    return []
