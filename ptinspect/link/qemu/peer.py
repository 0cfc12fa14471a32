"""Find the process behind a gdbstub: by the socket's credentials or its inode, never by name."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from ptinspect.link.address import StubAddress
from ptinspect.link.qemu.busy import LOOPBACK

_ESTABLISHED, _LISTEN = "01", "0A"
_ACCEPTS = "00010000"  # __SO_ACCEPTCON
_CREDENTIALS = struct.Struct("iII")


def socket_pid(sock: socket.socket) -> int | None:
    """Return the process that listens behind a connected Unix socket, or None (unix(7), SO_PEERCRED)."""
    if sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid = int(_CREDENTIALS.unpack(data)[0])
    return pid if pid > 0 else None


def listeners(address: StubAddress, proc: Path = Path("/proc")) -> list[int]:
    """Return the processes of this machine that listen at an address, on a Unix socket or a port of loopback.

    Empty if they are elsewhere, or their descriptors cannot be listed. Source: proc(5).
    """
    found = _unix_inodes(address.path, proc) if address.path else _tcp_inodes(address, proc)
    inodes = {f"socket:[{inode}]" for inode in found}
    return [int(folder.name) for folder in proc.glob("[0-9]*") if inodes and _holds(folder, inodes)]


def is_stopped(address: StubAddress, proc: Path = Path("/proc")) -> bool:
    """Tell whether whoever listens at an address is held by a signal (SIGSTOP) or by a debugger."""
    states = []
    for pid in listeners(address, proc):
        with contextlib.suppress(OSError):
            words = (proc / str(pid) / "stat").read_text(errors="replace")
            states.append(words[words.rfind(")") + 2 :][:1])
    return bool(states) and all(state in ("T", "t") for state in states)


def _unix_inodes(path: str, proc: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in (proc / "net/unix").read_text(errors="replace").splitlines()[1:]:
            row = line.split(maxsplit=7)
            if row[7:] == [path] and row[3] == _ACCEPTS:
                yield row[6]


def _tcp_inodes(address: StubAddress, proc: Path) -> Iterator[str]:
    for name in ("tcp", "tcp6") if address.host in LOOPBACK else ():
        with contextlib.suppress(OSError):
            for line in (proc / "net" / name).read_text().splitlines()[1:]:
                row = line.split()
                local = row[1].rpartition(":")[2]
                if int(local, 16) == address.port and row[3] in (_ESTABLISHED, _LISTEN) and row[9] != "0":
                    yield row[9]


def _holds(folder: Path, inodes: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for link in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()) in inodes:
                    return True
    return False
