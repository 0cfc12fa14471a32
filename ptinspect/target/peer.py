"""Find the process behind a gdbstub: by the socket's credentials or its inode, never by name."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from ptinspect.target.address import StubAddress
from ptinspect.target.busy import LOOPBACK

_ESTABLISHED, _LISTEN = "01", "0A"
_CREDENTIALS = struct.Struct("iII")


def socket_pid(sock: socket.socket) -> int | None:
    """Return the process that listens behind a connected Unix socket, or None (unix(7), SO_PEERCRED)."""
    if sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid = int(_CREDENTIALS.unpack(data)[0])
    return pid if pid > 0 else None


def tcp_pids(address: StubAddress, proc: Path = Path("/proc")) -> list[int]:
    """Return the processes of this machine that hold a TCP port of the loopback interface.

    Empty if the address is not loopback's, or their descriptors cannot be listed. Source: proc(5).
    """
    if address.host not in LOOPBACK:
        return []
    inodes = {f"socket:[{inode}]" for inode in _inodes(address.port, proc)}
    return [int(folder.name) for folder in proc.glob("[0-9]*") if inodes and _holds(folder, inodes)]


def _inodes(port: int, proc: Path) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / name).read_text().splitlines()[1:]:
                row = line.split()
                local = row[1].rpartition(":")[2]
                if int(local, 16) == port and row[3] in (_ESTABLISHED, _LISTEN) and row[9] != "0":
                    yield row[9]


def _holds(folder: Path, inodes: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for link in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()) in inodes:
                    return True
    return False
