"""Which lines of a console log belong together, in old and new formats, damaged and interleaved."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from oops_logs import bad_stack, lines, log, paging_request, text

from ptinspect.linux.oops.lines import Row, rows
from ptinspect.linux.oops.verdict import Panic, analyse


def panics(data: bytes) -> tuple[Panic, ...]:
    return analyse(data).panics


def only(data: bytes) -> Panic:
    (panic,) = panics(data)
    return panic


def facts(panic: Panic) -> tuple[object, ...]:
    f = panic.facts
    recursion = (f.recursion.count, f.recursion.frame_size) if f.recursion else None
    return panic.verdict.code, f.used, recursion, f.incident.first.far, f.incident.later_count


REPORT = ("reverted-entry", 800, (48, 320), 0xFFFF0000093A80E0, 2)


def restamped(form: str) -> bytes:
    """Return the report's log with other prefixes."""
    out = []
    for line in lines("4.17-lkml-kpti"):
        match = re.match(r"\[ (\d\.\d+)\] (.*)", line)
        assert match is not None
        out.append(form.format(time=match[1], text=match[2]))
    return text(out)


@pytest.mark.parametrize(
    "form",
    [
        "{text}",
        "[    {time}] {text}",
        "[    {time}] {text}\r",
        "<4>[    {time}][   T12] {text}",
        "[    {time}][   C0] {text}",
        "Jun 22 18:26:01 host kernel: [    {time}] {text}",
        "2018-06-22T18:26:01+0800 host kernel: {text}",
        "0,123,456,-;{text}",
        "> [    {time}]  {text}",
        "\x1b[1m[    {time}]\x1b[0m {text}",
    ],
)
def test_the_report_reads_the_same_behind_any_prefix(form: str) -> None:
    assert facts(only(restamped(form))) == REPORT


def test_the_report_in_one_line() -> None:
    assert facts(only(log("4.17-lkml-kpti").replace(b"\n", b" "))) == REPORT


def test_the_report_in_utf16() -> None:
    data = b"\xff\xfe" + log("4.17-lkml-kpti").decode().encode("utf-16-le")
    assert facts(only(data)) == REPORT


def test_letters_before_a_cr_that_a_program_shows_are_kept() -> None:
    (found,) = analyse(b"[    1.0] Kernel panic - not syncing: no more room for MM^M^M\n").panics
    assert found.incident.panic == "no more room for MM"


def test_new_messages_of_the_same_death() -> None:
    data = log("4.17-lkml-kpti").replace(b"ESR: 0x96000046", b"ESR: 0x0000000096000046")
    data = data.replace(b"ESR = 0x96000006", b"ESR = 0x0000000096000006")
    data = data.replace(b"pgd=00000000411f8003, pud", b"pgd=00000000411f8003, p4d=00000000411f8003, pud")
    data = data.replace(b"Oops: 96000006", b"Oops: 0000000096000006").replace(
        b"pgdp = (ptrval)", b"pgdp=00000000411f7000"
    )
    assert facts(only(data)) == REPORT
    assert [step.name for step in (only(data).facts.path or pytest.fail("no walk")).steps] == [
        "pgd",
        "pud",
        "pmd",
    ]


def test_several_boots_have_a_death_each() -> None:
    both = panics(
        log("4.17-lkml-kpti") + log("5.10-recursion") + log("6.12-no-rootfs") + log("4.17-lkml-kpti")
    )
    assert [p.verdict.code for p in both] == [
        "reverted-entry",
        "deep-call-chain",
        "not-a-stack-problem",
        "reverted-entry",
    ]
    assert facts(both[0]) == facts(both[3]) == REPORT
    assert [p.incident.banner.split()[2].partition("-")[0] for p in both] == [
        "4.17.0",
        "5.10.0",
        "6.12.117+deb13",
        "4.17.0",
    ]


