"""Ask a gdbstub what it is before a GDB connects to it, and leave it when no GDB can."""

from __future__ import annotations

import contextlib
import re
import time

from ptinspect.dataclass import dataclass
from ptinspect.errors import ConnectError
from ptinspect.link.address import StubAddress
from ptinspect.link.qemu.listener import is_busy, is_stopped, socket_pid
from ptinspect.link.qemu.monitor import accelerator, status
from ptinspect.text import escape

STOPS_UNASKED_UNTIL = (8, 1)
"""QEMU before this version announces that a connection stopped the guest (commit 758370052fb6
"gdbstub: only send stop-reply packets when allowed to", in v8.1)."""
PACKET_LIMIT = 1 << 20
DETACH = "D;1"
"""The request that lets the guest run and takes every breakpoint out of the stub. Once any connection
has negotiated `multiprocess`, QEMU answers a `D` without process by an error (gdbstub, handle_detach)."""
_STOP = b"+\x03"
"""Acknowledges the reply to DETACH, and stops the guest again."""
LEAVE_SECONDS = 5.0
"""How long a stub may take to let a guest go."""
FREE_SECONDS = 3.0
"""How long a connection that is just being closed may take to go."""


@dataclass(frozen=True)
class StubFacts:
    """Hold what a gdbstub reports about itself."""

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
    """What executes the guest: `kvm`, `tcg`, `other`; empty if QEMU's monitor does not tell."""
    holds_interrupts: bool = True
    """The stub can hold interrupts back while an instruction is stepped: not under KVM (QEMU
    accel/kvm/kvm-all.c, kvm_sstep_flags)."""

    @property
    def was_running(self) -> bool:
        """Tell whether the guest ran before the connection.

        Connecting stops a running guest as state `paused` (QEMU gdbstub, gdb_chr_event). Where the stub
        announces no stop, `prelaunch` and `debug` are states of a guest that was stopped before, and plain
        `paused` is taken for the connection's doing, though a monitor's `stop` looks the same.
        """
        return self.stopped_by_us or (self.status == "paused" and not _announces(self.version))


