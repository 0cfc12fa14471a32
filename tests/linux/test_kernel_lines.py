# ruff: noqa: E501 - the lines of the kernel are that long
"""The kernel's text of its page tables: files that kernels printed, and small trees worked out by hand.

The pairs in tests/data/ptdump are of guests whose kernels were built with CONFIG_PTDUMP_DEBUGFS: a
snapshot, and what /sys/kernel/debug/kernel_page_tables of the same guest said a moment before.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from builders import EL0, KERNEL_DATA, KERNEL_TEXT, NG, OUTSIDE, REGIMES, TreeBuilder
from fakes import context, run

from ptinspect.commands.framework.registry import build_registry
from ptinspect.errors import SnapshotError, UserError
from ptinspect.linux.layout.geometry import GENERIC, by_name, geometries, geometry, variant_of
from ptinspect.linux.ptdump.kernel_lines import MAX_SEGMENTS, columns, lines, mask_of, segments, size_text
from ptinspect.linux.ptdump.markers import frame_of, markers, release_of
from ptinspect.linux.releases import TEXT_FORMS, Release, text_form
from ptinspect.snapshot.store import load

PAIRS = sorted((Path(__file__).parent.parent / "data" / "ptdump").glob("*.npz"))
GP = 1 << 50
MTE = 0x0000_0004_0044_F0FF


@pytest.mark.parametrize("file", PAIRS, ids=lambda path: path.stem)
def test_the_text_is_the_kernels_own(file: Path, tmp_path: Path) -> None:
    result = run(context(), f"export {file} --format ptdump -o {tmp_path}/text").result
    wanted = file.with_suffix(".txt").read_text()
    assert (tmp_path / "text").read_text() == wanted
    assert result["rows"] == len(wanted.splitlines()) > 40
    eras = {"4.17": "4.16", "5.10": "5.10", "6.1": "5.17", "6.12": "6.9"}
    assert result["era"] == eras[file.stem.partition("-")[0]]


def test_slots_for_early_mappings_have_a_page_more_from_6_12_111_on() -> None:
    snapshot = load(PAIRS[0].with_name("6.12-39bit.npz"))
    banner = snapshot.meta.kernel
    starts = []
    for version, notes in (("6.12.117", 0), ("6.12.110", 0), ("6.18.40", 1), ("7.2", 0), ("7.3.1", 0)):
        meta = dataclasses.replace(snapshot.meta, kernel=banner.replace("6.12.117", version))
        found = frame_of(dataclasses.replace(snapshot, meta=meta))
        assert len(found.assumed) == notes
        starts += [marker.address for marker in found.markers if marker.name == "Fixmap start"]
    assert [start - starts[0] for start in starts] == [0, 7 * 4096, 7 * 4096, 0, 0]


def test_there_are_pairs() -> None:
    assert len(PAIRS) >= 12


def dump(tree: TreeBuilder, era: str, *, scale: int = 0, mair: int = MTE) -> list[str]:
    form = TEXT_FORMS[era]
    found = columns(form, mair)
    walked = segments(tree.snapshot(), mask_of(found))
    release = Release(*form.since, 0)
    made = geometry(variant_of(release), tree.regime, scale=scale)
    marked = markers(made, release, form, tree.regime)
    return list(lines(walked, marked, found, form, tree.regime))


def test_a_small_tree_by_hand() -> None:
    """Each kind of line: pages, a block, an invalid page, a hole in each level; v6.9's markers."""
    tree = TreeBuilder(REGIMES["4k-48"])
    low = 0xFFFF_0000_0000_0000
    tree.map(low, 0x4010_0000, size=8 << 10, attributes=KERNEL_DATA | NG)
    tree.map(low + 0x3000, 0x4010_0000, attributes=KERNEL_TEXT | GP | EL0 | 4)
    tree.set(low + 0x4000, 3, 0xE0_0000_4010_0400)
    tree.map(low + (4 << 20), 0x4020_0000, level=2, attributes=KERNEL_DATA)
    tree.map(low + (1 << 30), 0x4000_0000, level=1, attributes=KERNEL_DATA | 3 << 2)
    assert dump(tree, "6.9")[:13] == [
        "---[ Linear Mapping start ]---",
        "0xffff000000000000-0xffff000000002000           8K PTE       RW NX SHD AF NG         UXN    MEM/NORMAL",
        "0xffff000000002000-0xffff000000003000           4K PTE",
        "0xffff000000003000-0xffff000000004000           4K PTE   USR ro x  SHD AF            UXN GP MEM/NORMAL-TAGGED",
        "0xffff000000004000-0xffff000000005000           4K PTE F     RW NX     AF        BLK UXN    MEM/NORMAL",
        "0xffff000000005000-0xffff000000200000        2028K PTE",
        "0xffff000000200000-0xffff000000400000           2M PMD",
        "0xffff000000400000-0xffff000000600000           2M PMD       RW NX SHD AF        BLK UXN    MEM/NORMAL",
        "0xffff000000600000-0xffff000040000000        1018M PMD",
        "0xffff000040000000-0xffff000080000000           1G PUD       RW NX SHD AF        BLK UXN    DEVICE/nGnRnE",
        "0xffff000080000000-0xffff008000000000         510G PUD",
        "0xffff008000000000-0xffff800000000000      130560G PGD",
        "---[ Linear Mapping end ]---",
    ]


