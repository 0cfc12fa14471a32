"""What attaching says about stubs that are not what they should be."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_stub import FakeStub

from ptinspect.errors import ConnectError, UserError
from ptinspect.link.address import StubAddress
from ptinspect.link.qemu import stub_probe as module
from ptinspect.link.qemu.listener import is_busy, is_stopped
from ptinspect.link.qemu.stub_probe import StubFacts, leave, probe


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[FakeStub]:
    with FakeStub(tmp_path / "stub") as served:
        yield served


def ask(stub: FakeStub, timeout: float = 30.0) -> StubFacts:
    return probe(StubAddress.parse(stub.address), timeout)


def test_facts_of_a_qemu(stub: FakeStub) -> None:
    facts = ask(stub)
    assert facts.architecture == "aarch64"
    assert facts.version.startswith("7.2.22")
    assert facts.status == "paused"
    assert not facts.stopped_by_us and not facts.was_running


def test_a_guest_that_ran(stub: FakeStub) -> None:
    stub.was_running = True
    facts = ask(stub)
    assert facts.stopped_by_us and facts.was_running


@pytest.mark.parametrize(
    ("version", "status", "running"),
    [
        ("10.0.3 (Debian)", "paused", True),
        ("10.0.3 (Debian)", "paused (prelaunch)", False),
        ("10.0.3 (Debian)", "paused (debug)", False),
        ("8.1.0", "paused", True),
        ("8.0.5", "paused", False),
        ("7.2.22Debian", "paused", False),
        ("", "paused", True),
    ],
)
def test_newer_stubs_do_not_announce_the_stop(version: str, status: str, running: bool) -> None:
    assert StubFacts("aarch64", version, status, False).was_running is running


def test_a_gdbstub_of_somebody_else_is_left_running(stub: FakeStub) -> None:
    stub.overrides["qqemu"] = ""
    with pytest.raises(ConnectError, match="not QEMU's"):
        ask(stub)
    assert stub.packets[-1] == "D;1" and stub.running


def test_a_user_mode_qemu(stub: FakeStub) -> None:
    stub.overrides["qqemu.PhyMemMode"] = ""
    stub.waits = True
    with pytest.raises(ConnectError, match="cannot read physical memory"):
        ask(stub, 5)


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize(
    "description", ["l<target><architecture>i386:x86-64</architecture></target>", "l<target></target>"]
)
def test_a_guest_of_another_architecture_is_left_as_it_was_found(
    stub: FakeStub, description: str, ran: bool
) -> None:
    stub.was_running = ran
    stub.overrides["qXfer"] = description
    with pytest.raises(ConnectError, match=r"the guest's CPU is (i386:x86-64|unknown), not aarch64"):
        ask(stub)
    assert ("D;1" in stub.packets) is ran


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize(
    "packet",
    ["qSupported", "qqemu.sstepbits", "qXfer", "qRcmd,696e666f206b766d"],  # info kvm
)
def test_questions_that_are_interrupted_leave_the_guest_as_it_was_found(
    stub: FakeStub, monkeypatch: pytest.MonkeyPatch, packet: str, ran: bool
) -> None:
    stub.was_running = ran
    sent = module._Link._send

    def send_until(link: module._Link, data: bytes) -> None:
        if f"${packet}".encode() in data:
            raise KeyboardInterrupt
        sent(link, data)

    monkeypatch.setattr(module._Link, "_send", send_until)
    with pytest.raises(KeyboardInterrupt):
        ask(stub)
    assert ("D;1" in stub.packets) is ran


@pytest.mark.parametrize("ran", [False, True])
def test_a_stub_that_hangs_in_the_middle_gets_the_request_all_the_same(
    stub: FakeStub, monkeypatch: pytest.MonkeyPatch, ran: bool
) -> None:
    monkeypatch.setattr(module, "LEAVE_SECONDS", 1.0)
    stub.was_running = ran
    stub.overrides.update({"qXfer": None, "Qqemu.PhyMemMode:0": None, "qRcmd": None})
    with pytest.raises(ConnectError, match="no answer"):
        ask(stub, 1.0)
    stub.close()  # it has read all by then
    assert ("D;1" in stub.packets) is ran


def test_a_stub_that_never_answers(stub: FakeStub) -> None:
    stub.overrides[""] = None
    with pytest.raises(ConnectError, match=r"no answer within 0.3 s") as caught:
        ask(stub, 0.3)
    assert "another debugger" in caught.value.hint


def test_a_stub_that_falls_silent(stub: FakeStub) -> None:
    stub.overrides["qXfer"] = None
    with pytest.raises(ConnectError, match="no answer"):
        ask(stub, 0.3)


@contextlib.contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[StubAddress]:
    """A server that talks to the first who connects."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            client, _ = listening.accept()
            with client, contextlib.suppress(OSError):
                talk(client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield StubAddress.parse(f":{listening.getsockname()[1]}")
    thread.join(5)


def test_a_server_of_something_else() -> None:
    def talk(client: socket.socket) -> None:
        client.recv(100)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" * 3)

    with server(talk) as address, pytest.raises(ConnectError, match="not a gdbstub"):
        probe(address, 5)


def test_a_server_that_sends_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKET_LIMIT", 1 << 16)

    def talk(client: socket.socket) -> None:
        while True:
            client.sendall(b"$" * 4096)

    with server(talk) as address, pytest.raises(ConnectError, match="not a gdbstub"):
        probe(address, 30)


def test_a_server_that_closes_at_once() -> None:
    with server(lambda client: None) as address, pytest.raises(ConnectError, match=r"closed|reset|pipe"):
        probe(address, 5)


def test_a_refused_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectError, match="refused"):
        probe(StubAddress.parse(f":{port}"), 5)


