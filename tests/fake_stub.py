"""A gdbstub without a machine: answers what it is told to, on a Unix socket or a TCP port."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

Answer = Callable[[str], str | None]

ARM64_XML = """<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>
<architecture>aarch64</architecture><feature name="org.gnu.gdb.aarch64.core">{}
<reg name="sp" bitsize="64" type="data_ptr"/><reg name="pc" bitsize="64" type="code_ptr"/>
<reg name="cpsr" bitsize="32" type="int"/></feature></target>""".format(
    "".join(f'<reg name="x{n}" bitsize="64"/>' for n in range(31))
)
RAM_START = 0x4000_0000
MTREE = """FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000009000000-0000000009000fff (prio 0, i/o): pl011
  0000000040000000-00000000400fffff (prio 0, ram): mach-virt.ram
"""


class FakeStub:
    """Serve one client after the other, each in the one thread of the server."""

    def __init__(self, where: Path | None = None, *, answer: Answer | None = None) -> None:
        self.packets: list[str] = []
        """What the clients sent."""
        self.physical = False
        """The physical mode, as the clients left it."""
        self.ram = bytearray(bytes(range(256)) * 4096)
        self.multiprocess = False
        """A client has negotiated it; QEMU keeps that for all that come later (gdbstub, handle_detach)."""
        self.was_running = False
        self.running = False
        """A client has let the guest run, and none has stopped it since."""
        self.announces = True
        """It reports each stop, as QEMU before 8.1 does."""
        self.waits = False
        """It sends nothing more until its reply is acknowledged, as user-mode QEMU (gdb_put_packet)."""
        self.status, self.registers = "paused", "CPU#0\r\n PC=0000000040000000\r\n"
        """What its monitor says of the machine and of the CPUs."""
        self.overrides: dict[str, str | None] = {}
        """Packet or its beginning -> the answer instead; None: never answer."""
        self._answer = answer
        self._sock = socket.socket(socket.AF_UNIX if where else socket.AF_INET)
        self._sock.bind(str(where) if where else ("127.0.0.1", 0))
        self._sock.listen(4)
        self.address = str(where) if where else f"127.0.0.1:{self._sock.getsockname()[1]}"
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the server and its client."""
        for sock in (self._sock, self._client):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        self._thread.join(5)

    def __enter__(self) -> FakeStub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._sock.accept()
            except OSError:
                return
            with self._client, contextlib.suppress(OSError):
                if self.was_running or self.running:
                    self.running = False
                    self._send(f"T02thread:{self._cpu};", acknowledge=False)
                    self.was_running = False
                self._talk(self._client)

    def _talk(self, client: socket.socket) -> None:
        buffer = b""
        while data := client.recv(65536):
            buffer = self._stop(buffer + data)
            while match := re.search(rb"\$([^#]*)#..", buffer):
                buffer = buffer[match.end() :]
                body = match[1].decode("latin-1")
                self.packets.append(body)
                replies = self._replies(body)
                self.running |= body == "D;1" and replies == ["OK"]
                for reply in replies:
                    self._send(reply)
                buffer = self._stop(buffer)
            if b"$" not in buffer:
                buffer = b""

    def _stop(self, data: bytes) -> bytes:
        """Stop a guest that runs at the first byte but an acknowledgement; it is lost (gdb_read_byte)."""
        rest = data.removeprefix(b"+")
        if not self.running or not rest:
            return data
        self.running = False
        if self.announces:
            self._send(f"T02thread:{self._cpu};", acknowledge=False)
        return rest[1:]

    def _send(self, body: str, *, acknowledge: bool = True) -> None:
        assert self._client is not None
        data = body.encode("latin-1")
        self._client.sendall((b"+" if acknowledge else b"") + b"$%s#%02x" % (data, sum(data) & 0xFF))
        while self.waits and self._client.recv(1) not in (b"+", b""):
            pass

    def _replies(self, body: str) -> list[str]:
        for start, answer in self.overrides.items():
            if body.startswith(start):
                return [] if answer is None else [answer]
        if self._answer is not None:
            answer = self._answer(body)
            return [] if answer is None else [answer]
        if body.startswith("qRcmd,"):
            text = self._monitor(bytes.fromhex(body[6:]).decode())
            return [*(["O" + text.encode().hex()] if text else []), "OK"]
        return [self._reply(body)]

    @property
    def _cpu(self) -> str:
        return "p01.01" if self.multiprocess else "01"

    def _reply(self, body: str) -> str:
        fixed = {
            "?": f"T05thread:{self._cpu};",
            "qqemu.sstepbits": "ENABLE=1,NOIRQ=2,NOTIMER=4",
            "qqemu.Supported": "sstepbits;sstep;PhyMemMode",
            "qqemu.PhyMemMode": str(int(self.physical)),
            "qfThreadInfo": f"m{self._cpu}",
            "qsThreadInfo": "l",
            "qC": f"QC{self._cpu}",
            "qAttached": "1",
            "qAttached:1": "1",
            "vCont?": "vCont;c;C;s;S",
            "g": "0" * (33 * 16 + 8),
            "D": "E22" if self.multiprocess else "OK",
            "D;1": "OK",
        }
        if body in fixed:
            return fixed[body]
        if body.startswith("qSupported"):
            self.multiprocess |= "multiprocess+" in body
            return "PacketSize=1000;qXfer:features:read+" + (";multiprocess+" if self.multiprocess else "")
        if match := re.fullmatch(r"qXfer:features:read:target.xml:(\w+),(\w+)", body):
            start, size = int(match[1], 16), int(match[2], 16)
            part = ARM64_XML[start : start + size]
            return ("m" if start + size < len(ARM64_XML) else "l") + part
        if body.startswith("Qqemu.PhyMemMode:"):
            self.physical = body.endswith("1")
            return "OK"
        return self._memory(body) if body[:1] in "mM" else "OK" if body[:1] in "HT" else ""

    def _memory(self, body: str) -> str:
        if match := re.fullmatch(r"m(\w+),(\w+)", body):
            return self._read(int(match[1], 16), int(match[2], 16))
        match = re.fullmatch(r"M(\w+),(\w+):(\w*)", body)
        assert match is not None
        start = int(match[1], 16) - RAM_START
        self.ram[start : start + int(match[2], 16)] = bytes.fromhex(match[3])
        return "OK"

    def _read(self, address: int, size: int) -> str:
        if not self.physical:
            return "E14"
        if size > 2048:
            return "E22"
        start = address - RAM_START
        inside = 0 <= start <= len(self.ram) - size
        return bytes(self.ram[start : start + size]).hex() if inside else "00" * size

    def _monitor(self, command: str) -> str:
        return {
            "info version": "7.2.22Debian 1:7.2\r\n",
            "info status": f"VM status: {self.status}\r\n",
            "info registers -a": self.registers,
            "info mtree -f": MTREE.replace("\n", "\r\n"),
        }.get(command, "")
