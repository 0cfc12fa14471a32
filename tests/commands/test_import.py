"""Dumps of memory in the place of a guest."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import NG, TABLES_AT, TreeBuilder, regime_4k
from fakes import context, run, text

from ptinspect.commands.framework.context import Context
from ptinspect.errors import MemoryReadError, UserError
from ptinspect.gdbhost import Server

sys.path.insert(0, str(Path(__file__).parent.parent / "memory"))
from test_elfcore import core, note, prstatus

SIZE = 2 << 20
IMAGE_VA = 0xFFFF_8000_1000_0000
VOFFSET = IMAGE_VA - TABLES_AT


def guest() -> TreeBuilder:
    """RAM of 2 MiB with tables at its start that map it as the kernel image does."""
    tree = TreeBuilder(regime_4k(48), tables_at=TABLES_AT)
    tree.map(IMAGE_VA, TABLES_AT, size=SIZE)
    tree.map(0xFFFF_0000_0000_0000, TABLES_AT, size=SIZE)
    return tree


def info(tree: TreeBuilder, **change: str) -> bytes:
    lines = {
        "OSRELEASE": "6.1.0-test",
        "PAGESIZE": "4096",
        "SYMBOL(swapper_pg_dir)": f"{tree.root + VOFFSET:x}",
        "NUMBER(VA_BITS)": "48",
        "NUMBER(TCR_EL1_T1SZ)": "0x10",
        "NUMBER(kimage_voffset)": f"{VOFFSET:#x}",
        "KERNELOFFSET": "0",
    } | change
    return "".join(f"{name}={value}\n" for name, value in lines.items() if value).encode()


def ram(tree: TreeBuilder, page: bytes = b"", at: int = 0x10_0000) -> bytes:
    data = bytearray(tree.memory.read(TABLES_AT, SIZE))
    data[at : at + len(page)] = page
    return bytes(data)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def same(ctx: Context, tree: TreeBuilder, file: Path | None = None) -> bool:
    run(ctx, "snap taken" if file is None else f"load {file}")
    a, b = ctx.guest.snapshots["taken"].tables, tree.snapshot().tables
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("level", "pa", "va", "raw", "readable"))


def test_a_raw_image_is_a_guest_through_its_vmcoreinfo(tmp_path: Path) -> None:
    tree = guest()
    path = put(tmp_path / "ram", ram(tree, info(tree)))
    ctx = context()
    report = run(ctx, f"import {path} --base pa:{TABLES_AT:#x}")
    assert report.result["root"]["pa"] == hex(tree.root)
    assert report.result["cpus"] == 0 and report.result["release"] == "6.1.0-test"
    assert report.result["registers"]["MAIR_EL1"] == "0x40044ffff"
    said = text(report)
    assert "assumed" in said and "not in the file: TTBR1_EL1" in said and "no registers of CPUs" in said
    assert same(ctx, tree)
    assert "derived" in ctx.guest.snapshots["taken"].meta.source
    assert "VMCOREINFO" in ctx.guest.snapshots["taken"].root.provenance
    assert run(ctx, f"walk {IMAGE_VA + 0x1234:#x}").result["pa"] == hex(TABLES_AT + 0x1234)
    assert run(ctx, "summary").result["levels"][3]["leaves"] == 1024
    assert run(ctx, f"find pa:{TABLES_AT:#x}").result["hits"]
    assert run(ctx, "status").result["state"] == "stopped"
    assert ctx.guest.snapshots["taken"].cpus == () and "unknown" in ctx.guest.snapshots["taken"].meta.where
    assert ctx.guest.snapshots["taken"].meta.kernel == "Linux version 6.1.0-test"
    run(ctx, f"save taken {tmp_path}/taken.npz")
    assert same(context(), tree, tmp_path / "taken.npz")
    for line in ("regs", "bt", "x/gx $sp"):
        with pytest.raises(UserError, match="no registers of CPUs"):
            run(ctx, line)
    for line in ("continue", "stepi", "monitor info status", "gdb info all", "break 0x1000"):
        with pytest.raises(UserError, match="is a file"):
            run(ctx, line)
    with pytest.raises(MemoryReadError):
        ctx.guest.stopped.memory.read(TABLES_AT + SIZE - 8, 16)
    with pytest.raises(UserError, match="attached to"):
        run(ctx, f"import {path} --base pa:{TABLES_AT:#x}")
    run(ctx, "detach")
    with pytest.raises(UserError, match="not attached"):
        run(ctx, "summary")


def test_inside_gdb_a_file_is_a_guest_as_well(tmp_path: Path) -> None:
    tree, sent = guest(), list[dict[str, Any]]()
    path = put(tmp_path / "ram", ram(tree, info(tree)))
    host: Any = SimpleNamespace(send=sent.append)
    server = Server(host)
    for line in (f"import {path} --base pa:{TABLES_AT:#x}", f"walk {IMAGE_VA:#x}"):
        assert server._guarded({"run": line, "serial": 1}) == 0, sent
        assert server._cpu() is None
    assert any(f"pa:{TABLES_AT:#x}" in message.get("text", "") for message in sent)


def test_an_elf_core_has_registers_too(tmp_path: Path) -> None:
    tree = guest()
    notes = note(b"CORE", 1, prstatus(7)) + note(b"CORE", 1, prstatus(8))
    notes += note(b"VMCOREINFO", 0, info(tree))
    ctx = context()
    result = run(ctx, f"import {put(tmp_path / 'core', core([(TABLES_AT, ram(tree))], notes))}").result
    assert result["cpus"] == 2 and "a note of the file" in result["assumed"][0]
    assert same(ctx, tree)
    assert [state.x[0] for state in ctx.guest.snapshots["taken"].cpus] == [7, 8]


@pytest.mark.parametrize(
    "change",
    [
        {"SYMBOL(swapper_pg_dir)": f"{IMAGE_VA + 0x3000:x}"},
        {"NUMBER(kimage_voffset)": ""},
        {"PAGESIZE": "8192"},
        {"PAGESIZE": "junk"},
        {"NUMBER(TCR_EL1_T1SZ)": "0x19"},
        {"NUMBER(TCR_EL1_T1SZ)": "-0x10", "NUMBER(VA_BITS)": ""},
    ],
)
def test_a_table_that_does_not_map_itself_is_not_taken(change: dict[str, str], tmp_path: Path) -> None:
    tree = guest()
    path = put(tmp_path / "ram", ram(tree, info(tree, **change)))
    ctx = context()
    with pytest.raises(UserError, match="nothing tells where the kernel's tables are") as caught:
        run(ctx, f"import {path} --base pa:{TABLES_AT:#x}")
    assert "--root" in caught.value.hint and "--kernel" in caught.value.hint
    assert ctx.guest.session is None


def test_the_user_may_say_it_all(tmp_path: Path) -> None:
    tree = guest()
    path = put(tmp_path / "ram", ram(tree))
    ctx = context()
    line = f"import {path} --base pa:{TABLES_AT:#x} --root pa:{tree.root:#x} --granule 4K --va-bits 48"
    with pytest.raises(UserError, match="MAIR_EL1"):
        run(ctx, line)
    run(ctx, f"{line} --mair 0x44ffff")
    assert same(ctx, tree)
    assert ctx.guest.snapshots["taken"].regime.mair == 0x44FFFF


def test_files_that_are_neither(tmp_path: Path) -> None:
    ctx = context()
    with pytest.raises(UserError, match="needs --base"):
        run(ctx, f"import {put(tmp_path / 'x', b'hello')}")
    with pytest.raises(UserError, match="compressed format"):
        run(ctx, f"import {put(tmp_path / 'z', b'KDUMP   ' + bytes(4096))} --base pa:0")
    with pytest.raises(UserError, match="records where its memory was"):
        run(ctx, f"import {put(tmp_path / 'y', core([(0, b'a')]))} --base pa:0")
    with pytest.raises(UserError, match="cannot read"):
        run(ctx, f"import {tmp_path}/none")
    with pytest.raises(UserError, match="no regular file"):
        run(ctx, f"import {tmp_path}")


def test_a_dump_has_a_verdict_about_the_rewrite(tmp_path: Path) -> None:
    """Without registers, and with KASLR told by the dump's own notes."""

    def verdict(tree: TreeBuilder, **change: str) -> tuple[str, int]:
        path = put(tmp_path / "ram", ram(tree, info(tree, **change)))
        ctx = context()
        run(ctx, f"import {path} --base pa:{TABLES_AT:#x}")
        found = run(ctx, "kpti verdict --live")
        return found.result["code"], found.exit_code

    tree = guest()
    assert verdict(tree) == ("not-run", 0)
    for va in (IMAGE_VA, 0xFFFF_0000_0000_0000):
        for page in range(SIZE >> 12):
            tree.xor(va + (page << 12), 3, NG)
    assert verdict(tree)[0] == "unknown", "made nG from the start, or by code that leaves no marks"
    for va in (IMAGE_VA, 0xFFFF_0000_0000_0000):
        for level in (0, 1, 2):
            tree.xor(va, level, NG)
    assert verdict(tree) == ("normal", 0)
