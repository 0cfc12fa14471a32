"""Ask a gdbstub what it is, before a GDB is connected to it."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from ptinspect.errors import ConnectError
from ptinspect.target.address import StubAddress
from ptinspect.target.busy import is_busy
from ptinspect.target.peer import socket_pid

STOPS_UNASKED_UNTIL = (8, 1)
"""QEMU before this version announces that a connection stopped the guest (commit 758370052fb6
"gdbstub: only send stop-reply packets when allowed to", in v8.1)."""
PACKET_LIMIT = 1 << 20
FREE_SECONDS = 1.0
"""How long a connection that is just being closed may take to go."""


@dataclass(frozen=True)
class StubFacts:
    """Hold what a gdbstub says about itself."""

    features: frozenset[str]
    """Words of qqemu.Supported; empty with old QEMU."""
    architecture: str
    """Of the target description: `aarch64`."""
    version: str
    """QEMU's version as its monitor gives it; empty if it does not."""
    status: str
    """`info status` after connecting: `paused`, `paused (prelaunch)`, `paused (debug)`, …"""
    stopped_by_us: bool
    """The stub announced that connecting stopped the guest."""
    peer: int | None = None
    """Process that listens on the stub's Unix socket; None over TCP."""
    accel: str = ""
    """What executes the guest: `kvm`, `tcg`, `other`; empty if QEMU's monitor does not say."""
    holds_interrupts: bool = True
    """The stub can hold interrupts back while an instruction is stepped: not under KVM (QEMU
    accel/kvm/kvm-all.c, kvm_sstep_flags)."""

    @property
    def was_running(self) -> bool:
        """Tell whether the guest ran before the connection.

        Connecting stops a running guest as state `paused` (QEMU gdbstub, gdb_chr_event). A stub that
        announces stops has told; else `prelaunch` and `debug` are states of a guest that stood still,
        and plain `paused` is taken as ours, though a monitor's `stop` looks the same.
        """
        if self.stopped_by_us:
            return True
        match = re.match(r"(\d+)\.(\d+)", self.version)
        told = match is not None and (int(match[1]), int(match[2])) < STOPS_UNASKED_UNTIL
        return not told and self.status == "paused"


def probe(address: StubAddress, timeout: float) -> StubFacts:
    """Ask the stub for its facts and leave it, stopped. Raises ConnectError within about `timeout` s.

    It must be QEMU's, of a whole machine, with an aarch64 CPU.
    """
    _wait_until_free(address, min(timeout, FREE_SECONDS))
    link = _Link(address, timeout)
    try:
        link.ask("?")
        stopped_by_us = any(re.match(rb"[ST]02", reply) for reply in link.unasked)
        link.ask("qSupported:multiprocess+;xmlRegisters=arm")
        stepping = link.ask("qqemu.sstepbits")
        if b"ENABLE=" not in stepping:
            link.leave_running()
            raise ConnectError(f"{address}: a gdbstub, but not QEMU's", "ptinspect works on QEMU guests")
        features = link.ask("qqemu.Supported").decode("latin-1")
        if link.ask("qqemu.PhyMemMode") not in (b"0", b"1"):
            link.leave_running()
            raise ConnectError(
                f"{address}: this QEMU's gdbstub cannot read physical memory",
                "it is a user-mode QEMU, or older than 4.1",
            )
        description = link.ask("qXfer:features:read:target.xml:0,ffb").decode("latin-1")
        found = re.search(r"<architecture>([^<]*)<", description)
        architecture = found[1] if found else "unknown"
        facts = StubFacts(
            frozenset(features.split(";")) - {""},
            architecture,
            link.monitor("info version"),
            link.monitor("info status").removeprefix("VM status: "),
            stopped_by_us,
            link.peer(),
            accelerator(link.monitor),
            b"NOIRQ" in stepping,
        )
        if architecture != "aarch64":
            if facts.was_running:
                link.leave_running()
            raise ConnectError(f"{address}: the guest's CPU is {architecture}, not aarch64")
        return facts
    finally:
        link.close()


