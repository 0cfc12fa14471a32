from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeSession, Stop, context, declare, kernel_tree
from test_runner import Screen, err, out, with_command

from ptinspect.errors import EXIT_CHECK, PtinspectError
from ptinspect.output.model import Note, Report
from ptinspect.repl.player import Player
from ptinspect.repl.printer import Printer
from ptinspect.script.parse import parse, parse_line
from ptinspect.script.shipped import shipped_scripts
from ptinspect.script.statements import ScriptError


def player(ctx: Any, **options: Any) -> Player:
    return Player(ctx, Printer(out=Screen(), err=Screen()), outcomes=[], **options)


def play(subject: Player, text: str) -> int:
    statements = list(parse("s", text.splitlines()))
    subject.check(statements)
    return subject.play(statements)


class Bad(PtinspectError):
    exit_code = EXIT_CHECK


def saying() -> tuple[Any, list[str]]:
    """A context whose command `say` notes its words, and fails at the word `bad`."""
    said: list[str] = []

    def say(ctx: Any, *, line: str) -> Report:
        said.append(line)
        if line == "bad":
            raise Bad("it is bad")
        return Report({}, (Note(line),), exit_code=1 if line == "differs" else 0)

    ctx = context()
    declare(ctx.registry, "say", say, passthrough=True)
    return ctx, said


def test_an_answer_that_does_not_hold_has_its_place_too() -> None:
    ctx, _ = saying()
    subject = player(ctx)
    assert play(subject, "say differs\nsay b\n") == 1
    assert (out(subject.printer), err(subject.printer)) == ("differs\n", "s:1: differs\n")


def test_keep_going_runs_the_rest_and_keeps_the_first_code() -> None:
    ctx, said = saying()
    subject = player(ctx, keep_going=True)
    assert play(subject, "repeat 2:\n  say bad\n  decode zz -l 3\nsay b\n") == 1
    assert said == ["bad", "bad", "b"]
    assert subject.outcomes is not None
    assert [o.code for o in subject.outcomes] == [1, 2, 1, 2, 0]


def test_quit_ends_the_run() -> None:
    ctx, said = saying()
    assert play(player(ctx), "say a\nrepeat 3: quit; say b\nsay c\n") == 0
    assert said == ["a"]


def test_variables_and_repeat() -> None:
    ctx, said = saying()
    subject = player(ctx, variables={"mem": "512"})
    text = "var mem = 1\nvar n = 2\nvar m = ${n}\nrepeat ${m} as i:\n  say ${mem} ${i}\nsay ${n}\n"
    assert play(subject, text) == 0
    assert said == ["512 1", "512 2", "2"]
    with pytest.raises(ScriptError, match=r"s:1: \$\{i\} has no value"):
        play(subject, "say ${i}")
    assert play(subject, "repeat many: say x\n") == 2
    assert "s:1: 'many' is not a number" in err(subject.printer)


def test_scripts_that_call_scripts(tmp_path: Path) -> None:
    ctx, said = saying()
    inner = tmp_path / "an inner.pti"
    inner.write_text("say ${x}\nsay bad\n")
    subject = player(ctx, variables={"dir": str(tmp_path)})
    assert play(subject, 'var x = 1\nsource "${dir}/an inner.pti"\nsay b\n') == 1
    assert said == ["1", "bad"]
    assert err(subject.printer) == f"{inner}:2: it is bad\n"
    own = tmp_path / "own.pti"
    own.write_text(f"source {own}\n")
    with pytest.raises(ScriptError, match=rf"^{own}:1: more than 8 scripts"):
        play(subject, f"source {own}")
    assert subject.play(parse("s", [f"source {own}"])) == 2
    assert f"{own}:1: more than 8 scripts" in err(subject.printer)
    with pytest.raises(ScriptError, match=r"^s:1: no script @no-such"):
        play(subject, "source @no-such")