def test_markers_in_a_hole_are_caught_up_two_at_a_time() -> None:
    """As the kernel prints them: all that lie in one entry of the root stand at the next ones."""
    tree = TreeBuilder(REGIMES["4k-39"])
    tree.map(0xFFFF_FF80_0000_0000, 0x4000_0000)
    text = dump(tree, "5.17")
    assert text[5:] == [
        "---[ Linear Mapping end ]---",
        "---[ Modules start ]---",
        "0xffffffc000000000-0xffffffc040000000           1G PGD",
        "---[ Modules end ]---",
        "---[ vmalloc() area ]---",
        "0xffffffc040000000-0xfffffffe00000000         247G PGD",
        "---[ vmalloc() end ]---",
        "---[ Fixmap start ]---",
        "0xfffffffe00000000-0xfffffffe40000000           1G PGD",
        "---[ Fixmap end ]---",
        "---[ PCI I/O start ]---",
        "0xfffffffe40000000-0xfffffffe80000000           1G PGD",
        "---[ PCI I/O end ]---",
        "---[ vmemmap start ]---",
        "0xfffffffe80000000-0xffffffff00000000           2G PGD",
        "---[ vmemmap end ]---",
        "0xffffffff00000000-0x0000000000000000           4G PGD",
    ]


def test_a_shadow_of_one_page_is_not_followed_page_by_page() -> None:
    """KASAN's early shadow: tables all of whose entries lead to one table below, for 32 TiB."""
    tree = TreeBuilder(REGIMES["4k-48"])
    low = 0xFFFF_9000_0000_0000
    page = tree.table_at(low, 3)
    tree.memory.write(page, (0x60_0000_4000_0F83).to_bytes(8, "little") * 512)
    for level in (2, 1):
        table = tree.table_at(low, level)
        first = tree.memory.read(table, 8)
        tree.memory.write(table, first * 512)
    for number in range(1, 64):
        tree.share(low + (number << 39), 0, low)
    assert sum(1 for _ in segments(tree.snapshot(), (1 << 64) - 1)) < 100
    text = dump(tree, "5.10", scale=GENERIC)
    assert [line for line in text if "MEM" in line] == [
        "0xffff900000000000-0xffffa00000000000          16T PTE       ro NX SHD AF NG         UXN    MEM/NORMAL",
        "0xffffa00000000000-0xffffa00008000000         128M PTE       ro NX SHD AF NG         UXN    MEM/NORMAL",
        "0xffffa00008000000-0xffffa00010000000         128M PTE       ro NX SHD AF NG         UXN    MEM/NORMAL",
        "0xffffa00010000000-0xffffb00000000000    16776960M PTE       ro NX SHD AF NG         UXN    MEM/NORMAL",
    ]


def test_old_kernels_leave_holes_out() -> None:
    tree = TreeBuilder(REGIMES["4k-48"])
    tree.map(0xFFFF_8000_0000_0000, 0x4000_0000, attributes=KERNEL_DATA | GP)
    text = dump(tree, "4.16", mair=0xBB_FF44_0C04_00)
    assert text[-2:] == [
        "---[ Linear Mapping ]---",
        "0xffff800000000000-0xffff800000001000           4K PTE       RW NX SHD AF            UXN DEVICE/nGnRnE",
    ]
    assert [line for line in text if not line.startswith("---")] == text[-1:]
    assert {"---[ vmalloc() Area ]---", "---[ vmalloc() End ]---"} < set(text)
    text = dump(tree, "5.0", mair=0xBB_FF44_0C04_00)
    assert {"---[ vmalloc() area ]---", "---[ vmalloc() end ]---", "---[ Linear mapping ]---"} < set(text)


def test_bpf_has_markers_from_5_10_to_5_16() -> None:
    tree = TreeBuilder(REGIMES["4k-48"])
    tree.map(0xFFFF_8000_0000_0000, 0x4000_0000)
    said = {era: "---[ BPF start ]---" in dump(tree, era) for era in TEXT_FORMS}
    assert [era for era, found in said.items() if found] == ["5.10", "5.11", "5.12"]


