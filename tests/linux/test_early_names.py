"""Names of code that runs by physical addresses, and of symbols before the kernel has mapped itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import KERNEL_TEXT, TreeBuilder
from fakes import FakeSession, run
from kernels import TEXT_VA, opened
from stopped_guest import IMAGE_PA, RAM, SYMBOLS, Guest

from ptinspect.arch.sysregs import CpuState
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.registry import build_registry
from ptinspect.errors import GuestError, MiError, UserError
from ptinspect.guest.expression import address
from ptinspect.guest.names import located
from ptinspect.linux.image.image import KernelImage

OFF = {"TTBR0_EL1": 0, "TTBR1_EL1": 0, "TCR_EL1": 0, "SCTLR_EL1": 0, "VBAR_EL1": 0}
"""Registers of a CPU that has not turned its MMU on."""
LOADER = RAM[1].start
PRIMARY = IMAGE_PA + 0x1_0400
PAGE = PRIMARY & ~0xFFF
USER, IDMAP, MOVED = 0x4700_0000, 0x4710_0000, 0x4C23_0000


class Stopped(FakeSession):
    """A session of a guest that does not run; its GDB lists the code that it is given."""

    def disassemble(self, address: int, code: bytes) -> str:
        words = [code[i : i + 4].hex() for i in range(0, len(code), 4)]
        return "".join(f"   {address + 4 * i:#x}:\t.inst\t{word}\n" for i, word in enumerate(words))

    def gdb_command(self, line: str, timeout: float = 120.0) -> str:
        raise MiError("Cannot access memory")


@pytest.fixture(params=[True, False], ids=["linked", "linked at 0"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> KernelImage:
    base = 0 if request.param else TEXT_VA
    rows = [("_text", TEXT_VA, "T"), *SYMBOLS[:3], ("primary_entry", TEXT_VA + PRIMARY - IMAGE_PA, "T")]
    return opened(tmp_path / "Image", [(name, va - base, kind) for name, va, kind in rows])


def stopped(kernel: KernelImage, guest: Guest, *states: CpuState) -> Context:
    ctx = Context(build_registry())
    ctx.guest.session = Stopped(guest.memory, RAM, cpus=list(states))
    ctx.guest._kernel = kernel
    return ctx


def test_at_reset_symbols_lie_where_the_image_does(kernel: KernelImage) -> None:
    """QEMU's loader begins: the image is where it will run, and nobody knows where it will map itself."""
    guest = Guest()
    ctx = stopped(kernel, guest, guest.cpu(pc=LOADER, **OFF))
    at = located(ctx.guest, address("primary_entry+4"))
    assert (at.address, at.physical) == (PRIMARY + 4, True)
    found = run(ctx, "symbol primary_entry").result
    if kernel.linked:
        assert (found["address"], found["pa"]) == (f"{TEXT_VA + 0x1_0400:#x}", f"{PRIMARY:#x}")
        assert run(ctx, "print primary_entry").result["as_linked"]
        assert ctx.guest.place(TEXT_VA + 0x1_0804) == f"{TEXT_VA + 0x1_0804:#x} (vectors+0x4, as linked)"
    else:
        assert (found["address"], found["physical"]) == (f"{PRIMARY:#x}", True)
        with pytest.raises(GuestError, match="does not tell where it is linked"):
            run(ctx, "print primary_entry")
    assert found["as_linked"]
    assert run(ctx, "print pa:primary_entry").result["value"] == f"{PRIMARY:#x}"
    listed = run(ctx, "disassemble -n 2 primary_entry").result
    code = guest.memory.read(PRIMARY, 4).hex()
    assert listed["instructions"][0] == {"address": f"{PRIMARY:#x}", "text": f".inst {code}"}
    assert listed["physical"]
    assert run(ctx, "x/1gx primary_entry").result["bytes"] == guest.memory.read(PRIMARY, 8).hex()


def test_while_the_mmu_is_off_the_pc_is_physical(kernel: KernelImage) -> None:
    guest = Guest()
    ctx = stopped(kernel, guest, guest.cpu(pc=PRIMARY + 8, **OFF))
    assert ctx.guest.place(PRIMARY + 8) == f"pa:{PRIMARY + 8:#x} (primary_entry+0x8)"
    assert run(ctx, "symbol $pc").result["symbol"] == "primary_entry"
    assert f"cpu 0 at pa:{PRIMARY + 8:#x} (primary_entry+0x8)" in str(run(ctx, "status").body)
    frames = run(ctx, "bt").result["frames"]
    assert frames[0]["place"] == f"pa:{PRIMARY + 8:#x} (primary_entry+0x8)"


