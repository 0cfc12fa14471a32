"""Commands inside GDB that read and write guest-physical memory through QEMU's gdbstub.

Use: `python import ptinspect_agent`, with this file's folder in sys.path, in a GDB (12 or newer, with
Python) that is connected to QEMU. Over MI: `-ptinspect-read PA:SIZE,...`, `-ptinspect-write PA HEX ...`,
`-ptinspect-virtual`, all in hex, and others.

The stub's physical mode (`Qqemu.PhyMemMode`, QEMU gdbstub since commit ab4752ec8d9b, v4.1) is one
switch for all CPUs and survives a disconnect. It is on only inside `physical_mode`, where no symbol,
frame or cache of GDB is used, and SIGINT is held back until it is off again. A read of an address
without RAM gives zeros: the caller knows the RAM blocks.
"""

import binascii
import contextlib
import os
import select
import signal
import socket
import struct
import time

import gdb
from gdb.unwinder import Unwinder, register_unwinder

with contextlib.suppress(ImportError):
    import gdb.disassembler

PACKET_BYTES = 2048
"""Most that the stub sends in one reply (QEMU gdbstub: MAX_PACKET_LENGTH 4096, two digits a byte)."""
WINDOW = 128
"""Requests under way at once on the wire: those of a batch take no longer than the way there and back.
All of them together fit into the smallest buffer of a socket, so that neither side can block."""
ENTER, LEAVE = b"Qqemu.PhyMemMode:1", b"Qqemu.PhyMemMode:0"
"""Requests that switch the stub to guest-physical addresses, and back."""
SILENCE_SECONDS = 5.0
"""Longest wait for any byte of the stub."""
NOWHERE = 1 << 54
"""An address at which there is nothing in either half, and no memory either."""
ORPHAN_SECONDS = 3.0
"""How long after its first thread a process that was killed may hold its files."""


RELAY_SECONDS = 30.0
"""How long a relay may take to start."""


class Cancelled(gdb.GdbError):
    """The user pressed Ctrl-C."""


class LinkLost(gdb.GdbError):
    """The stub has ended, or answers no more: nothing can be restored."""


def connection():
    """Return GDB's connection to the stub."""
    found = gdb.selected_inferior().connection
    if found is None or not hasattr(found, "send_packet"):
        raise gdb.GdbError("ptinspect: GDB is not connected to a gdbstub")
    return found


def expect(packet, reply):
    """Send one packet; raise unless the stub gives this reply."""
    answer = connection().send_packet(packet) or b""
    if answer != reply:
        raise gdb.GdbError(f"ptinspect: the stub answers {answer[:40]!r} to {packet[:40]!r}")


def check_cancelled():
    """Raise Cancelled if SIGINT waits; it is used up by that."""
    if signal.sigtimedwait([signal.SIGINT], 0) is not None:
        raise Cancelled("Quit")


