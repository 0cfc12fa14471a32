"""A gdbstub of a real guest under TCG that keeps the rules of KVM: what stands between does the refusing.

Few breakpoints and watchpoints, of the sizes that a CPU has (QEMU target/arm/kvm64.c); `info kvm` says
`enabled`, and no interrupt is held back while stepping. What would write BRK into the guest is noted.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from pathlib import Path

from stub_proxy import StubProxy

PACKET = re.compile(rb"\$([^#]*)#..|[+\-\x03]", re.DOTALL)
OUTPUT = re.compile(rb"O([0-9a-f]{2})+")
"""A part of what a monitor's command prints, before its answer."""
ENABLED = b"O" + b"kvm support: enabled\r\n".hex().encode()


def framed(body: bytes) -> bytes:
    """A packet."""
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


class KvmProxy(StubProxy):
    """Pass packets on between one GDB at a time and the stub of a QEMU."""

    def __init__(self, stub: Path, *, breakpoints: int = 6, watchpoints: int = 4) -> None:
        self.total = {"breakpoint": breakpoints, "watchpoint": watchpoints}
        self.set: dict[bytes, str] = {}
        """Packet without its Z -> breakpoint or watchpoint."""
        self.most = {"breakpoint": 0, "watchpoint": 0}
        """The most that were set at once."""
        self.refused = 0
        """How often one was one too many."""
        self.wrong: list[bytes] = []
        """Packets that KVM would not take, or that write an instruction into the guest."""
        self._physical = False
        self._open = 0
        """Questions that QEMU has not answered; below 0 where it stopped without being asked."""
        self._answered = threading.Condition()
        super().__init__(stub)

    def _between(self, client: socket.socket, server: socket.socket) -> None:
        server.sendall(framed(b"Qqemu.sstep=1"))  # from now on QEMU too takes interrupts
        while not server.recv(1 << 16).endswith(b"#9a"):
            pass
        server.sendall(b"+")
        self._pair, self._open = [client, server], 0
        back = threading.Thread(target=self._back, args=(server, client), daemon=True)
        back.start()
        with contextlib.suppress(OSError):
            self._forth(client, server)
        for each in self._pair:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        back.join(5)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
                buffer += data
                while match := PACKET.match(buffer):
                    buffer = buffer[match.end() :]
                    if match[1] is not None and not OUTPUT.fullmatch(match[1]):
                        with self._answered:
                            self._open -= 1
                            self._answered.notify()
            client.shutdown(socket.SHUT_RDWR)

    def _forth(self, client: socket.socket, server: socket.socket) -> None:
        buffer = b""
        while data := client.recv(1 << 16):
            buffer += data
            out = b""
            while match := PACKET.match(buffer):
                buffer = buffer[match.end() :]
                reply = None if match[1] is None else self._own(match[1])
                if reply is None:
                    out += match[0]
                    with self._answered:
                        self._open += match[1] is not None
                    continue
                server.sendall(out)  # answers keep the order of the questions
                out = b""
                with self._answered:
                    self._answered.wait_for(lambda: self._open <= 0, timeout=10)
                client.sendall(b"+" + b"".join(map(framed, reply)))
            server.sendall(out)

    def _own(self, body: bytes) -> list[bytes] | None:
        """The answer of a stub under KVM where it is another one; None: ask QEMU."""
        if body == b"qqemu.sstepbits":
            return [b"ENABLE=1"]
        if body == b"qRcmd," + b"info kvm".hex().encode():
            return [ENABLED, b"OK"]
        if body.startswith(b"Qqemu.PhyMemMode:"):
            self._physical = body.endswith(b"1")
        if body[:1] in b"MX" and not self._physical:
            self.wrong.append(body)
        if re.match(rb"[Zz][0-4],", body):
            return self._point(body)
        return None

    def _point(self, body: bytes) -> list[bytes] | None:
        """Refuse, or let QEMU do it."""
        kind = "breakpoint" if body[1:2] in b"01" else "watchpoint"
        if body[1:2] == b"0":
            self.wrong.append(body)
        if body[:1] == b"z":
            return None if self.set.pop(body[1:], None) else [b"E22"]
        _, address, length = (int(n, 16) for n in re.split(b"[,;]", body[1:])[:3])
        narrow = length <= 8 and address % 8 + length <= 8
        if kind == "watchpoint" and not narrow and (length & (length - 1) or address % length):
            self.wrong.append(body)
        count = list(self.set.values()).count(kind)
        if count >= self.total[kind]:
            self.refused += 1
            return [b"E22"]
        self.set[body[1:]] = kind
        self.most[kind] = max(self.most[kind], count + 1)
        return None
