"""Deaths of real kernels, and what each of them was."""

from __future__ import annotations

import pytest
from oops_logs import LOGS, bad_stack, log, paging_request, text

from ptinspect.linux.death import CODES
from ptinspect.linux.oops.verdict import Panic, analyse


def only(data: bytes) -> Panic:
    analysis = analyse(data)
    assert len(analysis.panics) == analysis.total == 1
    return analysis.panics[0]


def said(panic: Panic) -> str:
    return "\n".join(panic.verdict.evidence)


REAL = {
    "4.17-entry-lost": "lost-entry",
    "4.17-entry-reverted": "reverted-entry",
    "4.17-lkml-kpti": "reverted-entry",
    "5.10-brk": "not-a-stack-problem",
    "5.10-external-abort": "not-a-stack-problem",
    "5.10-init-exit": "not-a-stack-problem",
    "5.10-jump-null": "not-a-stack-problem",
    "5.10-no-rootfs": "not-a-stack-problem",
    "5.10-null-dereference": "not-a-stack-problem",
    "5.10-pointer-into-guard": "guard-page-hit",
    "5.10-recursion": "deep-call-chain",
    "5.10-serror": "not-a-stack-problem",
    "5.10-sp-below-base": "guard-page-hit",
    "5.10-sp-lowered": "guard-page-hit",
    "5.10-stack-end": "stack-corruption",
    "5.10-stack-protector": "stack-corruption",
    "5.10-sysrq": "not-a-stack-problem",
    "6.1-brk": "not-a-stack-problem",
    "6.1-init-exit": "not-a-stack-problem",
    "6.1-no-rootfs": "not-a-stack-problem",
    "6.1-null-dereference": "not-a-stack-problem",
    "6.1-pointer-into-guard": "guard-page-hit",
    "6.1-recursion": "deep-call-chain",
    "6.1-serror": "not-a-stack-problem",
    "6.1-sp-below-base": "guard-page-hit",
    "6.1-sp-lowered": "guard-page-hit",
    "6.1-stack-protector": "stack-corruption",
    "6.12-brk": "not-a-stack-problem",
    "6.12-bug": "not-a-stack-problem",
    "6.12-execute-data": "not-a-stack-problem",
    "6.12-init-exit": "not-a-stack-problem",
    "6.12-no-rootfs": "not-a-stack-problem",
    "6.12-null-dereference": "not-a-stack-problem",
    "6.12-oom": "not-a-stack-problem",
    "6.12-pointer-into-guard": "guard-page-hit",
    "6.12-recursion": "deep-call-chain",
    "6.12-serror": "not-a-stack-problem",
    "6.12-soft-lockup": "not-a-stack-problem",
    "6.12-sp-below-base": "guard-page-hit",
    "6.12-sp-lowered": "guard-page-hit",
    "6.12-stack-protector": "stack-corruption",
    "6.12-wild-pointer": "not-a-stack-problem",
    "6.12-write-read-only": "not-a-stack-problem",
    "7.3-panic-on-warn": "not-a-stack-problem",
    "7.3-sysrq": "not-a-stack-problem",
}


EIGHT = {
    "4.17-entry-lost-8-cpus": "lost-entry",
    "4.17-entry-reverted-8-cpus": "reverted-entry",
    "5.10-entry-reverted-8-cpus": "",
    "5.10-entry-reverted-all-8-cpus": "",
}
"""Deaths of several CPUs in one log, and what each of them was where all are alike."""
WARNINGS = ("7.3-warning",)
"""Reports that nothing died of."""


@pytest.mark.parametrize(("name", "code"), REAL.items())
def test_each_death_has_its_verdict_and_evidence(name: str, code: str) -> None:
    verdict = only(log(name)).verdict
    assert verdict.code == code
    assert verdict.evidence and verdict.unknown
    assert set(verdict.code.split()) <= set(CODES)


def test_every_log_is_used() -> None:
    assert {path.stem for path in LOGS.glob("*.log")} == {*REAL, *EIGHT, *WARNINGS}


