"""Map, summary, find, decode, help, kernel: what they answer in JSON and to people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import NG, TreeBuilder
from fakes import IMAGE, KERNEL, FakeKernel, context, kernel_tree, run, text

from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.levels import size_text
from ptinspect.commands.framework.context import Context
from ptinspect.errors import GuestError, KernelFileError, UserError


@pytest.fixture
def tree() -> TreeBuilder:
    return kernel_tree()


@pytest.fixture
def ctx(tree: TreeBuilder) -> Context:
    return context(tree)


def counting(tree: TreeBuilder) -> list[int]:
    """Count the tables that are read from now on."""
    reads: list[int] = []
    original = tree.memory.read_tables

    def read_tables(addresses: Any, size: int) -> Any:
        reads.append(len(addresses))
        return original(addresses, size)

    tree.memory.read_tables = read_tables  # type: ignore[method-assign]
    return reads


# -- summary ------------------------------------------------------------------------------------


def test_summary_counts_every_level(ctx: Context, tree: TreeBuilder) -> None:
    tree.xor(KERNEL, 2, NG)
    tree.xor(KERNEL, 0, NG)
    result = run(ctx, "summary").result
    assert result["root"] == {"pa": hex(tree.root), "provenance": "TTBR1_EL1 of cpu 0"}
    assert (result["regime"]["granule"], result["regime"]["va_bits"], result["regime"]["start_level"]) == (
        4096,
        48,
        0,
    )
    levels = {level["name"]: level for level in result["levels"]}
    assert list(levels) == ["pgd", "pud", "pmd", "pte"]
    assert (levels["pgd"]["table_descriptors"], levels["pgd"]["table_descriptors_marked"]) == (2, 1)
    assert (levels["pmd"]["leaves"], levels["pmd"]["leaves_ng"], levels["pmd"]["leaf_size"]) == (
        2,
        1,
        2 << 20,
    )
    assert (levels["pte"]["tables"], levels["pte"]["entries_valid"], levels["pte"]["leaves"]) == (2, 17, 17)


@pytest.mark.parametrize(
    ("line", "live"),
    [
        ("map", True), ("map --bar", True), ("map --bar 0xffff000000000000", True), ("summary", True),
        ("find pa:0x80000000", True), ("walk 0xffff000000000000", True), ("check", False),
        ("regs", False), ("regime", False), ("kpti status", None),
    ],
)  # fmt: skip
def test_every_heading_names_its_snapshot(ctx: Context, line: str, live: bool | None) -> None:
    """The root's line ends `(snapshot NAME)` or `(guest)` and names the CPU once; the name is escaped."""
    run(ctx, "snap one")
    assert "snapshot one" in text(run(ctx, f"{line} --snap one"))
    if live:
        (root,) = [row for row in text(run(ctx, line)).splitlines() if row.startswith("root pa:")]
        assert root.endswith("(guest)") and root.count("cpu 0") == 1
    if live is not None:
        assert "(guest" in text(run(ctx, line)) or "guest, cpu 0" in text(run(ctx, line))
    ctx.guest.snapshots["a\x1b[1m"] = replace(ctx.guest.snapshots["one"], name="a\x1b[1m")
    said = run(ctx, f"{line} --snap a\x1b[1m")
    assert "\x1b" not in "".join(getattr(part, name, "") for part in said.body for name in ("text", "title"))


def test_symbols_of_a_snapshot_are_where_its_kernel_was(ctx: Context) -> None:
    """A snapshot of a boot with KASLR, looked at with another guest or with none."""
    kernel = FakeKernel()
    ctx.guest._kernel = kernel  # type: ignore[assignment]
    run(ctx, "snap one")
    one = ctx.guest.snapshots["one"]
    for offset, said in (("0x200000", "(start_kernel+0x4)"), ("0x0", ""), ("nonsense", "")):
        meta = replace(one.meta, extra={**one.meta.extra, "kernel.offset": offset})
        ctx.guest.snapshots["one"] = replace(one, meta=meta)
        place = text(run(ctx, f"walk {KERNEL + 0x20_1004:#x} --snap one")).splitlines()[0]
        assert (said in place) if said else ("+0x" not in place), place
    assert run(ctx, f"print {KERNEL + 0x1004:#x} --snap one").result["symbol"] == "start_kernel"
    other = replace(one.meta, kernel="Linux version 6.1.0")
    kernel.banner = "Linux version 6.2.0"
    ctx.guest.snapshots["one"] = replace(one, meta=other)
    shown = text(run(ctx, f"walk {KERNEL + 0x1004:#x} --snap one"))
    assert "start_kernel" not in shown, "the file is another kernel's"


