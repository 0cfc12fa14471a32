"""What stands between one debugger at a time and the gdbstub of a real guest."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path


class StubProxy:
    """Listen, and for each debugger that comes open a connection to the stub of a QEMU."""

    def __init__(self, stub: Path) -> None:
        self.stub = stub
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pair: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """End it; the guest is left to QEMU."""
        for each in (self._listener, *self._pair):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self.stub))
                self._between(client, server)
                client.close()
                server.close()

    def _between(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what comes from either, until one of them has ended; they are in `_pair` meanwhile."""
        raise NotImplementedError
