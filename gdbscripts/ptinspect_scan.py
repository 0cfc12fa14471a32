"""Replay part of a recorded run inside GDB, and note the stores to some places on the way.

Use: `python import ptinspect_scan`, with this file's folder in sys.path, in a GDB (12 or newer, with Python)
that is connected to a QEMU that replays; then

    ptinspect-scan MILLISECONDS MOST VA,VA,...|- PA,PA,...|- STUCK,...|- STOP:LIMIT ...

runs forwards from limit to limit (numbers of instructions, each above the last; from STOP on in steps) and
stops for each store to the eight bytes at one of the virtual addresses: until the last limit, the time, that
many stores, a stop at a position (hexadecimal, here) at which QEMU is stuck once it has stopped, or Ctrl-C.
What comes is printed as JSON: `ended`, `looks` with [position, values at the PAs] at each limit, and `hits`,
each with its position after the store, its PC, instruction, registers before it, the address that was watched
and what that translated to then, and the values at the PAs before and after it.

The stub stops before the store is made (QEMU gdbstub, BP_STOP_BEFORE_ACCESS); it is stepped with nothing
watched.
"""

import json
import re
import time

import gdb
import ptinspect_agent as agent
import ptinspect_trace as trace

GENERAL = 33
"""X0 to X30, SP and PC: 64 bits each, the first in a packet of registers."""
STEP_SECONDS = 10.0
"""How long a step may take: it takes milliseconds, or for ever."""
PATIENCE = 60.0
"""Seconds until a replay can be interrupted that has no event for long."""
COUNT = re.compile(rb"instruction count = (\d+)")


class Scan:
    """One run."""

    def __init__(self, lane, watched, cells, stuck):
        self.lane, self.watched, self.cells, self.stuck = lane, watched, cells, stuck
        self.thread = lane.names_of_threads()[gdb.selected_thread().num]
        self.hits, self.looks = [], []

    def position(self, *commands):
        """Return how many instructions were executed, and what further commands of the monitor print."""
        told, *others = self.lane.monitor([b"info replay", *commands])[0]
        return int(COUNT.search(told)[1]), others

    def values(self):
        """Return what lies at the physical addresses."""
        data = agent.read_on_wire(self.lane, [(pa, 8) for pa in self.cells]) if self.cells else b""
        return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]

    def watch(self, letter):
        """Set (Z) or take away (z) what is watched."""
        trace.set_stops(self.lane, letter, self.watched)

    def run(self, limits, most, deadline):
        """Run from limit to limit; return how it ended."""
        here = self.position()[0]
        for stop, limit in limits:
            if here < stop:
                self.lane.monitor([b"replay_break %d" % stop])
            while here < limit:
                if len(self.hits) >= most:
                    return "hits"
                steps = here >= stop
                reply, who = self.step() if steps else trace.run(self.lane, b"vCont;c", deadline, PATIENCE)
                if who:
                    return "stuck" if steps and who == "time" else who
                goal = here + 1 if steps else stop
                found = trace.WATCHED.search(reply)
                here = self.position()[0] if found is None else self.hit(int(found[1], 16))
                if here is None or here in self.stuck:
                    return "stuck"
                if found is None and here < goal:
                    return "stopped: " + reply[:40].decode("ascii", "replace")
            self.looks.append([here, self.values()])
        return "limit"

    def step(self):
        """Step one instruction; return the stub's reply, and who stopped it."""
        return trace.run(self.lane, b"vCont;s:" + self.thread, time.monotonic() + STEP_SECONDS, PATIENCE)

    def hit(self, va):
        """Note the store that comes next; return the position after it, None if QEMU is stuck before it."""
        before, (translated,) = self.position(b"gva2gpa %#x" % va)
        if before in self.stuck:
            return None
        general = trace.request(self.lane, b"g", 0)[: 16 * GENERAL]
        x = [trace.number(general[at : at + 16]) for at in range(0, 16 * GENERAL, 16)]
        code = trace.request(self.lane, b"m%x,4" % x[-1], 8)
        values = self.values()
        self.watch(b"z")
        self.step()
        self.watch(b"Z")
        here = self.position()[0]
        if here <= before:
            return None
        self.hits.append({
            "position": here, "pc": x[-1], "code": code.decode("ascii", "replace"), "x": x[:31],
            "sp": x[31], "watched": va, "translated": translated.decode("ascii", "replace"),
            "before": values, "after": self.values(),
        })  # fmt: skip
        return here


def numbers(word):
    """Return hexadecimal numbers that are separated by commas; - for none."""
    return [] if word == "-" else [int(each, 16) for each in word.split(",")]


class ScanCommand(gdb.Command):
    """Replay, and note stores: ptinspect-scan MILLISECONDS MOST VA,... PA,... STUCK,... STOP:LIMIT ..."""

    def __init__(self):
        super().__init__("ptinspect-scan", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        words = gdb.string_to_argv(argument)
        if len(words) < 6:
            raise gdb.GdbError(
                "usage: ptinspect-scan MILLISECONDS MOST VA,... PA,... STUCK,... STOP:LIMIT ..."
            )
        lane = agent.proved_wire()
        if lane is None:
            raise gdb.GdbError("ptinspect: the socket of the stub is not known: no scan")
        deadline = time.monotonic() + int(words[0]) / 1000
        scan = Scan(lane, *(numbers(word) for word in words[2:5]))
        with trace.on_wire():
            scan.watch(b"Z")
            try:
                limits = [tuple(map(int, word.split(":"))) for word in words[5:]]
                ended = scan.run(limits, int(words[1]), deadline)
            finally:
                scan.watch(b"z")
        print(json.dumps({"ended": ended, "hits": scan.hits, "looks": scan.looks}))


ScanCommand()
