"""GdbProcess against a GDB that misbehaves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gdb_starter import fake_gdbs

from ptinspect.errors import MiError, TargetError, TargetLost, TargetTimeout, UserError
from ptinspect.link.gdb import process
from ptinspect.link.gdb.process import GdbProcess

Start = Callable[..., GdbProcess]


@pytest.fixture
def fake_gdb(tmp_path: Path) -> Iterator[Callable[..., GdbProcess]]:
    yield from fake_gdbs(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CANCEL_SECONDS", 0.3)


def test_a_reply_belongs_to_its_token(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-late", "!silent"), ("-next", '1^done,value="late"\n{t}^done,value="next"\n')])
    first = gdb.begin("-late")
    reply = gdb.request("-next", 10)
    assert reply.payload == {"value": "next"}
    assert first.event.wait(10)
    assert first.reply is not None and first.reply.payload == {"value": "late"}


def test_an_error_is_raised_with_gdbs_words(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", '{t}^error,msg="No symbol \\"x\\""\n')])
    with pytest.raises(MiError, match='No symbol "x"'):
        gdb.request("-x", 10)
    assert gdb.request("-x", 10, check=False).line.name == "error"


def test_text_before_a_reply_belongs_to_it(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", '~"one\\n"\n@"two\\n"\n{t}^done\n~"stray\\n"\n'), ("-y", "{t}^done\n")])
    assert gdb.request("-x", 10).text == "one\ntwo\n"
    assert gdb.request("-x", 10).text == "one\ntwo\n"


@pytest.mark.usefixtures("impatient")
def test_a_silent_gdb_is_ended_in_time(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", "!silent"), ("-list-features", "!hang")])
    with pytest.raises(TargetTimeout, match=r"within 0\.2 s and was ended"):
        gdb.request("-x", 0.2)
    with pytest.raises(TargetLost):
        gdb.request("-y", 1)
    assert gdb.process.poll() is not None


@pytest.mark.usefixtures("impatient")
def test_a_gdb_that_stops_reading_is_ended_in_time(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", "!hang")])
    with pytest.raises(TargetTimeout):
        gdb.request("-x", 0.2)
    assert gdb.lost


def test_every_waiting_command_fails_when_gdb_ends(fake_gdb: Start) -> None:
    reasons: list[str] = []
    gdb = fake_gdb([("-x", "!silent"), ("-quit", "!exitSegmentation fault\n")], on_lost=reasons.append)
    waiting = gdb.begin("-x")
    with pytest.raises(TargetLost, match="exit code 3") as caught:
        gdb.request("-quit", 10)
    assert waiting.event.wait(10) and waiting.reply is None
    assert "Segmentation fault" in caught.value.hint
    assert reasons == ["GDB ended (exit code 3)"]


def test_a_line_that_is_cut_short_is_no_reply(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", '!exit1^done,a=[{x="1"')])
    with pytest.raises(TargetLost):
        gdb.request("-x", 10)


def test_garbage_between_records_is_passed_over(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", '\x00\xff garbage\n*stopped,a=[{\n=x,\n^\n77^done\n{t}^done,v="1"\n')])
    assert gdb.request("-x", 10).payload == {"v": "1"}
    assert any("garbage" in line for line in gdb.tail)


def test_a_reply_that_makes_no_sense_is_an_error_of_that_command_only(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", '{t}^done,a=[{x="1"\n'), ("-y", '{t}^done,v="1"\n')])
    with pytest.raises(MiError, match="cannot be read"):
        _ = gdb.request("-x", 10).payload
    assert gdb.request("-y", 10).payload == {"v": "1"}


@pytest.mark.parametrize(
    "message",
    [
        "Remote communication error.  Target disconnected.: Broken pipe.",
        "Remote connection closed",
        "Invalid hex digit 116",
        "Ignoring packet error, continuing...",
    ],
)
def test_a_broken_link_ends_the_session(fake_gdb: Start, message: str) -> None:
    gdb = fake_gdb([("-x", f'{{t}}^error,msg="{message}"\n')])
    with pytest.raises(TargetLost, match="link to QEMU"):
        gdb.request("-x", 10)
    with pytest.raises(TargetLost):
        gdb.request("-data-read-memory-bytes 0 8", 10)


def test_nothing_is_read_after_the_program_has_exited(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", '=thread-group-exited,id="i1"\n{t}^done\n')])
    gdb.request("-x", 10)
    with pytest.raises(TargetLost, match="QEMU has ended"):
        gdb.request("-data-read-memory-bytes 0 8", 10)


def test_events_come_in_order_with_running_among_them(fake_gdb: Start) -> None:
    seen: list[str] = []
    output = '*stopped,reason="a"\n{t}^running\n*running,thread-id="all"\n*stopped,reason="b"\n'
    gdb = fake_gdb([("-x", output)], on_event=lambda name, fields: seen.append(fields.get("reason", name)))
    gdb.request("-x", 10)
    gdb.request("-y", 10)
    assert seen == ["a", "running", "running", "b"]


def test_ctrl_c_in_a_wait_cancels_and_leaves_gdb_usable(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", "!slow")])
    gdb.request("-started", 60)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        gdb.request("-x", 60)
    timer.join()
    assert gdb.request("-y", 10).line.name == "done"


@pytest.mark.parametrize("written", [True, False])
def test_ctrl_c_while_a_command_is_sent_cancels_it_as_well(
    fake_gdb: Start, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Where GDB has got it, it would be at work on it, and nobody would wait for that."""
    gdb = fake_gdb([("-x", "!slow")])
    gdb.request("-started", 60)
    put, cancel, cancelled = gdb._put, gdb.cancel, list[bool]()

    def interrupted(data: bytes) -> None:
        monkeypatch.setattr(gdb, "_put", put)
        if written:
            put(data)
        raise KeyboardInterrupt

    monkeypatch.setattr(gdb, "_put", interrupted)
    monkeypatch.setattr(gdb, "cancel", lambda: (cancelled.append(gdb.busy), cancel()))
    with pytest.raises(KeyboardInterrupt):
        gdb.request("-x", 60)
    assert cancelled == [False] and not gdb.busy, "the command is nobody's any more"
    assert gdb.request("-y", 10).line.name == "done"


