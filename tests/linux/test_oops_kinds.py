"""Kinds of logs that people paste, each as small as it can be: which lines are one death, and what it was."""

from __future__ import annotations

import pytest
from oops_logs import bad_stack, log, paging_request, text

from ptinspect.linux.oops.verdict import Panic, analyse

BASE = 0xFFFF_8000_1188_0000
NULL = 0x18


def found(*parts: list[str]) -> list[Panic]:
    return list(analyse(text(*parts)).panics)


def only(*parts: list[str]) -> Panic:
    (panic,) = found(*parts)
    return panic


def said(panic: Panic) -> str:
    return "\n".join(panic.verdict.evidence)


def fault(
    far: int = NULL, *, cpu: int = 1, number: int = 1, esr: str = "96000006", pc: str = "drive+0x18/0x40"
) -> list[str]:
    """Return an ordinary oops."""
    return [
        f"Unable to handle kernel NULL pointer dereference at virtual address {far:016x}",
        "Mem abort info:",
        f"  ESR = 0x{esr}",
        f"Internal error: Oops: {esr} [#{number}] PREEMPT SMP",
        f"CPU: {cpu} PID: {100 + cpu} Comm: task{cpu} Not tainted 5.19.0-rc5 #1",
        f"pc : {pc}",
        "lr : probe+0x20/0x90 [drm]",
        "sp : ffff80000bfbb840",
        "Call trace:",
        f" {pc}",
        " kthread+0x104/0x110",
        "---[ end trace 0000000000000000 ]---",
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ["Internal error:", "synchronous external abort: 96000210 [#1] PREEMPT SMP"],
        ["Internal error: synchronous external", "abort: 96000210 [#1] PREEMPT SMP"],
    ],
)
def test_a_wrapped_error_is_a_death(lines: list[str]) -> None:
    panic = only(lines, ["CPU: 3 PID: 565 Comm:", "modprobe Not tainted 5.6.0 #1", "sp : ffffffc011003500"])
    first = panic.incident.first
    assert (first.esr, first.cpu, first.comm, first.release) == (0x96000210, 3, "modprobe", "5.6.0")


def test_where_a_chunk_ends_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptinspect.linux.oops import logfile

    data = text(fault(), bad_stack(), fault(cpu=2, number=2))
    whole = [(p.verdict, p.incident) for p in analyse(data).panics]
    for size in (1, 7, 64, 333, 1000):
        monkeypatch.setattr(logfile, "CHUNK", size)
        monkeypatch.setattr(logfile, "BATCH", 3 * size)
        assert [(p.verdict, p.incident) for p in analyse(data).panics] == whole


@pytest.mark.parametrize(
    "after",
    [
        "Kernel panic - not syncing: synchronous external abort: Fatal exception",
        "Kernel panic - not syncing: Oops: Fatal exception in interrupt",
        "Kernel panic - not syncing: Aiee, killing interrupt handler!",
        "Kernel panic - not syncing: Attempted to kill the idle task!",
    ],
)
def test_the_panic_that_an_oops_ends_in_is_the_same_death(after: str) -> None:
    panic = only(fault(), [after, "CPU: 1 PID: 101 Comm: task1 Not tainted 5.19.0-rc5 #1"])
    assert panic.incident.panic == after.partition(": ")[2]
    assert panic.incident.first.trace == ("drive+0x18/0x40", "kthread+0x104/0x110")


def test_bad_mode_is_one_death() -> None:
    panic = only(
        ["Bad mode in Synchronous Abort handler detected on CPU0, code 0x34000001 -- BTI"],
        ["CPU: 0 PID: 0 Comm: swapper Not tainted 5.10.2 #24", "sp : ffffa00019957eb0", "pc : a+0x0/0x3c0"],
        ["Kernel panic - not syncing: bad mode", "CPU: 0 PID: 0 Comm: swapper Not tainted 5.10.2 #24"],
    )
    assert panic.incident.first.kind == "oops" and panic.incident.panic == "bad mode"


def test_a_broadcast_repeats_a_line_and_hides_nothing() -> None:
    report = fault()
    copy = ["", "Message from syslogd@host at Jul  4 00:31:16 ...", f" kernel:[  346.05] {report[3]}", ""]
    panic = only(report[:4], copy, report[4:])
    assert (panic.incident.first.sp, panic.incident.later_count) == (0xFFFF80000BFBB840, 0)