@contextlib.contextmanager
def held_sigint():
    """Hold SIGINT back: it is checked between two packets, never in the middle of one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def physical_mode():
    """Switch the stub to guest-physical addresses; switch back whatever happens."""
    with held_sigint():
        lost = False
        try:
            expect(ENTER.decode(), b"OK")
            yield
        except LinkLost:
            lost = True
            raise
        finally:
            if not lost:
                expect(LEAVE.decode(), b"OK")


class Wire:
    """Send many read requests on GDB's own socket before waiting for the first reply.

    GDB waits for each reply before it sends the next packet; the stub takes them as fast as they
    come (QEMU gdbstub, gdb_read_byte: a new packet acknowledges the last reply). GDB must be idle
    and the guest stopped, so that nobody else reads from the socket.
    """

    def __init__(self, sock, number=None):
        self.sock = sock
        self.proved = False
        """The stub has answered on it in the mode that GDB had chosen."""
        self.number = number
        """GDB's own descriptor of the socket."""
        self.stub = _process_at(sock)
        """The process at the other end, if it is known; a relay that comes between does not change that."""
        self.relayed = False
        self.threads = {}
        self.poll = select.poll()
        self.poll.register(sock, select.POLLIN)

    def replace(self, sock):
        """Speak through a relay from now on."""
        self.sock.close()
        self.sock, self.relayed = sock, True
        self.poll = select.poll()
        self.poll.register(sock, select.POLLIN)

    def names_of_threads(self):
        """Return the stub's names of GDB's threads by their numbers; no CPU comes or goes."""
        if not self.threads:
            ids = ((thread.num, thread.ptid) for thread in gdb.selected_inferior().threads())
            self.threads = {number: b"p%x.%x" % (pid, lwp) for number, (pid, lwp, _) in ids}
        return self.threads

    def ask(self, packets, sizes):
        """Return the replies to the packets; `sizes` are the lengths of their bodies if all goes well."""
        replies, buffer, sent = [], b"", 0
        cancelled = None
        while len(replies) < len(packets):
            if sent < len(packets) and sent - len(replies) <= WINDOW // 2:
                upto = min(len(replies) + WINDOW, len(packets))
                self._send(b"".join(packets[sent:upto]))
                sent = upto
            buffer += self._receive()
            buffer = self._take(buffer, sizes, replies)
            if cancelled is None:
                try:
                    check_cancelled()
                except Cancelled as error:
                    cancelled = error
                    packets = packets[:sent]
        self._send(b"+")
        if cancelled is not None:
            raise cancelled
        return replies

    def ask_and_leave(self, packets, sizes, last):
        """Ask, and send one packet more whatever happens, which is answered by OK."""
        left = False
        try:
            *replies, end = self.ask([*packets, packet(last)], [*sizes, 2])
            left = end == b"OK"
        except LinkLost:
            left = True
            raise
        finally:
            if not left:
                self.ask([packet(last)], [2])
        return replies

    def monitor(self, commands):
        """Return what commands of QEMU's monitor print, and whether the stub told of a stop besides.

        A guest that somebody else let run is stopped by the first byte, which is lost with its packet
        (QEMU gdbstub, gdb_read_byte): there is an answer less then. Some versions report that stop, and
        one that somebody else has made. A question that every stub answers marks the end.
        """
        self._send(b"".join(packet(b"qRcmd," + binascii.hexlify(command)) for command in commands))
        self._send(packet(b"qC"))
        texts, text, buffer, told = [], b"", b"", False
        while True:
            buffer += self._receive()
            replies = []
            buffer = self._take(buffer, (), replies)
            for reply in replies:
                if reply[:2] == b"QC":
                    self._send(b"+")
                    return texts, told
                if reply[:1] in (b"T", b"S"):
                    told = True
                    continue
                if reply[:1] == b"O" and reply != b"OK":
                    text += binascii.unhexlify(reply[1:])
                else:
                    texts.append(text)
                    text = b""

    def _send(self, data):
        try:
            self.sock.sendall(data)
        except OSError:
            raise LinkLost("Remote connection closed") from None

    def _receive(self):
        deadline = time.monotonic() + SILENCE_SECONDS
        while True:
            if not self.poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                raise LinkLost("Remote communication error: the stub is silent")
            with contextlib.suppress(BlockingIOError, InterruptedError):
                try:
                    data = self.sock.recv(1 << 18)
                except ConnectionError:
                    data = b""
                if not data:
                    raise LinkLost("Remote connection closed")
                return data

    @staticmethod
    def _take(buffer, sizes, replies):
        """Move whole replies `+$body#xx` from the buffer to the list; return what remains."""
        at = 0
        while True:
            start = buffer.find(b"$", at)
            if start < 0:
                return buffer[at:]
            size = sizes[len(replies)] if len(replies) < len(sizes) else 0
            end = start + 1 + size
            if buffer[end : end + 1] != b"#":
                end = buffer.find(b"#", start)
            if end < 0 or end + 3 > len(buffer):
                return buffer[start:]
            replies.append(buffer[start + 1 : end])
            at = end + 3


def base64(data):
    """Return bytes as text; the module of this name takes a millisecond, while GDB is waited for."""
    return binascii.b2a_base64(data, newline=False).decode()


def packet(body):
    """Return a packet of the remote serial protocol."""
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