def _announces(version: str) -> bool:
    """Tell whether a QEMU of this version announces that a connection stopped the guest."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) < STOPS_UNASKED_UNTIL


def probe(address: StubAddress, timeout: float) -> StubFacts:
    """Ask the stub for its facts and leave it, stopped. Raises ConnectError within about `timeout` s.

    It must be QEMU's, of a whole machine, with an aarch64 CPU. If the questions end early, by Ctrl-C
    too, the guest is left as it was found.
    """
    wait_until_free(address, min(timeout, FREE_SECONDS))
    if is_stopped(address):
        raise ConnectError(f"{address}: the process that listens there is stopped", "kill -CONT its number")
    link = _Link(address, timeout)
    try:
        return _facts(link, address)
    except BaseException as error:
        link.close()
        if not link.left and (link.heard or link.announced or not isinstance(error, ConnectError)):
            with contextlib.suppress(ConnectError):
                leave(address, True if link.announced else None, heard=link.heard)
        raise
    finally:
        link.close()


def _facts(link: _Link, address: StubAddress) -> StubFacts:
    link.ask("?")
    _, stepping, mode, described = link.ask_all(
        "qSupported:multiprocess+;xmlRegisters=arm",
        "qqemu.sstepbits",
        "qqemu.PhyMemMode",
        "qXfer:features:read:target.xml:0,ffb",
    )
    if b"ENABLE=" not in stepping:
        link.detach()
        raise ConnectError(f"{address}: a gdbstub, but not QEMU's", "ptinspect works on QEMU guests")
    if mode not in (b"0", b"1"):
        link.detach()
        raise ConnectError(
            f"{address}: this QEMU's gdbstub cannot read physical memory",
            "it is a user-mode QEMU, or older than 4.1",
        )
    found = re.search(r"<architecture>([^<]*)<", described.decode("latin-1"))
    architecture = found[1] if found else "unknown"
    if architecture != "aarch64":
        raise ConnectError(f"{address}: the guest's CPU is {escape(architecture)}, not aarch64")
    answers = link.monitor_all("info version", "info status", "info kvm", "info jit")
    return StubFacts(
        architecture,
        answers["info version"],
        status(answers.__getitem__),
        link.announced,
        link.peer(),
        accelerator(answers.__getitem__),
        b"NOIRQ" in stepping,
    )


def wait_until_free(address: StubAddress, timeout: float) -> None:
    """Give a debugger that is leaving a moment. Raises ConnectError if one stays connected."""
    deadline = time.monotonic() + timeout
    while is_busy(address):
        if time.monotonic() >= deadline:
            raise ConnectError(
                f"{address}: another debugger is connected to this gdbstub", "it takes one at a time"
            )
        time.sleep(0.02)


def leave(address: StubAddress, running: bool | None, *, heard: bool = True, clear: bool = False) -> None:
    """Leave a guest that nobody debugs any more running or stopped. Raises ConnectError.

    `running` None: as it was found, by its monitor. `heard` False: the stub had no time to announce that
    it stopped the guest. `clear`: breakpoints of a debugger that died may be in the stub; removing them
    lets the guest run for a moment. A stub that does not answer in LEAVE_SECONDS, because its process is
    stopped, receives the request all the same, and acts on it when it continues.
    """
    wait_until_free(address, LEAVE_SECONDS)
    link = _Link(address, LEAVE_SECONDS)
    try:
        if running is None:
            link.ask("?")
            announced = heard and _announces(link.monitor("info version"))
            running = link.announced or (status(link.monitor) == "paused" and not announced)
        words = [_packet("Qqemu.PhyMemMode:0")]
        words += [_packet(DETACH)] if running or clear else []
        words += [_STOP] if clear and not running else []
        link.post(b"".join(words), len(words))
    finally:
        link.close()


def _packet(body: str) -> bytes:
    data = body.encode("latin-1")
    return b"$%s#%02x" % (data, sum(data) & 0xFF)


class _Link:
    """Speak the remote serial protocol, one packet at a time."""

    def __init__(self, address: StubAddress, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        self._deadline = time.monotonic() + timeout
        self._sock = address.connect(timeout)
        self._buffer = b""
        self._searched = 0
        """Bytes of it in which no packet ends."""
        self.announced = False
        """The stub reported, before it was asked anything, that the connection stopped the guest."""
        self.heard = False
        """The stub has answered."""
        self.left = False
        """The guest's run state needs no more care."""

    def ask(self, body: str) -> bytes:
        """Send a packet and return the body of the answer."""
        self._send(_packet(body))
        acknowledged = False
        while True:
            acknowledged, reply = self._receive(acknowledged)
            self._send(b"+")
            if acknowledged or self.heard:
                self.heard = True
                return reply
            self.announced |= re.match(rb"[ST]02", reply) is not None

    def ask_all(self, *bodies: str) -> list[bytes]:
        """Send packets at once, once the stub has answered one, and return the bodies of the answers.

        A packet acknowledges the answer before it (QEMU gdbstub, gdb_read_byte), but user-mode QEMU waits for
        each `+` (gdb_put_packet_binary).
        """
        self._send(b"".join(map(_packet, bodies)))
        found = []
        for _ in bodies:
            found.append(self._receive(True)[1])
            self._send(b"+")
        return found

    def post(self, data: bytes, replies: int) -> None:
        """Send all of this at once and wait for the replies, which are not acknowledged.

        A packet acknowledges the reply before it, and any other byte stops a guest that runs (QEMU
        gdbstub, gdb_read_byte).
        """
        self._send(data)
        for _ in range(replies):
            self._receive(True)

    def monitor(self, command: str) -> str:
        """Run a monitor command and return its output; empty if the stub has no monitor."""
        return self.monitor_all(command)[command]

    def monitor_all(self, *commands: str) -> dict[str, str]:
        """Run monitor commands, sent at once, and return what each prints."""
        self._send(b"".join(_packet(f"qRcmd,{command.encode().hex()}") for command in commands))
        found = {}
        for command in commands:
            text = b""
            while (reply := self._receive(True)[1])[:1] == b"O" and reply != b"OK":
                with contextlib.suppress(ValueError):
                    text += bytes.fromhex(reply[1:].decode("latin-1"))
            found[command] = text.decode("utf-8", "replace").strip()
        self._send(b"+")
        return found

    def detach(self) -> None:
        """Let the guest run; stubs that know no processes take the short form."""
        self.left = True
        with contextlib.suppress(ConnectError):
            if self.ask(DETACH) != b"OK":
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
            end = self._buffer.find(b"#", self._searched)
            start = self._buffer.rfind(b"$", 0, max(end, 0))
            if start >= 0 and len(self._buffer) >= end + 3:
                acknowledged |= b"+" in self._buffer[:start]
                reply = self._buffer[start + 1 : end]
                self._buffer, self._searched = self._buffer[end + 3 :], 0
                return acknowledged, reply
            self._searched = len(self._buffer) if end < 0 else end
            if len(self._buffer) > PACKET_LIMIT or (len(self._buffer) > 64 and b"$" not in self._buffer):
                raise ConnectError(f"{self._address}: what listens there is not a gdbstub")
            try:
                self._sock.settimeout(self._left())
                data = self._sock.recv(65536)
            except TimeoutError as error:
                raise self._silent() from error
            except OSError as error:
                raise ConnectError(f"{self._address}: {error.strerror or error}") from error
            if not data:
                hint = " (what listens there is not a gdbstub)" if self._buffer.strip(b"+") else ""
                raise ConnectError(f"{self._address}: the connection was closed{hint}")
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