def test_an_oops_that_the_kernel_survived_is_a_death_of_its_own() -> None:
    first = lines("5.10-null-dereference")
    end = next(i for i, line in enumerate(first) if "end trace" in line)
    found = panics(text(first[: end + 1], lines("5.10-stack-protector")[1:]))
    assert [p.verdict.code for p in found] == ["not-a-stack-problem", "stack-corruption"]


def test_a_panic_that_only_follows_belongs_to_its_oops() -> None:
    panic = only(log("5.10-null-dereference"))
    assert panic.incident.message.startswith("Unable to handle kernel NULL pointer dereference")
    assert panic.incident.panic.startswith("Attempted to kill init!")


ROOT_ENTRY = int(re.findall(rb"p4d=([0-9a-f]+)", log("6.12-wild-pointer"))[0], 16)


def test_the_walk_of_a_kernel_that_folds_levels_at_boot() -> None:
    path = only(log("6.12-wild-pointer")).facts.path
    assert path is not None
    assert [(s.level, s.name, s.descriptor.raw) for s in path.steps] == [
        (0, "pgd", ROOT_ENTRY),
        (1, "pud", 0),
    ]


@pytest.mark.parametrize(
    ("pagetable", "walk", "levels"),
    [
        ("4k pages, 39-bit", "pgd=000000004123f803, pud=000000004123f803, pmd=0000000000000000", [1, 2]),
        ("4k pages, 39-bit", "*pgd=000000004123f803, *pud=000000004123f803, *pmd=0000000000000000", [1, 2]),
        ("4k pages, 48-bit", "pgd=000000004123f803, p4d=000000004123f803, pud=0000000000000000", [0, 1]),
        ("64k pages, 42-bit", "pgd=000000004123f803, pmd=000000004123f803, pte=0000000000000000", [2, 3]),
        ("4k pages, 52-bit", "pgd=000000004123f803, p4d=000000004124f803, pud=0000000000000000", [-1, 0, 1]),
        ("16k pages, 47-bit", "pgd=000000004123c803, pmd=0000000000000000", [1, 2]),
    ],
)
def test_levels_are_counted_from_the_pages(pagetable: str, walk: str, levels: list[int]) -> None:
    line = f"swapper pgtable: {pagetable} VAs, pgdp=0000000041277000"
    path = only(text(bad_stack(), paging_request(0xFFFF800011883CC0, walk, pagetable=line))).facts.path
    assert path is not None
    assert [step.level for step in path.steps] == levels
    assert path.steps[0].name == "pgd"


def test_the_4_4_format_with_raw_addresses() -> None:
    panic = only(
        b"Bad mode in Synchronous Abort handler detected, code 0x86000005 -- IABT (current EL)\n"
        b"CPU: 2 PID: 0 Comm: swapper/2 Not tainted 4.4.0-rc8 #5\n"
        b"task: ffffffc0304e7300 ti: ffffffc0304ec000 task.ti: ffffffc0304ec000\n"
        b"PC is at 0x200000\nLR is at sched_clock+0x50/0xd8\n"
        b"pc : [<0000000000200000>] lr : [<ffffffc000158788>] pstate: 200001c5\n"
        b"sp : ffffffc0304ef9b0\nx29: ffffffc0304ef9b0 x28: 0000000000000002 \n"
        b"Internal error: Oops - bad mode: 0 [#1] PREEMPT SMP\n"
    )
    first = panic.incident.first
    assert (first.pc, first.lr, first.sp) == ("0x200000", "sched_clock+0x50/0xd8", 0xFFFFFFC0304EF9B0)
    assert first.esr == 0x86000005 and panic.facts.esr is not None and panic.facts.esr.ec == 0x21
    assert panic.verdict.code == "not-a-stack-problem"


def test_raw_addresses_stand_in_for_symbols() -> None:
    data = text(bad_stack(pc="[<ffff800008011220>]", lr="[<ffff800008023670>]"))
    assert only(data).incident.first.pc == "0xffff800008011220"


def lockstep(*reports: list[str]) -> list[str]:
    return [line for group in zip(*reports, strict=True) for line in group]


