"""What the fingers of GDB's users know: print, info, nexti, x that goes on, disassemble, and hints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import IMAGE, KERNEL, FakeKernel, Stop, context, kernel_tree, run, text

from ptinspect.arch.a64 import is_call
from ptinspect.commands.framework.registry import INSTEAD, build_registry
from ptinspect.commands.look import memory
from ptinspect.commands.look.info import WORDS
from ptinspect.errors import TargetTimeout, UserError
from ptinspect.guest import writer


@pytest.fixture
def ctx() -> Any:
    return context(kernel_tree(), FakeKernel())


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("c", "continue"),
        ("si 3", "stepi"),
        ("s", "stepi"),
        ("step", "stepi"),
        ("ni", "nexti"),
        ("n", "nexti"),
        ("next", "nexti"),
        ("b *0x10", "break"),
        ("bt", "bt"),
        ("where", "bt"),
        ("x/4gx $sp", "x"),
        ("p/x $sp", "print"),
        ("print $sp", "print"),
        ("i r", "info"),
        ("info registers", "info"),
        ("d 1", "delete"),
        ("q", "quit"),
        ("fin", "finish"),
        ("u start_kernel", "until"),
        ("advance start_kernel", "until"),
        ("disas", "disassemble"),
        ("h walk", None),
    ],
)
def test_what_fingers_type(line: str, name: str | None) -> None:
    registry = build_registry()
    if name is None:
        with pytest.raises(UserError, match="ambiguous"):
            registry.split(line)
    else:
        assert registry.split(line).command.name == name


@pytest.mark.parametrize("word", sorted(INSTEAD))
def test_what_is_missing_says_what_to_type(word: str) -> None:
    with pytest.raises(UserError) as caught:
        build_registry().split(word)
    assert caught.value.hint == INSTEAD[word]


def test_print(ctx: Any) -> None:
    result = run(ctx, "print swapper_pg_dir+0x1000").result
    assert (result["value"], result["symbol"], result["offset"]) == (
        f"{KERNEL + 0x101000:#x}",
        "swapper_pg_dir",
        0x1000,
    )
    assert run(ctx, "p start_kernel - _text + 4K").result["value"] == "0x2000"
    assert run(ctx, "p $x1 + 3").result["decimal"] == ctx.guest.session.cpu_state(0).x[1] + 3
    assert run(ctx, f"p {KERNEL:#x}").result["signed"] == KERNEL - (1 << 64)
    physical = run(ctx, "p pa:0x41475000+8")
    assert physical.result["physical"]
    assert "pa:0x41475008" in text(physical)
    for form, shown in (
        ("x", "0x41"),
        ("d", "65"),
        ("u", "65"),
        ("t", "0b1000001"),
        ("c", "65 'A'"),
        ("a", "0x41"),
    ):
        assert text(run(ctx, f"p/{form} 65")) == f"{shown}\n"
    assert text(run(ctx, f"p/a {KERNEL + 4:#x}")) == f"{KERNEL + 4:#x} (_text+0x4)\n"
    assert text(run(ctx, "p/d 0xffffffffffffffff")) == "-1\n"


def test_print_without_a_guest() -> None:
    ctx = context()
    assert run(ctx, "p 0x10+2").result["decimal"] == 18
    with pytest.raises(UserError, match="kernel file"):
        run(ctx, "p start_kernel")
    ctx.guest._kernel = FakeKernel()  # type: ignore[assignment]
    assert run(ctx, "p start_kernel").result["value"] == f"{KERNEL + 0x1000:#x}"
    with pytest.raises(UserError, match="stopped guest"):
        run(ctx, "p $sp")
    assert run(ctx, "p 3-5").result["signed"] == -2


def test_info_runs_the_command_that_answers(ctx: Any) -> None:
    assert run(ctx, "i r x0").result == run(ctx, "regs x0").result
    assert run(ctx, "info b").result == {"breakpoints": [], "watchpoints": []}
    assert run(ctx, "info symbol start_kernel+4").result["symbol"] == "start_kernel"
    assert run(ctx, "info th").result == run(ctx, "cpu").result
    assert "(regs x0)" in text(run(ctx, "i r x0"))
    assert run(ctx, "info").result == {"words": dict(WORDS)}
    for line, hint in (
        ("info functions", "gdb info functions"),
        ("info a", "ambiguous: address, all-registers"),
    ):
        with pytest.raises(UserError) as caught:
            run(ctx, line)
        assert hint in f"{caught.value.message} {caught.value.hint}"
    registry = build_registry()
    assert [ours for ours in WORDS.values() if (ours,) not in registry.commands] == []


@pytest.mark.parametrize(
    ("word", "call"),
    [
        (0x94000001, True),  # bl
        (0x97FFFFFF, True),  # bl backwards
        (0xD63F0020, True),  # blr x1
        (0xD63F081F, True),  # blraaz x0
        (0xD73F0801, True),  # blraa x0, x1
        (0x14000001, False),  # b
        (0xD61F0020, False),  # br x1
        (0xD65F03C0, False),  # ret
        (0xD503201F, False),  # nop
    ],
)
def test_calls_are_told_by_their_instruction(word: int, call: bool) -> None:
    assert is_call(word) is call


@pytest.mark.parametrize("line", ["stepi", "stepi 3", "nexti"])
def test_a_cpu_that_executes_nothing_is_told(ctx: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(count: int, cpu: int) -> None:
        raise TargetTimeout("the guest did not stop within 10 s")

    monkeypatch.setattr(writer, "instruction_at", lambda guest, state, pc: 0xD503207F)  # wfi
    monkeypatch.setattr(ctx.guest.session, "step_instructions", late)
    with pytest.raises(TargetTimeout, match="cpu 0 executes nothing: it is off, or waits for an interrupt"):
        run(ctx, line)


def test_nexti_goes_over_a_call_and_steps_what_is_none(ctx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = {KERNEL: 0x94000400, KERNEL + 4: 0xD503201F}
    monkeypatch.setattr(writer, "instruction_at", lambda guest, state, pc: code[pc])
    ctx.guest.session.cpus[0] = replace(ctx.guest.session.cpus[0], pc=KERNEL)
    run(ctx, "ni")
    assert ("until", (KERNEL + 4,)) in ctx.guest.session.calls
    ctx.guest.session.cpus[0] = replace(ctx.guest.session.cpus[0], pc=KERNEL + 4)
    run(ctx, "ni")
    assert ctx.guest.session.calls[-1] == ("step", 1, 0)


def test_nexti_stops_where_something_else_stops_it(ctx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "instruction_at", lambda guest, state, pc: 0x94000400)
    ctx.guest.session.run_until = lambda addresses, timeout: ctx.guest.session._stopped(
        Stop("breakpoint-hit", 0, 2, KERNEL + 0x1000, "")
    )
    shown = run(ctx, "ni 5").result
    assert (shown["reason"], shown["breakpoint"]) == ("breakpoint-hit", 2)


def test_x_goes_on_where_it_ended(ctx: Any) -> None:
    with pytest.raises(UserError, match="from which address"):
        run(ctx, "x")
    first = run(ctx, f"x/2gx {KERNEL:#x}")
    assert first.result["bytes"] == run(ctx, f"x/2gx pa:{IMAGE:#x}").result["bytes"]
    assert run(ctx, "x").result["address"] == f"{IMAGE + 16:#x}"
    assert run(ctx, "x/4bx").result["physical"]
    assert run(ctx, "x").result["address"] == f"{IMAGE + 36:#x}"
    assert build_registry().split("x/2gx 0").command.again == "x"


def test_x_i_names_where_a_branch_goes(ctx: Any) -> None:
    ctx.guest.session.gdb_command = lambda line: listing(KERNEL, 2, False)
    report = run(ctx, f"x/2i {KERNEL:#x}")
    assert "bl      <start_kernel>" in text(report)
    assert f"bl      {KERNEL + 0x1000:#x}" in report.result["lines"][-1]


def listing(first: int, count: int, named: bool) -> str:
    name = " <other+0x0>" if named else ""
    lines = [f"   {first + 4 * n:#x}{name}:\tnop" for n in range(count - 1)]
    return "\n".join([*lines, f"   {first + 4 * count - 4:#x}{name}:\tbl\t{KERNEL + 0x1000:#x}{name}"])


@pytest.mark.parametrize("named", [False, True], ids=["image", "vmlinux"])
def test_disassemble_names_what_gdb_may_not_know(
    ctx: Any, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def gdb(line: str) -> str:
        asked.append(line)
        return listing(int(line.split()[1], 16), int(line.split("/")[1].split("i", maxsplit=1)[0]), named)

    ctx.guest.session.gdb_command = gdb
    ctx.guest.session.cpus[0] = ctx.guest.session.cpus[0].__class__(
        **{**vars(ctx.guest.session.cpus[0]), "pc": KERNEL + 0x100}
    )
    report = run(ctx, "disas")
    assert asked == [f"x/16i {KERNEL + 0x100 - 24:#x}"]
    assert (report.result["function"], report.result["end"]) == ("_text", f"{KERNEL + 0x1000:#x}")
    shown = text(report)
    assert f"=> {KERNEL + 0x100:#x} +0x100 nop" in shown
    assert "bl      <start_kernel>\n" in shown
    assert report.result["instructions"][-1]["text"] == f"bl {KERNEL + 0x1000:#x}"
    monkeypatch.setattr(memory, "CODE_COLUMNS", 12)
    assert f"bl      {KERNEL + 0x1000:#x}\n" in text(run(ctx, "disas"))
    asked.pop()
    assert "other" not in shown
    assert "--all" in shown
    assert len(run(ctx, "disas --all").result["instructions"]) == 0x400
    assert run(ctx, "disas _text -n 3").result["instructions"][0]["address"] == f"{KERNEL:#x}"
    assert asked[-1] == f"x/3i {KERNEL:#x}"
    run(ctx, f"disas {0x1000:#x}")
    assert asked[-1] == "x/16i 0x1000"
    with pytest.raises(UserError, match="multiple of 4"):
        run(ctx, "disas 0x1002")