def test_a_title_above_the_log_is_no_death() -> None:
    title = "[syzbot] BUG: unable to handle kernel NULL pointer dereference in drive"
    panic = only([title, ""], fault())
    assert panic.incident.first.line == 3 and panic.incident.first.sp is not None


def test_lines_of_a_program_and_words_in_quotes_are_no_deaths() -> None:
    assert not found(
        ['+\tpr_emerg("Insufficient stack space to handle exception!\\n");'],
        ['\tpanic("kernel stack overflow");', 'I saw "Internal error: Oops: 96000004 [#1]" once'],
    )


def test_inlined_lines_of_a_sanitizer_are_one_report() -> None:
    panic = only(
        ["BUG: KASAN: slab-use-after-free in hash include/linux/rhashtable.h:159 [inline]"],
        ["BUG: KASAN: slab-use-after-free in release+0x79c/0xcfc fs/xfs/xfs_buf.c:951"],
        ["Read of size 4 at addr ffff0000d6a4c008 by task a/6552"],
    )
    assert "release+0x79c" in panic.incident.message
    assert "Read of size 4" in said(panic)


@pytest.mark.parametrize(
    ("what", "access", "code"),
    [
        ("vmalloc-out-of-bounds", "Read of size 1 at addr ffff20001515ffff by task sh/214", "unknown"),
        ("slab-out-of-bounds", "Write of size 8 at addr ffff0000d6a4c008 by task a/1", "not-a-stack-problem"),
        ("stack-out-of-bounds", "Write of size 8 at addr ffff80001188ff08 by task a/1", "stack-corruption"),
        ("stack-out-of-bounds", "Read of size 8 at addr ffff80001188ff08 by task a/1", "not-a-stack-problem"),
    ],
)
def test_a_sanitizers_report_is_judged_by_what_was_done(what: str, access: str, code: str) -> None:
    panic = only([f"BUG: KASAN: {what} in f+0x88/0xb4", access])
    assert panic.verdict.code == code
    assert access in said(panic)


def test_time_that_goes_back_is_another_boot() -> None:
    stamped = [[f"[{at}.{n:06}] {line}" for n, line in enumerate(fault())] for at in (90, 5)]
    assert len(found(*stamped)) == 2
    assert len(found(stamped[0], stamped[0])) == 1  # the same log, pasted twice


def test_what_follows_the_end_of_a_panic_is_another_death() -> None:
    first = [*bad_stack(), "---[ end Kernel panic - not syncing: kernel stack overflow ]---"]
    again = "[    9.1] ---[ end Kernel panic - not syncing: kernel stack overflow ]---"
    assert [p.incident.first.kind for p in found(first, [again], fault())] == ["bad-stack", "fault"]


def test_faults_inside_of_each_other_are_one_death() -> None:
    cut = fault()[:3]
    small = bad_stack(far=BASE - 8, sp=BASE - 0x20, x29=BASE, pc="vsnprintf+0x30/0x690", cpu=4)
    panic = only(cut, cut, cut, ["** 1 printk messages dropped **"], small[:12])
    assert panic.incident.later_count == 3 and not panic.incident.first.mixed
    assert panic.verdict.code == "deep-call-chain"
    assert "3 faults before it" in said(panic)
    assert only(cut, small[:28]).verdict.code == "guard-page-hit"


def test_a_stack_that_overflows_while_a_fault_is_printed_is_the_faults_death() -> None:
    whole = fault()
    small = bad_stack(far=BASE - 16, sp=BASE + 0x20, x29=BASE + 0x20, pc="f+0x4/0x5c", cpu=1)
    panic = only(whole[:9], [line.replace("PID: 37 ", "PID: 101 ") for line in small])
    assert panic.incident.first.kind == "fault" and panic.incident.later_count == 1
    assert "it came while the kernel reported" in said(panic)


def test_many_warnings_hide_no_panic() -> None:
    warning = [
        "WARNING: CPU: 0 PID: 1 at kernel/foo.c:12 foo+0x10/0x20",
        "pc : foo+0x10/0x20",
        "sp : ffff800011883cc0",
        "Call trace:",
        " foo+0x10/0x20",
        "---[ end trace 0000000000000000 ]---",
    ]
    analysis = analyse(text(*[warning] * 2100, bad_stack()))
    assert (analysis.total, analysis.complete) == (1, True)
    assert analysis.panics[0].verdict.code == "stack-mapping-lost"


