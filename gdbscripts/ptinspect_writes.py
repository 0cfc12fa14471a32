"""Record what store instructions store, inside GDB, while the guest runs.

Use: `python import ptinspect_writes`, with this file's folder in sys.path, in a GDB (12 or newer, with
Python) that is connected to QEMU; then
`ptinspect-writes start LIMIT PC:VALUE:BASE:DISPLACEMENT[:WINDOW:BITS] ...` with one word for each
store: its address, the numbers of the registers with the value and with the address, what to add to
that. WINDOW is the register with the start of a window of 2^BITS byte pages whose first page is the
table of last-level descriptors that maps it; the descriptor of the page that is written to is recorded
then, since the window's addresses change their meaning. `ptinspect-writes take FIRST COUNT` prints
records in base64, `ptinspect-writes stop` ends it, `ptinspect-writes count` prints how many there are.

Addresses are read as the CPU sees them. A guest stops at every store and continues by itself, its
selected CPU alone until `stop`; with LIMIT above 0 it stays stopped at that record's store.
"""

import base64
import struct

import gdb

RECORD = struct.Struct("<6Q")
"""Site, address, value before, value stored, descriptor of the window's page, 1 if all was readable."""
SETTINGS = {"scheduler-locking": "on", "breakpoint always-inserted": "on"}
"""What makes a stop cheap: no other CPU is started and stopped, no breakpoint put in and out for nothing."""


class Records:
    """What was recorded, and the breakpoints that record."""

    def __init__(self):
        self.data = bytearray()
        self.limit = 0
        self.sites = []
        self.settings = {}


records = Records()


class Site(gdb.Breakpoint):
    """A store instruction."""

    def __init__(self, pc, value, base, displacement, *windowed):
        super().__init__(f"*{pc:#x}", type=gdb.BP_HARDWARE_BREAKPOINT, internal=True)
        self.silent = True
        window, self.bits = windowed or (None, 0)
        self.pc, self.displacement = pc, displacement
        self.value, self.base = f"x{value}", f"x{base}"
        self.window = None if window is None else f"x{window}"

    def stop(self):
        """Record one store; True where the guest is to stay."""
        self.record()
        return 0 < records.limit <= len(records.data) // RECORD.size

    def record(self):
        """Record the store that the selected CPU is about to make, once."""
        frame = gdb.selected_frame()
        inferior = gdb.selected_inferior()
        address = (register(frame, self.base) + self.displacement) & (1 << 64) - 1
        before = page = 0
        readable = 1
        try:
            before = read(inferior, address)
            if self.window is not None:
                window = register(frame, self.window)
                page = read(inferior, window + 8 * ((address - window) >> self.bits))
        except gdb.MemoryError:
            readable = 0
        value = register(frame, self.value)
        made = RECORD.pack(self.pc, address, before, value, page, readable)
        # QEMU's single step now and then executes nothing: GDB finds the same store once more, not made yet.
        if not readable or before == value or records.data[-RECORD.size :] != made:
            records.data += made


def register(frame, name):
    """Return a register as an unsigned number."""
    return int(frame.read_register(name)) & (1 << 64) - 1


def read(inferior, address):
    """Return the eight bytes at an address as the CPU sees it."""
    return int.from_bytes(bytes(inferior.read_memory(address, 8)), "little")


def shown(name):
    """Return the value of a setting, as `set` takes it."""
    value = gdb.parameter(name)
    return {True: "on", False: "off"}.get(value, value)


def start(words):
    """Start again."""
    stop()
    records.data = bytearray()
    records.limit = int(words[0])
    try:
        for name, value in SETTINGS.items():
            records.settings[name] = shown(name)
            gdb.execute(f"set {name} {value}", False, True)
        pc = gdb.selected_frame().pc()
        for word in words[1:]:
            site = Site(*(int(part, 0) for part in word.split(":")))
            records.sites.append(site)
            if site.pc == pc:  # GDB steps over a breakpoint where the CPU is
                site.record()
    except BaseException:
        stop()
        raise


def stop():
    """Take the breakpoints away; the records stay."""
    for site in records.sites:
        if site.is_valid():
            site.delete()
    records.sites = []
    for name, value in records.settings.items():
        gdb.execute(f"set {name} {value}", False, True)
    records.settings = {}


class WritesCommand(gdb.Command):
    """Record what store instructions store: ptinspect-writes start|take|count|stop ..."""

    def __init__(self):
        super().__init__("ptinspect-writes", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        action, *words = gdb.string_to_argv(argument) or [""]
        if action == "start" and words:
            start(words)
        elif action == "stop":
            stop()
        elif action == "count":
            print(len(records.data) // RECORD.size)
        elif action == "take" and len(words) == 2:
            first, count = (int(word) for word in words)
            part = records.data[first * RECORD.size : (first + count) * RECORD.size]
            print(base64.b64encode(bytes(part)).decode())
        else:
            raise gdb.GdbError(
                "usage: ptinspect-writes start LIMIT SITE... | take FIRST COUNT | count | stop"
            )


WritesCommand()
