"""The parts of a session that need neither GDB nor a stub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from fake_stub import MTREE
from fakes import FakeSlots
from gdb_starter import fake_gdbs

from ptinspect.errors import MemoryReadError, TargetError, TargetLost, TargetTimeout, UserError
from ptinspect.link import live
from ptinspect.link.gdb.agent import Agent, script_path
from ptinspect.link.gdb.breakpoints import insert_breakpoint, list_breakpoints
from ptinspect.link.gdb.mi import GdbLink, Line, Reply
from ptinspect.link.gdb.passthrough import check_gdb_command, check_monitor_command
from ptinspect.link.gdb.process import GdbProcess
from ptinspect.link.gdb.registers import _ROW, RegisterReader
from ptinspect.link.lanes.stubmem import CHUNK, StubMemory
from ptinspect.link.live import LiveSession
from ptinspect.link.qemu.monitor import parse_mtree
from ptinspect.link.state import NEVER_STOPPED, Breakpoint, RunState, RunTracker, StopInfo
from ptinspect.memory.source import RamBlock

RAM = RamBlock(0x4000_0000, 16 << 20, "ram")  # type: ignore[arg-type]


@pytest.fixture
def fake_gdb(tmp_path: Path) -> Iterator[Callable[..., GdbProcess]]:
    yield from fake_gdbs(tmp_path)


# RAM


def test_mtree_takes_ram_and_rom_of_the_system_space() -> None:
    text = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-000000000000ffff (prio 0, ram): not this one

FlatView #1
 AS "cpu-memory-0", root: system
 AS "memory", root: system
 Root memory region: system
  0000000000000000-0000000003ffffff (prio 0, romd): virt.flash0
  0000000008000000-000000000800ffff (prio 0, i/o): gicv3_dist
  0000000010000000-000000001000ffff (prio -1, ramd): a device's own @0000000000001000
  0000000040000000-00000000bfffffff (prio 0, ram): mach-virt.ram KVM
  0000000100000000-00000001ffffffff (prio 0, nv-ram): nvdimm0 @0000000000200000
  0000000200000000-000000020000ffff (prio 1, rom): a rom

FlatView #2
 AS "cpu-secure-memory-0", root: secure
  0000000e00000000-0000000e0000ffff (prio 0, ram): secure ram
"""
    found = parse_mtree(text.replace("\n", "\r\n"))
    assert [(b.start, b.size, b.name) for b in found] == [
        (0, 64 << 20, "virt.flash0"),
        (0x4000_0000, 2 << 30, "mach-virt.ram"),
        (0x1_0000_0000, 4 << 30, "nvdimm0"),
        (0x2_0000_0000, 64 << 10, "a rom"),
    ]


@pytest.mark.parametrize("text", ["", "unknown command: 'info mtree -f'\n", MTREE.replace("ram)", "i/o)")])
def test_mtree_without_ram_is_an_error(text: str) -> None:
    with pytest.raises(TargetError, match="info mtree"):
        parse_mtree(text)


# Memory


