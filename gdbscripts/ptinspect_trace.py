"""Follow the stack pointer inside GDB: instruction by instruction, or from one new depth to the next.

Use: `python import ptinspect_trace`, with this file's folder in sys.path, in a GDB (12 or newer, with Python)
that is connected to QEMU; then

    ptinspect-trace step THREAD COUNT MILLISECONDS [PC ...]
        step until COUNT instructions, the time, or one of the addresses
    ptinspect-trace ladder MILLISECONDS HITS BASE:LOW:TOP[,BASE:LOW:TOP ...] [PC ...]
        let the guest run, and stop for each store between BASE and LOW, which moves down each time;
        until the time, that many hits, or one of the addresses
    ptinspect-trace take FIRST COUNT    records in base64
    ptinspect-trace stack TOP           the words from SP up to TOP at the last record of that stack
    ptinspect-trace count               how many records, and how it ended

Both work on the wire of ptinspect_agent.py: three times as fast as GDB's own steps, and many times as fast
as its watchpoints, of which GDB reads the whole value at each stop. GDB's caches are flushed at the end.
Interrupts are held back while an instruction is stepped (QEMU gdbstub, sstep flags NOIRQ and NOTIMER; where
the stub cannot, a relay before it does).
"""

import base64
import contextlib
import re
import signal
import struct
import time

import gdb
import ptinspect_agent as agent

TRACE_RECORD = struct.Struct("<8Q")
"""Milliseconds, thread, top of the stack or 0, PC, SP, PSTATE, x29, x30; a step has no last two."""
PC, SP, PSTATE, X29, X30 = 0x20, 0x1F, 0x21, 0x1D, 0x1E
"""Numbers in the target description's core feature (GDB features/aarch64-core.xml)."""
WIDTHS = {PC: 16, SP: 16, PSTATE: 8, X29: 16, X30: 16}
POLL_MS = 100
STOP_SECONDS = 30.0
FOREIGN = 16
"""Stores by somebody whose SP is not on the stack, after which it is watched no more."""
WATCHED = re.compile(rb"watch:([0-9a-f]+);")
"""What was accessed, in the stub's report of a stop."""
STACK_LIMIT = 64 << 10
"""Most of a stack that is kept, bytes."""


class Trace:
    """What was recorded."""

    def __init__(self):
        self.clear()

    def clear(self):
        """Start again."""
        self.data = bytearray()
        self.ended = "interrupted"
        self.stacks = {}

    def add_step(self, thread, values, places):
        """Record PC, SP and PSTATE; return whether the thread is at one of the places."""
        self.data += TRACE_RECORD.pack(0, thread, 0, *values, 0, 0)
        return values[0] in places


trace = Trace()


@contextlib.contextmanager
def on_wire():
    """Hold SIGINT back, and have GDB read everything again after that."""
    with agent.held_sigint():
        try:
            yield
        finally:
            agent.flush()


def request(lane, body, size=2):
    """Send one packet and return its reply."""
    return lane.ask([agent.packet(body)], [size])[0]


def expect_ok(lane, body):
    """Send one packet that is answered by OK."""
    reply = request(lane, body)
    if reply != b"OK":
        raise gdb.GdbError(f"ptinspect: the stub answers {reply[:40]!r} to {body[:40]!r}")


def set_stops(lane, letter, watched=(), places=()):
    """Set (Z) or take away (z) what stops the guest: stores to eight bytes at addresses, code at places."""
    packets = [agent.packet(b"%s2,%x,8" % (letter, va)) for va in watched]
    packets += [agent.packet(b"%s1,%x,4" % (letter, at)) for at in places]
    if packets and any(reply != b"OK" for reply in lane.ask(packets, [2] * len(packets))):
        raise gdb.GdbError("ptinspect: the stub refuses a breakpoint or watchpoint")


def number(text):
    """Return a register from the stub's hex, lowest byte first."""
    return int.from_bytes(bytes.fromhex(text.decode()), "little")


def registers(lane, numbers):
    """Read registers of the thread that the stub has chosen."""
    return [*map(number, lane.ask([agent.packet(b"p%x" % n) for n in numbers], [WIDTHS[n] for n in numbers]))]