_wires = globals().get("_wires", {})
"""The wire by connection; at most one, None for a connection without. Kept when this is sourced again."""


def _forget_wire(event=None):
    """Close the socket: as long as it is open, the stub takes no other debugger."""
    for lane in _wires.values():
        if lane is not None:
            lane.sock.close()
    _wires.clear()


if hasattr(gdb.events, "connection_removed"):
    gdb.events.connection_removed.connect(_forget_wire)


def wire():
    """Return the wire of the present connection, or None if its socket is not known for certain."""
    now = connection()
    key = (now.num, now.details)
    if key not in _wires:
        _forget_wire()
        _wires[key] = _open_wire(now.details or "")
    return _wires[key]


def give_wire_up():
    """Read with GDB's own requests from now on, as long as this connection lasts."""
    for key, lane in _wires.items():
        lane.sock.close()
        _wires[key] = None


def _open_wire(details):
    """Find the one socket of this process whose other end is the stub."""
    numbers = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - importing pathlib takes 3 ms
            with contextlib.suppress(OSError):
                numbers.setdefault(os.readlink(f"/proc/self/fd/{name}"), int(name))  # noqa: PTH115
    found = []
    for link, number in numbers.items():
        if link.startswith("socket:"):
            sock = socket.socket(fileno=os.dup(number))
            if _is_peer(sock, details):
                found.append((sock, number))
            else:
                sock.close()
    if len(found) == 1:
        return Wire(*found[0])
    for sock, _ in found:
        sock.close()
    return None


def _is_peer(sock, details):
    try:
        peer = sock.getpeername()
    except OSError:
        return False
    if sock.family == socket.AF_UNIX:
        return bool(peer) and peer == details
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
        return str(peer[1]) == details.rpartition(":")[2]
    return False


def _process_at(sock):
    """Return the process at the other end of a Unix socket, or None (unix(7), SO_PEERCRED)."""
    if sock.family != socket.AF_UNIX:
        return None
    size = struct.calcsize("iII")
    return struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]


def without_home():
    """Return the environment for a Python of ptinspect's: that of this GDB may have a home of its own."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}


def put_between(words):
    """Start a relay between GDB and the stub, unless there is one; return whether there is one now.

    It gets the socket of the stub, and one end of a pair whose other end takes that socket's place in GDB.
    """
    lane = wire()
    if lane is None or lane.relayed:
        return lane is not None
    import fcntl
    import subprocess

    ours, theirs = socket.socketpair()
    ends = [lane.sock.fileno(), theirs.fileno()]
    quiet = subprocess.DEVNULL
    with ours, theirs:
        relay = subprocess.Popen(
            [*words, *map(str, ends)], pass_fds=ends, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet,
            start_new_session=True, bufsize=0, env=without_home(),
        )  # fmt: skip
        with relay.stdout:
            if not select.select([relay.stdout], [], [], RELAY_SECONDS)[0] or not relay.stdout.read(1):
                relay.kill()
                return False
        flags = fcntl.fcntl(lane.number, fcntl.F_GETFL)
        os.dup2(ours.fileno(), lane.number, inheritable=False)
        fcntl.fcntl(lane.number, fcntl.F_SETFL, flags)
    lane.replace(socket.socket(fileno=os.dup(lane.number)))
    _relays.append(relay)
    return True


_relays = []
"""Processes of relays: each ends with its connection."""


def pieces(ranges):
    """Split ranges so that one packet can answer each piece."""
    for pa, size in ranges:
        for offset in range(0, size, PACKET_BYTES):
            yield pa + offset, min(PACKET_BYTES, size - offset)


def read_on_wire(lane, ranges):
    """Read ranges with many requests under way; the mode is chosen and left in the same breath."""
    parts = list(pieces(ranges))
    packets = [packet(ENTER), *(packet(b"m%x,%x" % part) for part in parts)]
    replies = lane.ask_and_leave(packets, [2, *(2 * size for _, size in parts)], LEAVE)
    for (pa, size), reply in zip(parts, replies[1:], strict=True):
        if replies[0] != b"OK" or len(reply) != 2 * size:
            raise gdb.GdbError(
                f"ptinspect: the stub answers {reply[:20]!r} to a read of {size} bytes at {pa:#x}"
            )
    return binascii.unhexlify(b"".join(replies[1:]))


def read_by_gdb(ranges):
    """Read ranges with GDB's own requests, one after the other."""
    inferior = gdb.selected_inferior()
    parts = []
    for pa, size in pieces(ranges):
        parts.append(bytes(inferior.read_memory(pa, size)))
        check_cancelled()
    return b"".join(parts)


