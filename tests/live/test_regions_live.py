"""Names of regions on real kernels, against the kernel's own symbols and stacks, live and from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from session import KASLR_BOOT, NEWER, fresh, launched, to_shell

from ptinspect.linux.running.tasks import Tasks

GUESTS = (
    ("5.10-cloud", "", "5.4 to v5.10"),
    ("5.10-cloud", f"--append '{KASLR_BOOT} kpti=on'", "5.4 to v5.10"),
    ("5.10", "--memory 4096", "5.4 to v5.10"),
    ("6.1-cloud", "", "5.17 to v6.4"),
    ("6.12-cloud", "--cpu cortex-a72", "6.9 and later"),
    ("6.12-cloud", f"--cpu max --append '{KASLR_BOOT} kpti=on'", "6.9 and later"),
    ("6.12-16k", "", "6.9 and later"),
    ("6.18-cloud", "", "6.9 and later"),
    ("7.3-cloud", f"--memory 4096 --cpu max {NEWER}", "6.9 and later"),
)


STACKS = (("task stack", "rw-"), ("IRQ stack", "rw-"), ("vmemmap", "rw-"), ("PCI I/O", "rw-"))
RAM_ONLY = ("linear map", "kernel text", "kernel rodata", "kernel data", "vmemmap")


def size_in(runs: list[dict[str, Any]], name: str) -> int:
    return sum(int(r["count"]) * int(r["leaf_size"]) for r in runs if str(r["region"]).startswith(name))


@pytest.mark.parametrize(("guest", "options", "variant"), GUESTS)
def test_every_leaf_has_a_name_and_it_is_the_kernels(
    guest: str, options: str, variant: str, tmp_path: Path
) -> None:
    memory = 4096 if "4096" in options else 512
    options = options.replace("--memory 4096", "")
    with launched(guest, f"--smp 2 --memory {memory} {options}") as live:
        to_shell(live)
        live("snap a")
        found = live("map --snap a")["runs"]
        assert variant in live.ctx.guest.snapshots["a"].meta.extra["linux.layout"]
        assert {r["region"] for r in found if r["region"] in ("", "kernel")} == set()
        view = live.ctx.guest.view

        def name(va: int) -> str:
            return str(live(f"walk {va:#x}")["region"])

        # what the kernel's symbols say
        assert name(view.symbol("_stext")) == name(view.symbol("_etext") - 4) == "kernel text"
        assert name(view.symbol("vectors")) == "kernel text"
        text = [r for r in found if r["region"] == "kernel text"]
        assert {r["permissions"]["el1"] for r in text} == {"r-x"}
        first = view.symbol("_stext") - (0x10000 if guest.startswith("5.10") else 0)
        assert int(text[0]["va_start"], 16) == first
        assert int(text[-1]["va_end"], 16) == view.symbol("_etext") - 1
        # what lies before _stext is the image's head, and data has the name of its section or of the image
        head = "kernel text" if guest.startswith("5.10") else "kernel head"
        for at in range(0x1000, 0x10001, 0x1000):
            there = live(f"walk {view.symbol('_stext') - at:#x}")
            own = there["pa"] is None or int(there["pa"], 16) == view.pa_of(view.symbol("_stext")) - at
            assert (there["region"] == head) is own, "memory of vmalloc begins where the image does"
        image = view.image
        assert image is not None
        data = image.text_va + view.kaslr_offset + image.size - view.regime.granule
        assert name(data) in ("kernel image", "kernel bss")
        sections = (("kernel data", "_sdata", "_edata"), ("kernel bss", "__bss_start", "__bss_stop"))
        for part, first, last in sections if "_sdata" in image.symbols else ():
            assert name(view.symbol(last) - 1) == part
            assert name(view.symbol(first)) in (part, "task stack (0 swapper/0)"), "that of init_task"
        if "_sdata" not in image.symbols:
            assert live.ctx.guest.place(data) == f"{data:#x}", "no function far away"
        # a limit lists the first runs, as they are without one
        for limit in (1, 7, 40, len(found) - 1):
            assert live(f"map --snap a --limit {limit}")["runs"] == found[:limit]
        # the linear map maps every byte of RAM but what is held back (16K: whole), where RAM is
        ram = memory << 20
        assert ram * 0.97 < size_in(found, "linear map") + size_in(found, "overflow") <= ram
        # without KASLR RAM begins where linear map and vmemmap do
        for part in ("linear map", "vmemmap") if "append" not in options else ():
            assert name(int(next(r["va_start"] for r in found if r["region"] == part), 16) - 1) != part
        # what the kernel protects (mark_rodata_ro, vmap_stack, arch/arm64/mm/mmu.c)
        for part, may in (("kernel rodata", "r--"), ("kernel data", "rw-"), ("kernel bss", "rw-"), *STACKS):
            assert {r["permissions"]["el1"] for r in found if r["region"].startswith(part)} <= {may}, part
        assert {r["permissions"]["el0"] for r in found} == {"---"}
        linear = {r["permissions"]["el1"] for r in found if r["region"] == "linear map"}
        assert linear <= {"rw-", "r--"} and "rw-" in linear
        kinds = {r["attributes"]["memory_type"] for r in found if r["region"] in RAM_ONLY}
        assert {kind.split()[0] for kind in kinds} == {"Normal"}
        # a struct page of 64 bytes for each page of RAM
        assert size_in(found, "vmemmap") >= ram // view.regime.granule * 64
        assert size_in(found, "KPTI trampoline") >= view.regime.granule
        pci = [r for r in found if r["region"] == "PCI I/O"]
        assert pci and all("Device" in r["attributes"]["memory_type"] for r in pci)
        # stacks: SP of each CPU is on one
        for cpu in (0, 1):
            stack = live(f"stack --cpu {cpu}")
            if stack.get("base"):
                assert "stack" in name(int(stack["base"], 16)), stack
        base = next(task.stack for task in Tasks(view).all().tasks if task.pid == 1)
        assert name(base).startswith("task stack (1 ")
        whole = {r["region"] for r in found}
        assert {r for r in whole if r.startswith("IRQ stack")} == {"IRQ stack (cpu 0)", "IRQ stack (cpu 1)"}
        live(f"save a {tmp_path}/a.npz")
        with fresh() as other:
            offline = other(f"map --snap {tmp_path}/a.npz")["runs"]
        assert [r["region"] for r in offline] == [r["region"] for r in found], "no guest, no kernel file"
        hit = live(f"find {view.symbol('_stext'):#x}")["hits"]
        assert {h["region"] for h in hit if h["kind"] == "leaf"} == {"kernel text", "linear map"}
        live("snap b")
        slot = live(f"walk {base:#x}")["steps"][-1]["descriptor_pa"]
        live(f"poke descriptor pa:{slot} 0 --yes")
        live("snap c")
        (change,) = live("diff b c")["changes"]
        assert change["region"].startswith("task stack (1 ")
        broken = live("check --snap c --against b")["findings"]
        assert {f["region"][:14] for f in broken if f["rule"] == "entry-lost"} == {"task stack (1 "}
