"""Whatever dies, the guest is left as it was found: it runs or stands, and its code is what it was."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from session import need_guest

from ptinspect.link.address import StubAddress
from ptinspect.link.qemu import machine as launcher
from ptinspect.link.qemu.listener import is_busy
from ptinspect.processes import has_ended, poll, running_with, stopped
from ptinspect.reference.initrd import READY

PATIENCE = 300.0
TEXT = (0x4021_0000, 0x40000)
"""Where the kernel's vectors and entry code lie, and bytes."""
STAGES = {
    "prompt": [],
    "continue": ["-c", "continue --timeout 300"],
    "guard": ["-c", "stack guard --timeout 300"],
    "paint": ["-c", "stack highwater --paint --yes --timeout 300"],
}


class Machine:
    """A QEMU with a guest at its shell, and a monitor that is nobody else's."""

    def __init__(self, folder: Path) -> None:
        guest = need_guest("5.10-cloud")
        self.kernel = guest.kernel
        monitor = folder / "qmp"
        options = launcher.LaunchOptions(
            guest.kernel, guest.initrd, extra=("-qmp", f"unix:{monitor},server=on,wait=off"), memory=512
        )
        self.qemu = launcher.launch(options)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(monitor))
        self._lines = self._socket.makefile("rw")
        self._lines.readline()
        self.stops = 0
        """How often the guest was stopped."""
        self("qmp_capabilities")
        self("cont")
        wait_for(lambda: READY.encode() in self.qemu.console.read_bytes())

    def __call__(self, command: str, **arguments: object) -> Any:
        """Run a command of QMP."""
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            self.stops += answer.get("event") == "STOP"
            if "return" in answer:
                return answer["return"]
            assert "error" not in answer, answer

    def begin(self, ran: bool) -> None:
        """Let the guest run or stand, once QEMU has seen that the last debugger has gone."""
        wait_for(lambda: not is_busy(StubAddress.parse(str(self.qemu.gdb_socket))))
        self("cont" if ran else "stop")

    @property
    def runs(self) -> bool:
        """Tell whether the guest runs."""
        return bool(self("query-status")["running"])

    def text(self, folder: Path) -> bytes:
        """Return the kernel's entry code as it stands in memory."""
        file = folder / "text"
        self("pmemsave", val=TEXT[0], size=TEXT[1], filename=str(file))
        return file.read_bytes()

    def close(self) -> None:
        """End it."""
        self._lines.close()
        self._socket.close()
        self.qemu.end()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    found = Machine(tmp_path_factory.mktemp("machine"))
    yield found
    found.close()


def settled(machine: Machine, ran: bool) -> bool:
    """Whether the guest comes to run, or to stand, with nobody at work on it any more."""
    return poll(lambda: not others(machine) and machine.runs is ran, PATIENCE, 0.05)


def wait_for(done: Callable[[], bool]) -> None:
    assert poll(done, PATIENCE, 0.05)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def others(machine: Machine) -> list[int]:
    """Return the processes in whose command lines the guest's stub is named, but for QEMU.

    One whose ptinspect was killed is left by a process that GDB starts before it ends.
    """
    return [pid for pid in running_with(str(machine.qemu.gdb_socket)) if pid != machine.qemu.pid]


def command(machine: Machine, *words: str) -> list[str]:
    """Return the command of a ptinspect on the guest."""
    where = ("--gdb", str(machine.qemu.gdb_socket), "--kernel", str(machine.kernel))
    return [sys.executable, "-m", "ptinspect", *where, *words]


