"""Where a gdbstub listens."""

from __future__ import annotations

import socket
from pathlib import Path

from ptinspect.dataclass import dataclass
from ptinspect.errors import ConnectError, UserError


@dataclass(frozen=True)
class StubAddress:
    """Name a Unix socket or a TCP port."""

    host: str = ""
    """Host name or address; empty for a Unix socket."""
    port: int = 0
    path: str = ""
    """Path of a Unix socket; empty for TCP."""

    @classmethod
    def parse(cls, text: str) -> StubAddress:
        """Parse `host:port`, `:port`, `port`, `[v6]:port`, `tcp:host:port`, a path or `unix:path`.

        Raises UserError on anything else.
        """
        if not text.isprintable():
            raise UserError(f"{text!r} is not the address of a gdbstub", "it holds a control character")
        if text.startswith("unix:"):
            return cls(path=_absolute(text.removeprefix("unix:").partition(",")[0]))
        if "/" in text or Path(text).is_socket():
            return cls(path=_absolute(text))
        host, _, port = text.removeprefix("tcp:").rpartition(":")
        host = host.strip("[]") or "localhost"
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise UserError(
                f"{text!r} is not the address of a gdbstub", "host:port, :port, or the path of a Unix socket"
            )
        return cls(host=host, port=int(port))

    def __str__(self) -> str:
        """Return the form that GDB and ptinspect take."""
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connect(self, timeout: float) -> socket.socket:
        """Open a connection. Raises ConnectError within `timeout` seconds per address of the host."""
        try:
            if not self.path:
                return socket.create_connection((self.host, self.port), timeout)
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(timeout)
                sock.connect(self.path)
            except OSError:
                sock.close()
                raise
            return sock
        except ConnectionRefusedError as error:
            raise ConnectError(
                f"{self}: connection refused", "no gdbstub listens there; start QEMU with -gdb or -s"
            ) from error
        except FileNotFoundError as error:
            raise ConnectError(
                f"{self}: no such socket", "start QEMU with -gdb unix:PATH,server=on,wait=off"
            ) from error
        except TimeoutError as error:
            raise ConnectError(f"{self}: no connection within {timeout:g} s") from error
        except OSError as error:
            raise ConnectError(f"{self}: {error.strerror or error}") from error


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else path