class FakeAgent:
    """Answer reads with the address of each word."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[int, int]]] = []

    def read(self, ranges: Sequence[tuple[int, int]]) -> bytes:
        self.asked.append(list(ranges))
        return b"".join(np.arange(pa, pa + size, 8, dtype="<u8").tobytes() for pa, size in ranges)


def stub_memory(agent: FakeAgent, guard: Callable[[], None] = lambda: None) -> StubMemory:
    return StubMemory(cast(Agent, agent), (RAM,), guard)


def test_tables_are_read_in_one_batch_and_neighbours_as_one_range() -> None:
    agent = FakeAgent()
    addresses = np.array([0x4000_0000, 0x4000_1000, 0x4000_2000, 0x4000_9000], dtype=np.uint64)
    raw, readable = stub_memory(agent).read_tables(addresses, 4096)
    assert agent.asked == [[(0x4000_0000, 0x3000), (0x4000_9000, 0x1000)]]
    assert readable.all()
    assert raw[:, 0].tolist() == addresses.tolist()
    assert raw[3, 511] == 0x4000_9000 + 511 * 8


def test_a_table_outside_ram_is_an_unreadable_row_and_is_not_asked_for() -> None:
    agent = FakeAgent()
    addresses = np.array([0, 0x4000_0000, RAM.end - 2048, RAM.end, 1 << 63], dtype=np.uint64)
    raw, readable = stub_memory(agent).read_tables(addresses, 4096)
    assert agent.asked == [[(0x4000_0000, 0x1000)]]
    assert readable.tolist() == [False, True, False, False, False]
    assert not raw[~readable].any()


def test_many_tables_are_asked_for_in_chunks() -> None:
    agent = FakeAgent()
    count = CHUNK // 8192 + 3
    addresses = np.uint64(RAM.start) + np.arange(count, dtype=np.uint64) * np.uint64(8192)
    raw, _ = stub_memory(agent).read_tables(addresses[:1000], 8192)
    assert [sum(size for _, size in ranges) for ranges in agent.asked] == [
        CHUNK,
        (count - CHUNK // 8192) * 8192,
    ]
    assert raw[:, 0].tolist() == addresses.tolist()


def test_no_tables() -> None:
    agent = FakeAgent()
    raw, readable = stub_memory(agent).read_tables(np.array([], dtype=np.uint64), 4096)
    assert raw.shape == (0, 512) and readable.shape == (0,) and not agent.asked


@pytest.mark.parametrize(
    ("pa", "length"), [(0, 8), (RAM.start - 1, 2), (RAM.end - 1, 2), (-8, 8), (1 << 64, 8)]
)
def test_reads_outside_ram_are_refused(pa: int, length: int) -> None:
    agent = FakeAgent()
    with pytest.raises(MemoryReadError):
        stub_memory(agent).read(pa, length)
    assert not agent.asked


def test_nothing_is_read_when_the_guard_says_no() -> None:
    def guard() -> None:
        raise TargetLost("gone")

    agent = FakeAgent()
    with pytest.raises(TargetLost):
        stub_memory(agent, guard).read(RAM.start, 8)
    with pytest.raises(TargetLost):
        stub_memory(agent, guard).read_tables(np.array([RAM.start], dtype=np.uint64), 4096)
    assert not agent.asked


def test_a_stub_that_is_far_away_gets_time_for_each_part() -> None:
    given: list[float] = []

    class Gdb:
        def request(self, command: str, timeout: float) -> Reply:
            given.append(timeout)
            return Reply(Line(1, "^", "done", b'numbers="-1"'), "")

    agent = Agent(cast("GdbLink", Gdb()))
    agent.write([(RAM.start + 8 * n, bytes(4)) for n in range(72)])
    agent.watch([(0, 8)])
    agent.unwatch()
    assert given[0] > 72 * 0.4 and min(given[1:]) > 1024 * 3 * 0.03, "three round trips for each area"


def test_the_script_for_gdb_is_found() -> None:
    assert script_path().is_file()


# State


STOPPED = {
    "reason": "breakpoint-hit",
    "bkptno": "3",
    "thread-id": "2",
    "frame": {"addr": "0xffff800010026580"},
}


def test_the_tracker_follows_the_events() -> None:
    tracker = RunTracker()
    seen: list[str] = []
    tracker.listeners.append(lambda name, fields: seen.append(name))
    first = tracker.token
    tracker.event("running", {})
    tracker.event("running", {})
    assert tracker.state is RunState.RUNNING and tracker.token == first + 1
    tracker.event("stopped", STOPPED)
    assert tracker.state is RunState.STOPPED and tracker.token == first + 2
    assert tracker.wait(0) == StopInfo("breakpoint-hit", 1, 3, 0xFFFF_8000_1002_6580, "")
    assert seen == ["running", "stopped"]


def test_waiting_for_a_guest_that_runs_on() -> None:
    tracker = RunTracker()
    tracker.event("running", {})
    with pytest.raises(TargetTimeout, match=r"within 0\.01 s"):
        tracker.wait(0.01)
    assert tracker.state is RunState.RUNNING


def test_who_listens_hears_that_somebody_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptinspect.link.state.WAITING_EVERY", 0.001)
    tracker = RunTracker()
    tracker.event("running", {})
    seen: list[str] = []

    def hear(name: str, fields: object) -> None:
        seen.append(name)
        if seen == ["waiting"] * 3:
            tracker.event("stopped", STOPPED)

    tracker.listeners.append(hear)
    assert tracker.wait(60).breakpoint == 3
    assert seen == ["waiting"] * 3 + ["stopped"]


def test_an_exited_program_is_the_end() -> None:
    tracker = RunTracker()
    seen: list[str] = []
    tracker.listeners.append(lambda name, fields: seen.append(name))
    tracker.event("running", {})
    tracker.event("thread-group-exited", {"id": "i1"})
    tracker.event("stopped", STOPPED)
    tracker.lost("GDB ended")
    assert tracker.state is RunState.DEAD
    assert seen == ["running", "lost"]
    with pytest.raises(TargetLost, match="QEMU has ended"):
        tracker.wait(1)


def test_a_stop_without_details() -> None:
    tracker = RunTracker()
    tracker.event("stopped", {"bkptno": "x", "thread-id": "all", "frame": []})
    assert tracker.stop == StopInfo("stopped", 0, None, 0, "")


# Registers


def names(*extra: str) -> str:
    core = [f"x{n}" for n in range(31)] + ["sp", "pc", "cpsr"]
    return "{t}^done,register-names=[" + ",".join(f'"{n}"' for n in (*core, "", *extra)) + "]\n"


@pytest.mark.parametrize("spelled", ["SCTLR", "SCTLR_EL1"])
def test_registers_of_either_qemu(fake_gdb: Callable[..., GdbProcess], spelled: str) -> None:
    values = [*range(34)], {35: 0x30D0_0980, 36: 0xFFFF_0000_0000_0000}
    rows = [f'{{number="{n}",value="{n:#x}"}}' for n in values[0]]
    rows += [f'{{number="{n}",value="{v:#x}"}}' for n, v in values[1].items()]
    rows.append('{number="37",value="{d = {f = {0x1, 0x2}}}"}')
    gdb = fake_gdb(
        [
            ("-data-list-register-names", names(spelled, "TTBR1_EL1", "v0")),
            ("-data-list-register-values --thread 2", "{t}^done,register-values=[" + ",".join(rows) + "]\n"),
        ]
    )
    reader = RegisterReader(gdb)
    (state,) = reader.states([1])
    assert state.cpu == 1 and state.x == tuple(range(31))
    assert (state.sp, state.pc, state.pstate) == (31, 32, 33)
    assert state.system == {"SCTLR_EL1": 0x30D0_0980, "TTBR1_EL1": 0xFFFF_0000_0000_0000}
    assert "v0" not in reader.all(1) and reader.all(1)[spelled] == 0x30D0_0980
    assert reader.all(1, ["pc", "PAR_EL1"]) == {"pc": 32}


NARROW = """CPU#0
R00=00000000 R01=4ffdae2e R02=00000000 R03=00000000
R04=00000000 R05=00000000 R06=00000000 R07=00000000
R08=00000000 R09=00000000 R10=00000000 R11=00000000
R12=00000000 R13=00000001 R14=00000000 R15=00010058
PSR=00000010 ---- A usr32
s00=00000000 s01=00000000 d00=0000000000000000
FPSCR: 00000000

