"""Stand between GDB and a gdbstub that takes interrupts while it steps; each step goes by `masked_step`.

`python -m ptinspect.link.relay ADDRESS STUB GDB` has two sockets of these numbers and passes on what comes.
It is a process of its own, so that a step is finished and PSTATE put back whatever happens to GDB or to the
ptinspect that started it. What a step changes is written down first, for the case that this process dies:
`put_back` is for whoever comes to the same stub next.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptinspect.arch.sysregs import ALIASES
from ptinspect.link.address import StubAddress
from ptinspect.link.journal import step_place
from ptinspect.link.masked_step import HELD, Before, settle, step

READY = b"ready\n"
TOKEN = re.compile(rb"\$([^#]*)#..|[^$]", re.DOTALL)
"""A packet, or a byte between packets: an acknowledgement, or 3, which interrupts."""
STEP = re.compile(rb"vCont;[sS](?:[0-9a-f]{2})?:(p?[0-9a-f.]+)(?:;.*)?", re.DOTALL)
"""A request to step one thread; others may be let run meanwhile."""
POINT = re.compile(rb"([zZ])[01],([0-9a-f]+),")
STOPPED = re.compile(rb"[ST]05")
CORE = {**{f"X{n}": n for n in range(31)}, "SP": 31, "PC": 32, "CPSR": 33}
"""Numbers in the target description's core feature (GDB features/aarch64-core.xml)."""
SYSTEM = ("VBAR_EL1", "ELR_EL1", "SPSR_EL1", "TPIDR_EL1")
"""System registers that are read."""
CHUNK = 0xFFB
DESCRIPTION_LIMIT = 1 << 20
LAST_SECONDS = 2.0
"""How long a step may take when GDB has ended meanwhile, before it is interrupted."""


PUT_BACK_SECONDS = 5.0
"""How long the stub may take for each answer then."""


def packet(body: bytes) -> bytes:
    """Return a packet of the remote serial protocol."""
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


class Lost(Exception):
    """The stub has ended."""