def run(lane, body, deadline, patience=STOP_SECONDS):
    """Let the guest run, or step, until it stops by itself, at the time, or by Ctrl-C.

    It may take `patience` seconds to stop then.
    Returns the stub's reply, and who asked it to stop: nobody (empty), `time`, `interrupted`.
    """
    lane.sock.sendall(agent.packet(body))
    buffer, replies, asked, who = b"", [], None, ""
    while not replies:
        if lane.poll.poll(POLL_MS):
            data = lane.sock.recv(4096)
            if not data:
                raise agent.LinkLost("Remote connection closed")
            buffer = lane._take(buffer + data, [0], replies)
        now = time.monotonic()
        if signal.sigtimedwait([signal.SIGINT], 0) is not None:
            who = "interrupted"
        elif now >= deadline:
            who = who or "time"
        if asked is None and not replies and who:
            lane.sock.sendall(b"\x03")
            asked = now
        if asked is not None and not replies and now > asked + patience:
            raise agent.LinkLost("Remote communication error: the guest does not stop")
    lane.sock.sendall(b"+")
    return replies[0], who if asked is not None or who == "interrupted" else ""


def step_on_wire(lane, thread, count, deadline, places):
    """Step with raw packets."""
    name = b"p1.%x" % thread
    expect_ok(lane, b"Hg" + name)
    go = b"vCont;s:" + name
    for _ in range(count):
        reply, who = run(lane, go, deadline)
        if reply[:3] not in (b"T05", b"T02"):
            trace.ended = "stopped: " + reply[:40].decode("ascii", "replace")
            return
        if trace.add_step(thread, registers(lane, (PC, SP, PSTATE)), places):
            trace.ended = "place"
            return
        if who or time.monotonic() >= deadline:
            trace.ended = who or "time"
            return
    trace.ended = "count"


def registers_of_gdb():
    """Read PC, SP and PSTATE of the selected thread."""
    frame = gdb.newest_frame()
    return [int(frame.read_register(name)) & (1 << 64) - 1 for name in ("pc", "sp", "cpsr")]


def step_by_gdb(thread, count, deadline, places):
    """Step with GDB's own commands."""
    for _ in range(count):
        gdb.execute("stepi", False, True)
        if trace.add_step(thread, registers_of_gdb(), places):
            trace.ended = "place"
            return
        if time.monotonic() >= deadline:
            trace.ended = "time"
            return
    trace.ended = "count"


def step(thread, count, milliseconds, places):
    """Record where the CPU is, and step."""
    deadline = time.monotonic() + milliseconds / 1000
    wanted = [each for each in gdb.selected_inferior().threads() if each.num == thread]
    if not wanted:
        raise gdb.GdbError(f"ptinspect: there is no thread {thread}")
    wanted[0].switch()
    trace.clear()
    trace.add_step(thread, registers_of_gdb(), ())
    lane = agent.wire()
    if lane is None:
        step_by_gdb(thread, count, deadline, places)
        return
    with on_wire():
        step_on_wire(lane, thread, count, deadline, places)