def accelerator(monitor: Callable[[str], str]) -> str:
    """Return what executes the guest, as QEMU's monitor says (`info kvm`, and `info jit` of TCG)."""
    said = monitor("info kvm")
    if "enabled" in said:
        return "kvm"
    jit = monitor("info jit")
    return "tcg" if "ranslation buffer" in jit else "other" if "accel=tcg" in jit else ""


def _wait_until_free(address: StubAddress, timeout: float) -> None:
    """Give a debugger that is leaving a moment. Raises ConnectError if one stays connected."""
    deadline = time.monotonic() + timeout
    while is_busy(address):
        if time.monotonic() >= deadline:
            raise ConnectError(
                f"{address}: another debugger is connected to this gdbstub", "it takes one at a time"
            )
        time.sleep(0.02)


def leave_running(address: StubAddress, timeout: float = 2.0) -> None:
    """Resume a guest that an attempt to attach has stopped; errors are of no interest any more."""
    with contextlib.suppress(ConnectError):
        link = _Link(address, timeout)
        try:
            link.ask("?")
            link.leave_running()
        finally:
            link.close()


class _Link:
    """Speak the remote serial protocol, one packet at a time."""

    def __init__(self, address: StubAddress, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        self._deadline = time.monotonic() + timeout
        self._sock = address.connect(timeout)
        self._buffer = b""
        self.unasked: list[bytes] = []
        """Packets that came before the answer to the first question."""
        self._asked = 0

    def ask(self, body: str) -> bytes:
        """Send a packet and return the body of the answer."""
        data = body.encode("latin-1")
        self._send(b"$%s#%02x" % (data, sum(data) & 0xFF))
        acknowledged = False
        while True:
            acknowledged, reply = self._receive(acknowledged)
            self._send(b"+")
            if acknowledged or self._asked:
                self._asked += 1
                return reply
            self.unasked.append(reply)

    def monitor(self, command: str) -> str:
        """Run a monitor command and return its output; empty if the stub has no monitor."""
        reply = self.ask(f"qRcmd,{command.encode().hex()}")
        text = b""
        while reply[:1] == b"O" and reply != b"OK":
            with contextlib.suppress(ValueError):
                text += bytes.fromhex(reply[1:].decode("latin-1"))
            _, reply = self._receive(True)
            self._send(b"+")
        return text.decode("utf-8", "replace").strip()

    def leave_running(self) -> None:
        """Detach, which lets the guest run."""
        with contextlib.suppress(ConnectError):
            self.ask("D")

    def peer(self) -> int | None:
        """Return the process at the other end, if it can be known."""
        return socket_pid(self._sock)

    def close(self) -> None:
        """Close the connection; the guest stays as it is."""
        self._sock.close()

    def _send(self, data: bytes) -> None:
        try:
            self._sock.settimeout(self._left())
            self._sock.sendall(data)
        except TimeoutError as error:
            raise self._silent() from error
        except OSError as error:
            raise ConnectError(f"{self._address}: {error.strerror or error}") from error

    def _receive(self, acknowledged: bool) -> tuple[bool, bytes]:
        """Return whether an acknowledgement came before the next packet, and that packet's body."""
        while True:
            match = re.search(rb"\$([^#]*)#[0-9a-fA-F]{2}", self._buffer)
            if match is not None:
                acknowledged |= b"+" in self._buffer[: match.start()]
                self._buffer = self._buffer[match.end() :]
                return acknowledged, match[1]
            if len(self._buffer) > PACKET_LIMIT or (len(self._buffer) > 64 and b"$" not in self._buffer):
                raise ConnectError(f"{self._address}: what listens there is no gdbstub")
            try:
                self._sock.settimeout(self._left())
                data = self._sock.recv(65536)
            except TimeoutError as error:
                raise self._silent() from error
            except OSError as error:
                raise ConnectError(f"{self._address}: {error.strerror or error}") from error
            if not data:
                said = " (what listens there is no gdbstub)" if self._buffer.strip(b"+") else ""
                raise ConnectError(f"{self._address}: the connection was closed{said}")
            self._buffer += data

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._silent()
        return left

    def _silent(self) -> ConnectError:
        return ConnectError(
            f"{self._address}: no answer within {self._timeout:g} s",
            "another debugger is connected to this gdbstub, or QEMU hangs",
        )
