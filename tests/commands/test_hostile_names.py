"""Names from files and of files reach no terminal as they are."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from builders import REGIMES, TreeBuilder, snapshot_of

from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.output.text import render
from ptinspect.snapshot.model import Snapshot
from ptinspect.snapshot.store import save

EVIL = "\x1b[31mX\nY\u202e"
VA = 0xFFFF_8000_1000_0000


def hostile(raw: int) -> Snapshot:
    tree = TreeBuilder(REGIMES["4k-48"])
    tree.set(VA, 3, raw)
    snapshot = snapshot_of(tree.memory, tree.root, tree.regime, name=EVIL)
    meta = replace(snapshot.meta, note=EVIL, where=EVIL, source=EVIL)
    return replace(snapshot, meta=meta)


@pytest.mark.parametrize(
    "line",
    [
        "diff a.npz b.npz",
        "diff a.npz b.npz -o {}.md",
        "diff a.npz b.npz -o {}.txt",
        "summary --snap a.npz",
        "map --snap a.npz",
        "map --bar --snap a.npz",
        f"walk {VA:#x} --snap a.npz",
        "find pa:0x41000000 --snap a.npz",
        "check --snap b.npz --against a.npz",
        "kpti verdict --before a.npz --after b.npz",
        "report {}.html a.npz b.npz",
        "export a.npz -o {}.csv",
        "diff {}.npz b.npz",
        "summary --snap {}.npz",
        "load {}.npz --as fine",
        "record {}",
    ],
)
def test_names_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    save(hostile(0x0068_0000_4100_0703), "a.npz")
    save(hostile(0x0068_0000_4100_0F03), "b.npz")
    save(hostile(0x0068_0000_4100_0703), f"{EVIL}.npz")
    ctx = Context(build_registry())
    before = {path.name for path in tmp_path.iterdir()}
    try:
        report = ctx.registry.run(ctx, line.format(shlex.quote(EVIL)))
        said = render(report)
    finally:
        ctx.record.end()
    assert "\x1b" not in said and "\u202e" not in said and "X\nY" not in said
    for path in tmp_path.iterdir():
        if path.name not in before and path.suffix in (".md", ".txt", ".csv", ".html"):
            text = path.read_text("utf-8")
            assert "\x1b[31m" not in text and "X\nY" not in text