def test_scripts_that_are_called_are_looked_at_first(tmp_path: Path) -> None:
    ctx, said = saying()
    (tmp_path / "a.pti").write_text("var x = 1\nvar y = ${x}\nsay ${y}\n")
    (tmp_path / "b.pti").write_text("say a\nnonsense\n")
    (tmp_path / "1.pti").write_text("say from 1\n")
    subject = player(ctx, variables={"dir": str(tmp_path)})
    assert play(subject, "source ${dir}/a.pti\nsay ${x}\nrepeat 1 as n: source ${dir}/${n}.pti\n") == 0
    assert said == ["1", "1", "from 1"]
    for text, message in {
        "say b\nsource ${dir}/b.pti\n": f"^{tmp_path}/b.pti:2: no command 'nonsense'",
        "source ${dir}/none.pti\n": f"^s:1: cannot read the script {tmp_path}/none.pti",
        "source ${dir}/b.pti ${dir}\n": "^s:1: source takes one file",
        "var z = 1 2\n": "^s:1: var z: more than one word",
        "repeat ${c}: say ${d}\n": r"^s:1: \$\{c\} has no value",
        "on stop any: say ${d}\n": r"^s:1: \$\{d\} has no value",
        "repeat 2 as i: say ${i}\nsay ${i}\n": r"^s:2: \$\{i\} has no value",
        "say ${-}\n": r"^s:1: \$\{-\} names no variable",
    }.items():
        with pytest.raises(ScriptError, match=message):
            play(player(ctx, variables={"dir": str(tmp_path)}), text)
    assert said == ["1", "1", "from 1"]


def test_a_time_limit_for_the_whole_run() -> None:
    def sleep(ctx: Any) -> Report:
        signal.raise_signal(signal.SIGALRM)
        return Report({})

    subject = player(with_command(sleep), keep_going=True)
    with subject.within(600):
        assert play(subject, "repeat 2:\n  probe\nprobe\n") == 3
    assert err(subject.printer) == "s:2: the time limit of 600 s for the whole run is over\n"
    assert subject.outcomes is not None
    assert [(o.name, o.code) for o in subject.outcomes] == [("probe", 3)]


def stopping(*places: tuple[int, int | None]) -> tuple[Any, list[str]]:
    """The same, with a guest that stops at one place after the other."""
    ctx, said = saying()
    session = FakeSession(kernel_tree().memory)
    left = list(places)

    def stop() -> Stop:
        pc, number = left.pop(0)
        return Stop("breakpoint-hit", 0, number, pc, "")

    session.on_wait = stop
    ctx.guest.session = session  # type: ignore[assignment]
    return ctx, said


def test_actions_at_stops() -> None:
    ctx, said = stopping((0x1000, None), (0x1000, None), (0x2000, 7), (0x3000, None))
    subject = player(ctx)
    text = """\
on stop 0x1000:
    say first
    continue
on stop 7: say seven
on stop any: say other
continue
say between
continue
on stop any: off
"""
    assert play(subject, text) == 0
    assert said == ["first", "first", "seven", "between", "other"]


def test_an_until_that_has_arrived_does_not_go_on() -> None:
    ctx, said = stopping()
    assert play(player(ctx), "on stop any:\n    say there\n    continue\nuntil 0x4000\nsay end\n") == 0
    assert said == ["there", "end"]


FOLDED = """\
on stop 0x1000:
    say room
    continue
on stop any: say other
continue
say end
"""
STOPS = (*((0x1000, None),) * 4, (0x3000, None))


def test_lines_of_a_script_are_shown_as_they_run() -> None:
    ctx, _ = stopping(*STOPS[2:])
    subject = player(ctx, echo=True)
    assert play(subject, "var a = x\nsay ${a}\n" + FOLDED) == 0
    shown = [line.removeprefix("ptinspect> ") for line in out(subject.printer).splitlines()]
    stops = [line for line in shown if line.startswith("stopped")]
    assert [line for line in shown if line not in stops] == [
        "say x", "x", "continue", "say room", "room", "… 1 more stop at 0x1000 with the same answer",
        "continue", "say other", "other", "say end", "end",
    ]  # fmt: skip
    assert len(stops) == 2
    quiet = player(stopping(*STOPS[2:])[0], echo=True)
    quiet.printer.json = True
    assert play(quiet, FOLDED) == 0
    assert [json.loads(line)["line"] for line in out(quiet.printer).splitlines()] == [
        "continue", "say room", "continue", "say room", "continue", "say other", "say end"
    ]  # fmt: skip