def test_a_banner_inside_of_a_warning_is_no_boot() -> None:
    panic = only(
        ["WARNING: CPU: 0 PID: 1 at Linux version 6.12.117 (gcc):12 f+0x8/0x298", "Modules linked in:"],
        ["Kernel panic - not syncing: kernel: panic_on_warn set", "..."],
    )
    assert panic.incident.first.kind == "warning"
    assert panic.incident.panic == "kernel: panic_on_warn set ..."


def test_nothing_died_of_a_stall() -> None:
    panic = only(["rcu: INFO: rcu_sched self-detected stall on CPU"] * 3)
    assert panic.verdict.code == "not-a-stack-problem" and panic.incident.later_count == 2
    assert "nothing died" in said(panic)


def test_a_walk_goes_to_the_fault_whose_address_it_is_of() -> None:
    one, other = fault(0x29F63007, cpu=3), fault(0x9, cpu=1, number=2)
    walk = "[0000000029f63007] pgd=0000000000000000, p4d=0000000000000000"
    deaths = found([one[0]], [other[0]], one[1:3], other[1:3], [walk], one[3:], other[3:])
    assert [(p.incident.first.far, p.incident.first.cpu) for p in deaths] == [(0x29F63007, 3), (0x9, 1)]


def test_after_internal_error_one_cpu_prints_alone() -> None:
    """die() holds a lock from there to the end of the trace: only what comes before is interleaved."""
    one, other = fault(0x30, cpu=1), fault(0x30, cpu=0, number=2)
    deaths = found([one[0], other[0], one[1], one[2], other[1]], one[3:5], [other[2]], one[5:], other[3:])
    codes = {p.incident.first.cpu: (p.verdict.code, len(p.incident.first.trace)) for p in deaths}
    assert codes == dict.fromkeys((0, 1), ("not-a-stack-problem", 2))


def test_eight_blocks_that_follow_each_other_are_eight_deaths_and_not_mixed() -> None:
    blocks = [
        bad_stack(cpu=n, base=BASE + n * 0x8000, far=BASE + n * 0x8000 + 0x60, sp=BASE + n * 0x8000 + 0x60)
        for n in range(8)
    ]
    heads = [block[:27] for block in blocks]
    for n, panic in enumerate(found(*heads)):
        assert panic.incident.first.cpu == n and not panic.incident.first.mixed
        assert panic.incident.first.far == BASE + n * 0x8000 + 0x60


def test_recursion_in_a_trace_is_enough_without_sp() -> None:
    panic = only(
        ["Kernel panic - not syncing: kernel stack overflow", "CPU: 1 PID: 33 Comm: a Not tainted 5.11.0 #1"],
        ["Call trace:", " ...", *[" device_reorder_to_tail+0x60/0xf0"] * 5, " ..."],
    )
    assert panic.verdict.code == "deep-call-chain"
    assert "5 times over: device_reorder_to_tail" in said(panic)
    assert panic.incident.first.elided


def test_an_exception_inside_of_itself_is_recursion() -> None:
    pc = "__rcu_irq_enter_check_tick+0x0/0x1b8"
    loop = (pc, "el1_dbg+0x2c/0x90", "el1h_64_sync_handler+0xcc/0xe8", "el1h_64_sync+0x64/0x68")
    panic = only(
        bad_stack(
            esr="ESR: 0x00000000f2000004 -- BRK (AArch64)",
            far=0xFFFFCCF3E510,
            sp=BASE + 0x80,
            x29=BASE + 0x80,
            pc=pc,
            trace=(*loop[1:], *loop),
        )
    )
    assert panic.verdict.code == "deep-call-chain"
    assert "is of the exception that found no room: BRK (AArch64): immediate 0x4 (kprobe)" in said(panic)
    assert f"an exception at {pc} inside of the handling of one at {pc}" in said(panic)