def test_the_report_is_explained() -> None:
    panic = only(log("4.17-lkml-kpti"))
    facts = panic.facts
    assert panic.incident.message == "kernel stack overflow"
    assert facts.esr is not None
    assert (facts.esr.ec, facts.esr.wnr, facts.esr.level) == (0x25, True, 2)
    assert facts.esr.fault.startswith("translation fault")
    assert facts.stack is not None and facts.stack.kind == "task"
    assert panic.incident.first.far == facts.stack.base + 0xE0
    assert facts.used == 800
    assert facts.recursion is not None
    assert (facts.recursion.count, facts.recursion.frame_size) == (48, 320)
    assert panic.incident.later_count == 2


def test_the_reports_walk_registers_are_explained() -> None:
    panic = only(log("4.17-lkml-kpti"))
    walk = panic.facts.kpti
    assert walk is not None and walk.complete and walk.swapper_pa == 0x411F7000
    assert walk.algorithm == "mmu-off-post-order"
    assert [(s.name, s.level, s.complete) for s in walk.levels] == [
        ("pgd", 0, True),
        ("pud", 1, True),
        ("pmd", 2, True),
        ("pte", 3, True),
    ]
    notes = {note.name: note for note in panic.registers}
    assert {name: notes[name].role for name in ("x2", "x5", "x9", "x13", "x16")} == {
        "x2": "swapper_pa",
        "x5": "cur_pgdp",
        "x9": "end_pudp",
        "x13": "pmd",
        "x16": "pte",
    }
    assert "2 MiB block at 0x7fe00000, nG" in notes["x13"].meaning
    assert "page at 0x40fff000, nG" in notes["x16"].meaning
    assert notes["x20"].role == ""


def test_the_reports_root_entry_is_found_to_be_the_boots() -> None:
    panic = only(log("4.17-lkml-kpti"))
    path = panic.facts.path
    assert path is not None and path.address == 0xFFFF0000093ABCE0
    assert [(s.name, s.level, s.descriptor.raw) for s in path.steps] == [
        ("pgd", 0, 0x411F8003),
        ("pud", 1, 0x411F9003),
        ("pmd", 2, 0),
    ]
    evidence = said(panic)
    assert "pgd points to is swapper_pg_dir + 0x1000" in evidence
    assert "pud points to is swapper_pg_dir + 0x2000" in evidence
    assert evidence.count("not marked (bit 11 clear)") == 2
    assert "its fault was at level 2: they agree" in evidence
    assert any("no earlier snapshot" in text for text in panic.verdict.unknown)


def test_other_cpus_of_a_reverted_entry_lost_their_mapping() -> None:
    """On CPUs that only waited, no register shows the walk, and 5.10 printed no table walk."""
    analysis = analyse(log("5.10-entry-reverted-8-cpus"))
    lost = [p for p in analysis.panics if p.verdict.code == "stack-mapping-lost"]
    assert len(lost) == 3
    for panic in lost:
        assert panic.facts.recursion is not None
        assert (panic.facts.recursion.count, panic.facts.recursion.frame_size) == (46, 0x150)
        assert panic.facts.used == 832
        assert panic.facts.kpti is None
        assert "kpti_install_ng_mappings+0x17c/0x320" in said(panic)
    assert {p.incident.first.comm for p in lost} == {"migration/5", "migration/6", "migration/7"}
    corrupted = [p for p in analysis.panics if p.verdict.code == "stack-corruption"]
    assert corrupted and "a frame of zeros" in said(corrupted[0])


def test_each_of_eight_cpus_that_print_at_once_is_explained() -> None:
    """Two print faults at the same time, six have no stack: every block holds its SP, FAR and stacks."""
    panics = analyse(log("5.10-entry-reverted-all-8-cpus")).panics
    assert {p.incident.first.cpu: p.verdict.code for p in panics} == {
        **dict.fromkeys(range(2), "stack-corruption"),
        **dict.fromkeys(range(2, 8), "stack-mapping-lost"),
    }
    for panic in panics[2:]:
        first = panic.incident.first
        assert not first.mixed and first.far == first.sp and panic.facts.used == 832
        assert first.task_stack is not None and first.task_stack.contains(first.far or 0)