def test_a_command_that_takes_too_long_is_cancelled(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", "!slow")])
    gdb.request("-started", 60)
    with pytest.raises(TargetTimeout, match=r"within 0\.2 s$"):
        gdb.request("-x", 0.2)
    assert gdb.request("-y", 10).line.name == "done"


def test_a_long_field_is_taken_whole(fake_gdb: Start) -> None:
    data = "Q" * (3 << 20)
    gdb = fake_gdb([("-x", f'{{t}}^done,data="{data}"\n')])
    assert gdb.request("-x", 30).field("data") == data.encode()
    with pytest.raises(MiError, match="no field 'other'"):
        gdb.request("-x", 30).field("other")


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(TargetError, match="cannot start GDB"):
        GdbProcess(["/nonexistent/gdb"])


def test_close_ends_a_gdb_that_does_not_want_to(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-gdb-exit", "!hang")])
    gdb.close(timeout=0.2)
    gdb.close()
    assert gdb.process.poll() is not None


def test_a_line_break_would_be_a_second_command(fake_gdb: Callable[..., GdbProcess]) -> None:
    gdb = fake_gdb([(".*", "{t}^done\n")])
    for command in ("-target-select remote a\nshell false", "x\ry"):
        with pytest.raises(UserError, match="line break"):
            gdb.request(command, 5)


def test_what_is_sent_ahead_is_sent_once(fake_gdb: Start) -> None:
    gdb = fake_gdb([("-x", '{t}^done,value="{t}"\n'), ("-wrong", '{t}^error,msg="no"\n')])
    gdb.ahead(("-x", "-wrong"))
    with pytest.raises(MiError, match="no"):
        gdb.request("-wrong", 10)
    assert [gdb.request("-x", 10).payload["value"] for _ in range(2)] == ["1", "3"]