def test_bars_say_since_when(ctx: Context) -> None:
    run(ctx, "snap one")
    run(ctx, "snap two")
    shown = text(run(ctx, "map --bar --snap two --against one"))
    assert "(snapshot two)" in shown and "changes since snapshot one" in shown


def test_summary_says_root_and_totals(ctx: Context) -> None:
    shown = text(run(ctx, "summary"))
    assert "TTBR1_EL1 of cpu 0 (guest)" in shown
    assert "0 of 6 table descriptors are marked, 0 of 19 leaves are nG" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_tables_are_read_once_per_stop(ctx: Context, tree: TreeBuilder) -> None:
    reads = counting(tree)
    run(ctx, "summary")
    first = sum(reads)
    run(ctx, "map")
    run(ctx, "find pa:0x40200000")
    assert sum(reads) == first > 0
    ctx.guest.session.stop_token += 1  # type: ignore[union-attr,misc]
    run(ctx, "summary")
    assert sum(reads) == 2 * first


# -- map ----------------------------------------------------------------------------------------


def test_map_lists_runs(ctx: Context) -> None:
    runs = run(ctx, "map").result["runs"]
    assert [(r["va_start"], r["pa_start"], r["level"], r["leaf_size"], r["count"]) for r in runs] == [
        ("0xffff000000000000", "0x40000000", 3, 4096, 16),
        (hex(KERNEL), hex(IMAGE), 2, 2 << 20, 2),
        ("0xffff800020000000", "0x40100000", 3, 4096, 1),
    ]
    assert runs[0]["va_end"] == "0xffff00000000ffff"
    assert runs[0]["permissions"].items() >= {"el1": "rw-", "el0": "---", "privileged": "EL1"}.items()
    assert runs[0]["attributes"]["ng"] is False


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ("--level pmd", [KERNEL]),
        ("--level 3", [0xFFFF_0000_0000_0000, 0xFFFF_8000_2000_0000]),
        ("--level pmd --level pte", [0xFFFF_0000_0000_0000, KERNEL, 0xFFFF_8000_2000_0000]),
        (f"{KERNEL:#x}+4M", [KERNEL]),
        ("0xffff000000003000..0xffff000000005000", [0xFFFF_0000_0000_3000]),
        ("--pa 0x40100000+4K", [0xFFFF_8000_2000_0000]),
        ("--ng", [KERNEL + (2 << 20)]),
        ("--global --level pmd", [KERNEL]),
        ("--el1 w --level pmd", [KERNEL]),
        ("--el1 x", []),
        ("--el1-not w", []),
        ("--el0 r", []),
        ("--type device", []),
        ("--type NORMAL --level pmd", [KERNEL]),
    ],
)
def test_map_filters(ctx: Context, tree: TreeBuilder, options: str, starts: list[int]) -> None:
    if "ng" in options:
        tree.xor(KERNEL + (2 << 20), 2, NG)
    found = [int(r["va_start"], 16) for r in run(ctx, f"map {options}").result["runs"]]
    assert found == starts


def test_only_the_selected_part_is_read(ctx: Context, tree: TreeBuilder) -> None:
    run(ctx, f"walk {KERNEL:#x}")  # which finds the names of regions, once for a stop
    reads = counting(tree)
    run(ctx, "map --level pgd")
    assert sum(reads) == 1
    reads.clear()
    run(ctx, f"map {KERNEL:#x}+2M")
    assert sum(reads) == 3