@pytest.mark.parametrize(("name", "code"), [pair for pair in EIGHT.items() if pair[1]])
def test_what_one_cpu_prints_of_the_tables_explains_all(name: str, code: str) -> None:
    """CPU 0 has the rewrite's registers, one other printed a walk: the eight have the same tables."""
    panics = analyse(log(name)).panics
    assert sorted(p.incident.first.cpu or 0 for p in panics) == [*range(8)]
    assert {p.verdict.code for p in panics} == {code}
    walker = next(p for p in panics if p.facts.kpti is not None)
    printer = next(p for p in panics if p.facts.path is not None)
    assert walker.incident.first.cpu == 0 and printer is not walker
    for panic in panics:
        first = panic.incident.first
        assert panic.facts.used == 720 and panic.facts.recursion is not None
        assert (panic.facts.recursion.count, panic.facts.recursion.frame_size) == (48, 320)
        if panic is not walker:
            assert f"CPU 0 (line {walker.incident.first.line}) did the rewrite" in said(panic)
        if panic is not printer:
            by = f"which CPU {printer.incident.first.cpu} (line {printer.incident.first.line}) printed"
            assert f"{by}, ends at level 2 (pmd): empty" in said(panic)
            assert f"{first.far or 0:#x} uses the same pmd entry" in said(panic)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"pgd=00000000403e6003", b"pgd=00000000403e6803"),
        (b"x2 : 00000000403e5000", b"x2 : 00000000403e4000"),
        (b"x6 : 00000000403e6000", b"x6 : 00000000403e6008"),
    ],
)
def test_what_does_not_fit_together_explains_no_other_cpu(old: bytes, new: bytes) -> None:
    data = log("4.17-entry-reverted-8-cpus").replace(old, new)
    panics = analyse(data.replace(b"pud=00000000403e7003", b"pud=00000000403e7803")).panics
    assert "reverted-entry" not in {p.verdict.code for p in panics if p.incident.first.cpu}


def test_another_boots_walk_is_not_this_ones() -> None:
    """The lines of CPU 4 alone, after another boot of the same kernel died in the same way."""
    lines = log("4.17-entry-reverted-8-cpus").decode().splitlines()
    begins = [n for n, line in enumerate(lines) if "Insufficient" in line]
    alone = next(n for n in begins if any("migration/4" in line for line in lines[n : n + 8]))
    again = [lines[0], *lines[alone : alone + 27]]
    panics = analyse("\n".join([*lines, *again]).encode()).panics
    assert [p.verdict.code for p in panics] == ["reverted-entry"] * 8 + ["stack-mapping-lost"]


def test_a_hidden_root_still_tells_the_granule() -> None:
    """4.17 prints `pgdp =         (ptrval)`, the hash of an address that it has no key for yet."""
    path = only(log("4.17-entry-lost")).facts.path
    assert path is not None and not path.assumed and path.pgdp is None


def test_a_store_to_read_only_memory_is_named_by_the_walk() -> None:
    text = said(only(log("6.12-write-read-only")))
    assert "ends in a block that is read-only: pc stored to it" in text


@pytest.mark.parametrize(
    ("name", "caller"),
    [
        ("5.10-sysrq", "the function right before sysrq_reset_seq_param_set"),
        ("7.3-sysrq", "sysrq_handle_crash"),
    ],
)
def test_a_panic_by_sysrq_was_asked_for(name: str, caller: str) -> None:
    """5.10's sysrq_handle_crash ends with its call of panic(): the return address is the next function's."""
    text = said(only(log(name)))
    assert f"by {caller}" in text
    assert "it was asked for: sh wrote to /proc/sysrq-trigger" in text


def test_a_warning_that_panics_is_told_with_its_place() -> None:
    """Linux 7.3 names the CPU at the end: `WARNING: file.c:28 at symbol, CPU#0: sh/94`."""
    panic = only(log("7.3-panic-on-warn"))
    first = panic.incident.first
    assert first.kind == "warning" and first.pc == first.lr == "refcount_warn_saturate+0xf4/0x148"
    assert (first.cpu, first.pid, first.comm) == (0, 94, "sh")
    assert "the kernel warned before it at pc refcount_warn_saturate+0xf4/0x148: WARNING: lib/" in said(panic)
    assert panic.verdict.unknown == ("why it warned",)


@pytest.mark.parametrize("name", WARNINGS)
def test_a_warning_is_no_death(name: str) -> None:
    assert analyse(log(name)).panics == ()


def test_a_pc_in_data_is_named_by_the_walk() -> None:
    assert "may not execute (PXN): the PC lies in it" in said(only(log("6.12-execute-data")))


def test_a_recursion_names_its_circle() -> None:
    panic = only(log("6.1-recursion"))
    assert panic.facts.chain.cycle == ("sysrq_handle_crash",)
    assert panic.facts.chain.often[1] > 20
    assert panic.facts.recursion is None
    assert panic.facts.used == 0x4000 - 0x120


