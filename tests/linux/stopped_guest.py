"""A guest in miniature: RAM, a kernel image, its tables, registers; stopped wherever a test wants it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from builders import KERNEL_TEXT, TreeBuilder, regime_4k
from kernels import TEXT_SIZE, TEXT_VA, image
from sparse_memory import SparseMemory

from ptinspect.arch.bits import MASK64, PhysAddr
from ptinspect.arch.regime import Regime
from ptinspect.arch.sysregs import CpuState
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.memory.source import RamBlock

RAM = (
    RamBlock(PhysAddr(0), 64 << 20, "virt.flash0", writable=False),
    RamBlock(PhysAddr(0x4000_0000), 256 << 20, "mach-virt.ram"),
)
IMAGE_PA = 0x4020_0000
SWAPPER = 0x4028_4000
"""In the image, as the linker script puts it: idmap, tramp, reserved, swapper, a page each."""
TRAMP, RESERVED = SWAPPER - 0x2000, SWAPPER - 0x1000
TEMPORARY = 0x4500_0000
TCR = {48: 0x40_0034_B550_3510, 39: 0x40_0034_B559_3519}
TRAMP_VA = 0xFFFF_FDFF_FE5F_A000
LINEAR = 0xFFFF_0000_0000_0000
SYMBOLS = [
    ("_stext", TEXT_VA + 0x1_0000, "T"),
    ("vectors", TEXT_VA + 0x1_0800, "T"),
    ("_etext", TEXT_VA + 0x5_0000, "R"),
    ("primary_entry", TEXT_VA + 0x1_0000, "T"),
    ("idmap_kpti_install_ng_mappings", TEXT_VA + 0x4_0510, "T"),
]
DATA_SYMBOLS = [
    ("swapper_pg_dir", TEXT_VA + SWAPPER - IMAGE_PA, "R"),
    ("init_pg_dir", TEXT_VA + 0x9_0000, "D"),
]


@dataclass
class Guest:
    """Memory and registers of a stopped guest."""

    kaslr: int = 0
    regime: Regime = field(default_factory=regime_4k)
    memory: SparseMemory = field(default_factory=lambda: SparseMemory(RAM))
    text: Iterable[tuple[int, bytes]] = ()
    """Bytes at offsets in the image."""
    image_pa: int = IMAGE_PA
    """Where the image lies."""

    def __post_init__(self) -> None:
        pa, root = self.image_pa, self.image_pa + SWAPPER - IMAGE_PA
        self.memory.write(pa, image(text=self.text))
        self.tree = TreeBuilder(self.regime, memory=self.memory, tables_at=0x4400_0000, root=root)
        self.tree.map(self.va(0x1_0000), pa + 0x1_0000, size=TEXT_SIZE, attributes=KERNEL_TEXT)
        self.tree.map(self.va(0x5_0000), pa + 0x5_0000, size=0x4_0000)
        self.tree.map(self.va(0xF_F000), pa + 0xF_F000)
        self.tree.map(LINEAR, 0x4000_0000, size=64 << 20, level=2)
        self.tree.map(TRAMP_VA, IMAGE_PA + 0x3_0000, attributes=KERNEL_TEXT)
        tramp = TreeBuilder(self.regime, memory=self.memory, tables_at=0x4480_0000, root=TRAMP)
        tramp.map(TRAMP_VA, IMAGE_PA + 0x3_0000, attributes=KERNEL_TEXT)
        temporary = TreeBuilder(self.regime, memory=self.memory, tables_at=0x4490_0000, root=TEMPORARY)
        temporary.map(0xFFFF_FFFF_FFE0_0000, 0x4490_0000)

    def va(self, offset: int) -> int:
        return (TEXT_VA + offset + self.kaslr) & MASK64

    def cpu(
        self,
        number: int = 0,
        *,
        el: int = 1,
        pc: int | None = None,
        x: dict[int, int] | None = None,
        **system: int,
    ) -> CpuState:
        """Registers of a CPU in the kernel, unless told otherwise."""
        swapper = self.image_pa + SWAPPER - IMAGE_PA
        registers = {
            "TTBR1_EL1": swapper, "TTBR0_EL1": 0x4600_0000, "TCR_EL1": TCR[48], "MAIR_EL1": 0xFF44,
            "SCTLR_EL1": 1, "VBAR_EL1": self.va(0x1_0800),
        } | system  # fmt: skip
        general = tuple((x or {}).get(i, 0) for i in range(31))
        where = self.va(0x2_0000) if pc is None else pc
        return CpuState(number, general, 0, where, 0x3C5 if el else 0x3C0, registers)

    def view(self, kernel: KernelImage | None, *states: CpuState, **more: object) -> GuestView:
        return GuestView(self.memory, states or (self.cpu(),), kernel, RAM, **more)  # type: ignore[arg-type]