def test_stops_that_say_the_same_are_counted() -> None:
    ctx, said = stopping(*STOPS)
    subject = player(ctx)
    assert play(subject, FOLDED) == 0
    assert said == ["room"] * 4 + ["other", "end"]
    assert subject.outcomes is not None and len(subject.outcomes) == 11
    assert out(subject.printer).count("room") == 1
    assert "\n… 3 more stops at 0x1000 with the same answer\nstopped: cpu 0 at 0x3000" in out(subject.printer)
    ctx, _ = stopping(*STOPS)
    ctx.options.set("fold", "off", "session")
    subject = player(ctx)
    assert play(subject, FOLDED) == 0
    assert out(subject.printer).count("room") == 4 and "…" not in out(subject.printer)


def test_a_stop_that_says_something_else_is_shown() -> None:
    ctx, _ = stopping(*STOPS)
    rooms = iter((1, 1, 2, 1))
    declare(ctx.registry, "room", lambda ctx: Report({}, (Note(f"{next(rooms)} free"),)))
    subject = player(ctx)
    assert play(subject, FOLDED.replace("say room", "room")) == 0
    shown = [line for line in out(subject.printer).splitlines() if not line.startswith("stopped")]
    assert shown == [
        "1 free", "… 1 more stop at 0x1000 with the same answer", "2 free", "1 free", "other", "end"
    ]  # fmt: skip


def test_ctrl_c_while_stops_are_shown_leaves_the_printer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = player(stopping(*STOPS)[0])

    def interrupted(text: str, style: str = "plain") -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subject.printer, "print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        play(subject, "on stop 0x1000: say room; continue\ncontinue\n")
    assert subject.printer.taker is None


def test_a_stop_on_another_cpu_is_no_other_answer() -> None:
    ctx, _ = stopping()
    cpus = iter((0, 2, 2, 1))
    ctx.guest.session.on_wait = lambda: Stop("breakpoint-hit", next(cpus), 5, 0x1000, "")
    subject = player(ctx, keep_going=True)
    text = "on stop 5: say room; continue\ncontinue\n"
    with pytest.raises(StopIteration):
        play(subject, text)
    assert "… 3 more stops at breakpoint 5 with the same answer (cpus 1, 2)\n" in out(subject.printer)


def test_what_goes_wrong_at_a_stop_is_shown_with_it() -> None:
    ctx, said = stopping(*STOPS)

    def fails_at_the_third(ctx: Any) -> Report:
        said.append("x")
        if len(said) == 3:
            raise Bad("it is bad")
        return Report({}, (Note("good"),))

    declare(ctx.registry, "probe", fails_at_the_third)
    subject = player(ctx)
    assert play(subject, FOLDED.replace("say room", "probe")) == 1
    shown = out(subject.printer).splitlines()
    assert shown[1:3] == ["good", "… 1 more stop at 0x1000 with the same answer"]
    assert len(shown) == 4 and shown[3].startswith("stopped")
    assert err(subject.printer) == "s:2: it is bad\n"


def test_a_failing_action_ends_the_script() -> None:
    ctx, said = stopping((0x1000, None), (0x1000, None))
    assert play(player(ctx), "on stop 0x1000: say bad; continue\ncontinue\nsay b\n") == 1
    assert said == ["bad"]


def test_a_failing_action_is_not_forgotten_when_it_goes_on() -> None:
    ctx, said = stopping((0x1000, None), (0x2000, None))
    subject = player(ctx, keep_going=True)
    assert play(subject, "on stop 0x1000: say bad; continue\ncontinue\nsay b\n") == 1
    assert said == ["bad", "b"]


