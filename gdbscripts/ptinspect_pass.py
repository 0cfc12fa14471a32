"""Let the guest run inside GDB, past stores that are of no interest to those who watch descriptors.

Use: `python import ptinspect_pass`, with this directory in sys.path, in a GDB (12 or newer, with Python) that
is connected to QEMU, and stands at a stop; then

    ptinspect-pass MILLISECONDS VA,VA,... PA,PA,...

runs until a store to the eight bytes at one of the virtual addresses comes that leads to one of the physical
ones then, until a breakpoint of GDB's, until the time, or Ctrl-C. Other stores there are stepped over; loads
stop nothing. The guest is left before the store, or at the breakpoint: GDB meets it again when it goes on.
What comes is printed: how many stores were passed, and how it ended (`hit`, `stopped`, `time`, `interrupted`,
or `no: ` and why nothing ran).

The stub stops before a store is made (QEMU gdbstub, BP_STOP_BEFORE_ACCESS).
"""

import re
import time

import gdb
import ptinspect_agent as agent
import ptinspect_trace as trace

PATIENCE = 30.0
THREAD = re.compile(rb"thread:(p[0-9a-f]+\.([0-9a-f]+));")
TRANSLATED = re.compile(rb"gpa: 0x([0-9a-f]+)")
NUMBER = re.compile(r"0x[0-9a-f]+$")
WATCHES = (gdb.BP_WATCHPOINT, gdb.BP_HARDWARE_WATCHPOINT, gdb.BP_READ_WATCHPOINT, gdb.BP_ACCESS_WATCHPOINT)


class Pass:
    """One run."""

    def __init__(self, lane, watched, wanted):
        self.lane, self.watched, self.wanted = lane, watched, wanted
        self.passed = 0
        self.places = sorted({at for one in gdb.breakpoints() if one.enabled for at in self.places_of(one)})

    def places_of(self, one):
        """Return where a breakpoint stops the guest; none for what is watched here anyway."""
        if one.type in WATCHES:
            found = NUMBER.search(one.expression or "")
            if found is None or int(found[0], 16) not in self.watched:
                raise LookupError("something else is watched")
            return []
        if hasattr(one, "locations"):
            return [place.address for place in one.locations]
        found = NUMBER.search(one.location or "")
        if found is None:
            raise LookupError("it is not known where a breakpoint is")
        return [int(found[0], 16)]

    def run(self, deadline):
        """Run until something is of interest; return how it ended."""
        while True:
            reply, who = trace.run(self.lane, b"vCont;c", deadline, PATIENCE)
            if who:
                return who
            over = set()
            while (found := trace.WATCHED.search(reply)) is not None:
                va = self.watched_at(int(found[1], 16))
                thread = THREAD.search(reply)
                if va is None or thread is None or va in over or self.translated(thread, va) in self.wanted:
                    trace.set_stops(self.lane, b"Z", over)
                    return "hit"
                trace.set_stops(self.lane, b"z", [va])
                over.add(va)
                reply, who = trace.run(self.lane, b"vCont;s:" + thread[1], deadline + PATIENCE, PATIENCE)
            trace.set_stops(self.lane, b"Z", over)
            if not over:
                return "stopped"
            self.passed += 1

    def watched_at(self, address):
        """Return what is watched at an address: the stub names the first byte, or that which was touched."""
        return next((va for va in self.watched if va <= address < va + 8), None)

    def translated(self, thread, va):
        """Return where an address leads on the CPU of a thread; None if nowhere."""
        cpu = int(thread[2], 16) - 1
        texts, _ = self.lane.monitor([b"cpu %d" % cpu, b"gva2gpa %#x" % va])
        found = TRANSLATED.search(texts[1])
        return None if found is None else int(found[1], 16)


class PassCommand(gdb.Command):
    """Run past stores of no interest: ptinspect-pass MILLISECONDS VA,... PA,..."""

    def __init__(self):
        super().__init__("ptinspect-pass", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        milliseconds, watched, wanted = gdb.string_to_argv(argument)
        lane = agent.proved_wire()
        try:
            if lane is None:
                raise LookupError("the socket of the stub is not known")
            one = Pass(lane, [int(each, 16) for each in watched.split(",")],
                       {int(each, 16) for each in wanted.split(",")})  # fmt: skip
        except LookupError as why:
            print(f"0 no: {why}")
            return
        mine = lane.names_of_threads()[gdb.selected_thread().num]
        deadline = time.monotonic() + int(milliseconds) / 1000
        with trace.on_wire():
            trace.set_stops(lane, b"Z", one.watched, one.places)
            try:
                ended = one.run(deadline)
            finally:
                trace.set_stops(lane, b"z", one.watched, one.places)
                trace.request(lane, b"Hg" + mine)
        print(f"{one.passed} {ended}")


PassCommand()