class Ladder:
    """Watchpoints under the lowest SP of each stack, set in the stub itself."""

    def __init__(self, lane, stacks, places):
        self.lane, self.stacks, self.places = lane, stacks, places
        self.set = {}
        self.foreign = {}

    def insert(self):
        """Set everything."""
        set_stops(self.lane, b"Z", places=self.places)
        for base, low, top in self.stacks:
            self.watch(base, low, top)

    def watch(self, base, low, top):
        """Watch stores from `base` up to `low`."""
        if top in self.set:
            expect_ok(self.lane, b"z2,%x,%x" % self.set.pop(top))
        if low - base >= 16:
            area = (base, low - base)
            expect_ok(self.lane, b"Z2,%x,%x" % area)
            self.set[top] = area

    def remove(self):
        """Take everything away."""
        for area in self.set.values():
            request(self.lane, b"z2,%x,%x" % area)
        for place in self.places:
            request(self.lane, b"z1,%x,4" % place)

    def take(self, reply, began):
        """Record a hit; return whether the guest stopped at one of the places.

        The stub stops before the store is made: it is stepped with its watchpoint taken away.
        """
        found = re.search(rb"thread:p?(?:[0-9a-f]+\.)?([0-9a-f]+);", reply)
        thread = int(found[1], 16) if found else 1
        name = b"p1.%x" % thread
        expect_ok(self.lane, b"Hg" + name)
        watched = WATCHED.search(reply)
        top = self.stack_of(int(watched[1], 16)) if watched else 0
        pc = registers(self.lane, (PC,))[0]
        if top:
            expect_ok(self.lane, b"z2,%x,%x" % self.set.pop(top))
            request(self.lane, b"vCont;s:" + name, 0)
        after = registers(self.lane, (PC, SP, PSTATE, X29, X30))
        if not top or self.lower(top, after[1]):
            trace.data += TRACE_RECORD.pack(
                int(1000 * (time.monotonic() - began)), thread, top, pc, *after[1:]
            )
        return not top and pc in self.places

    def lower(self, top, sp):
        """Watch what lies below a new depth; return whether it is one.

        A stack in which others write, whose SP is not on it, is given up soon: it has a new owner.
        """
        base, low = next((base, low) for base, low, each in self.stacks if each == top)
        if base <= sp < low:
            self.stacks = [(b, sp if t == top else w, t) for b, w, t in self.stacks]
            trace.stacks[top] = (sp, self.words(sp, min(top - sp, STACK_LIMIT)))
            self.watch(base, sp, top)
            return True
        self.foreign[top] = self.foreign.get(top, 0) + (not base <= sp <= top)
        if self.foreign[top] <= FOREIGN:
            self.watch(base, low, top)
        return False

    def stack_of(self, address):
        """Return the top of the stack in which a watchpoint was hit."""
        return next((top for top, (base, size) in self.set.items() if base <= address < base + size), 0)

    def words(self, address, size):
        """Return memory as the chosen thread sees it; empty if it cannot be read."""
        parts = list(agent.pieces([(address, size)]))
        replies = self.lane.ask([agent.packet(b"m%x,%x" % part) for part in parts], [2 * n for _, n in parts])
        whole = all(len(reply) == 2 * n for reply, (_, n) in zip(replies, parts, strict=True))
        return bytes.fromhex(b"".join(replies).decode()) if whole else b""


def ladder(milliseconds, hits, stacks, places):
    """Go down the ladder."""
    lane = agent.wire()
    if lane is None:
        raise gdb.GdbError("ptinspect: the socket of the stub is not known: no ladder")
    trace.clear()
    rungs = Ladder(lane, stacks, places)
    began = time.monotonic()
    with on_wire():
        try:
            rungs.insert()
            trace.ended = "time"
            while hits and trace.ended == "time":
                reply, who = run(lane, b"vCont;c", began + milliseconds / 1000)
                trace.ended = who or trace.ended
                if reply[:3] not in (b"T05", b"T02"):
                    trace.ended = "stopped: " + reply[:40].decode("ascii", "replace")
                elif who and b"watch:" not in reply and reply[:3] == b"T02":
                    rungs.take(reply, began)
                    return
                elif rungs.take(reply, began):
                    trace.ended = "place"
                hits -= 1
            trace.ended = "hits" if not hits and trace.ended == "time" else trace.ended
        finally:
            rungs.remove()


class TraceCommand(gdb.Command):
    """Follow the stack pointer: ptinspect-trace step|ladder|take|stack|count ..., see the script."""

    def __init__(self):
        super().__init__("ptinspect-trace", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        action, *words = gdb.string_to_argv(argument) or [""]
        if action == "step" and len(words) >= 3:
            thread, count, milliseconds, *places = (int(word, 0) for word in words)
            step(thread, count, milliseconds, frozenset(places))
        elif action == "ladder" and len(words) >= 3:
            stacks = [tuple(int(n, 16) for n in each.split(":")) for each in words[2].split(",")]
            ladder(int(words[0]), int(words[1]), stacks, [int(word, 0) for word in words[3:]])
        elif action == "count":
            print(len(trace.data) // TRACE_RECORD.size, trace.ended)
        elif action == "take" and len(words) == 2:
            first, count = (int(word) for word in words)
            part = trace.data[first * TRACE_RECORD.size : (first + count) * TRACE_RECORD.size]
            print(base64.b64encode(bytes(part)).decode())
        elif action == "stack" and len(words) == 1:
            sp, data = trace.stacks.get(int(words[0], 16), (0, b""))
            print(f"{sp:x}", base64.b64encode(data).decode())
        else:
            raise gdb.GdbError("usage: ptinspect-trace step | ladder | take | stack | count, see the script")


TraceCommand()
