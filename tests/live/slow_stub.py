"""A gdbstub that is far away: what stands between counts the requests, and delivers everything later."""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stub_proxy import StubProxy

PACKET = re.compile(rb"\$([^#]*)#..|[+\-\x03]", re.DOTALL)
NAMED = re.compile(rb"vCont\??|q[A-Za-z.]+|Q[A-Za-z.]+|[A-Za-z?!]\d?")


@dataclass
class Counts:
    """What has passed from GDB to the stub."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Packets, by the first word of each: `m`, `p`, `vCont`, ..."""
    turns: int = 0
    """How often something was sent after something was received: how often the delay was waited for."""
    log: list[bytes] = field(default_factory=list)
    """The packets."""

    @property
    def requests(self) -> int:
        """Number of packets."""
        return sum(self.kinds.values())


class SlowStub(StubProxy):
    """Pass bytes on between one debugger at a time and the stub of a QEMU, `delay` seconds each way."""

    def __init__(self, stub: Path, delay: float = 0.0) -> None:
        self.delay = delay
        self.counts = Counts()
        self._answered = True
        super().__init__(stub)

    def take(self) -> Counts:
        """Return what was counted since the last call."""
        found, self.counts = self.counts, Counts()
        return found

    def _between(self, client: socket.socket, server: socket.socket) -> None:
        self._pair = [client, server]
        ways = [
            threading.Thread(target=self._pump, args=way, daemon=True)
            for way in ((client, server, True), (server, client, False))
        ]
        for way in ways:
            way.start()
        for way in ways:
            way.join()

    def _pump(self, source: socket.socket, to: socket.socket, asks: bool) -> None:
        """Pass on one direction until it ends; what is on its way is delivered first."""
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        delivery = threading.Thread(target=self._deliver, args=(waiting, to), daemon=True)
        delivery.start()
        buffer = b""
        while data := _received(source):
            waiting.put((time.monotonic() + self.delay, data))
            if asks:
                buffer = self._count(buffer + data)
            else:
                self._answered = True
        waiting.put((time.monotonic() + self.delay, b""))
        delivery.join()

    @staticmethod
    def _deliver(waiting: queue.SimpleQueue[tuple[float, bytes]], to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = waiting.get()
                time.sleep(max(due - time.monotonic(), 0))
                if not data:
                    to.shutdown(socket.SHUT_RDWR)
                    return
                to.sendall(data)

    def _count(self, buffer: bytes) -> bytes:
        """Count the whole packets; return what remains."""
        while match := PACKET.match(buffer):
            buffer = buffer[match.end() :]
            body = match[1] if match[1] is not None else b"\x03" if match[0] == b"\x03" else None
            if body is not None:
                name = NAMED.match(body)
                self.counts.kinds["^C" if name is None else name[0].decode()] += 1
                self.counts.log.append(body)
                if self._answered:
                    self.counts.turns += 1
                self._answered = False
        return buffer


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(1 << 16)
    except OSError:
        return b""