def test_map_to_people(ctx: Context, tree: TreeBuilder) -> None:
    tree.xor(KERNEL, 2, NG)
    shown = text(run(ctx, "map"))
    assert "0xffff800010000000   0x40200000    2M    1x2M  rw-  ---  nG  Normal WB" in shown
    assert "0xffff800010200000   0x40400000    2M    1x2M  rw-  ---      Normal WB" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "nothing is mapped" in text(run(ctx, "map --el0 rwx"))


def test_map_has_one_line_for_a_table_that_many_entries_lead_to(ctx: Context, tree: TreeBuilder) -> None:
    for number in range(1, 101):
        tree.share(0xFFFF_0000_0000_0000 + (number << 21), 2, 0xFFFF_0000_0000_0000)
    report = run(ctx, "map")
    (again,) = report.result["repeats"]
    assert (again["va_start"], again["as_at"]) == ("0xffff000000200000", "0xffff000000000000")
    assert (again["times"], again["span"], again["level"]) == (100, 2 << 20, 3)
    assert report.result["complete"] and len(report.result["runs"]) == 3
    shown = text(report).splitlines()
    line = next(i for i, line in enumerate(shown) if line.startswith("0xffff000000200000"))
    assert shown[line - 1].startswith("0xffff000000000000")
    table = tree.table_at(0xFFFF_0000_0000_0000, 3, create=False)
    assert f"table {table:#x}  200M  100x2M" in shown[line] and "as at 0xffff000000000000" in shown[line]
    assert text(run(ctx, "map --limit 1")).count("0xffff000000200000") == 0


def test_map_limits_the_screen_and_says_so(ctx: Context) -> None:
    report = run(ctx, "map --limit 1")
    assert "only the first 1 runs are listed" in text(report)
    assert report.result["truncated"]


@pytest.mark.parametrize("line", ["map --el1 q", "map --level 7", "map --ng --global", "map 0x2..0x1"])
def test_map_refuses(ctx: Context, line: str) -> None:
    with pytest.raises(UserError):
        run(ctx, line)


def test_size_text() -> None:
    sizes = (4096, 2 << 20, (2 << 20) + 4096, 3 << 30, 1 << 40, 1005 << 20 | 1 << 19, (126 << 40) - 4096,
             (1 << 30) - 4096, (1 << 40) - 4096)  # fmt: skip
    assert [size_text(n) for n in sizes] == [
        "4K", "2M", "2052K", "3G", "1T", "1005.5M", "126.0T", "1.0G", "1.0T",
    ]  # fmt: skip


# -- find ---------------------------------------------------------------------------------------


def test_find_a_page_and_an_entry(ctx: Context, tree: TreeBuilder) -> None:
    hits = run(ctx, "find 0x40200123").result["hits"]
    assert [(h["kind"], h["va"], h["level"]) for h in hits] == [("leaf", hex(KERNEL + 0x123), 2)]
    slot = tree.slot(KERNEL, 2)
    kinds = {h["kind"] for h in run(ctx, f"find pa:{slot:#x}").result["hits"]}
    assert kinds == {"leaf", "table"}
    assert "no address under this root maps" in text(run(ctx, "find pa:0x60000000"))


def test_find_translates_a_kernel_address_first(ctx: Context) -> None:
    ctx.guest._kernel = FakeKernel()  # type: ignore[assignment]
    assert run(ctx, "find start_kernel").result["pa"] == hex(IMAGE + 0x1000)
    with pytest.raises(GuestError, match="not mapped"):
        run(ctx, "find 0xffff900000000000")


def test_they_work_offline(ctx: Context) -> None:
    live = [run(ctx, line).result for line in ("summary", "map", "find 0x40200000")]
    run(ctx, "snap a")
    other = context()
    other.guest.snapshots = ctx.guest.snapshots
    held = [run(other, f"{line} --snap a").result for line in ("summary", "map", "find 0x40200000")]
    for one, two in zip(live, held, strict=True):
        assert one["snapshot"] == "(guest, cpu 0)"
        assert {**one, "snapshot": "a"} == two