def two_cpus() -> tuple[list[str], list[str]]:
    first = bad_stack(cpu=2, comm="swapper/2")
    second = bad_stack(
        cpu=3,
        comm="swapper/3",
        far=0xFFFF8000118A8060,
        base=0xFFFF8000118A8000,
        sp=0xFFFF8000118A8060,
        x29=0xFFFF8000118ABCC0,
    )
    return first, second


def test_two_cpus_that_print_in_turn_are_told_apart() -> None:
    found = panics(text(lockstep(*two_cpus())))
    assert [(p.incident.first.cpu, p.incident.first.far) for p in found] == [
        (2, 0xFFFF800011880060),
        (3, 0xFFFF8000118A8060),
    ]
    assert [p.facts.recursion.count for p in found if p.facts.recursion] == [46, 46]
    assert all(any("interleaved" in line for line in p.verdict.unknown) for p in found)


def test_two_cpus_with_caller_ids_are_told_apart_wherever_their_lines_stand() -> None:
    first, second = two_cpus()
    tagged = [
        [f"[    1.000000][   C{n}] {line}" for line in report] for n, report in ((2, first), (3, second))
    ]
    mixed = [*tagged[0][:4], *tagged[1][:12], *tagged[0][4:], *tagged[1][12:]]
    found = panics(text(mixed))
    assert [(p.incident.first.cpu, p.verdict.code, p.facts.used) for p in found] == [
        (2, "stack-mapping-lost", 832),
        (3, "stack-mapping-lost", 832),
    ]


def test_values_go_to_the_report_that_they_fit() -> None:
    first, second = two_cpus()
    far_off = [line.replace("ffff8000118a", "ffff80003fff") for line in second]
    swapped = lockstep(first, far_off)
    stacks = [i for i, line in enumerate(swapped) if line.startswith("Task stack")]
    swapped[stacks[0]], swapped[stacks[1]] = swapped[stacks[1]], swapped[stacks[0]]
    for panic in panics(text(swapped)):
        first_report = panic.incident.first
        assert first_report.task_stack is not None and first_report.sp is not None
        assert first_report.task_stack.holds_sp(first_report.sp)


def test_values_of_another_cpu_give_no_verdict() -> None:
    first, second = two_cpus()
    far_off = [line.replace("ffff8000118a", "ffff80003fff") for line in second]
    mixed = [line for line in lockstep(first, far_off) if "Task stack:     [0xffff80001188" not in line]
    found = {p.incident.first.sp: p.verdict.code for p in panics(text(mixed))}
    assert found[0xFFFF800011880060] == "unknown"


@pytest.mark.parametrize(
    ("lost", "damaged"),
    [
        ("FAR: 0xffff0000093a80e0", "FAR: 0xffff0093a80e0"),
        ("sp : ffff0000093a80e0", "sp : ffff0000093a8e0"),
        ("x29: ffff0000093abce0", "x29: ffff0000093abc0"),
        ("Task stack: [0xffff0000093a8000", "Task stack: [0xfff0000093a8000"),
    ],
)
def test_a_value_with_lost_digits_is_not_used(lost: str, damaged: str) -> None:
    data = log("4.17-lkml-kpti").replace(lost.encode(), damaged.encode(), 1)
    panic = only(data)
    assert panic.incident.first.damaged
    assert any("digits are missing" in line for line in panic.verdict.unknown)
    assert panic.facts.recursion is None or lost.startswith("FAR")


def test_a_truncated_log_gives_what_it_has() -> None:
    data = log("4.17-lkml-kpti")
    codes = set()
    for end in range(0, len(data), 37):
        for panic in panics(data[:end]):
            codes.add(panic.verdict.code)
    assert codes == {"unknown", "stack-mapping-lost", "reverted-entry"}


NOT = "not-a-stack-problem"
GIVEN_UP = "Kernel panic - not syncing: "
LITTLE = "Insufficient stack space to handle exception!"