CPU#1
 PC=ffff800010605430 X00=ffff800011bd0000 X01=0000000000000000
PSTATE=20000005 --C- EL1h     FPCR=00000000 FPSR=00000000
"""


@pytest.mark.parametrize(
    ("level", "spsr", "pstate"),
    [(1, 0x10, 0x205), (2, 0x10, 0x209), (1, 0x0, 0x205), (1, 0x10, 0x80), (1, 0x10, 0x209)],
)
def test_a_cpu_that_runs_a_32_bit_process_is_where_the_monitor_says(
    fake_gdb: Callable[..., GdbProcess], level: int, spsr: int, pstate: int
) -> None:
    """QEMU's stub shows the registers that it had on the way there; others are not asked."""
    values = dict.fromkeys(range(34), 1) | {33: pstate, 35: spsr}
    rows = ",".join(f'{{number="{n}",value="{v:#x}"}}' for n, v in values.items())
    said = "".join(f"~{json.dumps(line)}\n" for line in NARROW.splitlines(keepends=True))
    gdb = fake_gdb(
        [
            ("-data-list-register-names", names(f"SPSR_EL{level}")),
            ("-data-list-register-values", "{t}^done,register-values=[" + rows + "]\n"),
            ('-interpreter-exec console "monitor info registers -a"', said + "{t}^done\n"),
        ]
    )
    first, second = RegisterReader(gdb).states([0, 1])
    if spsr and pstate == 0x201 + 4 * level:
        assert (first.pc, first.sp, first.pstate, first.x[1]) == (0x10058, 1, 0x10, 0x4FFD_AE2E)
        assert (first.el, first.aarch32, first.system) == (0, True, {f"SPSR_EL{level}": 0x10})
    else:
        assert (first.pc, first.aarch32) == (1, False)
    assert (second.pc, second.aarch32) == (1, False)