def read_physical(ranges):
    """Return the bytes of the ranges [(pa, size), ...], one after another."""
    lane = proved_wire()
    if lane is not None:
        with held_sigint():
            return read_on_wire(lane, ranges)
    with physical_mode():
        return read_by_gdb(ranges)


def proved_wire():
    """Return the wire if the stub answers on it in the mode that GDB has chosen, else None."""
    lane = wire()
    if lane is not None and not lane.proved:
        with physical_mode():
            lane.proved = lane.ask([packet(b"qqemu.PhyMemMode")], [1]) == [b"1"]
        if not lane.proved:
            give_wire_up()
            return None
    return lane


def write_physical(parts):
    """Write bytes at guest-physical addresses: pairs of an address and hex digits."""
    with physical_mode():
        for pa, text in parts:
            # half of what is read at once: the request itself must fit into a packet
            for at in range(0, len(text), PACKET_BYTES):
                part = text[at : at + PACKET_BYTES]
                expect(f"M{pa + at // 2:x},{len(part) // 2:x}:{part}", b"OK")
    flush()


def flush():
    """Make GDB forget memory and registers that it read before."""
    gdb.execute("maintenance flush dcache", to_string=True)
    gdb.execute("maintenance flush register-cache", to_string=True)


def parse_ranges(text):
    """Parse "PA:SIZE,PA:SIZE" in hex."""
    pairs = (item.split(":") for item in text.split(","))
    return [(int(pa, 16), int(size, 16)) for pa, size in pairs]


class ReadCommand(gdb.MICommand):
    """-ptinspect-read PA:SIZE,... [FILE]

    Replies with one base64 field, or writes the bytes to the start of the open file of this number and
    replies with how many they are: MI takes 30 ms for a megabyte.
    """

    def invoke(self, argv):
        ranges, *file = argv
        data = read_physical(parse_ranges(ranges))
        if not file:
            return {"data": base64(data)}
        rest = memoryview(data)
        while rest:
            rest = rest[os.pwrite(int(file[0]), rest, len(data) - len(rest)) :]
        return {"size": str(len(data))}


class WriteCommand(gdb.MICommand):
    """-ptinspect-write PA HEX ..."""

    def invoke(self, argv):
        write_physical([(int(pa, 16), text) for pa, text in zip(argv[::2], argv[1::2], strict=True)])


class VirtualCommand(gdb.MICommand):
    """-ptinspect-virtual: leave physical mode and flush GDB's caches."""

    def invoke(self, argv):
        expect(LEAVE.decode(), b"OK")
        flush()
        return {"wire": "no" if wire() is None else "yes"}


_heir = []
"""The command that leaves the guest as it was found when this GDB cannot."""


class HeirCommand(gdb.MICommand):
    """-ptinspect-heir WORD...: run this command if GDB has to end while it is attached."""

    def invoke(self, argv):
        _heir[:] = argv


def _pass_on(event):
    """Leave the guest to the heir, since GDB itself would let it run whether it ran before or not.

    Whoever started this GDB looks after the guest; the heir is for when that process has died, which
    closed its end of standard input. SIGTERM reaches Python as KeyboardInterrupt.
    """
    while _heir:
        with contextlib.suppress(KeyboardInterrupt):
            _hand_over()


def _hand_over():
    orphan = select.poll()
    orphan.register(0, 0)
    if orphan.poll(ORPHAN_SECONDS * 1000):
        import subprocess

        quiet = subprocess.DEVNULL
        words = {"stdin": quiet, "stdout": quiet, "stderr": quiet, "env": without_home()}
        subprocess.Popen(_heir, start_new_session=True, **words)
    os.kill(os.getpid(), signal.SIGKILL)