def test_a_trace_that_was_cut_is_not_averaged() -> None:
    frames = tuple(f"layer_{n}+0x10/0x40" for n in range(60))
    values = {"far": BASE - 16, "sp": BASE + 16, "x29": BASE + 16, "pc": "deep+0x4/0x40"}
    esr = "ESR: 0x0000000096000047 -- DABT (current EL)"
    cut = only(
        bad_stack(esr=esr, trace=(*frames[:20], "...", "(many more of those)", *frames[20:]), **values)
    )  # type: ignore[arg-type]
    assert (cut.verdict.code, len(cut.incident.first.trace)) == ("guard-page-hit", 64)
    assert any("the call trace was cut" in line for line in cut.verdict.unknown)
    assert only(bad_stack(esr=esr, trace=frames, **values)).verdict.code == "deep-call-chain"  # type: ignore[arg-type]


def test_a_used_up_stack_says_so_where_there_is_no_trace() -> None:
    panic = only(bad_stack(far=BASE - 8, sp=BASE + 0x10, x29=BASE + 0x10, pc="f+0x4/0x40")[:27])
    assert panic.verdict.code == "guard-page-hit" and "the stack is used up" in said(panic)
    assert "by how many frames: there is no call trace" in panic.verdict.unknown[0]


def test_an_access_below_a_printed_stack_needs_no_sp() -> None:
    lines = [line for line in bad_stack(far=BASE - 8, pc="f+0x4/0x40") if not line.startswith("sp :")]
    panic = only(lines)
    assert panic.verdict.code == "guard-page-hit"
    assert f"FAR {BASE - 8:#x} is 0x8 bytes below the base of the task stack" in said(panic)


def test_the_recursion_on_a_wrong_sp_is_counted_with_its_bit_put_right() -> None:
    sp = BASE + 0xB0
    panic = only(bad_stack(sp=sp ^ 1 << 15, far=sp ^ 1 << 15, x29=sp + 40 * 336, pc="el1h_64_sync+0x0/0x80"))
    assert panic.verdict.code == "sp-corrupted"
    assert panic.facts.recursion is not None
    assert (panic.facts.recursion.count, panic.facts.recursion.frame_size) == (40, 336)
    assert "with bit 15 put right" in said(panic)
    assert panic.facts.used == 0x4000 - 0xB0 - 40 * 336


def test_an_irq_stack_at_0_was_never_set_up() -> None:
    lines = bad_stack(
        esr="ESR: 0x96000044 -- DABT (current EL)",
        far=0x40,
        sp=0x40,
        pc="el1_sync+0x0/0xb8",
        release="4.19.34",
    )
    lines[4] = "IRQ stack:      [0x0000000000000000..0x0000000000004000]"
    panic = only(lines)
    assert panic.verdict.code == "sp-corrupted" and panic.facts.stack is None
    assert "it was never set up" in said(panic) and "51 exception frames of 320 bytes" in said(panic)


def test_a_walk_that_is_cut_is_not_denied() -> None:
    walk = "pgd=000000007ffff003, p4d=000000007ffff003"
    panic = only(bad_stack(), paging_request(BASE + 0x3CC0, walk)[:12])
    assert panic.verdict.code == "stack-mapping-lost"
    assert "is cut in the log: it goes to pgd" in said(panic)
    assert "no walk" not in said(panic)


def test_an_entry_that_lost_bit_0_is_told() -> None:
    walk = "pgd=000000007ffff803, p4d=000000007ffff803, pud=000000007fffe803, pmd=00f8000040800712"
    panic = only(bad_stack(), paging_request(BASE + 0x3CC0, walk))
    assert panic.verdict.code == "lost-entry"
    assert "bit 0 is clear" in said(panic)


def test_a_pc_in_a_page_that_may_not_be_executed_is_told() -> None:
    walk = "pgd=000000007ffff803, p4d=000000007ffff803, pud=000000007fffe803, pmd=0068000040800711"
    lines = fault(0xFFFF800011B58000, esr="8600000e", pc="0xffff800011b58000")
    paging = paging_request(0xFFFF800011B58000, walk)[-3:-1]
    panic = only(lines[:3], paging, lines[3:])
    assert "may not execute (PXN): the PC lies in it" in said(panic)