@pytest.mark.parametrize(
    ("report", "code"),
    [
        ([f"{GIVEN_UP}Fatal exception in interrupt"], "unknown"),
        ([f"{GIVEN_UP}kernel stack overflow"], "unknown"),
        ([GIVEN_UP], "unknown"),
        ([f"{GIVEN_UP}Attempted to kill init! exitcode=0x0000000b"], "unknown"),
        ([f"{GIVEN_UP}No working init found.  Try passing init= option"], NOT),
        ([f"{GIVEN_UP}System is deadlocked on memory"], NOT),
        (["watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [kworker/0:1:12]"], NOT),
        (["BUG: soft lockup - CPU#1 stuck for 23s!", f"{GIVEN_UP}softlockup: hung tasks"], NOT),
        (["rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"], NOT),
        (["rcu: INFO: rcu_sched self-detected stall on CPU", f"{GIVEN_UP}RCU Stall"], NOT),
        (["INFO: rcu_sched detected stalls on CPUs/tasks: { 1}"], NOT),
        (["INFO: task jbd2/sda1:112 blocked for more than 120 seconds."], NOT),
        (["BUG: KASAN: use-after-free in foo+0x10/0x20"], NOT),
        (["BUG: KASAN: stack-out-of-bounds in foo+0x10/0x20"], "stack-corruption"),
        (["BUG: unable to handle page fault for address: 1", "RIP: 0010:foo+0x1/0x2"], "unknown"),
        ([LITTLE, "epc : foo+0xa/0x198", f"{GIVEN_UP}Kernel stack overflow"], "unknown"),
        ([LITTLE, "Task stack:     [0xdf85c000..0xdf85e000]", "Internal error: 0 [#1] SMP ARM"], "unknown"),
    ],
)
def test_other_deaths(report: list[str], code: str) -> None:
    panic = only(text(report))
    assert panic.verdict.code == code
    assert panic.verdict.unknown


def test_warnings_are_no_deaths_unless_they_are_made_one() -> None:
    warning = [
        "WARNING: CPU: 0 PID: 1 at kernel/foo.c:12 foo+0x10/0x20",
        "pc : foo+0x10/0x20",
        "sp : ffff800011883cc0",
    ]
    assert panics(text(warning)) == ()
    end = ["Kernel panic - not syncing: kernel: panic_on_warn set ..."]
    assert only(text(warning, end)).incident.first.kind == "warning"


def test_registers_of_a_warning_are_not_those_of_the_death_behind_it() -> None:
    warning = ["WARNING: CPU: 0 PID: 1 at kernel/foo.c:12 foo+0x10/0x20", "sp : ffff8000aaaaaaa0"]
    assert only(text(warning, lines("4.17-lkml-kpti"))).incident.first.sp == 0xFFFF0000093A80E0


def test_repeated_stalls_are_one_entry() -> None:
    stall = ["rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "Call trace:", " foo+0x1/0x2"]
    panic = only(text(*[stall] * 5))
    assert panic.incident.later_count == 4


def test_many_deaths_are_counted_and_not_all_explained() -> None:
    analysis = analyse(log("6.12-no-rootfs") * 300)
    assert (len(analysis.panics), analysis.total, analysis.complete) == (256, 300, True)


def test_deaths_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptinspect.linux.oops.deaths.MAX_DEATHS", 10)
    analysis = analyse(log("6.12-no-rootfs") * 300)
    assert (len(analysis.panics), analysis.total, analysis.complete) == (10, 300, True)


def test_only_the_parts_after_a_first_line_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptinspect.linux.oops import logfile

    taken = 0

    def counted(text: str, number: int) -> Iterator[Row]:
        nonlocal taken
        taken += len(text)
        return rows(text, number)

    monkeypatch.setattr(logfile, "rows", counted)
    noise = b"[    1.000000] usb 1-1: new high-speed USB device number 2\n" * 200_000
    assert facts(only(noise + log("4.17-lkml-kpti") + noise))[:4] == REPORT[:4]
    assert taken < 8 * logfile.BATCH
