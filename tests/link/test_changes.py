"""What a session writes into the guest comes out again, by it or by the next one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from builders import cpu_state

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import ConnectError, MemoryReadError
from ptinspect.link import journal as module
from ptinspect.link.address import StubAddress
from ptinspect.link.changes import Changes
from ptinspect.link.journal import GUARD, PAINT, POKE, Change, Detour, Journal, attaching, place

BASE = 0x4000_0000
PROBE = [Change(BASE + 0x40, 0, 0x11, 4, what=GUARD), Change(BASE + 0x44, 0xD503201F, 0x22, 4, what=GUARD)]
POKED = Change(BASE + 0x80, 0x1003, 0x2003, what=POKE)
PAINTED = Change(BASE + 0x100, 0, 0x5AA5, count=4, what=PAINT)


class Ram:
    def __init__(self) -> None:
        self.data = bytearray(0x1000)
        self.data[0x44:0x48] = (0xD503201F).to_bytes(4, "little")
        self.data[0x80:0x88] = (0x1003).to_bytes(8, "little")

    def read(self, pa: int, length: int) -> bytes:
        at = pa - BASE
        if not 0 <= at <= len(self.data) - length:
            raise MemoryReadError(pa, length, "outside RAM")
        return bytes(self.data[at : at + length])


@dataclass
class Guest:
    memory: Ram = field(default_factory=Ram)
    current_cpu: int = 0
    cpus: list[CpuState] = field(default_factory=lambda: [cpu_state()])
    commands: list[tuple[int, str]] = field(default_factory=list)

    @property
    def cpu_count(self) -> int:
        return len(self.cpus)

    def cpu_state(self, cpu: int) -> CpuState:
        return self.cpus[cpu]

    def write_physical(self, *parts: tuple[int, bytes]) -> None:
        for pa, data in parts:
            self.memory.data[pa - BASE : pa - BASE + len(data)] = data

    def gdb_command(self, line: str) -> str:
        self.commands.append((self.current_cpu, line))
        return ""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "journal.json"


def session(guest: Guest, file: Path) -> Changes:
    return Changes(guest, Journal(":1234", file).read())  # type: ignore[arg-type]


def test_changes_are_made_and_undone(file: Path) -> None:
    guest = Guest()
    before = bytes(guest.memory.data)
    changes = session(guest, file)
    changes.make([*PROBE, PAINTED])
    assert guest.memory.read(BASE + 0x40, 8) == (0x22_0000_0011).to_bytes(8, "little")
    assert guest.memory.read(BASE + 0x100, 32) == (0x5AA5).to_bytes(8, "little") * 4
    assert changes.undo([*PROBE, PAINTED]) == 6
    assert guest.memory.data == before and not file.exists()


def test_what_a_killed_session_left_is_put_back_by_the_next(file: Path) -> None:
    guest = Guest()
    before = bytes(guest.memory.data)
    session(guest, file).make([*PROBE, PAINTED])
    said = session(guest, file).left_behind()
    assert guest.memory.data == before
    assert [line.split(" of an")[0] for line in said] == [
        "put back: 2 words of the stack guard", "put back: 4 words of the paint",
    ]  # fmt: skip
    assert not file.exists() and session(guest, file).left_behind() == []


def test_words_that_the_guest_has_changed_since_are_left_alone(file: Path) -> None:
    guest = Guest()
    session(guest, file).make([PAINTED])
    guest.write_physical((BASE + 0x108, b"deadbeef"))
    assert session(guest, file).left_behind() == [
        "put back: 3 words of the paint of an earlier session, which had no time to"
    ]
    assert guest.memory.read(BASE + 0x100, 32) == bytes(8) + b"deadbeef" + bytes(16)


def test_another_guest_behind_the_same_stub_is_left_alone(file: Path) -> None:
    session(Guest(), file).make([*PROBE, POKED, Change(BASE + 0x9000, 1, 2, what=GUARD)][:3])
    other = Guest()
    before = bytes(other.memory.data)
    assert session(other, file).left_behind() == []
    assert other.memory.data == before and not file.exists()


def test_a_cpu_of_another_guest_that_stands_where_a_probe_was_stays_there(file: Path) -> None:
    session(Guest(), file).make(PROBE, [Detour(0x1000, 0x2000)])
    other = Guest(cpus=[replace(cpu_state(), pc=0x1000)])
    assert session(other, file).left_behind() == [] and other.commands == []


def test_a_machine_with_less_memory(file: Path) -> None:
    Journal(":1234", file).add([Change(BASE + 0x9000, 1, 2, what=GUARD)])
    assert session(Guest(), file).left_behind() == []


def test_a_poke_stays_and_is_told(file: Path) -> None:
    guest = Guest()
    session(guest, file).make([POKED])
    later = session(guest, file)
    [line] = later.left_behind()
    assert line.startswith("pa:0x40000080 holds 0x2003, which an earlier session poked there")
    assert later.made(POKE) == (POKED,)
    later.undo([POKED])
    assert guest.memory.read(BASE + 0x80, 8) == (0x1003).to_bytes(8, "little")


def test_a_cpu_inside_a_probe_goes_on_where_the_kernel_does(file: Path) -> None:
    detours = [Detour(0x1000, 0x2000), Detour(0x1004, 0x2004, "PAR_EL1")]
    cpus = [replace(cpu_state(cpu), pc=pc) for cpu, pc in enumerate((0x1004, 0x999, 0x1000))]
    guest = Guest(cpus=cpus, current_cpu=1)
    session(guest, file).make(PROBE, detours)
    session(guest, file).left_behind()
    assert guest.commands == [(0, "set $x0 = $PAR_EL1"), (0, "set $pc = 0x2004"), (2, "set $pc = 0x2000")]
    assert guest.current_cpu == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}'])
def test_a_damaged_journal_says_nothing(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    assert Journal(":1234", file).read().changes == ()


@pytest.mark.parametrize(
    "wrong", [{"pa": -1}, {"width": 3}, {"count": 1 << 60}, {"new": 1 << 32, "width": 4}, {"what": 7}]
)
def test_a_journal_with_an_absurd_change_says_nothing(file: Path, wrong: dict[str, object]) -> None:
    file.parent.mkdir()
    table = {"format": 1, "address": ":1234", "detours": []}
    for change, read in (({}, 1), (wrong, 0)):
        file.write_text(json.dumps({**table, "changes": [{"pa": 8, "old": 0, "new": 1, **change}]}))
        assert len(Journal(":1234", file).read().changes) == read


@pytest.mark.parametrize("wrong", [{"to": "0x2000"}, {"pc": -1}, {"x0": "x1; kill"}, {"x0": 7}, {"more": 1}])
def test_a_journal_with_an_absurd_detour_says_nothing(file: Path, wrong: dict[str, object]) -> None:
    file.parent.mkdir()
    table = {"format": 1, "address": ":1234", "changes": [{"pa": 8, "old": 0, "new": 1, "what": GUARD}]}
    for detour, read in (({}, 1), (wrong, 0)):
        file.write_text(json.dumps({**table, "detours": [{"pc": 4, "to": 8, "x0": "PAR_EL1", **detour}]}))
        found = Journal(":1234", file).read()
        assert (len(found.changes), len(found.detours)) == (read, read)


def test_a_journal_that_cannot_be_written_is_no_reason_not_to_debug(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    guest = Guest()
    changes = session(guest, tmp_path / "file" / "journal.json")
    changes.make(PROBE)
    assert changes.undo(PROBE) == 2


def test_the_file_is_replaced_in_one_step(file: Path) -> None:
    journal = Journal(":1234", file)
    journal.add([POKED])
    assert json.loads(file.read_text())["changes"][0]["what"] == POKE
    assert [path.name for path in file.parent.iterdir()] == ["journal.json"]


def test_one_attaches_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "directory", lambda: tmp_path)
    one, other = StubAddress.parse(":1234"), StubAddress.parse(":1235")
    assert place(one) != place(other)
    with (
        attaching(one, 1),
        attaching(other, 1),
        pytest.raises(ConnectError, match="another ptinspect is attaching"),
        attaching(one, 0.1),
    ):
        pass
    with attaching(one, 0.1):
        pass
