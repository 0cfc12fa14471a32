"""Walk, registers, run control and the target, on a session that is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import (
    IMAGE,
    KERNEL,
    FakeKernel,
    FakeSession,
    FakeView,
    State,
    Stop,
    context,
    cpu,
    kernel_tree,
    run,
    text,
)

from ptinspect.commands.framework.context import Context
from ptinspect.errors import (
    GuestError,
    KernelFileError,
    MiError,
    TargetLost,
    TargetRunning,
    TargetTimeout,
    UserError,
)


@pytest.fixture
def ctx() -> Context:
    return context(kernel_tree())


def session_of(ctx: Context) -> FakeSession:
    return ctx.guest.session  # type: ignore[return-value]


def with_kernel(ctx: Context) -> Context:
    ctx.guest._kernel = FakeKernel()  # type: ignore[assignment]
    return ctx


# -- preconditions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["walk 0x10", "regs", "regime", "snap a", "continue", "bt", "x 0x10", "gdb p 1"]
)
def test_commands_that_need_a_guest(line: str) -> None:
    with pytest.raises(UserError, match="not attached") as caught:
        run(context(), line)
    assert "attach ADDR" in caught.value.hint


@pytest.mark.parametrize("line", ["walk 0x10", "regs", "regime", "snap a", "finish", "stepi", "bt", "x 0x10"])
def test_commands_that_need_a_stopped_guest(ctx: Context, line: str) -> None:
    session_of(ctx).state = State.RUNNING
    with pytest.raises(TargetRunning) as caught:
        run(ctx, line)
    assert "interrupt" in caught.value.hint


def test_delete_alone_asks(ctx: Context) -> None:
    run(ctx, "break 0x10")
    run(ctx, "break 0x20")
    with pytest.raises(UserError) as caught:
        run(ctx, "delete")
    assert "delete all" in caught.value.hint
    asked: list[str] = []
    ctx.interaction.confirm = lambda question: not asked.append(question)  # type: ignore[method-assign,func-returns-value]
    assert run(ctx, "d").result["deleted"] == [1, 2]
    assert asked == ["delete all 2 breakpoints?"]
    with pytest.raises(UserError):
        run(ctx, "d")


def test_continue_waits_for_a_guest_that_runs_already(ctx: Context) -> None:
    session = session_of(ctx)
    session.state, session.on_wait = State.RUNNING, lambda: Stop("breakpoint-hit", 0, 1)
    assert run(ctx, "continue").result["reason"] == "breakpoint-hit"
    assert [call[0] for call in session.calls] == ["wait"]


@pytest.mark.parametrize("line", ["walk 0x10", "gdb info threads", "interrupt"])
def test_a_dead_guest_is_named(ctx: Context, line: str) -> None:
    session_of(ctx).state = State.DEAD
    with pytest.raises(TargetLost):
        run(ctx, line)


# -- walk ---------------------------------------------------------------------------------------


def test_walk_to_a_block(ctx: Context) -> None:
    result = run(ctx, f"walk {KERNEL + 0x1234:#x}").result
    assert result["outcome"] == "mapped"
    assert result["pa"] == hex(IMAGE + 0x1234)
    assert result["root"]["provenance"] == "TTBR1_EL1 of cpu 0"
    assert [(s["level"], s["name"], s["kind"]) for s in result["steps"]] == [
        (0, "pgd", "table"),
        (1, "pud", "table"),
        (2, "pmd", "block"),
    ]
    assert result["steps"][-1]["bit11"] is False
    assert result["steps"][-1]["attributes"]["ng"] is False
    assert result["permissions"].items() >= {"el1": "rw-", "el0": "---", "privileged": "EL1"}.items()


def test_walk_says_root_and_why(ctx: Context) -> None:
    shown = text(run(ctx, f"walk {KERNEL:#x}"))
    assert f"root pa:{kernel_tree().root:#x}: TTBR1_EL1 of cpu 0 (guest)" in shown
    assert "mapped to pa:0x40200000" in shown


def test_walk_to_a_hole(ctx: Context) -> None:
    result = run(ctx, "walk 0xffff900000000000").result
    assert (result["outcome"], result["fault_level"], result["pa"]) == ("fault", 0, None)


def test_walk_of_a_symbol_and_of_a_register(ctx: Context) -> None:
    with_kernel(ctx)
    assert run(ctx, "walk start_kernel+8").result["pa"] == hex(IMAGE + 0x1008)
    assert run(ctx, "walk $pc").result["va"] == hex(KERNEL + 0x1_0000)


def test_walk_of_a_user_address_uses_ttbr0(ctx: Context) -> None:
    result = run(ctx, "walk 0x400000").result
    assert result["root"] == {"pa": "0x0", "provenance": "TTBR0_EL1 of cpu 0"}
    assert (result["outcome"], result["steps"][0]["raw"]) == ("unreadable", None)


@pytest.mark.parametrize("root", ["ttbr1", "swapper", "{root:#x}", "pa:{root:#x}", "$TTBR1_EL1"])
def test_walk_from_a_chosen_root(ctx: Context, root: str) -> None:
    chosen = root.format(root=kernel_tree().root)
    assert run(ctx, f"walk {KERNEL:#x} --root {chosen}").result["outcome"] == "mapped"


def test_walk_of_a_physical_address_says_what_to_type(ctx: Context) -> None:
    with pytest.raises(UserError) as caught:
        run(ctx, "walk pa:0x40200000")
    assert "find" in caught.value.hint


def test_walk_with_the_mmu_off_says_so() -> None:
    tree = kernel_tree()
    ctx = context(tree)
    session_of(ctx).cpus = [cpu(tree, SCTLR_EL1=0)]
    report = run(ctx, f"walk {KERNEL:#x}")
    assert (report.result["outcome"], report.result["mmu_on"]) == ("mapped", False)
    assert "the MMU is off" in text(report) and "without tables" not in text(report)
    assert "as a physical one, without tables" in text(run(ctx, "walk 0x40000000"))


@pytest.mark.parametrize("attached", [False, True])
def test_a_file_that_is_no_kernel_does_not_take_the_place_of_the_one_before(
    tmp_path: Path, attached: bool
) -> None:
    ctx = context(kernel_tree() if attached else None)
    before = ctx.guest.kernel_path = tmp_path / "vmlinux"
    bad = tmp_path / "bad"
    bad.write_bytes(b"no kernel")
    with pytest.raises(KernelFileError, match="neither"):
        run(ctx, f"kernel {bad}")
    assert ctx.guest.kernel_path == before


def test_symbols_need_a_kernel(ctx: Context) -> None:
    with pytest.raises(UserError, match="need the kernel file"):
        run(ctx, "walk start_kernel")


# -- registers ----------------------------------------------------------------------------------


def test_regs(ctx: Context) -> None:
    result = run(ctx, "regs x3 lr sp ttbr1 $pc").result["registers"]
    assert result == {
        "x3": "0x3",
        "lr": "0x1e",
        "sp": "0xffff800010003f00",
        "ttbr1": hex(kernel_tree().root),
        "pc": "0xffff800010010000",
    }
    everything = run(ctx, "regs")
    assert len(everything.result["registers"]) == 31 + 3 + 5
    assert max(len(line) for line in text(everything).splitlines()) <= 80


def test_regs_refuses_a_name_that_is_none(ctx: Context) -> None:
    with pytest.raises(UserError, match=r"no register \$x31"):
        run(ctx, "regs x31")


def test_regime(ctx: Context) -> None:
    report = run(ctx, "regime")
    upper = report.result["ttbr1"]
    assert (upper["granule"], upper["va_bits"], upper["start_level"], upper["root_pa"]) == (
        4096,
        48,
        0,
        hex(kernel_tree().root),
    )
    assert report.result["mmu_on"] is True
    assert report.result["mair"]["types"][0] == "Normal WB"
    assert max(len(line) for line in text(report).splitlines()) <= 80


def test_regime_of_a_cpu_that_has_none(ctx: Context) -> None:
    tree = kernel_tree()
    session_of(ctx).cpus = [cpu(tree, TCR_EL1=0, SCTLR_EL1=0)]
    result = run(ctx, "regime").result
    assert "reserved granule" in result["ttbr1"]["error"]
    assert result["mmu_on"] is False


# -- run control --------------------------------------------------------------------------------


def test_break_at_a_symbol_and_at_a_physical_address(ctx: Context) -> None:
    with_kernel(ctx)
    assert run(ctx, "break start_kernel").result["place"] == f"{KERNEL + 0x1000:#x} (start_kernel+0x0)"
    run(ctx, "b pa:0x40201000 --temporary")
    calls = [call for call in session_of(ctx).calls if call[0] == "break"]
    assert [call[1] for call in calls] == [KERNEL + 0x1000, 0x40201000]
    assert calls[1][2]["temporary"]
    assert "0x40201000 (start_kernel)" in text(run(ctx, "break"))


def test_break_where_nothing_tells_the_address_yet(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Image of v7.0 or later does not tell where it is linked: its addresses are offsets."""

    def unknown(*_: object) -> int:
        raise GuestError("it is not known where the kernel runs")

    monkeypatch.setattr(FakeView, "symbol", unknown)
    monkeypatch.setattr(FakeView, "pa_of_link", unknown)
    monkeypatch.setattr(FakeView, "placed", False)
    monkeypatch.setattr(FakeKernel, "path", Path("Image"), raising=False)
    with_kernel(ctx)
    made = run(ctx, "break start_kernel").result
    assert made["as_linked"] and made["pending"] and made["places"] == []
    monkeypatch.setattr(FakeKernel, "linked", False)
    assert run(ctx, "break start_kernel+4").result["id"] != made["id"]
    assert "breakpoint, pending     0  start_kernel+4" in text(run(ctx, "break"))
    run(ctx, "delete all")
    assert run(ctx, "break").result["breakpoints"] == []
    assert ctx.guest.place(0x40_0000) == "0x400000"