def test_only_late_kernels_tell_blocks_by_both_bits() -> None:
    tree = TreeBuilder(REGIMES["4k-48"])
    tree.set(0xFFFF_0000_0000_0000, 3, KERNEL_DATA)
    assert " BLK " in dump(tree, "6.9")[1]
    assert " BLK " not in dump(tree, "6.13")[1]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (4096, "        4K"),
        (2 << 20, "        2M"),
        (3 << 19, "     1536K"),
        (1 << 60, "        1E"),
        (0, "        0E"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("banner", "layout", "era"),
    [
        ("Linux version 6.1.0-50-cloud-arm64 (…)", "", "5.17"),
        ("Linux version 5.10.223 (root@vm)", "v6.9 and later", "5.10"),
        ("Linux version 5.9.0", "", "5.8"),
        ("Linux version 5.11.22", "", "5.11"),
        ("Linux version 5.13.0", "", "5.12"),
        ("Linux version 6.4.6", "", "6.4"),
        ("Linux version 6.14.0", "", "6.13"),
        ("Linux version 4.17.0", "", "4.16"),
        ("Linux version 6.12.117+deb13", "", "6.9"),
        ("", "v6.5 to v6.8", "6.5"),
        ("", "v5.4 to v5.10", "5.10"),
        ("", "v5.11 to v5.16, KASAN", "5.12"),
        ("", "v4.16 to v5.3", "4.16"),
    ],
)
def test_the_era_is_told_by_the_kernel(banner: str, layout: str, era: str) -> None:
    form = text_form(release_of(banner, by_name(layout, REGIMES["4k-48"])))
    assert form is not None and form.name == era


def test_what_is_not_known_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not tell which kernel") as caught:
        release_of("", None)
    assert "--era" in caught.value.hint
    tree = TreeBuilder(REGIMES["4k-48"])
    snapshot = tree.snapshot()
    old = dataclasses.replace(snapshot.meta, kernel="Linux version 3.10.0")
    with pytest.raises(UserError, match="older"):
        frame_of(dataclasses.replace(snapshot, meta=old))
    tree.point(0xFFFF_0000_0000_0000, 1, OUTSIDE)
    ctx = context()
    ctx.guest.snapshots["s"] = tree.snapshot("s")
    with pytest.raises(SnapshotError, match="could not be read: the dump would lie"):
        run(ctx, f"export s --format ptdump --era 6.9 -o {tmp_path}/x")
    ctx.guest.snapshots["part"] = TreeBuilder(REGIMES["4k-48"]).snapshot(
        "part", va_range=(0xFFFF_0000_0000_0000, 0xFFFF_0000_0000_0FFF)
    )
    with pytest.raises(UserError, match="whole capture"):
        run(ctx, f"export part --format ptdump --era 6.9 -o {tmp_path}/x")
    with pytest.raises(UserError, match="no filters"):
        run(ctx, f"export part --format ptdump --era 6.9 --level pte -o {tmp_path}/x")
    assert list(tmp_path.iterdir()) == []


def test_markers_ascend() -> None:
    """The kernel's note_page() needs them in order; where the arithmetic leaves no room they are equal."""
    for form in TEXT_FORMS.values():
        release = Release(*form.since, 0)
        for regime in REGIMES.values():
            if regime.upper and (form.since >= (6, 9) or not regime.ds):
                for made in geometries(variant_of(release), regime):
                    found = [marker.address for marker in markers(made, release, form, regime)]
                    assert found == sorted(found), (form, made)


def test_the_command_offers_the_eras_that_there_are() -> None:
    (era,) = (a for a in build_registry().commands[("export",)].arguments if a.flags == ("--era",))
    assert era.options["choices"] == tuple(TEXT_FORMS)


@pytest.mark.parametrize("shared", [7, 2000])
def test_a_half_rewritten_table_has_its_lines_each_time_it_is_reached_or_is_refused(
    shared: int, tmp_path: Path
) -> None:
    """KASAN's shadow while the rewrite is in it: 512 ways to one table of pages, of which half are nG."""
    tree = TreeBuilder(REGIMES["4k-48"])
    low = int(tree.regime.va_min)
    tree.map(low, 0x4400_0000, attributes=KERNEL_DATA)
    for level in (3, 2):
        table = tree.table_at(low, level)
        words = np.full(512, int.from_bytes(tree.memory.read(table, 8), "little"), dtype="<u8")
        words[: 256 if level == 3 else 0] |= np.uint64(NG)
        tree.memory.write(table, words.tobytes())
    for number in range(1, shared):
        tree.share(low + (number << 30), 1, low)
    found = columns(TEXT_FORMS["5.10"], MTE)
    snapshot, mask = tree.snapshot(), mask_of(found)
    lines_of = shared * 512 * 2
    if lines_of < MAX_SEGMENTS:
        told = list(segments(snapshot, mask))
        assert sum(each.level == 3 for each in told) == lines_of
        assert {each.entries for each in told if each.level == 3} == {256}
        assert [bool(each.bits & NG) for each in told[:4]] == [True, False, True, False]
    else:
        with pytest.raises(UserError, match=f"would have about {lines_of + 2} lines"):
            segments(snapshot, mask)
