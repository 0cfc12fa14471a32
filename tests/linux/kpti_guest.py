"""A guest in miniature that is about to rewrite its tables, with the code of a real kernel."""

from __future__ import annotations

from dataclasses import dataclass

from a64_machine import Machine
from builders import KERNEL_TEXT, TreeBuilder
from kpti_words import code
from sparse_memory import SparseMemory

from ptinspect.arch import a64
from ptinspect.arch.bits import PhysAddr
from ptinspect.arch.regime import Regime
from ptinspect.linux.kpti.code import KptiCode, recognise_code
from ptinspect.memory.source import RamBlock

CODE_AT = 0x4800_0000
"""Where the image's code lies, 64 KiB aligned; the entry's place in its page is the real one."""
NOP = 0xD503201F


@dataclass
class Rewrite:
    """One guest."""

    tree: TreeBuilder
    code: KptiCode
    machine: Machine
    entry: int

    @property
    def regime(self) -> Regime:
        return self.tree.regime


@dataclass(frozen=True)
class Case:
    """Name a kernel and a regime that it runs with."""

    name: str
    kernel: str
    """Whose code it has (tests/data/kpti)."""
    regime: Regime
    in_page: int
    """Offset of the entry in its page."""
    wide: bool = False
    """The alternative for LPA2 is patched in: the root is a table of 52-bit addresses."""


CASES = (
    Case("5.10 4k-48", "5.10", Regime(12, 48, 48, True), 0x510),
    Case("6.1 4k-48", "6.1", Regime(12, 48, 48, True), 0x5E0),
    Case("6.12 4k-48", "6.12", Regime(12, 48, 48, True), 0x620),
    Case("6.12 4k-52", "6.12", Regime(12, 52, 52, True, ds=True), 0x620, wide=True),
    Case("6.12 16k-47", "6.12-16k", Regime(14, 47, 48, True), 0x1620),
    Case("6.12 16k-52", "6.12-16k", Regime(14, 52, 52, True, ds=True), 0x1620, wide=True),
    Case("5.10 4k-39", "5.10-39", Regime(12, 39, 48, True), 0x5378),
    Case("5.10 64k-42", "5.10-64k", Regime(16, 42, 48, True), 0x4378),
    Case("6.1 4k-39", "6.1-39", Regime(12, 39, 48, True), 0xE464),
    Case("6.1 64k-52", "6.1-64k-52", Regime(16, 52, 52, True), 0x500),
    Case("7.3 4k-48", "7.3", Regime(12, 48, 48, True), 0x7720),
    Case("7.3 4k-52", "7.3", Regime(12, 52, 52, True, ds=True), 0x7720, wide=True),
)

NOT_TRACKED = (Case("5.10 4k-48", "5.10-not-tracked", Regime(12, 48, 48, True), 0x6378),)
TOGGLED = (
    Case("5.10 4k-48", "5.10-toggled", Regime(12, 48, 48, True), 0x6378),
    Case("5.10 4k-39", "5.10-toggled-39", Regime(12, 39, 48, True), 0x5378),
)
"""The thread's two patches, compiled."""


def patched(case: Case) -> bytes:
    """Return the code as it runs: on a CPU with LPA2 the jump over the root level is patched out."""
    words = list(a64.words(code(case.kernel)))
    if case.wide:
        jump = next(i for i, word in enumerate(words) if word == 0xAA0603E5)  # mov x5, x6
        words[jump - 1 : jump + 2] = [NOP] * 3
    return b"".join(word.to_bytes(4, "little") for word in words)


def swapper_of(raw: bytes, entry: int, wide: bool) -> int | None:
    """Return where the code expects swapper_pg_dir, if it names it: `adrp` of x7, or x5."""
    words = a64.words(raw)
    for register in (5,) if wide else (7, 5):
        for i in range(len(words)):
            built = a64.address_built(words, i, entry)
            if built is not None and built[0] == register:
                return built[1]
    return None


def rewrite(case: Case, raw: bytes | None = None) -> Rewrite:
    """Build memory, tables and a machine that stands at the entry, on the boot CPU of a machine with one."""
    raw = patched(case) if raw is None else raw
    entry = CODE_AT + case.in_page
    found = recognise_code(raw, entry)
    memory = SparseMemory([RamBlock(PhysAddr(0x4000_0000), 0x4000_0000)])
    memory.write(entry, raw)
    assert found.flag_va is not None
    memory.write(found.flag_va, (1).to_bytes(4, "little"))
    swapper = swapper_of(raw, entry, case.wide) if found.algorithm == "temp-pgd-pre-order" else None
    tree = TreeBuilder(case.regime, memory=memory, root=swapper or 0x4100_0000)
    fill(tree)
    x = {0: 0, 1: 1, 2: tree.root}
    if found.algorithm == "temp-pgd-pre-order":
        temp = TreeBuilder(case.regime, memory=memory, tables_at=0x6000_0000)
        window = (1 << 64) - case.regime.entry_size(2)
        temp.map(window, temp.table_at(window, 3))
        x[2], x[3] = temp.root, window
    machine = Machine(memory, case.regime, entry, ttbr1=tree.root, x=x)
    machine.sp = stack_of(case.regime) + 0x800
    return Rewrite(tree, found, machine, entry)


def stack_of(regime: Regime) -> int:
    return regime.va_min + 5 * regime.granule


def fill(tree: TreeBuilder) -> None:
    """Map pages and blocks in several subtrees, with gaps, an entry that is nG already and one invalid."""
    regime = tree.regime
    block, low = regime.entry_size(2), regime.va_min
    tree.map(low, 0x4200_0000, size=8 * regime.granule)
    tree.map(low + 3 * block, 0x4400_0000, level=2)
    tree.map(low + 4 * block + 7 * regime.granule, 0x4300_0000, size=3 * regime.granule)
    tree.set(
        low + 4 * block + 9 * regime.granule, 3, tree.leaf(0x4308_0000 & ~(regime.granule - 1), 3) | 1 << 11
    )
    tree.set(low + 4 * block + 20 * regime.granule, 3, 0xBAD0)
    middle = low + (regime.va_max - low) // 2 + 1
    tree.map(middle, 0x4000_0000, size=2 * regime.granule, attributes=KERNEL_TEXT)
    high = (regime.va_max + 1) - 2 * block
    tree.map(high - 6 * block + regime.granule, 0x4500_0000, size=regime.granule)