def test_finish_does_not_go_on() -> None:
    ctx, said = stopping((0x1000, 1), (0x2000, None))
    real = ctx.registry.commands[("finish",)]
    stopped = Report({"state": "stopped", "pc": "0x1000", "breakpoint": 1})
    ctx.registry.commands[("finish",)] = replace(real, handler=lambda ctx, **parsed: stopped)
    subject = player(ctx)
    assert play(subject, "on stop 1: say a; continue\nfinish\nsay b\n") == 2
    assert "'finish' cannot go on" in err(subject.printer)
    assert play(subject, "on stop 1: say a\nfinish\nsay b\n") == 0
    assert said == ["a", "b"]


def test_an_action_may_not_continue_in_its_middle() -> None:
    ctx, _ = stopping()
    subject = player(ctx)
    assert play(subject, "on stop any: continue; say a\n") == 2
    assert "it can only be the last" in err(subject.printer)


def test_an_action_for_a_place_that_nobody_knows() -> None:
    ctx, _ = stopping()
    subject = player(ctx)
    assert play(subject, "on stop no_such_symbol: say a\n") == 2
    assert err(subject.printer).startswith("s:1: on stop no_such_symbol: nobody knows where that is without")
    assert "kernel FILE, before it" in err(subject.printer)


def test_every_ready_script_parses_and_names_only_known_commands() -> None:
    assert shipped_scripts()
    for script in shipped_scripts():
        assert script.summary and not script.summary.endswith(".")
        subject = player(context())
        subject.check(parse(script.name, script.path.read_text().splitlines()))


def test_a_session_is_recorded_and_runs_again(tmp_path: Path) -> None:
    ctx, said = saying()
    subject = player(ctx, variables={"who": "you and I", "other": "x"})
    path = tmp_path / "session.pti"
    for line in (
        "say before",
        f"record {path} --all",
        "say ${who}",
        "say bad",
        "nonsense",
        "say ${-}",
        "help",
        "repeat 2 as n: say ${n}",
        "on stop any: off",
        "record",
        "record off",
        "say after",
    ):
        subject.play([parse_line(line)])
    assert "recording into" in out(subject.printer) and "is complete: 7 statements" in out(subject.printer)
    assert path.read_text().splitlines()[1:] == [
        "say before",
        "var who = 'you and I'",
        "say ${who}",
        "# exit code 1: it is bad",
        "# say bad",
        "# exit code 2: no command 'nonsense'",
        "# nonsense",
        "# exit code 2: ${-} names no variable",
        "# say ${-}",
        "repeat 2 as n:",
        "    say ${n}",
        "on stop any: off",
    ]
    said.clear()
    assert play(player(ctx), f"source {path}") == 0
    assert said == ["before", "'you and I'", "1", "2"]


def test_a_line_is_recorded_whatever_ran_at_its_stop(tmp_path: Path) -> None:
    ctx, _ = stopping((0x1000, None))
    subject = player(ctx)
    path = tmp_path / "s.pti"
    for line in (f"record {path}", "on stop any: help", "continue", "help"):
        subject.play([parse_line(line)])
    assert path.read_text().splitlines()[-3:] == ["on stop any:", "    help", "continue"]


def test_what_was_interrupted_is_recorded_as_a_comment(tmp_path: Path) -> None:
    def interrupted(ctx: Any) -> Report:
        raise KeyboardInterrupt

    subject = player(with_command(interrupted))
    path = tmp_path / "s.pti"
    subject.play([parse_line(f"record {path}")])
    with pytest.raises(KeyboardInterrupt):
        subject.play(parse("s", ["repeat 2: probe"]))
    assert path.read_text().splitlines()[1:] == ["# exit code 130: interrupted", "# repeat 2:", "#     probe"]
    assert subject.at.place == "s:1"
    assert subject.outcomes is not None
    assert [(o.name, o.code) for o in subject.outcomes] == [("record", 0), ("probe", 130)]