def _disinherit(event):
    """Forget the heir: the guest was left in order, or QEMU has ended."""
    _heir.clear()


if hasattr(gdb.events, "gdb_exiting") and hasattr(gdb.events, "connection_removed"):
    for _ in range(2):  # an interrupt may hit the very first instruction
        gdb.events.gdb_exiting.connect(_pass_on)
    gdb.events.connection_removed.connect(_disinherit)


class RelayCommand(gdb.MICommand):
    """-ptinspect-relay WORD...: start this command, with two sockets, as a relay between GDB and the stub."""

    def invoke(self, argv):
        return {"relayed": "yes" if put_between(argv) else "no"}


class LookCommand(gdb.MICommand):
    """-ptinspect-look: report the state of the machine, by all that its monitor prints of the CPUs.

    Replies with `stood` or, though GDB had stopped it, `ran` (it is stopped then), and a digest; with none
    where the wire cannot be used.
    """

    def invoke(self, argv):
        lane = wire()
        if lane is None:
            return {"looked": "stood "}
        questions = (b"info status", b"info registers -a")
        with held_sigint():
            texts, told = lane.monitor(questions)
            lost = len(texts) < len(questions)
            texts = lane.monitor(questions)[0] if lost else texts
            ran = told or lost or b"running" in texts[0]
        digest = f"{hash(tuple(texts)):x}"  # it is compared with those of this process only
        if ran:
            flush()
        return {"looked": f"{'ran' if ran else 'stood'} {digest}"}


if hasattr(gdb, "disassembler"):  # GDB 13

    class Given(gdb.disassembler.DisassembleInfo):
        """An instruction whose bytes are those that were given, whatever memory holds."""

        def __init__(self, info, code):
            super().__init__(info)
            self.code = code

        def read_memory(self, length, offset):
            start = (self.address + offset - self.code[0]) & (1 << 64) - 1  # GDB 13 has signed addresses
            if not 0 <= start <= len(self.code[1]) - length:
                raise gdb.MemoryError(f"no code was given for {length} bytes at {start:#x}")
            return self.code[1][start : start + length]

    class OfGiven(gdb.disassembler.Disassembler):
        """Disassemble what was given, while something is."""

        code = None

        def __call__(self, info):
            if self.code is None:
                return None
            return gdb.disassembler.builtin_disassemble(Given(info, self.code))

    class DisassembleCommand(gdb.MICommand):
        """-ptinspect-disassemble ADDRESS HEX: disassemble bytes as code at an address, which is not read"""

        def invoke(self, argv):
            address, code = int(argv[0], 16), bytes.fromhex(argv[1])
            given = OfGiven("ptinspect")
            before = gdb.disassembler.register_disassembler(given)
            try:
                given.code = address, code
                text = said(f"x/{len(code) // 4}i {address:#x}")
            finally:
                gdb.disassembler.register_disassembler(before)
            return {"text": base64(text.encode())}

    DisassembleCommand("-ptinspect-disassemble")


def said(line):
    """Return what a command of GDB's prints; GDB 18 has it as records of MI (`~"…"`) for some commands."""
    text = gdb.execute(line, to_string=True)
    if not text.startswith('~"'):
        return text
    return "".join(record[2:-1].encode().decode("unicode_escape") for record in text.splitlines())