# -- decode -------------------------------------------------------------------------------------


def test_decode_without_a_guest() -> None:
    report = run(context(), "decode 0x00680000411f7f03 --level 3")
    assert (report.result["kind"], report.result["output_address"]) == ("page", "0x411f7000")
    assert report.result["regime"]["source"] == "options and defaults"
    fields = {field["field"]: field for field in report.result["fields"]}
    assert fields["nG"]["value"] == 1
    assert "--mair" in fields["AttrIndx"]["meaning"]


def test_decode_names_the_memory_type_with_mair(ctx: Context) -> None:
    meaning = {f["field"]: f for f in run(context(), "decode 0x41200703 -l 3 --mair 0xff").result["fields"]}
    assert "Normal WB" in meaning["AttrIndx"]["meaning"]
    live = run(ctx, "decode 0x41200703 -l pte").result
    assert live["regime"]["source"] == "the guest's registers"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("decode 0 -l 2", "invalid"),
        ("decode 0x41200703 -l pmd", "table"),
        ("decode 0x41200701 -l pmd", "block"),
        ("decode 0x41200701 -l 3", "reserved"),
        ("decode 0x41200701 -l 0", "reserved"),
        ("decode 0x41200701 -l 1 --granule 64K --va-bits 52 --pa-bits 52", "block"),
        ("decode 0x41200701 -l pgd --va-bits 39", "block"),
    ],
)
def test_decode_at_each_level(line: str, kind: str) -> None:
    assert run(context(), line).result["kind"] == kind


@pytest.mark.parametrize(
    "line",
    [
        *("decode 0 -l -1", "decode 0 -l 0 --va-bits 39", "decode 0 -l 3 --granule 8K"),
        *("decode 0 -l 3 --va-bits 52", "decode 0 -l 3 --pa-bits 47", "decode 0 -l 3 --ds --granule 64K"),
    ],
)
def test_decode_refuses_levels_and_tables_that_do_not_exist(line: str) -> None:
    with pytest.raises(UserError):
        run(context(), line)


# -- help and the kernel file -------------------------------------------------------------------


def test_help_explains_every_command() -> None:
    ctx = context()
    for command in ctx.registry:
        report = run(ctx, f"help {command.name}")
        assert report.result["example"] == command.example
        assert command.summary in text(report)
        assert command.summary[0].isupper() and not command.summary.endswith(".")


def test_help_of_a_group_and_of_nothing() -> None:
    ctx = context()
    if any(command.words[0] == "kpti" for command in ctx.registry):
        assert "kpti run" in text(run(ctx, "help kpti"))
    with pytest.raises(UserError, match="no command"):
        run(ctx, "help nonsense")
    with pytest.raises(UserError, match="no command 'walk further'"):
        run(ctx, "help walk further")


def test_kernel_and_symbol(ctx: Context, tmp_path: Path) -> None:
    assert run(ctx, "kernel").result["file"] is None
    with pytest.raises(UserError, match="kernel file"):
        run(ctx, "symbol start_kernel")
    with pytest.raises(UserError, match="no file"):
        run(ctx, f"kernel {tmp_path}/none")
    (tmp_path / "k").write_bytes(b"no kernel" * 100)
    with pytest.raises(KernelFileError):
        run(ctx, f"kernel {tmp_path}/k")


def test_symbol_live_and_as_linked(ctx: Context) -> None:
    ctx.guest._kernel = FakeKernel()  # type: ignore[assignment]
    assert run(ctx, "symbol start_kernel+4").result == {
        "address": hex(KERNEL + 0x1004),
        "symbol": "start_kernel",
        "offset": 4,
        "pa": hex(IMAGE + 0x1004),
    }
    assert run(ctx, f"symbol pa:{IMAGE + 0x1000:#x}").result["symbol"] == "start_kernel"
    alone = context(kernel=FakeKernel())
    assert run(alone, "symbol _text").result["address"] == hex(KERNEL)