def test_an_interrupt_that_finds_no_room_leaves_a_stale_esr() -> None:
    panic = only(log("6.1-sp-lowered"))
    assert panic.facts.esr is not None and panic.facts.esr.ec == 0x15
    assert "of an earlier exception" in said(panic)
    assert "an exception frame of 336 bytes does not fit" in said(panic)


def test_a_step_larger_than_a_frame_is_no_chain() -> None:
    panic = only(log("5.10-sp-below-base"))
    assert "one step" in said(panic)
    assert panic.facts.used == 0x4000


def test_a_pointer_below_the_stack_hits_the_guard_with_room_left() -> None:
    panic = only(log("6.1-pointer-into-guard"))
    assert "a pointer left the stack, not its depth" in said(panic)
    assert panic.facts.stack is None and panic.facts.used is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"at virtual address ffff800009aa7ff8", b"at virtual address ffff800009aa6ff8"),
        (b"at virtual address ffff800009aa7ff8", b"at virtual address ffff800009aa8ff8"),
        (b"ESR = 0x0000000096000047", b"ESR = 0x000000009600004f"),
    ],
)
def test_a_fault_near_the_stack_is_not_the_guards_by_itself(old: bytes, new: bytes) -> None:
    data = log("6.1-pointer-into-guard").replace(old, new).replace(b"Oops: 0000000096000047", b"Oops: 0")
    assert only(data).verdict.code == "unknown"


WALK = "pgd=000000007ffff{0}, p4d=000000007ffff{0}, pud=000000007fffe{0}, pmd=0000000000000000".format("803")


def test_an_empty_entry_below_marked_tables_is_lost() -> None:
    panic = only(text(bad_stack(), paging_request(0xFFFF800011883CC0, WALK)))
    assert panic.verdict.code == "lost-entry"
    assert "level 2 (pmd): empty" in said(panic)
    assert "every table descriptor above it has bit 11" in said(panic)
    assert panic.facts.recursion is not None and panic.facts.recursion.count == 46


def test_unmarked_tables_alone_do_not_prove_a_reverted_entry() -> None:
    unmarked = WALK.replace("803", "003")
    panic = only(text(bad_stack(), paging_request(0xFFFF800011883CC0, unmarked)))
    assert panic.verdict.code == "lost-entry"
    assert any("went back to an older value" in line for line in panic.verdict.unknown)


def test_a_walk_of_another_address_is_not_the_stacks() -> None:
    panic = only(text(bad_stack(), paging_request(0xFFFF000000000010, WALK)))
    assert panic.verdict.code == "stack-mapping-lost"


@pytest.mark.parametrize("register", [6, 9, 13, 15])
def test_an_unfinished_walk_proves_nothing(register: int) -> None:
    """Without the registers' evidence the report's log is an empty entry, no more."""
    name = f"x{register}" if register > 9 else f"x{register} "
    data = log("4.17-lkml-kpti").decode()
    first = data.index(f"{name}: ")
    digits = slice(first + len(name) + 2, first + len(name) + 18)
    for value in ("0000000041200000", "00f800007fe00711"):
        changed = (data[: digits.start] + value + data[digits.stop :]).encode()
        code = only(changed).verdict.code
        assert code in ("lost-entry", "reverted-entry")
        if register != 13:
            assert code == "lost-entry"


def test_global_leaves_are_no_sign_of_a_finished_rewrite() -> None:
    data = log("4.17-lkml-kpti").replace(b"00f800007fe00f11", b"00f800007fe00711", 1)
    data = data.replace(b"00f8000040ffff13", b"00f8000040fff713", 1)
    assert only(data).verdict.code == "lost-entry"


def test_a_misaligned_sp_is_the_problem_itself() -> None:
    data = text(
        bad_stack(
            esr="ESR: 0x9a000000 -- SP Alignment",
            far=0x7038923008,
            sp=0xFFFF800011880118,
            pc="el1_sync+0x0/0xe8",
            x29=8,
            release="4.19.111",
        )
    )
    panic = only(data)
    assert panic.verdict.code == "sp-corrupted"
    assert panic.facts.recursion is None and panic.facts.used is None


