"""Console logs for the tests of oops: the files, and synthetic ones in the formats of other kernels."""

from __future__ import annotations

from pathlib import Path

LOGS = Path(__file__).resolve().parent.parent / "data" / "oops"


def log(name: str) -> bytes:
    """Return the log `name` of tests/data/oops."""
    return (LOGS / f"{name}.log").read_bytes()


def lines(name: str) -> list[str]:
    return log(name).decode().splitlines()


def bad_stack(
    *,
    esr: str = "ESR: 0x0000000096000046 -- DABT (current EL)",
    far: int = 0xFFFF800011880060,
    base: int = 0xFFFF800011880000,
    sp: int = 0xFFFF800011880060,
    pc: str = "el1h_64_sync+0x0/0x78",
    lr: str = "some_function+0x20/0x90",
    x29: int = 0xFFFF800011883CC0,
    release: str = "6.1.0-synthetic",
    trace: tuple[str, ...] = (),
    registers: dict[int, int] | None = None,
    comm: str = "kworker/0:1",
    cpu: int = 0,
) -> list[str]:
    """Return what panic_bad_stack prints, in the order of Linux 5.15 and later."""
    values = {number: 0x1000 + number for number in range(29)} | {29: x29} | (registers or {})
    return [
        "Insufficient stack space to handle exception!",
        esr,
        f"FAR: {far:#018x}",
        f"Task stack:     [{base:#018x}..{base + 0x4000:#018x}]",
        "IRQ stack:      [0xffff800008000000..0xffff800008004000]",
        "Overflow stack: [0xffff00003fd882b0..0xffff00003fd892b0]",
        f"CPU: {cpu} PID: 37 Comm: {comm} Not tainted {release} #1",
        "Hardware name: linux,dummy-virt (DT)",
        "pstate: 600003c5 (nZCv DAIF -PAN -UAO -TCO -DIT -SSBS BTYPE=--)",
        f"pc : {pc}",
        f"lr : {lr}",
        f"sp : {sp:016x}",
        *(f"x{n:<2}: {values[n]:016x} x{n - 1:<2}: {values[n - 1]:016x}" for n in range(29, 0, -2)),
        "Kernel panic - not syncing: kernel stack overflow",
        f"CPU: {cpu} PID: 37 Comm: {comm} Not tainted {release} #1",
        "Hardware name: linux,dummy-virt (DT)",
        "Call trace:",
        *(
            f" {frame}"
            for frame in ("panic+0x160/0x378", "panic_bad_stack+0x110/0x124", "__bad_stack+0x78/0x7c")
        ),
        f" {pc}",
        *(f" {frame}" for frame in trace),
        "SMP: stopping secondary CPUs",
    ]


def paging_request(
    address: int,
    walk: str,
    *,
    pagetable: str = "swapper pgtable: 4k pages, 48-bit VAs, pgdp=0000000041277000",
) -> list[str]:
    """Return the fault in the unwinder that follows when the stack is gone."""
    return [
        f"Unable to handle kernel paging request at virtual address {address:016x}",
        "Mem abort info:",
        "  ESR = 0x0000000096000006",
        "  EC = 0x25: DABT (current EL), IL = 32 bits",
        "  SET = 0, FnV = 0",
        "  EA = 0, S1PTW = 0",
        "  FSC = 0x06: level 2 translation fault",
        "Data abort info:",
        "  ISV = 0, ISS = 0x00000006",
        "  CM = 0, WnR = 0",
        pagetable,
        f"[{address:016x}] {walk}",
        "Internal error: Oops: 0000000096000006 [#1] SMP",
    ]


def text(*parts: list[str]) -> bytes:
    return "".join(f"{line}\n" for part in parts for line in part).encode()