def test_the_users_tables_are_not_said_to_be_unmarked() -> None:
    from ptinspect.commands.stack.oops import explained
    from ptinspect.output.text import render

    walk = "pgd=08000000440a8003, p4d=08000000440a8003, pud=08000000440a9003, pmd=0000000000000000"
    paging = paging_request(0xC, walk, pagetable="user pgtable: 4k pages, 48-bit VAs, pgdp=0000000044036000")
    shown = render(explained(analyse(text(fault(0xC)[:3], paging[-3:-1], fault(0xC)[3:])), "a log"))
    assert "table at 0x440a8000" in shown and "bit 11" not in shown


def test_brk_and_serror_are_decoded() -> None:
    brk = only(["kernel BUG at mm/x.c:272!", "Internal error: Oops - BUG: 00000000f2000800 [#1] PREEMPT SMP"])
    assert "BRK with immediate 0x800, which Linux uses for BUG() or WARN()" in said(brk)
    lines = ["SError Interrupt on CPU1, code 0xbe000011 -- SError", "pstate: 60000000 (nZCv daif)"]
    serror = only(lines, ["pc : 0x400", "sp : 0000ffffc0de0000"])
    assert serror.verdict.code == "not-a-stack-problem"
    assert "uncontainable" in said(serror) and "user mode" in said(serror)


@pytest.mark.parametrize(
    "words",
    [
        "Not tainted 6.6.142-android15-8-g163b28abb786-4k #1 27ae2b1fd807",
        "Tainted: G S      W  O    T  6.6.142-android15-8-g163b28abb786-4k #1 27ae2b1fd807",
        "Tainted: G           O        --------- ---  6.6.142-android15-8-g163b28abb786-4k #1",
        "Kdump: loaded Tainted: G        W         6.6.142-android15-8-g163b28abb786-4k #1",
    ],
)
def test_the_release_of_any_kernel_is_read(words: str) -> None:
    lines = fault()
    lines[4] = f"CPU: 0 PID: 902 Comm: a {words}"
    assert only(lines).incident.first.release == "6.6.142-android15-8-g163b28abb786-4k"


def test_a_panic_is_said_to_have_no_fault_before_it_only_where_its_trace_shows_that() -> None:
    bare = only(["Kernel panic - not syncing: hung_task: blocked tasks"])
    assert "whether an exception came before it" in "".join(bare.verdict.unknown)
    assert "gave up by itself" not in said(bare)
    real = analyse(log("6.12-no-rootfs")).panics[0]
    assert "whether an exception" not in "".join(real.verdict.unknown)


def test_exception_frames_inside_of_a_trace_do_not_end_it() -> None:
    lines = fault()
    dump = ["Exception stack(0xffff000027dd3410 to 0xffff000027dd3550)"]
    dump += [f"{0x3400 + 32 * n:x}: 0000000000000018 ffff000027dd3694 ffff8006656f929c 0" for n in range(9)]
    dump = [line.removesuffix(" 0") for line in dump]
    assert only(lines[:9], dump, lines[9:]).incident.first.trace == ("drive+0x18/0x40", "kthread+0x104/0x110")


def test_the_outermost_callers_are_shown_too() -> None:
    from ptinspect.commands.stack.oops import explained
    from ptinspect.output.text import render

    shown = render(explained(analyse(log("6.12-recursion")), "a log"))
    assert "more" in shown and "el0t_64_sync" in shown


@pytest.mark.parametrize(
    ("first", "code", "kind", "frames"),
    [
        ("pstate: ", "deep-call-chain", "bad-stack", 21),
        ("x29: ", "deep-call-chain", "panic", 21),
    ],
)
def test_a_log_may_begin_inside_of_a_stack_overflow(first: str, code: str, kind: str, frames: int) -> None:
    lines = bad_stack(pc="walk+0x8/0x40", trace=("walk+0x20/0x40",) * 20)
    at = next(number for number, line in enumerate(lines) if line.startswith(first))
    panic = only(lines[at:])
    assert (panic.incident.first.kind, len(panic.facts.chain.names)) == (kind, frames)
    assert panic.verdict.code == code