class Stub:
    """The stub's end: requests of our own, while GDB waits."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.numbers: Mapping[str, int] = CORE
        self.points: set[int] = set()
        """Where breakpoints are set."""
        self._buffer = b""
        self._owed = 0
        """Replies that are still to come, and of no interest."""

    def send(self, *bodies: bytes) -> None:
        """Send requests whose replies nobody needs: they are dropped when the next one is waited for."""
        self.sock.sendall(b"".join(map(packet, bodies)))
        self._owed += len(bodies)

    def ask(self, *bodies: bytes) -> list[bytes]:
        """Send requests and return their replies. Raises Lost."""
        self.sock.sendall(b"".join(map(packet, bodies)))
        found: list[bytes] = []
        while len(found) < len(bodies):
            while (reply := self.reply()) is None:
                self.receive()
            found.append(reply)
        self.sock.sendall(b"+")
        return found

    def receive(self) -> None:
        """Take more of what the stub says. Raises Lost."""
        data = self.sock.recv(1 << 16)
        if not data:
            raise Lost
        self._buffer += data

    def reply(self) -> bytes | None:
        """Return the next reply; None if it has not come yet."""
        while (end := self._buffer.find(b"#")) >= 0 and len(self._buffer) >= end + 3:
            start = self._buffer.rfind(b"$", 0, end)
            found, self._buffer = self._buffer[start + 1 : end], self._buffer[end + 3 :]
            if not self._owed:
                return found
            self._owed -= 1
        return None

    def describe(self) -> None:
        """Learn the numbers of the system registers: each register has the one after the last, or its own."""
        number, found = 0, dict(CORE)
        for words in self._described("target.xml"):
            fields = dict(re.findall(r'(\w+)="([^"]*)"', words))
            number = int(fields["regnum"]) if fields.get("regnum", "").isdecimal() else number
            found.setdefault(fields.get("name", ""), number)
            number += 1
        for name in SYSTEM:
            spelled = next((s for s in ALIASES.get(name, (name,)) if s in found), None)
            if spelled is not None:
                found[name] = found[spelled]
        self.numbers = found

    def _described(self, name: str) -> Iterator[str]:
        """Give the attributes of each register of a description, in order, and of those that it includes."""
        for file, words in re.findall(r'<xi:include href="([^"]+)"|<reg ([^>]*)', self._read(name)):
            yield from self._described(file) if file and file != name else [words]

    def _read(self, name: str) -> str:
        text = b""
        while len(text) < DESCRIPTION_LIMIT:
            reply = self.ask(b"qXfer:features:read:%s:%x,%x" % (name.encode(), len(text), CHUNK))[0]
            text += reply[1:]
            if reply[:1] != b"m":
                break
        return text.decode("latin-1")


class Thread:
    """One CPU of the stub, for `masked_step`."""

    def __init__(self, relay: Relay, name: bytes, go: bytes) -> None:
        """`go` is the request that steps it."""
        self._relay, self._stub, self._go = relay, relay.stub, go
        self.name = name
        self.reply = b"E01"
        """What the stub answered to the last step."""

    def read(self, *names: str) -> list[int | None]:
        numbers = [self._stub.numbers.get(name) for name in names]
        replies = iter(self._stub.ask(*(b"p%x" % number for number in numbers if number is not None)))
        return [None if number is None else _number(next(replies)) for number in numbers]

    def write(self, **registers: int) -> None:
        widths = {"CPSR": 4}
        bodies = (
            b"P%x=%s" % (CORE[name], value.to_bytes(widths.get(name, 8), "little").hex().encode())
            for name, value in registers.items()
        )
        self._stub.send(*bodies)

    def code(self, address: int, size: int) -> bytes:
        try:
            return bytes.fromhex(self._stub.ask(b"m%x,%x" % (address, size))[0].decode("latin-1"))
        except ValueError:
            return b""

    def step(self) -> bool:
        self.reply = self._relay.run(self._go)
        self._choose(self.name)
        return STOPPED.match(self.reply) is not None

    def is_free(self, address: int) -> bool:
        return address not in self._stub.points

    def leave(self) -> None:
        """Choose the thread that stopped, as the stub does by itself, and wait for the last replies."""
        self._stub.ask(b"Hg" + self._stopped())

    def _choose(self, name: bytes) -> None:
        if self._stopped() != self.name:
            self._stub.send(b"Hg" + name)

    def _stopped(self) -> bytes:
        found = re.search(rb"thread:(p?[0-9a-f.]+)", self.reply)
        return self.name if found is None else found[1]


def _number(reply: bytes) -> int | None:
    try:
        return int.from_bytes(bytes.fromhex(reply.decode("latin-1")), "little")
    except ValueError:
        return None


class Relay:
    """Pass on what comes from either side, but for steps."""

    def __init__(self, stub: socket.socket, gdb: socket.socket, record: Path) -> None:
        self.stub, self.gdb, self.record = Stub(stub), gdb, record
        self._from_gdb = b""
        self.gdb_ended = self._interrupted = False
        self.patient = True
        """Wait for a stub that does not even answer an interrupt when GDB has ended."""
        self._own = 0
        """Packets of ours that GDB has not acknowledged yet."""

    def serve(self) -> None:
        """Work until either side has ended."""
        with contextlib.suppress(Lost, OSError):
            while not self.gdb_ended:
                for sock in _readable(self.stub.sock, self.gdb):
                    if sock is self.gdb:
                        self._take()
                    else:
                        self._give()
        with contextlib.suppress(OSError):
            if not self.record.stat().st_size:  # every step was finished; nobody else is there before the end
                self.record.unlink()
        for sock in (self.stub.sock, self.gdb):
            sock.close()

    def _give(self) -> None:
        data = self.stub.sock.recv(1 << 18)
        if not data:
            raise Lost
        self.gdb.sendall(data)

    def _take(self) -> None:
        data = self.gdb.recv(1 << 18)
        self.gdb_ended = not data
        self._from_gdb += data
        out = b""
        while (token := TOKEN.match(self._from_gdb)) is not None:
            self._from_gdb = self._from_gdb[token.end() :]
            found = STEP.fullmatch(token[1] or b"")
            if found is not None:
                self.stub.sock.sendall(out)
                out = b""
                self._step(found[1], token[1])
            elif token[0] == b"+" and self._own:
                self._own -= 1
            else:
                out += token[0]
                self._note(token[1] or b"")
        self.stub.sock.sendall(out)

    def _note(self, body: bytes) -> None:
        """Follow where breakpoints are."""
        found = POINT.match(body)
        if found is not None:
            change = self.stub.points.add if found[1] == b"Z" else self.stub.points.discard
            change(int(found[2], 16))

    def _step(self, name: bytes, body: bytes) -> None:
        self.gdb.sendall(b"+")
        self._interrupted = False
        thread = Thread(self, name, body)
        if self.stub.numbers is CORE:
            self.stub.describe()
        self.stub.send(b"Hg" + name)
        step(thread, lambda before: self._write(name, before))
        thread.leave()
        self._write(name, None)
        reply = thread.reply
        if self._interrupted and STOPPED.match(reply):
            reply = reply[:1] + b"02" + reply[3:]
        self._own += 1
        if not self.gdb_ended:
            self.gdb.sendall(packet(reply))

    def _write(self, name: bytes, before: Before | None) -> None:
        """Write down what is about to be changed, or that it was put back; nothing is lost if that fails."""
        text = "" if before is None else json.dumps({"thread": name.decode(), **vars(before)})
        with contextlib.suppress(OSError):
            self.record.write_text(text, "ascii")

    def run(self, body: bytes) -> bytes:
        """Let the guest run by a request, and return the stub's answer; GDB may interrupt it. Raises Lost."""
        stub, asked = self.stub, False
        stub.sock.sendall(packet(body))
        while (reply := stub.reply()) is None:
            if self.gdb_ended:
                if not _readable(stub.sock, wait=LAST_SECONDS):
                    if asked and not self.patient:
                        raise Lost
                    stub.sock.sendall(b"\x03")
                    asked = True
                    continue
            elif stub.sock not in _readable(stub.sock, self.gdb):
                self._hear()
                continue
            stub.receive()
        stub.sock.sendall(b"+")
        return reply

    def _hear(self) -> None:
        """Take what GDB says during a step: that it has our acknowledgement, or that the user is waiting."""
        data = self.gdb.recv(1 << 16)
        self.gdb_ended = not data
        if b"\x03" in data:
            self._interrupted = True
            self.stub.sock.sendall(b"\x03")
        self._own -= min(data.count(b"+"), self._own)