def test_a_missing_socket(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="no such socket"):
        probe(StubAddress.parse(f"{tmp_path}/none"), 5)


def test_a_file_that_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConnectError):
        probe(StubAddress.parse(f"{tmp_path}/file"), 5)


@pytest.mark.parametrize("tcp", [False, True])
def test_a_busy_stub_is_not_even_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tcp: bool
) -> None:
    with FakeStub(None if tcp else tmp_path / "busy") as stub:
        address = StubAddress.parse(stub.address)
        assert not is_busy(address)
        with address.connect(5) as other:
            other.sendall(b"$?#3f")
            assert other.recv(100)
            with monkeypatch.context() as patch, pytest.raises(ConnectError, match="another debugger"):
                patch.setattr(module, "FREE_SECONDS", 0.2)
                probe(address, 5)
        assert stub.packets == ["?"]
        ask(stub)


@pytest.mark.parametrize(
    ("running", "clear", "packets"),
    [
        (True, False, ["Qqemu.PhyMemMode:0", "D;1"]),
        (True, True, ["Qqemu.PhyMemMode:0", "D;1"]),
        (False, False, ["Qqemu.PhyMemMode:0"]),
        (False, True, ["Qqemu.PhyMemMode:0", "D;1"]),
    ],
)
def test_leaving(stub: FakeStub, running: bool, clear: bool, packets: list[str]) -> None:
    stub.physical = True
    leave(StubAddress.parse(stub.address), running, clear=clear)
    assert stub.packets == packets and not stub.physical
    assert stub.running is running


def test_leaving_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="no such socket"):
        leave(StubAddress(path=str(tmp_path / "gone")), True)


LISTENS = "import socket, sys; s = socket.socket(1); s.bind(sys.argv[1]); s.listen(); print(); input()"


def test_a_process_that_listens_is_stopped(tmp_path: Path) -> None:
    address = StubAddress.parse(str(tmp_path / "stub"))
    command = [sys.executable, "-c", LISTENS, address.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() and not is_stopped(address)
        try:
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            assert is_stopped(address) and not is_stopped(StubAddress.parse(str(tmp_path / "other")))
        finally:
            process.kill()


def test_a_stub_whose_process_is_stopped_is_not_connected_to(
    stub: FakeStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could let the guest continue: a queued connection would stop it when QEMU continues."""
    monkeypatch.setattr(module, "is_stopped", lambda _: True)
    with pytest.raises(ConnectError, match="the process that listens there is stopped"):
        ask(stub)
    assert stub.packets == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (":1234", "localhost:1234"),
        ("1234", "localhost:1234"),
        ("host.example:5", "host.example:5"),
        ("tcp::1234", "localhost:1234"),
        ("[::1]:77", "[::1]:77"),
        ("/run/x.sock", "/run/x.sock"),
        ("unix:/run/x.sock,server=on", "/run/x.sock"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert str(StubAddress.parse(text)) == shown
    assert StubAddress.parse(shown) == StubAddress.parse(text)


@pytest.mark.parametrize("text", ["", "host", ":", ":0", ":65536", "host:x", ":²"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match="not the address of a gdbstub"):
        StubAddress.parse(text)


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StubAddress.parse("./g.sock").path == str(tmp_path / "g.sock")