def test_record_says_what_the_script_needs(tmp_path: Path) -> None:
    ctx = context(kernel_tree())
    ctx.guest.kernel_path = Path("/a b/Image")
    subject = player(ctx)
    assert subject.play([parse_line(f"record {tmp_path}/a"), parse_line("record off")]) == 0
    assert subject.play([parse_line(f"record {tmp_path}/b --all")]) == 0
    head, more = (tmp_path / "a").read_text().splitlines()
    assert head == f"# Recorded; to run it again: ptinspect --kernel '/a b/Image' -x {tmp_path}/a"
    assert more.startswith("# A guest was attached already")
    assert len((tmp_path / "b").read_text().splitlines()) == 1


def test_record_is_told_what_it_does(tmp_path: Path) -> None:
    subject = player(context())
    assert subject.play([parse_line("record off")]) == 2
    assert subject.play([parse_line("record")]) == 0
    assert "nothing is recorded" in out(subject.printer)
    assert subject.play([parse_line(f"record {tmp_path}/none/s")]) == 2


def test_a_disk_that_is_full_ends_the_recording() -> None:
    ctx, said = saying()
    subject = player(ctx)
    assert subject.play([parse_line("record /dev/full --force")]) == 2
    assert "cannot write /dev/full" in err(subject.printer)
    assert subject.play([parse_line("say a")]) == 0
    assert said == ["a"]


def test_what_is_to_be_done_after_a_failure_is_done_once() -> None:
    ctx, said = saying()
    subject = player(ctx, variables={"who": "me"})
    text = """\
say a
on failure:
    say bad
    say after ${who}
    repeat 2 as n: say ${n}
say differs
say b
"""
    assert play(subject, text) == 1
    assert said == ["a", "differs", "bad", "after me", "1", "2"]
    assert err(subject.printer) == "s:6: differs\ns:3: it is bad\n"
    said.clear()
    assert play(subject, "on failure: say x\non failure: off\nsay bad\n") == 1
    assert said == ["bad"]
    said.clear()
    assert play(player(ctx, keep_going=True), "on failure: say x\nrepeat 2: say bad\nsay bad\n") == 1
    assert said == ["bad", "bad", "x", "bad"]
    said.clear()
    ctx.interactive = True
    assert play(subject, "on failure: say x\nsay bad\n") == 1
    assert said == ["bad"]


def test_nothing_is_done_after_the_time_is_over() -> None:
    def sleep(ctx: Any) -> Report:
        signal.raise_signal(signal.SIGALRM)
        return Report({})

    subject = player(with_command(sleep))
    with subject.within(600):
        assert play(subject, "on failure: version\nprobe\n") == 3
    assert out(subject.printer) == ""


def test_the_command_at_which_the_time_was_over_is_named() -> None:
    def nap(ctx: Any, *, line: str) -> Report:
        signal.raise_signal(signal.SIGALRM)
        return Report({})

    ctx = context()
    declare(ctx.registry, "nap", nap, passthrough=True)
    subject = player(ctx, variables={"long": "60"})
    with subject.within(600):
        assert play(subject, "nap ${long}\n") == 3
    assert subject.outcomes is not None
    assert [(o.name, o.line) for o in subject.outcomes] == [("nap", "nap ${long}")]


def test_a_script_that_comes_slowly_is_ended_in_time() -> None:
    def lines() -> Iterator[str]:
        yield "say a"
        signal.raise_signal(signal.SIGALRM)
        yield "say b"

    ctx, said = saying()
    subject = player(ctx)
    with subject.within(600):
        assert subject.play(parse("stdin", lines())) == 3
    assert said == ["a"]
    assert "the time limit of 600 s for the whole run is over" in err(subject.printer)


def test_the_script_in_the_help_is_one() -> None:
    from ptinspect.commands.session.scripting import EXAMPLE

    subject = player(context())
    subject.check(parse("help", EXAMPLE.splitlines()))
