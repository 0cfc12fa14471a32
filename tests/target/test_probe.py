"""What attaching says about stubs that are not what they should be."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_stub import FakeStub

from ptinspect.errors import ConnectError, UserError
from ptinspect.target import probe as module
from ptinspect.target.address import StubAddress
from ptinspect.target.busy import is_busy
from ptinspect.target.probe import StubFacts, leave_running, probe


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[FakeStub]:
    with FakeStub(tmp_path / "stub") as served:
        yield served


def ask(stub: FakeStub, timeout: float = 5.0) -> StubFacts:
    return probe(StubAddress.parse(stub.address), timeout)


def test_facts_of_a_qemu(stub: FakeStub) -> None:
    facts = ask(stub)
    assert facts.architecture == "aarch64"
    assert facts.version.startswith("7.2.22")
    assert facts.status == "paused"
    assert "PhyMemMode" in facts.features
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
    assert StubFacts(frozenset(), "aarch64", version, status, False).was_running is running


def test_a_gdbstub_of_somebody_else_is_left_running(stub: FakeStub) -> None:
    stub.overrides["qqemu"] = ""
    with pytest.raises(ConnectError, match="not QEMU's"):
        ask(stub)
    assert stub.packets[-1] == "D"


def test_a_user_mode_qemu(stub: FakeStub) -> None:
    stub.overrides["qqemu.PhyMemMode"] = ""
    with pytest.raises(ConnectError, match="cannot read physical memory"):
        ask(stub)


def test_another_architecture_is_named(stub: FakeStub) -> None:
    stub.overrides["qXfer"] = "l<target><architecture>i386:x86-64</architecture></target>"
    with pytest.raises(ConnectError, match="i386:x86-64, not aarch64"):
        ask(stub)
    assert "D" not in stub.packets


def test_a_stub_that_never_answers(stub: FakeStub) -> None:
    stub.overrides[""] = None
    with pytest.raises(ConnectError, match=r"no answer within 0.3 s") as caught:
        ask(stub, 0.3)
    assert "another debugger" in caught.value.hint


def test_a_stub_that_falls_silent(stub: FakeStub) -> None:
    stub.overrides["qXfer"] = None
    with pytest.raises(ConnectError, match="no answer"):
        ask(stub, 0.3)


def test_a_server_of_something_else() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = server.accept()
        with client:
            client.recv(100)
            client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" * 3)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with server, pytest.raises(ConnectError, match="no gdbstub"):
        probe(StubAddress.parse(f":{server.getsockname()[1]}"), 5)
    thread.join(5)


def test_a_server_that_closes_at_once() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = server.accept()
        client.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with server, pytest.raises(ConnectError, match=r"closed|reset|pipe"):
        probe(StubAddress.parse(f":{server.getsockname()[1]}"), 5)
    thread.join(5)


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
    monkeypatch.setattr(module, "FREE_SECONDS", 0.2)
    with FakeStub(None if tcp else tmp_path / "busy") as stub:
        address = StubAddress.parse(stub.address)
        assert not is_busy(address)
        with address.connect(5) as other:
            other.sendall(b"$?#3f")
            assert other.recv(100)
            with pytest.raises(ConnectError, match="another debugger"):
                probe(address, 5)
        assert stub.packets == ["?"]
        ask(stub)


def test_leave_running_detaches(stub: FakeStub) -> None:
    leave_running(StubAddress.parse(stub.address))
    assert stub.packets == ["?", "D"]


def test_leave_running_of_nothing_is_quiet(tmp_path: Path) -> None:
    leave_running(StubAddress(path=str(tmp_path / "gone")))


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
    with pytest.raises(UserError, match="no address of a gdbstub"):
        StubAddress.parse(text)


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StubAddress.parse("./g.sock").path == str(tmp_path / "g.sock")
