"""Recording stores: what is asked of GDB, what its answers must be, and the script with GDB made by hand."""

from __future__ import annotations

import base64
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ptinspect.errors import MiError
from ptinspect.link.gdb import recorder
from ptinspect.link.gdb.agent import script_path
from ptinspect.link.gdb.recorder import RECORD, Store, StoreRecorder

SCRIPT = script_path().with_name(recorder.SCRIPT)


class Inside:
    """GDB as far as the script uses it: one frame, memory of eight-byte words, breakpoints in a list."""

    BP_HARDWARE_BREAKPOINT = 6
    COMMAND_DATA = 1

    class MemoryError(Exception):
        pass

    class GdbError(Exception):
        pass

    def __init__(self) -> None:
        self.registers: dict[str, int] = {}
        self.pc = 0
        self.memory: dict[int, int] = {}
        self.breakpoints: list[Any] = []
        self.commands: dict[str, Any] = {}
        self.settings: dict[str, Any] = {"scheduler-locking": "step", "breakpoint always-inserted": False}
        inside = self

        class Breakpoint:
            def __init__(self, where: str, **options: object) -> None:
                self.where, self.options = where, options
                inside.breakpoints.append(self)

            def is_valid(self) -> bool:
                return self in inside.breakpoints

            def delete(self) -> None:
                inside.breakpoints.remove(self)

        class Command:
            def __init__(self, name: str, kind: int) -> None:
                inside.commands[name] = self

        self.Breakpoint, self.Command = Breakpoint, Command

    def selected_frame(self) -> Inside:
        return self

    def selected_inferior(self) -> Inside:
        return self

    def parameter(self, name: str) -> Any:
        return self.settings[name]

    def execute(self, line: str, from_tty: bool, to_string: bool) -> str:
        verb, _, rest = line.partition(" ")
        name, _, value = rest.rpartition(" ")
        assert verb == "set" and name in self.settings
        self.settings[name] = {"on": True, "off": False}.get(value, value) if "always" in name else value
        return ""

    def read_register(self, name: str) -> int:
        value = self.registers[name]
        return value - (1 << 64) if value >> 63 else value  # GDB's registers are signed

    def read_memory(self, address: int, length: int) -> bytes:
        if address not in self.memory:
            raise Inside.MemoryError(hex(address))
        return self.memory[address].to_bytes(length, "little")

    def string_to_argv(self, text: str) -> list[str]:
        return text.split()

    # `frame.pc()` is a method in GDB
    def __getattribute__(self, name: str) -> Any:
        if name == "pc":
            return lambda: object.__getattribute__(self, "__dict__")["pc"]
        return object.__getattribute__(self, name)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Inside:
    """GDB with the script loaded."""
    made = Inside()
    monkeypatch.setitem(sys.modules, "gdb", made)  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location("writes_in_test", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return made


@pytest.fixture
def command(inside: Inside, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def run(line: str) -> str:
        name, _, argument = line.partition(" ")
        if name == "python":
            return ""
        capsys.readouterr()
        inside.commands[name].invoke(argument, False)
        return capsys.readouterr().out.strip()

    return run


def recorder_of(command: Callable[[str], str]) -> StoreRecorder:
    session: Any = types.SimpleNamespace(gdb_command=lambda line, timeout=0: command(line))
    return StoreRecorder(session)


OLD = Store(0x4000, 7, 5, 0)
NEW = Store(0x5000, 13, 11, -8, 0, 12)


def test_a_store_is_written_as_the_script_reads_it() -> None:
    assert (str(OLD), str(NEW)) == ("0x4000:7:5:0", "0x5000:13:11:-8:0:12")


def test_stores_are_recorded_and_the_guest_goes_on(inside: Inside, command: Callable[[str], str]) -> None:
    made = recorder_of(command)
    made.start([OLD, NEW])
    assert [b.where for b in inside.breakpoints] == ["*0x4000", "*0x5000"]
    assert all(b.options == {"type": 6, "internal": True} and b.silent for b in inside.breakpoints)
    inside.registers |= {"x7": 0x8000_0000_0000_0803, "x5": 0x4157_B000}
    inside.memory[0x4157_B000] = 0x8000_0000_0000_0003
    assert not inside.breakpoints[0].stop()
    window = 0xFFFF_FF80_0000_0000
    inside.registers |= {"x13": 0x803, "x11": window + 3 * 4096 + 16, "x0": window}
    inside.memory |= {window + 3 * 4096 + 8: 0x3, window + 24: 0x4FFF_9F03}
    assert not inside.breakpoints[1].stop()
    made.stop()
    assert inside.breakpoints == []
    assert made.take().tolist() == [
        (0x4000, 0x4157_B000, 0x8000_0000_0000_0003, 0x8000_0000_0000_0803, 0, 1),
        (0x5000, window + 3 * 4096 + 8, 3, 0x803, 0x4FFF_9F03, 1),
    ]


def test_a_store_that_a_step_did_not_make_is_recorded_once(
    inside: Inside, command: Callable[[str], str]
) -> None:
    """QEMU's stub now and then reports the end of a step that executed nothing; stores that change nothing
    may be made again."""
    made = recorder_of(command)
    made.start([OLD])
    for before in (3, 3, 0x803, 0x803, 3):
        inside.registers |= {"x7": 0x803, "x5": 0x9000}
        inside.memory[0x9000] = before
        inside.breakpoints[0].stop()
    assert made.take()["before"].tolist() == [3, 0x803, 0x803, 3]


def test_the_other_cpus_stand_still_while_stores_are_recorded(
    inside: Inside, command: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(inside.settings)
    made = recorder_of(command)
    for _ in range(2):  # also where it starts again
        made.start([OLD])
        assert inside.settings == {"scheduler-locking": "on", "breakpoint always-inserted": True}
    made.stop()
    assert inside.settings == before
    monkeypatch.setattr(inside, "selected_frame", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        made.start([OLD])
    assert inside.settings == before


def test_what_cannot_be_read_is_recorded_as_such(inside: Inside, command: Callable[[str], str]) -> None:
    made = recorder_of(command)
    made.start([OLD, NEW])
    inside.registers |= {"x7": 1, "x5": 0x9000, "x13": 2, "x11": 0x8008, "x0": 0x8000}
    inside.memory[0x8000] = 5  # the word, not the page's descriptor, which is there too: index 0
    for number in (0, 1):
        inside.breakpoints[number].stop()
    del inside.memory[0x8000]
    inside.breakpoints[1].stop()
    assert made.take()["readable"].tolist() == [0, 1, 0]


def test_a_store_where_the_cpu_stands_is_recorded_at_once(
    inside: Inside, command: Callable[[str], str]
) -> None:
    """GDB steps over a breakpoint there."""
    inside.__dict__["pc"] = 0x4000
    inside.registers |= {"x7": 1, "x5": 0x9000}
    inside.memory[0x9000] = 0
    made = recorder_of(command)
    made.start([OLD, NEW])
    assert made.take()["site"].tolist() == [0x4000]


def test_a_limit_keeps_the_guest_at_that_store(inside: Inside, command: Callable[[str], str]) -> None:
    made = recorder_of(command)
    made.start([OLD], limit=2)
    inside.registers |= {"x7": 1, "x5": 0x9000}
    assert [bool(inside.breakpoints[0].stop()) for _ in range(3)] == [False, True, True]


def test_start_begins_anew(inside: Inside, command: Callable[[str], str]) -> None:
    made = recorder_of(command)
    inside.registers |= {"x7": 1, "x5": 0x9000}
    for _ in range(2):
        made.start([OLD])
        assert len(inside.breakpoints) == 1
        inside.breakpoints[0].stop()
        assert len(made.take()) == 1


def test_records_are_taken_in_parts(
    inside: Inside, command: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "CHUNK", 3)
    made = recorder_of(command)
    made.start([OLD])
    for number in range(8):
        inside.registers |= {"x7": number, "x5": 0x9000}
        inside.breakpoints[0].stop()
    assert made.take()["stored"].tolist() == list(range(8))


@pytest.mark.parametrize("line", ["", "start", "take 1", "other 1 2"])
def test_a_wrong_command_says_how_it_is_used(
    inside: Inside, command: Callable[[str], str], line: str
) -> None:
    with pytest.raises(Inside.GdbError, match="usage: ptinspect-writes"):
        command(f"ptinspect-writes {line}")


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["many"], "invalid literal"),
        (["1", "not base64!"], "damaged|base64|given|gave"),
        (["2", base64.b64encode(bytes(48)).decode()], "GDB has 2 recorded stores, and gave 1"),
        (["1", base64.b64encode(bytes(40)).decode()], "damaged"),
    ],
)
def test_damaged_answers_are_refused(answers: list[str], said: str) -> None:
    left = iter(["", *answers])
    with pytest.raises(MiError, match=said):
        recorder_of(lambda _: next(left)).take()


def test_no_records_are_an_empty_array(command: Callable[[str], str]) -> None:
    found = recorder_of(command).take()
    assert (len(found), found.dtype) == (0, RECORD)
    assert isinstance(found, np.ndarray)