def test_check_says_nothing_of_tables_that_are_shared_by_design() -> None:
    """KASAN maps the shadow of what nobody uses to one page, through one table of each level."""
    tree = kernel_tree()
    va, entry = 0xFFFF_6000_0000_0000, tree.regime.entry_size(2)
    tree.map(va, 0x4012_0000, size=0x1000, level=3)
    for i in range(1, 9):
        tree.share(va + i * entry, 2, va)
    table = tree.table_at(va, 3, create=False)
    ctx = context(tree)
    assert run(ctx, "check").result["totals"] == {"table-shared": 1}
    kernel = FakeKernel()
    swapper = kernel.lookup("swapper_pg_dir")
    more = {"kasan_early_shadow_pte": [swapper + table - tree.root]}
    kernel.symbols = {**kernel.symbols, **more}  # type: ignore[misc]
    ctx.guest._kernel = kernel  # type: ignore[assignment]
    assert run(ctx, "check --expect-clean").result["totals"] == {}


# -- walk --against -----------------------------------------------------------------------------


def test_one_path_at_several_times(ctx: Context, tree: TreeBuilder) -> None:
    run(ctx, "snap before")
    tree.xor(KERNEL, 0, NG)
    run(ctx, "snap during")
    tree.xor(KERNEL, 2, 1)  # the entry is lost
    ctx.guest.forget_stop()
    report = run(ctx, f"walk {KERNEL:#x} --against before --against during")
    one, two = report.result["against"]
    assert (one["snapshot"], one["outcome"], two["outcome"]) == ("before", "mapped", "mapped")
    assert [(s["name"], s["kinds"]) for s in one["steps"]] == [("pgd", ["marked"]), ("pud", []), ("pmd", [])]
    assert [s["kinds"] for s in two["steps"]] == [[], [], ["lost"]]
    assert report.result["outcome"] == "fault"
    shown = text(report)
    assert "pmd 2: lost between during and now" in shown
    assert "no more than bit 11" in text(run(ctx, f"walk {KERNEL:#x} --snap during --against before"))


def test_what_lies_in_another_table_is_not_compared(ctx: Context, tree: TreeBuilder) -> None:
    run(ctx, "snap before")
    tree.xor(KERNEL, 1, 0x10_0000)  # leads to another table
    ctx.guest.forget_stop()
    report = run(ctx, f"walk {KERNEL:#x} --against before")
    kinds = [step["kinds"] for step in report.result["against"][0]["steps"]]
    assert kinds[:2] == [[], ["retargeted"]] and set(map(str, kinds[2:])) <= {"None"}
    assert "pud 1: retargeted between before and now" in text(report)


def test_a_path_of_the_other_half_is_refused(ctx: Context) -> None:
    run(ctx, "snap before")
    with pytest.raises(UserError, match="half"):
        run(ctx, "walk 0x1000 --root ttbr0 --against before")


def test_a_snapshot_against_the_guest_as_it_is_now(ctx: Context, tree: TreeBuilder) -> None:
    run(ctx, "snap before")
    tree.xor(KERNEL, 0, NG)
    ctx.guest.forget_stop()
    report = run(ctx, f"diff before --at {KERNEL:#x}")
    assert (report.result["a"], report.result["b"], report.result["only_bit11"]) == ("before", "now", True)
    assert "--limit" not in text(report)
    before, now = report.result["at"]
    assert [step["kinds"] for step in before["steps"]] == [["marked"], [], []]
    assert [step["kinds"] for step in now["steps"]] == [None] * 3 and "now" not in ctx.guest.snapshots
    tree.xor(KERNEL, 2, 1 << 54)
    ctx.guest.forget_stop()
    told = text(run(ctx, f"diff before --at {KERNEL:#x}"))
    assert "--limit N lists them" in told and "…" not in told
    ctx.guest.snapshots["other"] = kernel_tree().snapshot("other")
    ctx.guest.snapshots["other"] = replace(
        ctx.guest.snapshots["other"], root=replace(ctx.guest.snapshots["other"].root, pa=PhysAddr(0x1000))
    )
    with pytest.raises(UserError, match="was captured under") as caught:
        run(ctx, "diff other")
    assert "snap now --root" in caught.value.hint