class RegistersCommand(gdb.MICommand):
    """-ptinspect-registers [THREAD,... NUMBER,...]

    Without arguments, replies with GDB's own list of where the stub has its registers, in one piece: as
    output, line by line, it takes five times as long.

    Else replies, for each thread, with the stub's packet of general registers and with the registers of these
    numbers, which are the stub's own: hex as the stub gives it, or an error of the stub's. All are asked for
    at once. The stub is about the thread again then that GDB has told it.
    """

    def invoke(self, argv):
        if not argv:
            text = said("maint print remote-registers")
            return {"layout": base64(text.encode())}
        lane = proved_wire()
        if lane is None:
            raise gdb.GdbError("ptinspect: the socket of the stub is not known: no registers by it")
        wanted = [int(word) for word in argv[0].split(",")]
        numbers = [int(word) for word in argv[1].split(",")] if len(argv) > 1 else []
        names = lane.names_of_threads()
        if len(names) > 1:
            settle()
        packets = []
        for thread in wanted:
            packets += [packet(b"Hg" + names[thread]), packet(b"g")]
            packets += [packet(b"p%x" % number) for number in numbers]
        with held_sigint():
            replies = lane.ask_and_leave(packets, (), b"Hg" + names[gdb.selected_thread().num])
        each = len(numbers) + 2
        rows = [replies[at + 1 : at + each] for at in range(0, len(replies), each)]
        return {"registers": ";".join(b",".join(row).decode("ascii", "replace") for row in rows)}


def settle():
    """Have GDB tell the stub which thread is selected: it does before it reads memory, unless it has."""
    with contextlib.suppress(gdb.MemoryError):
        gdb.selected_inferior().read_memory(NOWHERE, 1)


class Frame:
    """What tells a frame from others."""

    def __init__(self, sp, pc):
        self.sp, self.pc = sp, pc


class PlainFrames(Unwinder):
    """Take a CPU for one frame, by its SP and PC: nothing is read from memory for that.

    Without symbols GDB reads the code at every stop to guess where a function begins and keeps what (GDB
    aarch64-tdep.c, aarch64_analyze_prologue). Where there are symbols it shall have its way.
    """

    def __init__(self):
        super().__init__("ptinspect")

    def __call__(self, pending):
        if gdb.current_progspace().objfiles():
            return None
        try:
            sp, pc = pending.read_register("sp"), pending.read_register("pc")
            found = pending.create_unwind_info(Frame(sp, pc))
            found.add_saved_register("sp", sp)
            found.add_saved_register("pc", gdb.Value(0).cast(pc.type))
        except (gdb.error, ValueError):
            return None
        return found


class FramesCommand(gdb.MICommand):
    """-ptinspect-frames plain|gdb: have frames made of SP and PC alone, or by GDB's own means."""

    def __init__(self, name):
        super().__init__(name)
        self.plain = None

    def invoke(self, argv):
        if self.plain is None:
            self.plain = PlainFrames()
            register_unwinder(None, self.plain, replace=True)
        self.plain.enabled = argv[0] == "plain"
        gdb.invalidate_cached_frames()


_watched = {}
"""Watchpoints that no list of GDB's shows, by number."""


class WatchCommand(gdb.MICommand):
    """-ptinspect-watch ADDRESS:SIZE,...

    Stops the guest at accesses to these areas; replies with GDB's numbers. GDB tells nobody of watchpoints of
    its own, and one command for all takes half the time of a command for each.
    """

    def invoke(self, argv):
        made = []
        try:
            for address, size in parse_ranges(argv[0]):
                words = f"*(char(*)[{size}]){address:#x}"
                made.append(gdb.Breakpoint(words, gdb.BP_WATCHPOINT, gdb.WP_ACCESS, internal=True))
        except BaseException:
            for one in made:
                one.delete()
            raise
        _watched.update((one.number, one) for one in made)
        return {"numbers": ",".join(str(one.number) for one in made)}


class UnwatchCommand(gdb.MICommand):
    """-ptinspect-unwatch [NUMBER...]: watch these areas no more, without numbers none."""

    def invoke(self, argv):
        for number in [int(word) for word in argv] or list(_watched):
            found = _watched.pop(number, None)
            if found is not None and found.is_valid():
                found.delete()


ReadCommand("-ptinspect-read")
WriteCommand("-ptinspect-write")
VirtualCommand("-ptinspect-virtual")
HeirCommand("-ptinspect-heir")
RelayCommand("-ptinspect-relay")
LookCommand("-ptinspect-look")
RegistersCommand("-ptinspect-registers")
FramesCommand("-ptinspect-frames")
WatchCommand("-ptinspect-watch")
UnwatchCommand("-ptinspect-unwatch")