def test_a_firmware_may_move_what_it_holds(kernel: KernelImage) -> None:
    """Its MMU is on, and no CPU has tables of the kernel's: symbols are not claimed to lie anywhere."""
    guest = Guest(image_pa=0x4C20_0000)
    firmware = guest.cpu(pc=0x47F0_0000, TTBR1_EL1=0, TTBR0_EL1=0x47FF_F000, VBAR_EL1=0x4800)
    ctx = stopped(kernel, guest, firmware)
    for line in ("disassemble primary_entry", "x/2i primary_entry", "print pa:primary_entry"):
        with pytest.raises(GuestError, match="may still be moved"):
            run(ctx, line)
    assert (
        "may still be moved"
        in str(run(ctx, f"symbol {'vectors' if kernel.linked else 'pa:0x4c240800'}").body)
        or not kernel.linked
    )
    assert ctx.guest.place(0x4C21_0804, physical=True) == "pa:0x4c210804 (vectors+0x4)"


def test_a_lower_address_is_as_the_cpu_translates_it(kernel: KernelImage) -> None:
    """One CPU runs a program there, another the identity map's code, a third has its MMU off."""
    guest = Guest()
    TreeBuilder(guest.regime, memory=guest.memory, tables_at=USER, root=USER).map(PAGE, 0x4A00_0000)
    TreeBuilder(guest.regime, memory=guest.memory, tables_at=IDMAP, root=IDMAP).map(PAGE, PAGE)
    states = (
        guest.cpu(0, el=0, pc=PRIMARY, TTBR0_EL1=USER),
        guest.cpu(1, pc=PRIMARY, TTBR0_EL1=IDMAP),
        guest.cpu(2, pc=PRIMARY, SCTLR_EL1=0),
    )
    ctx = stopped(kernel, guest, *states)
    places = [ctx.guest.place(PRIMARY, state=state) for state in states]
    name = f"{PRIMARY:#x} (primary_entry+0x0)"
    assert places == [f"{PRIMARY:#x}", name, f"pa:{name}"]
    assert ctx.guest.place(guest.va(0x1_0804)) == f"{guest.va(0x1_0804):#x} (vectors+0x4)"


def test_code_that_nobody_can_read(kernel: KernelImage) -> None:
    guest = Guest()
    ctx = stopped(kernel, guest, guest.cpu())
    with pytest.raises(UserError, match="no code can be read at 0xffff800099990000"):
        run(ctx, "x/2i 0xffff800099990000")
    with pytest.raises(UserError, match="no code can be read at pa:0x1000000000"):
        run(ctx, "x/2i pa:0x1000000000")


def test_the_identity_map_in_a_register_is_not_the_kernel_s_own_table(kernel: KernelImage) -> None:
    """Code that makes it has it in x2, as the rewrite has swapper_pg_dir; it maps the image, to itself."""
    guest = Guest()
    tree = TreeBuilder(guest.regime, memory=guest.memory, tables_at=IDMAP, root=IDMAP)
    tree.map(IMAGE_PA, IMAGE_PA, size=0x10_0000, attributes=KERNEL_TEXT)
    early = guest.cpu(pc=PRIMARY, x={2: IDMAP}, TTBR0_EL1=IDMAP, TTBR1_EL1=0x4720_0000, VBAR_EL1=0)
    ctx = stopped(kernel, guest, early)
    assert not ctx.guest.view.placed
    assert ctx.guest.place(PRIMARY) == f"{PRIMARY:#x} (primary_entry+0x0)"


def by_a_firmware(kernel: KernelImage, pc: int) -> Context:
    """The EFI stub has moved the image to a multiple of 64 KiB, and the firmware's MMU is on."""
    guest = Guest(image_pa=MOVED)
    tree = TreeBuilder(guest.regime, memory=guest.memory, tables_at=IDMAP, root=IDMAP)
    tree.map(MOVED, MOVED, size=0x10_0000, attributes=KERNEL_TEXT)
    return stopped(kernel, guest, guest.cpu(pc=pc, TTBR0_EL1=IDMAP, TTBR1_EL1=0, VBAR_EL1=0x4800))


def test_where_a_kernel_is_entered_it_stays(kernel: KernelImage) -> None:
    pc = MOVED + PRIMARY - IMAGE_PA + 4
    ctx = by_a_firmware(kernel, pc)
    assert ctx.guest.place(pc) == f"{pc:#x} (primary_entry+0x4)"
    assert run(ctx, "print pa:vectors").result["value"] == f"{MOVED + 0x1_0800:#x}"


def test_code_of_a_copy_that_may_yet_be_moved_has_names(kernel: KernelImage) -> None:
    pc = MOVED + 0x1_0804
    ctx = by_a_firmware(kernel, pc)
    assert ctx.guest.place(pc) == f"{pc:#x} (vectors+0x4)"
    with pytest.raises(GuestError, match="not found in guest memory"):
        run(ctx, "print pa:vectors")
    assert ctx.guest.place(0x4E00_0000, physical=True) == "pa:0x4e000000"
