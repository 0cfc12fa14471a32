"""The HTML page: what is in the file, and what a real browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from builders import KERNEL_DATA, NG, REGIMES, TreeBuilder
from conftest import missing

from ptinspect.analysis.atlas import STATES
from ptinspect.arch.descriptor import decode
from ptinspect.arch.descriptor_fields import explain
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.errors import UserError
from ptinspect.guest.guest import Guest
from ptinspect.output.html import Page, as_script
from ptinspect.snapshot.model import Snapshot

BROWSER = "chromium"
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=60000",
)  # fmt: skip
SECONDS = 120


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


def drawn(path: Path, folder: Path, script: str) -> dict[str, Any]:
    """Open the page in a browser, run `script` (the body of a function) in it, and return its answer."""
    program = shutil.which(BROWSER)
    if program is None:
        missing(BROWSER)
    probe = (
        "<script>addEventListener('load', async () => { while (!document.body.dataset.ready) "
        "await new Promise((r) => setTimeout(r, 20)); let said; try { said = await (async () => {"
        + script
        + "})(); } catch (error) { said = { error: String(error) }; } "
        "const out = document.createElement('pre'); out.id = 'said'; "
        "const all = { ready: document.body.dataset.ready, ...said }; "
        "out.textContent = encodeURIComponent(JSON.stringify(all)); "
        "document.body.append(out); });</script></body>"
    )
    copy = folder / "probed.html"
    copy.write_text(path.read_text().replace("</body>", probe))
    done = subprocess.run(
        [program, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    from urllib.parse import unquote

    return dict(json.loads(unquote(found[1])))


def test_the_page_holds_maps_of_each_snapshot_and_of_each_pair(tmp_path: Path) -> None:
    _, before, after = pair("4k-48")
    path = page(tmp_path, before, after)
    data = data_of(path)
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
def test_a_browser_shows_the_states_and_opens_tables(name: str, tmp_path: Path) -> None:
    made, before, after = pair(name)
    regime = made.regime
    script = """
    const changed = window.ptinspect.maps[2], map = changed.map, facts = map.facts;
    const canvas = changed.canvas, steps = [], box0 = canvas.getBoundingClientRect();
    document.querySelector("#diff0 .changes button").click();
    for (const [, index] of changed.path.slice(1)) steps.push(index);
    const revealed = changed.side.textContent;
    const press = (key) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key }));
    const depth = changed.path.length;
    press("Backspace");
    const up = changed.path.length;
    press("Enter");
    const again = changed.path.length, box1 = canvas.getBoundingClientRect();
    press("ArrowRight");
    const next = changed.side.textContent, side1 = [box0.width === box1.width, box0.height === box1.height];
    const cell = box1.width / (1 << Math.ceil(Math.log2(facts.entries) / 2));
    const place = { clientX: box1.left + 2.5 * cell, clientY: box1.top + 0.5 * cell };
    canvas.dispatchEvent(new MouseEvent("mousemove", place));
    const pointed = changed.side.textContent;
    const row = changed.path[changed.path.length - 1][0];
    const entry = map.entry(row, 0), first = map.entry(facts.level.indexOf(3), 0);
    const box = document.querySelector("#diff0 input");
    box.value = "lost"; box.oninput({ target: box });
    const lost = document.querySelectorAll("#diff0 .changes li").length;
    box.value = "nothing like it"; box.oninput({ target: box });
    return { steps, counts: changed.counts, state: entry.state, va: entry.va.toString(16),
      side: revealed, depth, up, again, next, pointed, side1,
      first: first.word.toString(16), target: first.target.toString(16),
      fields: first.pattern.fields.map(([field]) => field), lost,
      none: document.querySelectorAll("#diff0 .changes li").length,
      headings: [...document.querySelectorAll("h2")].map((each) => each.textContent),
      wide: document.documentElement.scrollWidth <= innerWidth,
      bold: document.querySelectorAll("main b").length };
    """
    said = drawn(page(tmp_path, before, after), tmp_path, script)
    assert (said["ready"], said.get("error")) == ("yes", None), said
    far = int(regime.va_min) + regime.entry_size(2) * 3
    assert said["steps"] == [regime.index(far, level) for level in range(regime.start_level, 3)]
    assert said["va"] == f"{far:x}"
    assert STATES[said["state"]] == "lost"
    assert "lost" in said["side"]
    leaf = decode(made.get(int(regime.va_min), 3), 3, regime)
    assert int(said["first"], 16) == leaf.raw
    assert int(said["target"], 16) == leaf.output_address
    assert said["fields"] == [f.name for f in explain(leaf) if not f.name.startswith("output address")]
    last = dict(zip(STATES, said["counts"]["3"], strict=True))
    assert (last["lost"], last["became nG"], last["leaf, global"], last["leaf, nG"]) == (1, 1, 3, 1)
    assert (said["lost"], said["none"], said["bold"]) == (1, 0, 0)
    assert said["headings"][0] == "before → <b>after</b>", "what changed comes first"
    assert all(word in said["side"] for word in ("lost: level 3", "there lay", "before 0x"))
    depth = 4 - regime.start_level
    assert (said["depth"], said["up"], said["again"]) == (depth, depth - 1, depth)
    assert "index 1" in said["next"] and "index 2" in said["pointed"]
    assert said["side1"] == [True, True] and said["wide"]


@pytest.mark.live
def test_a_lost_table_shows_what_hung_below_it_and_quiet_changes_have_crosses(tmp_path: Path) -> None:
    made = TreeBuilder(REGIMES["4k-48"])
    base, size = int(made.regime.va_min), made.regime.entry_size(2)
    made.map(base, 0x4400_0000, size=0x4000, level=3)
    made.map(base + 3 * size, 0x4800_0000, size=0x4000, level=3)
    before = made.snapshot("before")
    made.set(base, 2, 0)
    made.xor(base + 3 * size, 3, NG)
    script = """
    const [earlier, , changed] = window.ptinspect.maps;
    document.querySelector("#diff0 .changes button").click();
    const lost = changed.side.textContent, row = changed.path[changed.path.length - 1][0];
    const button = changed.side.querySelector("button").textContent;
    changed.side.querySelector("button").click();
    const [held] = earlier.path[earlier.path.length - 1];
    const links = changed.map.links, entries = changed.map.facts.entries;
    return { lost, button, level: earlier.facts.level[held], va: earlier.map.va[held].toString(16),
      focus: document.activeElement === earlier.canvas, root: changed.map.below[links[0]],
      quiet: changed.map.below[links[row * entries + 3]] };
    """
    said = drawn(page(tmp_path, before, made.snapshot("after")), tmp_path, script)
    assert said.get("error") is None, said
    assert said["button"] == "what hung below it in before"
    assert "lost: level 2" in said["lost"] and "leaves with" in said["lost"]
    assert (said["level"], said["va"], said["focus"]) == (3, f"{base:x}", True)
    assert (said["root"], said["quiet"]) == (2, 1), "unexpected, and as the rewrite does"


@pytest.mark.live
def test_the_address_space_shows_its_regions_and_leads_to_what_changed(tmp_path: Path) -> None:
    _, before, after = pair("4k-48")
    script = """
    const [first] = document.querySelectorAll("#space0 .strip button");
    first.click();
    const opened = document.querySelectorAll("#space0 tr:not([hidden]) > td[colspan] tbody tr").length;
    document.querySelector("#space0 .links button").click();
    const changed = window.ptinspect.maps[2];
    return { opened, strips: document.querySelectorAll("#space0 .strip").length,
      text: document.querySelector("#space0 .wide").textContent, level: changed.path.length,
      side: changed.side.textContent, focus: document.activeElement === changed.canvas };
    """
    path = page(tmp_path, before, after)
    (space,) = data_of(path)["spaces"]
    (area,) = space["areas"]
    assert [share["text"] for share in area["before"]] == ["rw- 16K", "rw- nG 8K"]
    assert [share["text"] for share in area["shares"]] == ["rw- 12K", "rw- nG 8K"]
    said = drawn(path, tmp_path, script)
    assert said.get("error") is None, said
    assert (said["strips"], said["opened"], said["level"], said["focus"]) == (2, len(area["runs"]), 4, True)
    assert "lost" in said["text"] and "lost: level 3" in said["side"]


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