def test_an_sp_in_none_of_the_stacks_is_the_problem_itself() -> None:
    data = text(bad_stack(far=0xFFFF8000128180D0, sp=0xFFFF8000128180D0, base=0xFFFF800012A18000))
    panic = only(data)
    assert panic.verdict.code == "sp-corrupted"
    assert "in bit 21 alone" in said(panic)


def test_a_permission_fault_in_the_stack_is_no_lost_mapping() -> None:
    panic = only(text(bad_stack(esr="ESR: 0x000000009600004f -- DABT (current EL)")))
    assert panic.verdict.code == "unknown"


@pytest.mark.parametrize(
    ("release", "x29", "count", "size"),
    [
        ("4.17.0", 0xFFFF800011880000 + 0x60 + 10 * 0x140, 10, 0x140),
        ("5.10.0", 0xFFFF800011880000 + 0x60 + 10 * 0x150, 10, 0x150),
        ("4.17.0", 0xFFFF800011880000 + 0x60 + 21 * 0x140, 21, 0x140),
        ("5.10.0", 0xFFFF800011880000 + 0x60 + 20 * 0x150, 20, 0x150),
        ("7.3.0-rc7", 0xFFFF800011880000 + 0x60 + 21 * 0x140, 21, 0x140),
    ],
)
def test_the_frame_size_comes_from_the_gap_and_where_that_is_not_enough_from_the_release(
    release: str, x29: int, count: int, size: int
) -> None:
    found = only(text(bad_stack(x29=x29, release=release))).facts.recursion
    assert found is not None
    assert (found.count, found.frame_size) == (count, size)


def test_a_gap_that_two_sizes_divide_is_undecided_without_a_release() -> None:
    data = text(bad_stack(x29=0xFFFF800011880000 + 0x60 + 21 * 0x140))
    data = data.replace(b" Not tainted 6.1.0-synthetic #1", b"")
    assert only(data).facts.recursion is None


def test_entries_in_the_trace_count_where_the_gap_does_not_divide() -> None:
    x29 = 0xFFFF800011880000 + 0x60 + 12 * 0x150 + 0x30
    panic = only(text(bad_stack(x29=x29, trace=("el1h_64_sync+0x0/0x78",) * 11)))
    assert panic.facts.recursion is not None
    assert (panic.facts.recursion.count, panic.facts.recursion.frame_size) == (12, 0x150)
    assert only(text(bad_stack(x29=x29))).facts.recursion is None


CYCLE = ("timer_fixup_init+0x2c/0x5c", "__debug_object_init+0x248/0x53c", "debug_object_init+0x24/0x30")


@pytest.mark.parametrize(
    ("trace", "code"),
    [
        (CYCLE * 20, "deep-call-chain"),
        (tuple(f"layer_{n}+0x10/0x40" for n in range(60)), "deep-call-chain"),
        (tuple(f"layer_{n}+0x10/0x40" for n in range(9)), "guard-page-hit"),
        ((), "guard-page-hit"),
    ],
)
def test_a_full_stack_needs_a_chain_to_be_called_one(trace: tuple[str, ...], code: str) -> None:
    data = bad_stack(
        esr="ESR: 0x0000000096000047 -- DABT (current EL)",
        far=0xFFFF80001187FFF0,
        sp=0xFFFF800011880010,
        x29=0xFFFF800011880010,
        pc="deep+0x4/0x40",
        trace=trace,
    )
    assert only(text(data)).verdict.code == code


def test_a_guard_hit_on_the_irq_stack_is_the_irq_stacks() -> None:
    irq = 0xFFFF800008000000
    data = bad_stack(
        esr="ESR: 0x0000000096000047 -- DABT (current EL)",
        far=irq - 0x10,
        sp=irq + 0x20,
        x29=irq + 0x20,
        pc="handler+0x4/0x40",
    )
    panic = only(text(data))
    assert panic.facts.stack is not None and panic.facts.stack.kind == "irq"
    assert panic.verdict.code == "guard-page-hit"


def test_the_bad_stack_line_alone_proves_nothing() -> None:
    panic = only(b"Insufficient stack space to handle exception!\n")
    assert panic.verdict.code == "unknown"
    assert "SP" in panic.verdict.unknown[0]


def test_a_log_with_nothing_in_it_has_no_panics() -> None:
    assert analyse(b"").panics == ()
    assert analyse(b"[    1.0] all is well\r\n" * 100).panics == ()