@contextmanager
def at_work(
    machine: Machine, folder: Path, stage: str, ran: bool
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A ptinspect at work on a guest that ran or stood, and its debugger; then all must be as before."""
    machine.begin(ran)
    before, stops = machine.text(folder), machine.stops
    with subprocess.Popen(
        command(machine, *STAGES[stage]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        if stage == "prompt":
            assert process.stdout.readline().startswith("attached to")
        else:
            if stage == "guard":
                wait_for(lambda: machine.text(folder) != before)
            works = lambda: machine.runs and (machine.stops > stops or not ran)  # noqa: E731
            wait_for(lambda: works() or process.poll() is not None)
            assert process.poll() is None, process.stdout.read()
        wait_for(lambda: bool(children(process.pid)))
        [debugger] = children(process.pid)
        yield process, debugger
    wait_for(lambda: has_ended(debugger))
    assert settled(machine, ran)
    assert machine.text(folder) == before


def end(process: subprocess.Popen[str], codes: tuple[int, ...], typed: str = "") -> str:
    """Wait until a ptinspect has ended, and return what it said."""
    said, _ = process.communicate(typed, timeout=PATIENCE)
    assert process.returncode in codes, said
    assert "Traceback" not in said and "a bug" not in said
    return said


@pytest.mark.parametrize("ran", [True, False], ids=["ran", "stood"])
@pytest.mark.parametrize(
    ("stage", "victim", "number", "code"),
    [
        ("prompt", "ptinspect", signal.SIGKILL, -9),
        ("prompt", "gdb", signal.SIGKILL, 3),
        ("continue", "ptinspect", signal.SIGKILL, -9),
        ("continue", "ptinspect", signal.SIGINT, 130),
        ("continue", "gdb", signal.SIGTERM, 3),
        ("guard", "ptinspect", signal.SIGKILL, -9),
        ("guard", "ptinspect", signal.SIGINT, 130),
        ("guard", "gdb", signal.SIGKILL, 3),
        ("paint", "ptinspect", signal.SIGHUP, 129),
    ],
)
def test_the_guest_is_left_as_it_was_found(  # noqa: PLR0917
    machine: Machine, tmp_path: Path, stage: str, victim: str, number: int, code: int, ran: bool
) -> None:
    with at_work(machine, tmp_path, stage, ran) as (process, debugger):
        os.kill(process.pid if victim == "ptinspect" else debugger, number)
        end(process, (code,), "regs pc\n" if (stage, victim) == ("prompt", "gdb") else "")


@pytest.mark.parametrize("ran", [True, False], ids=["ran", "stood"])
@pytest.mark.parametrize(
    ("stage", "number", "codes"),
    [
        ("guard", signal.SIGINT, (3, 130)),
        ("continue", signal.SIGTERM, (3, 143)),
        ("continue", signal.SIGKILL, (-9,)),
    ],
)
def test_a_guest_whose_qemu_is_stopped_is_left_as_it_was_found_when_that_continues(  # noqa: PLR0917
    machine: Machine, tmp_path: Path, stage: str, number: int, codes: tuple[int, ...], ran: bool
) -> None:
    with at_work(machine, tmp_path, stage, ran) as (process, _):
        os.kill(machine.qemu.pid, signal.SIGSTOP)
        try:
            os.kill(process.pid, number)
            said = end(process, codes)
        finally:
            os.kill(machine.qemu.pid, signal.SIGCONT)
        if 3 in codes:
            assert "as it was found when QEMU, which a signal has stopped, continues" in said


@pytest.mark.parametrize("ran", [True, False], ids=["ran", "stood"])
def test_a_gdb_that_was_stopped_leaves_the_guest_before_the_next_attach(
    machine: Machine, tmp_path: Path, ran: bool
) -> None:
    with at_work(machine, tmp_path, "guard", ran) as (process, debugger):
        os.kill(debugger, signal.SIGSTOP)
        wait_for(lambda: debugger in stopped(states="T"))
        process.kill()
        # it stays until somebody attaches, to this guest or to that of another test
        run = subprocess.run(command(machine, "-c", "regs pc"), capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "earlier session" not in run.stdout + run.stderr
        assert has_ended(debugger)


def test_those_who_work_on_the_guest_are_found(machine: Machine) -> None:
    words = [sys.executable, "-c", "input()", str(machine.qemu.gdb_socket)]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        wait_for(lambda: len(others(machine)) == 1)
        process.communicate(b"\n")
    assert others(machine) == []


def test_a_monitor_that_lets_the_guest_run_is_noticed(machine: Machine) -> None:
    from ptinspect.api import Guest

    machine("cont")
    with Guest.attach(str(machine.qemu.gdb_socket), kernel=machine.kernel, timeout=PATIENCE) as guest:
        guest.command("regs pc")
        machine("cont")
        wait_for(lambda: machine.runs)
        token = guest.session.stop_token
        guest.command("regs pc")
        assert not machine.runs and guest.session.stop_token > token
        machine("cont")
        machine("stop")
        token = guest.session.stop_token
        guest.command("regs pc")
        assert guest.session.stop_token > token