def test_registers_of_another_architecture(fake_gdb: Callable[..., GdbProcess]) -> None:
    gdb = fake_gdb([("-data-list-register-names", '{t}^done,register-names=["rax","rip"]\n')])
    with pytest.raises(TargetError, match="no aarch64 registers"):
        RegisterReader(gdb)


# Breakpoints


ROW = (
    '{number="4",type="hw breakpoint",disp="del",addr="0x40c89510",'
    'thread="2",cond="$x0==1",thread="2",times="3"}'
)


def test_breakpoints_as_gdb_lists_them(fake_gdb: Callable[..., GdbProcess]) -> None:
    gdb = fake_gdb(
        [
            (r'-break-insert -t -h -p 2 -c "\$x0==1" \*0x40c89510', f"{{t}}^done,bkpt={ROW}\n"),
            ("-break-insert", '{t}^error,msg="unexpected arguments"\n'),
            ("-break-list", f'{{t}}^done,BreakpointTable={{body=[bkpt={ROW},bkpt={{number="5.1"}}]}}\n'),
        ]
    )
    found = insert_breakpoint(gdb, 0x40C8_9510, hardware=True, temporary=True, cpu=1, condition="$x0==1")
    assert (found.id, found.address, found.hits) == (4, 0x40C8_9510, 3)
    assert found.hardware and found.temporary and found.cpu == 1 and found.condition == "$x0==1"
    assert list_breakpoints(gdb) == (found,)


WATCHES = (
    'bkpt={number="6",type="hw watchpoint",disp="keep",enabled="y",what="*(unsigned long*)0xffff800082a10d80"'
    ',thread-groups=["i1"],times="2",original-location="*(unsigned long*)0xffff800082a10d80"},'
    'bkpt={number="7",type="read watchpoint",disp="keep",enabled="n",what="*(char(*)[8])0x40000000",'
    'thread-groups=["i1"],times="0",original-location="*(char(*)[8])0x40000000"},'
    'bkpt={number="8",type="acc watchpoint",disp="keep",enabled="y",what="counter + 1",times="0"},'
    'bkpt={number="9",type="breakpoint",disp="keep",enabled="y",addr="<MULTIPLE>",times="1",'
    'original-location="f",locations=[{number="9.1",enabled="y",addr="0x40"},{number="9.2",addr="0x80"}]},'
    'bkpt={number="10",type="breakpoint",disp="keep",enabled="y",addr="<PENDING>",times="0",pending="g"}'
)


def test_watchpoints_as_gdb_lists_them(fake_gdb: Callable[..., GdbProcess]) -> None:
    """The first two rows as GDB 13.1 wrote them."""
    gdb = fake_gdb([("-break-list", f"{{t}}^done,BreakpointTable={{body=[{WATCHES}]}}\n")])
    found = list_breakpoints(gdb)
    assert [(b.id, b.kind, b.address, b.hits, b.enabled) for b in found] == [
        (6, "watchpoint", 0xFFFF_8000_82A1_0D80, 2, True),
        (7, "read watchpoint", 0x4000_0000, 0, False),
        (8, "acc watchpoint", None, 0, True),
        (9, "breakpoint", 0x40, 1, True),
        (10, "breakpoint", None, 0, True),
    ]
    assert found[2].what == "counter + 1"


def test_memory_that_ends_before_it_begins() -> None:
    text = 'FlatView #0\n AS "memory", root: system\n  0000000040000000-000000003fffffff (prio 0, ram): x\n'
    with pytest.raises(TargetError, match="ends before it begins"):
        parse_mtree(text)


# What is passed on


@pytest.mark.parametrize(
    "line",
    ["kill", "k", "kil", "quit", "detach", "det", "target remote :1", "maint packet k",
     "maintenance packet bs", "reverse-continue", "rsi 4", "set exec-direction reverse",
     "with print pretty on -- rc", "", "!ls", "! ls", "she ls", "make all", "| p 1 | sh", "pipe p 1 | sh",
     "with print pretty on -- kill", "w print pretty on -- quit", "thread apply all -q shell ls",
     "frame apply all kill", "faas k", "taas q", 'interpreter-exec console "kill"', "if 1 quit",
     "faas " * 4000 + "kill", "info registers\nkill", "p 1\rq", "p 1\0"],
)  # fmt: skip
def test_commands_that_end_the_session_are_refused(line: str) -> None:
    with pytest.raises(UserError):
        check_gdb_command(line)