def test_delete(ctx: Context) -> None:
    for address in ("0x1000", "0x2000", "0x3000"):
        run(ctx, f"break {address}")
    run(ctx, "delete 2")
    assert [b.id for b in session_of(ctx).breakpoints] == [1, 3]
    with pytest.raises(UserError, match="no breakpoint 2"):
        run(ctx, "delete 1 2")
    assert [b.id for b in session_of(ctx).breakpoints] == [1, 3]
    run(ctx, "delete all")
    assert session_of(ctx).breakpoints == ()


def test_continue_has_a_limit_in_scripts_only(ctx: Context) -> None:
    session_of(ctx).on_wait = lambda: Stop("breakpoint-hit", 0, 1, KERNEL + 0x1004, "")
    report = run(with_kernel(ctx), "continue")
    assert report.result["place"] == f"{KERNEL + 0x1004:#x} (start_kernel+0x4)"
    ctx.interactive = True
    run(ctx, "c")
    run(ctx, "c --timeout 5")
    waits = [call[1] for call in session_of(ctx).calls if call[0] == "wait"]
    assert waits[0] <= 600
    assert waits[1] > 86400
    assert waits[2] == 5.0


def test_continue_in_the_background(ctx: Context) -> None:
    assert run(ctx, "continue --background").result == {"state": "running"}
    assert run(ctx, "interrupt").result["state"] == "stopped"
    with pytest.raises(UserError, match="stopped already"):
        run(ctx, "interrupt")


