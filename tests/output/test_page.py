"""The HTML page: what is in the file, and what a real browser makes of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from builders import KERNEL_DATA, NG, REGIMES, TreeBuilder

from ptinspect.analysis import atlas as module
from ptinspect.analysis.atlas import STATES
from ptinspect.analysis.diff import diff
from ptinspect.arch.descriptor import decode
from ptinspect.arch.descriptor_fields import explain
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.guest.recordings.kept_writes import keep
from ptinspect.guest.recordings.writers import Write
from ptinspect.output.html import Page, as_script
from ptinspect.snapshot.model import Snapshot

PC = 0xFFFF_8000_1003_F8F4


def pair(name: str) -> tuple[TreeBuilder, Snapshot, Snapshot]:
    """A few pages in two tables; between the two snapshots one page is lost and one becomes nG."""
    made = TreeBuilder(REGIMES[name])
    base, unit = int(made.regime.va_min), made.regime.granule
    made.map(base, 0x4400_0000, size=4 * unit, level=3)
    far = base + made.regime.entry_size(2) * 3
    made.map(far, 0x4800_0000, size=2 * unit, level=3, attributes=KERNEL_DATA | NG)
    before = made.snapshot("before")
    made.xor(base, 3, NG)
    made.set(far, 3, 0)
    return made, before, made.snapshot("<b>after</b>")


def page(folder: Path, *snapshots: Snapshot) -> Path:
    ctx = Context(build_registry(), Guest(snapshots={snapshot.name: snapshot for snapshot in snapshots}))
    path = folder / "page.html"
    report = ctx.registry.run(ctx, f"report {path}")
    assert report.result["bytes"] == path.stat().st_size
    return path


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.S)
    assert found
    return dict(json.loads(found[1]))


def test_the_page_holds_maps_of_each_snapshot_and_of_each_pair(tmp_path: Path) -> None:
    _, before, after = pair("4k-48")
    before = replace(before, meta=replace(before.meta, where="cpu 0 at 0x40c89510 (f+0x0)"))
    path = page(tmp_path, before, after)
    data = data_of(path)
    assert data["maps"][0]["where"] == "cpu 0 at 0x40c89510 (f)", "as everywhere else"
    assert [each["title"] for each in data["maps"]] == ["before", "<b>after</b>", "before → <b>after</b>"]
    assert data["diffs"][0]["changes_total"] == 1
    text = path.read_text()
    assert "<b>after" not in text, "names are never markup"
    assert not re.search(r'(src|href)="?https?:', text)
    assert data["diffs"][0]["verdict"] == "1 change is more than bit 11: 1 lost"
    assert path.stat().st_size < 2_000_000


def test_data_cannot_end_their_script_element() -> None:
    assert "</script" not in as_script({"name": "</script><script>alert(1)</script>&"})
    assert json.loads(as_script({"a": "<&>\u2028"})) == {"a": "<&>\\u2028"}


def test_what_is_not_printable_is_shown_as_what_it_is() -> None:
    text = as_script({"comm": "a\u202eb\x1b[0m", "said": ["two\nlines", {"n": 3}]})
    assert json.loads(text) == {"comm": "a\\u202eb\\x1b[0m", "said": ["two\nlines", {"n": 3}]}
    assert Page("a\u202eb").text().count("<title>a\\u202eb</title>") == 1


def test_a_page_needs_a_name_and_something_to_show(tmp_path: Path) -> None:
    ctx = Context(build_registry())
    with pytest.raises(UserError, match="nothing to show"):
        ctx.registry.run(ctx, f"report {tmp_path / 'a.html'}")
    with pytest.raises(UserError, match=r"ends in \.html"):
        ctx.registry.run(ctx, f"report {tmp_path / 'a.pdf'}")


@pytest.mark.live
@pytest.mark.parametrize("name", ["4k-48", "16k-52-lpa2", "64k-52-lpa"])
def test_a_click_on_a_change_opens_its_table_at_its_entry(name: str, tmp_path: Path, tab: Browser) -> None:
    made, before, after = pair(name)
    regime = made.regime
    tab.open(page(tmp_path, before, after))
    assert tab.ask("[...document.querySelectorAll('h2')].map((each) => each.textContent)")[0] == (
        "before → <b>after</b>"
    ), "what changed comes first"
    tab.click("#diff0 .changes button")
    far = int(regime.va_min) + regime.entry_size(2) * 3
    path = "window.ptinspect.maps[2].path"
    assert tab.ask(f"{path}.slice(1).map(([, index]) => index)") == [
        regime.index(far, level) for level in range(regime.start_level, 3)
    ]
    side = "document.querySelector('#map2 aside').textContent"
    assert all(word in tab.ask(side) for word in ("lost: level 3", "there lay", "before 0x", f"{far:#018x}"))
    assert tab.ask("document.activeElement === window.ptinspect.maps[2].canvas"), "the keys go on from there"
    seen = tab.ask(
        "const box = window.ptinspect.maps[2].canvas.getBoundingClientRect(), "
        "head = document.querySelector('header').getBoundingClientRect(); "
        "return [box.top >= head.bottom, box.bottom <= innerHeight, box.width, box.height]"
    )
    assert seen[:2] == [True, True], "all of the table is on a laptop's screen"
    depth = 4 - regime.start_level
    assert tab.ask(f"{path}.length") == depth
    tab.press("Backspace")
    assert tab.ask(f"{path}.length") == depth - 1
    tab.press("Enter")
    assert tab.ask(f"{path}.length") == depth
    tab.press("ArrowRight")
    assert "index 1" in tab.ask(side)
    columns = tab.ask("1 << Math.ceil(Math.log2(window.ptinspect.maps[2].map.facts.entries) / 2)")
    rows = tab.ask("window.ptinspect.maps[2].map.facts.entries") / columns
    tab.point("#map2 canvas", 2.5 / columns, 0.5 / rows)
    assert "index 2" in tab.ask(side)
    box = tab.ask(
        "const { width, height } = document.querySelector('#map2 canvas').getBoundingClientRect(); "
        "return [width, height]"
    )
    assert box == seen[2:], "drawing moves nothing"
    facts = tab.ask(
        "const { map } = window.ptinspect.maps[2], first = map.entry(map.facts.level.indexOf(3), 0); "
        "return { first: first.word.toString(16), target: first.target.toString(16), "
        "fields: first.pattern.fields.map(([field]) => field), counts: window.ptinspect.maps[2].counts[3], "
        "wide: document.documentElement.scrollWidth <= innerWidth, "
        "bold: document.querySelectorAll('main b').length }"
    )
    leaf = decode(made.get(int(regime.va_min), 3), 3, regime)
    assert (int(facts["first"], 16), int(facts["target"], 16)) == (leaf.raw, leaf.output_address)
    assert facts["fields"] == [f.name for f in explain(leaf) if not f.name.startswith("output address")]
    last = dict(zip(STATES, facts["counts"], strict=True))
    assert (last["lost"], last["became nG"], last["leaf, global"], last["leaf, nG"]) == (1, 1, 3, 1)
    assert facts["wide"] and facts["bold"] == 0


@pytest.mark.live
def test_changes_are_filtered_by_what_is_typed(tmp_path: Path, tab: Browser) -> None:
    _, before, after = pair("4k-48")
    tab.open(page(tmp_path, before, after))
    shown = "document.querySelectorAll('#diff0 .changes li').length"
    tab.click("#diff0 input")
    tab.type("LOST")
    assert tab.ask(shown) == 1
    tab.type(" nothing like it")
    assert tab.ask(shown) == 0


def lost_table() -> tuple[Snapshot, Snapshot, int]:
    """A table is lost, and below another one a page becomes nG."""
    made = TreeBuilder(REGIMES["4k-48"])
    base, size = int(made.regime.va_min), made.regime.entry_size(2)
    made.map(base, 0x4400_0000, size=0x4000, level=3)
    made.map(base + 3 * size, 0x4800_0000, size=0x4000, level=3)
    before = made.snapshot("before")
    made.set(base, 2, 0)
    made.xor(base + 3 * size, 3, NG)
    return before, made.snapshot("after"), base


@pytest.mark.live
def test_a_lost_table_shows_what_hung_below_it_and_quiet_changes_have_crosses(
    tmp_path: Path, tab: Browser
) -> None:
    before, after, base = lost_table()
    tab.open(page(tmp_path, before, after))
    tab.click("#diff0 .changes button")
    side = tab.ask("document.querySelector('#map2 aside').textContent")
    assert "lost: level 2" in side and "leaves with" in side and "what hung below it in before" in side
    crosses = tab.ask(
        "const { map, path } = window.ptinspect.maps[2], row = path.at(-1)[0]; "
        "return [map.below[map.links[0]], map.below[map.links[row * map.facts.entries + 3]]]"
    )
    assert crosses == [2, 1], "unexpected, and as the rewrite does"
    tab.click("#map2 aside button")
    held = tab.ask(
        "const [{ map, path, canvas }] = window.ptinspect.maps, [row] = path.at(-1); "
        "return [map.facts.level[row], map.va[row].toString(16), document.activeElement === canvas]"
    )
    assert held == [3, f"{base:x}", True]


@pytest.mark.live
def test_crosses_tell_of_tables_that_a_page_has_no_room_for(
    tmp_path: Path, tab: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TreeBuilder(REGIMES["4k-48"])
    base, size = int(made.regime.va_min), made.regime.entry_size(2)
    for number in range(4):
        made.map(base + number * size, 0x4400_0000, size=0x4000, level=3)
    before = made.snapshot("before")
    made.xor(base + 2 * size, 3, NG)
    made.set(base + 3 * size, 3, 0)
    monkeypatch.setattr(module, "MAX_TABLES", 4)
    monkeypatch.setattr(module, "MORE_TABLES", 0)
    tab.open(page(tmp_path, before, made.snapshot("after")))
    tab.click("#diff0 .changes button")
    crosses = tab.ask(
        "const { map, path } = window.ptinspect.maps[2], at = path.at(-1)[0] * map.facts.entries; "
        "return [map.facts.level[path.at(-1)[0]], map.below[0], "
        "...[0, 1, 2, 3].map((i) => map.hiddenBelow.get(at + i) ?? 0)]"
    )
    assert crosses == [2, 2, 0, 0, 1, 2]
    assert "crosses tell of them too" in tab.ask("document.querySelector('#map2').textContent")


@pytest.mark.live
def test_the_address_space_shows_its_regions_and_leads_to_what_changed(tmp_path: Path, tab: Browser) -> None:
    _, before, after = pair("4k-48")
    path = page(tmp_path, before, after)
    (space,) = data_of(path)["spaces"]
    (area,) = space["areas"]
    assert [share["text"] for share in area["before"]] == ["rw- 16K", "rw- nG 8K"]
    assert [share["text"] for share in area["shares"]] == ["rw- 12K", "rw- nG 8K"]
    tab.open(path)
    assert tab.ask("document.querySelectorAll('#space0 .strip').length") == 2
    tab.click("#space0 .strip button")
    runs = tab.ask("document.querySelectorAll('#space0 tr:not([hidden]) > td[colspan] tbody tr').length")
    assert runs == len(area["runs"])
    tab.press("Enter")
    assert tab.ask("document.querySelectorAll('#space0 tr:not([hidden]) > td[colspan]').length") == 0
    assert "lost" in tab.ask("document.querySelector('#space0 .wide').textContent")
    tab.click("#space0 .links button")
    assert "lost: level 3" in tab.ask("document.querySelector('#map2 aside').textContent")


CONTRAST = Path(__file__).with_name("contrast.js").read_text()
"""What is hard to read by WCAG 2.1: text below 4.5 to 1 (1.4.3), curves below 3 to 1 (1.4.11)."""


@pytest.mark.live
def test_who_wrote_a_lost_entry_stands_with_it_where_the_snapshot_keeps_that(
    tmp_path: Path, tab: Browser
) -> None:
    before, after, _ = lost_table()
    (change,) = diff(before, after).changes
    assert change.before is not None
    written = Write(
        PC, f"{PC:#x} (<b>pmd_clear</b>+0x24)", "str xzr, [x2]", 0, 1, True, "swapper/0", 1,
        (f"{PC + 64:#x} (unmap_kernel_range+0x15c)",), "",
        change.descriptor_pa_after, 7_000_000, change.before, 0, "store", None,
    )  # fmt: skip
    guest = Guest(snapshots={"before": before, "after": after})
    keep(guest, after, [written])
    tab.open(page(tmp_path, before, guest.snapshots["after"]))
    told = "written at position 7,000,000 by"
    assert told in tab.ask("document.querySelector('#diff0 .changes').textContent")
    tab.click("#diff0 .changes button")
    side = tab.ask("document.querySelector('#map2 aside').textContent")
    assert told in side and "<b>pmd_clear</b>+0x24): str xzr, [x2]" in side and "unmap_kernel_range" in side


@pytest.mark.live
@pytest.mark.parametrize("dark", [False, True])
def test_everything_is_readable_in_light_and_dark(dark: bool, tmp_path: Path, tab: Browser) -> None:
    before, after, _ = lost_table()
    tab.open(page(tmp_path, before, after), dark=dark)
    tab.click("#space0 .strip button")
    tab.click("#diff0 .changes button")
    assert tab.ask(CONTRAST) == []


@pytest.mark.live
@pytest.mark.parametrize("width", [1280, 1024, 700])
def test_nothing_is_wider_than_the_screen(width: int, tmp_path: Path, tab: Browser) -> None:
    before, after, _ = lost_table()
    tab.open(page(tmp_path, before, after), width)
    tab.click("#diff0 .changes button")
    assert tab.ask("document.documentElement.scrollWidth <= innerWidth")


def test_a_table_takes_little_room_again_where_only_bit_11_differs(tmp_path: Path) -> None:
    made = TreeBuilder(REGIMES["4k-48"])
    base = int(made.regime.va_min)
    for number in range(64):  # in no order, as memory that has been in use for a while is
        for slot in range(512):
            frame = (slot * 0x9E3779B1 + number * 0x85EBCA6B) % (1 << 30)
            made.map(base + (number << 21) + (slot << 12), frame << 12, level=3)
    before = made.snapshot("before")
    for number in range(64):
        for slot in range(512):
            made.xor(base + (number << 21) + (slot << 12), 3, NG)
    alone = page(tmp_path, before).stat().st_size
    assert page(tmp_path, before, made.snapshot("after")).stat().st_size < 1.3 * alone