@pytest.mark.parametrize(
    "line",
    ["x/i $pc", "bt", "maint packet qqemu.PhyMemMode", "info registers", "disassemble", "rwatch x", "refresh",
     "stepi", "python print(1)", "with print pretty on -- p $x0", "thread apply all bt", "taas bt",
     "faas " * 4000 + "bt", "disable 1"],
)  # fmt: skip
def test_other_commands_are_passed_on(line: str) -> None:
    check_gdb_command(line)


def test_monitor_commands() -> None:
    assert check_monitor_command("info mtree -f")
    assert not check_monitor_command("system_reset")
    for line in ("cont", "c", "", "info status\nquit"):
        with pytest.raises(UserError):
            check_monitor_command(line)


def test_ctrl_c_while_the_guest_is_being_stopped_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    session, asked = LiveSession.__new__(LiveSession), list[str]()

    def late(timeout: float) -> StopInfo:
        raise TargetTimeout("not in time")

    def stop(timeout: float = 5.0) -> StopInfo:
        asked.append("stop")
        if len(asked) == 1:
            raise KeyboardInterrupt
        return NEVER_STOPPED

    monkeypatch.setattr(session, "wait_stop", late)
    monkeypatch.setattr(session, "interrupt", stop)
    with pytest.raises(KeyboardInterrupt):
        session._stop_in_time(0.1)
    assert asked == ["stop", "stop"]


def test_a_run_whose_breakpoints_cannot_all_be_set_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    session, there = LiveSession.__new__(LiveSession), list[Breakpoint]()

    def put(address: int, **options: object) -> Breakpoint:
        if there:
            raise KeyboardInterrupt
        there.append(Breakpoint(1, address))
        return there[-1]

    monkeypatch.setattr(LiveSession, "breakpoints", property(lambda _: tuple(there)))
    monkeypatch.setattr(LiveSession, "state", RunState.STOPPED)
    monkeypatch.setattr(live, "sure_stops", lambda gdb, tracker: set())
    for name, value in {"slots": FakeSlots(), "_gdb": None, "_tracker": None}.items():
        monkeypatch.setattr(session, name, value, raising=False)
    monkeypatch.setattr(session, "_need_stopped", lambda: None)
    monkeypatch.setattr(session, "set_breakpoint", put)
    monkeypatch.setattr(session, "delete_breakpoint", lambda number: there.pop(number - 1))
    with pytest.raises(KeyboardInterrupt):
        session.run_until([0x1000, 0x2000], 1)
    assert there == []


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (StopInfo("breakpoint-hit", 0, 3, 0, ""), "breakpoint 3"),
        (StopInfo("access-watchpoint-trigger", 0, 4, 0, ""), "watchpoint 4"),
        (StopInfo("end-stepping-range", 0, None, 0, ""), "stepped"),
        (StopInfo("signal-received", 0, None, 0, "SIGINT"), "interrupted"),
        (StopInfo("signal-received", 0, None, 0, "SIGTRAP"), "signal-received, SIGTRAP"),
        (StopInfo("attached", 0, None, 0, ""), "attached"),
    ],
)
def test_why_it_stopped_in_words(stop: StopInfo, words: str) -> None:
    assert stop.words == words


@pytest.mark.parametrize(
    "text",
    [
        " Name         Nr  Rel Offset    Size  Type            Rmt Nr  g/G Offset\n"
        " cpsr         33   33    264       4 int                  33         264\n"
        " TTBR0_EL1   141   73   1208       8 uint64_t            151        1212\n",
        "Name       Nr   Rel  Offset   Size  Type            Rmt Nr  g/G Offset  Expedited \n"
        "cpsr       33   33   264      4     int             33      264                   \n"
        "TTBR0_EL1  141  73   1208     8     uint64_t        151     1212        yes       \n",
    ],
    ids=["GDB 13", "GDB 18"],
)
def test_where_the_stub_has_a_register(text: str) -> None:
    assert _ROW.findall(text) == [("cpsr", "4", "33", "264"), ("TTBR0_EL1", "8", "151", "1212")]