def test_backtrace_follows_frame_records() -> None:
    tree = kernel_tree()
    ctx = with_kernel(context(tree))
    record = 0xFFFF_0000_0000_1000
    tree.memory.write(
        0x4000_1000, (record + 0x40).to_bytes(8, "little") + (KERNEL + 0x10).to_bytes(8, "little")
    )
    tree.memory.write(0x4000_1040, (0).to_bytes(8, "little") + (KERNEL + 0x1008).to_bytes(8, "little"))
    tree.memory.write(IMAGE + 0x1004, (0x9100_03FD).to_bytes(4, "little"))  # mov x29, sp
    state = cpu(tree)
    x = (*state.x[:29], record, 0xDEAD)
    session_of(ctx).cpus = [type(state)(0, x, record, KERNEL + 0x1010, state.pstate, state.system)]
    result = run(ctx, "bt").result
    assert [f["pc"] for f in result["frames"]] == [
        hex(KERNEL + 0x1010),
        hex(KERNEL + 0x10),
        hex(KERNEL + 0x1008),
    ]
    assert result["ended"] == "a frame record of zero"


# -- memory and passing through -----------------------------------------------------------------


def test_x_reads_virtual_and_physical(ctx: Context) -> None:
    tree = kernel_tree()
    ctx = context(tree)
    tree.memory.write(IMAGE, bytes(range(1, 33)))
    assert run(ctx, f"x/2gx {KERNEL:#x}").result["bytes"] == bytes(range(1, 17)).hex()
    assert run(ctx, f"x/2wx pa:{IMAGE:#x}").result["bytes"] == bytes(range(1, 9)).hex()
    assert "0x0807060504030201  " not in text(run(ctx, f"x/2gx {KERNEL:#x}"))
    assert "0x0807060504030201 0x100f0e0d0c0b0a09" in text(run(ctx, f"x/2gx {KERNEL:#x}"))