def _readable(*sockets: socket.socket, wait: float | None = None) -> list[socket.socket]:
    return list(select.select(sockets, [], [], wait)[0])


def put_back(address: StubAddress, timeout: float = PUT_BACK_SECONDS) -> bool:
    """Finish a step that a relay which died has left half done; the guest must be stopped, with no debugger.

    Nothing is touched where the CPU does not look like the one that was stepped: another guest, or one that
    has run since. Returns whether something was put right. Raises ConnectError if the stub is not there.
    """
    record = step_place(address)
    try:
        found: dict[str, Any] = json.loads(record.read_text("ascii"))
        name = str(found.pop("thread")).encode()
        before = Before(**found)
    except (OSError, ValueError, TypeError, KeyError):
        return False
    done = False
    with address.connect(timeout) as sock, contextlib.suppress(Lost, OSError):
        sock.settimeout(timeout)
        relay = Relay(sock, sock, record)
        relay.gdb_ended, relay.patient = True, False
        relay.stub.ask(b"?", b"qSupported:multiprocess+;xmlRegisters=arm")
        relay.stub.describe()
        relay.stub.send(b"Hg" + name)
        thread = Thread(relay, name, b"vCont;s:" + name)
        pstate, vbar, tpidr = thread.read("CPSR", "VBAR_EL1", "TPIDR_EL1")
        if pstate is not None and pstate & HELD == HELD and (vbar, tpidr) == (before.vbar, before.tpidr):
            settle(thread, before, stepped=True)
            done = True
        relay.stub.ask(b"Hg" + name)
        record.unlink(missing_ok=True)
    return done


def main(words: Sequence[str]) -> None:
    """Serve between the two sockets whose numbers are given."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    address, stub, gdb = StubAddress.parse(words[0]), int(words[1]), int(words[2])
    record = step_place(address)
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    relay = Relay(socket.socket(fileno=stub), socket.socket(fileno=gdb), record)
    relay.stub.sock.setblocking(True)
    os.write(1, READY)
    os.close(1)
    relay.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