def test_a_log_may_begin_inside_of_an_oops() -> None:
    code, end = "Code: f9400013 b4000193 f9400260 b4000140 (f900001f)", "---[ end trace 0000000000000000 ]---"
    state = "pstate: 60000005 (nZCv daif)"
    panic = only([state, *fault()[5:-1], code, end])
    assert panic.incident.first.trace == ("drive+0x18/0x40", "kthread+0x104/0x110")
    assert panic.incident.message.startswith("(its first lines are missing)")
    assert panic.verdict.code == "not-a-stack-problem"
    assert "faulting address" in panic.verdict.unknown[-1]
    assert "faulting address" not in "".join(only(fault()).verdict.unknown)
    cut = only([*fault()[9:-1], code, end]).incident.first
    assert (cut.kind, cut.trace) == ("oops", ("drive+0x18/0x40", "kthread+0x104/0x110"))
    assert found(["elr: 000000007ff12345 lr : 000000007ff12340", code]) == [], "U-Boot prints that too"
    assert found([state, *fault()[5:]]) == [], "a warning prints no code"
    assert [p.incident.first.far for p in found([*fault()[8:-1], code, end], fault())] == [None, NULL]
    assert only(fault()[8:-1], fault()).incident.first.far == NULL


def unlisted(sp: int, x29: int) -> Panic:
    return only(bad_stack(sp=sp, far=sp - 0x20, x29=x29, pc="ghes_proc+0x8/0x2f0"))


def test_a_stack_that_is_not_printed_is_told_from_a_wrong_sp() -> None:
    sdei = 0xFFFF_8000_0810_0000
    for sp in (sdei + 0x10, sdei - 0x40):
        panic = unlisted(sp, sdei + 0x50)
        assert panic.verdict.code == "guard-page-hit" and panic.facts.stack is not None
        assert (panic.facts.stack.kind, panic.facts.stack.base) == ("unlisted", sdei)
        assert "as SDEI's, EFI's and another task's are, which are not printed" in said(panic)
        assert "whose stack that is" in panic.verdict.unknown
    for sp, x29 in ((sdei + 0x10, BASE + 0x3CC0), (sdei + 0x800, sdei + 0x850), (0x10, 0x50)):
        assert unlisted(sp, x29).verdict.code == "sp-corrupted", hex(sp)


def hyp(esr: str, far: str, *, new: bool = True) -> list[str]:
    at = "kvm [89]: nVHE hyp panic at: [<ffff800080e4a0c8>] __kvm_nvhe_walk+0x8/0x24!"
    call = "kvm [89]:  [<ffff800080e4a0d8>] __kvm_nvhe_walk+0x18/0x24"
    end = "kvm [89]: ---- End of Protected nVHE HYP call trace ----"
    return [
        *([at, "kvm [89]: Protected nVHE HYP call trace:", *[call] * 9, end] if new else []),
        "Kernel panic - not syncing: HYP panic:",
        f"PS:a00003c9 PC:0000656b80e4a0c8 ESR:{esr}",
        f"FAR:{far} HPFAR:0000000000000000 PAR:0000000000000000",
        "VCPU:0000000000000000",
        "CPU: 1 PID: 89 Comm: kvm Not tainted 6.12.1 #1",
        "Call trace:",
        " panic+0x330/0x390",
        " nvhe_hyp_panic_handler+0x130/0x1d0",
    ]


@pytest.mark.parametrize(
    ("esr", "far", "code", "words"),
    [
        ("00000000f2000800", "ffff800080003ff0", "not-a-stack-problem", "it stopped itself, by BRK"),
        ("0000000096000004", "0000000000000010", "not-a-stack-problem", "a NULL pointer"),
        ("0000000096000047", "ffff800080003ff0", "unknown", "holds __kvm_nvhe_walk 9 times"),
        ("86000006", "0000006900268b30", "unknown", "ESR_EL2 0x86000006: IABT"),
    ],
)
def test_a_panic_of_the_hypervisors_code_is_judged_by_its_own_syndrome(
    esr: str, far: str, code: str, words: str
) -> None:
    panic = only(hyp(esr, far, new=len(esr) == 16))
    assert panic.verdict.code == code
    assert words in said(panic)
    assert "it is not in the log" not in "".join(panic.verdict.unknown)


@pytest.mark.parametrize("word", ["Unhandled fault", "Synchronous External Abort"])
def test_an_abort_that_nobody_handles_names_esr_and_far(word: str) -> None:
    first = f"{word}: synchronous external abort (0x96000210) at 0xffffff800803c014"
    panic = only([first, "Internal error: : 96000210 [#1] SMP", *fault()[4:]])
    assert (panic.incident.first.esr, panic.incident.first.far) == (0x96000210, 0xFFFFFF800803C014)
    assert only(["Internal error: : 96000210 [#1] SMP", *fault()[4:]]).incident.first.esr == 0x96000210


