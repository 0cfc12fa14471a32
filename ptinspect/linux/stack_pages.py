"""The pages that a task's stack is made of, as the kernel remembers them: do its addresses lead there?

A stack in vmalloc space has a vm_struct, which lists the struct page of each of its pages. Their
addresses are `vmemmap + frame number * sizeof(struct page)` (asm-generic/memory_model.h), so that
what is left of a struct page's address without its frame number is the same for all memory, and a
large power of two divides it: VMEMMAP_START and the memory's first frame are so aligned
(arch/arm64/include/asm/memory.h; ARM64_MEMSTART_ALIGN, asm/kernel-pgtable.h).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.types import Types
from ptinspect.linux.view import GuestView

ALIGNED = 1 << 19
"""What divides `vmemmap` at least: 512 MiB of memory in 64K pages, of 64 bytes each."""
VMEMMAP = "vmemmap_populate"
"""A function of kernels that keep struct pages so (CONFIG_SPARSEMEM_VMEMMAP)."""


@dataclass(frozen=True)
class Misled:
    """An address of a stack that leads to memory which is none of the stack's pages."""

    address: VirtAddr
    """The lowest such address."""
    pa: PhysAddr
    """Where it leads."""


def misled(view: GuestView, task: int, base: int, size: int) -> Misled | None:
    """Return where the stack of the task_struct at `task` leads to memory that is not its own.

    None where it leads to its own, is not mapped, or the kernel does not tell which that is.
    """
    try:
        pages, length = _pages(view, task, base, size)
        for number, page in enumerate(pages):
            address = base + number * view.regime.granule
            try:
                pa = view.pa_of(address)
            except GuestError:
                continue
            if (page - (pa >> view.regime.granule_bits) * length) % ALIGNED:
                return Misled(VirtAddr(address), pa)
    except (GuestError, KernelFileError):
        pass
    return None


def _pages(view: GuestView, task: int, base: int, size: int) -> tuple[list[int], int]:
    """Return the struct pages of a stack, and their size; none where the kernel file does not tell."""
    types = view.types
    if not isinstance(types, Types) or view.image is None or VMEMMAP not in view.image.symbols:
        return [], 0
    area = view.read_u64(task + types.offset("task_struct.stack_vm_area"))
    if not area or view.read_u64(area + types.offset("vm_struct.addr")) != base:
        return [], 0
    listed = view.read_u64(area + types.offset("vm_struct.pages"))
    count = size // view.regime.granule
    words = view.read_virt(listed, 8 * count)
    return list(struct.unpack(f"<{count}Q", words)), types.size("page")