def test_x_of_a_string_cannot_reach_the_terminal(ctx: Context) -> None:
    tree = kernel_tree()
    ctx = context(tree)
    tree.memory.write(IMAGE, b"evil\x1b[2J\x00next\x00")
    shown = text(run(ctx, f"x/2s {KERNEL:#x}"))
    assert '"evil\\x1b[2J"' in shown
    assert '"next"' in shown


def test_x_shows_what_it_can_before_a_hole(ctx: Context) -> None:
    report = run(ctx, "x/4gx 0xffff800020000ff0")
    assert len(bytes.fromhex(report.result["bytes"])) == 16
    assert "not mapped" in report.result["error"]
    assert "not mapped" in text(report)


@pytest.mark.parametrize("form", ["x/q", "x/0gx", "x/999999999gx"])
def test_x_refuses(ctx: Context, form: str) -> None:
    with pytest.raises(UserError):
        run(ctx, f"{form} 0x10")


def test_gdb_and_monitor_are_passed_on_and_escaped(ctx: Context) -> None:
    assert run(ctx, 'gdb p "a b"  + 1').result["lines"] == ['\\x1b[2Jgdb p "a b"  + 1']
    assert run(ctx, "monitor info mtree -f").result["lines"] == ["monitor info mtree -f"]


def test_gdb_that_would_need_debug_information_is_told_how_to_get_it(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "vm linux"
    kernel.write_bytes(b"\x7fELF")
    answers = {"info line f": "No line number information available for address 0x10", "p 1": "$1 = 1"}

    def gdb_command(line: str) -> str:
        if line not in answers:
            raise MiError("No struct type named page.")
        return answers[line]

    monkeypatch.setattr(session_of(ctx), "gdb_command", gdb_command)
    assert "debug information" not in text(run(ctx, "gdb info line f"))
    ctx.guest.use_kernel(kernel)
    assert f"gdb symbol-file '{kernel}'" in text(run(ctx, "gdb info line f"))
    assert "debug information" not in text(run(ctx, "gdb p 1"))
    with pytest.raises(MiError, match="No struct type") as caught:
        run(ctx, "gdb p sizeof(struct page)")
    assert "symbol-file" in caught.value.hint
    answers[f"symbol-file {kernel}"] = ""
    run(ctx, f"gdb symbol-file {kernel}")
    with pytest.raises(MiError) as caught:
        run(ctx, "gdb p sizeof(struct page)")
    assert caught.value.hint == ""


@pytest.mark.parametrize("line", ["gdb", "monitor", "gdb  "])
def test_nothing_is_not_passed_on(ctx: Context, line: str) -> None:
    with pytest.raises(UserError, match="which command"):
        run(ctx, line)
    assert session_of(ctx).calls == []


# -- target -------------------------------------------------------------------------------------


def test_status(ctx: Context) -> None:
    assert run(context(), "status").result["attached"] is False
    report = run(ctx, "status")
    assert (report.result["state"], report.result["el"], report.result["mmu_on"]) == ("stopped", 1, True)
    assert "EL1, MMU on" in text(report)


@pytest.mark.parametrize(
    ("line", "resume"), [("detach", None), ("detach --resume", True), ("detach --stop", False)]
)
def test_detach(ctx: Context, line: str, resume: bool | None) -> None:
    session = session_of(ctx)
    run(ctx, line)
    assert session.calls == [("detach", resume), ("close",)]
    assert ctx.guest.session is None


def test_a_second_guest_is_refused(ctx: Context) -> None:
    for line in ("attach :99", "launch /no/such/kernel"):
        with pytest.raises(UserError, match="attached to :1234 already"):
            run(ctx, line)


def test_attach_without_an_address_needs_a_launched_guest() -> None:
    with pytest.raises(UserError, match="which gdbstub"):
        run(context(), "attach")


def test_a_launched_qemu_that_has_gone_is_noticed_while_the_guest_is_stopped(ctx: Context) -> None:
    class Qemu:
        gdb_socket = ":1234"
        pid = 1
        console = Path("console")
        alive = False

    ctx.guest.qemu = Qemu()  # type: ignore[assignment]
    with pytest.raises(TargetLost):
        run(ctx, "regs")
    assert run(ctx, "status").result["state"] == "dead"
    run(ctx, "detach")
    assert ctx.guest.session is None


def test_the_chosen_cpu_is_the_one_that_commands_are_about() -> None:
    tree = kernel_tree()
    ctx = context(tree)
    session_of(ctx).cpus = [cpu(tree), cpu(tree, 1, SCTLR_EL1=0)]
    assert [c["mmu_on"] for c in run(ctx, "cpu").result["cpus"]] == [True, False]
    assert run(ctx, "cpu").result["cpus"][0]["ttbr1_is"] == "swapper"
    assert run(ctx, "cpu 1").result["current"] == 1
    assert run(ctx, "regs x0").result["cpu"] == 1
    assert run(ctx, "regs x0 --cpu 0").result["cpu"] == 0
    assert "* 1  EL1  off" in text(run(ctx, "cpu"))
    with pytest.raises(UserError, match="no CPU 2"):
        run(ctx, "cpu 2")


def test_many_steps_go_in_parts_that_can_be_interrupted(ctx: Context) -> None:
    session = session_of(ctx)
    run(ctx, "stepi 600")
    assert [call[1] for call in session.calls if call[0] == "step"] == [256, 256, 88]
    session.calls.clear()
    with pytest.raises(TargetTimeout, match=r"256 of 600 steps in 0 s; 0x"):
        run(ctx, "stepi 600 --timeout 0")
    session.calls.clear()
    hit = Stop("breakpoint-hit", 0, 1, KERNEL, "")
    session.step_instructions = lambda count, cpu: (session.calls.append(("step", count)), hit)[1]  # type: ignore[method-assign,func-returns-value]
    assert run(ctx, "stepi 600").result["reason"] == "breakpoint-hit"
    assert session.calls == [("step", 256)]


def test_a_register_that_holds_a_ttbr_is_a_root_without_asid_and_cnp() -> None:
    tree = kernel_tree()
    ctx = context(tree)
    session_of(ctx).cpus = [cpu(tree, TTBR1_EL1=tree.root | 0x12 << 48 | 1)]
    for root in ("$TTBR1_EL1", "ttbr1"):
        result = run(ctx, f"walk {KERNEL:#x} --root {root}").result
        assert (result["root"]["pa"], result["outcome"]) == (hex(tree.root), "mapped")