def test_all_bits_of_esr_are_read() -> None:
    panic = only(fault(esr="000000409600004f"))
    assert panic.incident.first.esr == 0x40_9600_004F and "Overlay" in said(panic)


OTHERS = {
    "x86": ["Oops: stack guard page: 0000 [#1] PREEMPT SMP", "RIP: 0010:recurse+0x5/0x20"],
    "x86, fault": [
        "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
        "EIP: f",
    ],
    "powerpc": [
        "Oops: Kernel access of bad area, sig: 11 [#1]",
        "NIP:  c000000000123456 LR: c000000000123450",
    ],
    "mips": ["Oops[#1]:", "epc   : 80123456 foo+0x10/0x20"],
    "loongarch": ["Oops[#1]:", " ERA: 9000000000212345 foo+0x10/0x20"],
    "s390": ["Oops: 0004 ilc:3 [#1] SMP", "Krnl PSW : 0704c00180000000 0000000000123456 (foo+0x10/0x20)"],
    "riscv": ["Oops [#1]", "epc: ffffffe00022affe ra : ffffffe00022afea sp : ffffffe086d3fe30"],
    "arm": [
        "Internal error: Oops: 5 [#1] SMP ARM",
        "pc : [<c019d604>]    lr : [<c018dcc8>]    psr: 000f0193",
    ],
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_architectures_oops_is_a_death_and_says_so(name: str) -> None:
    panic = only(OTHERS[name], ["Kernel panic - not syncing: Fatal exception"])
    assert panic.incident.architecture == name.partition(",")[0]
    assert panic.incident.panic == "Fatal exception" and panic.verdict.code == "unknown"
    assert "not of arm64" in said(panic)


def test_an_access_that_tags_caught_is_told() -> None:
    lines = ["BUG: KASAN: invalid-access in f+0x0/0x8", "Write at addr fdff0504a2d16528 by task k/1"]
    panic = only(lines)
    assert "Write at addr fdff0504a2d16528" in said(panic) and panic.verdict.code == "unknown"
    known = only(lines, ["The buggy address belongs to the object at ffff0504a2d16500"])
    assert known.verdict.code == "not-a-stack-problem"


def test_the_end_of_a_panic_alone_is_a_panic() -> None:
    end = "---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
    for marker in (end, end + " ]---"):
        assert only([marker]).incident.panic == end.partition("syncing: ")[2]
    assert len(found(["Kernel panic - not syncing: a", "---[ end Kernel panic - not syncing: a ]---"])) == 1


def test_an_exception_that_nobody_handles_names_its_esr() -> None:
    line = "Unhandled 64-bit el1h sync exception on CPU0, ESR 0x0000000002000000 -- Unknown/Uncategorized"
    assert only([line, "Kernel panic - not syncing: Unhandled exception"]).incident.first.esr == 0x0200_0000


def test_who_called_panic_is_not_panic_itself() -> None:
    frames = ["vpanic+0xf8/0x2dc", "abort+0x0/0x4", "mount_root+0x70/0x80", "kthread+0x1/0x2"]
    for calls, caller in ((frames, "mount_root+0x70"), (["nmi_panic+0x94/0xa0", *frames[2:]], "mount_root")):
        panic = only(["Kernel panic - not syncing: no root", "Call trace:", *(f" {call}" for call in calls)])
        assert f"by {caller}" in said(panic)


def test_calls_of_two_cpus_line_by_line_are_doubted() -> None:
    pairs = zip(fault(), fault(0x20, cpu=2, number=2, pc="other+0x8/0x40"), strict=True)
    both = found([line for pair in pairs for line in pair])
    assert len(both) == 2
    assert all("a call of the trace may be another one's" in panic.verdict.unknown[-1] for panic in both)


def test_a_report_that_ends_before_its_calls_says_so() -> None:
    assert "the call trace: not in the log" in only(fault()[:8]).verdict.unknown
    assert "the call trace: not in the log" not in only(fault()).verdict.unknown
