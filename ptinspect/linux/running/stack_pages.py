"""The pages that a task's stack is made of, as the kernel remembers them: do its addresses lead there?

A stack in vmalloc space has a vm_struct, which lists the struct page of each of its pages. Their
addresses are `vmemmap + frame number * sizeof(struct page)` (asm-generic/memory_model.h), so that
what is left of a struct page's address without its frame number is the same for all memory, and a
large power of two divides it: VMEMMAP_START and the memory's first frame are so aligned
(arch/arm64/include/asm/memory.h; ARM64_MEMSTART_ALIGN, asm/kernel-pgtable.h).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import islice

from ptinspect.arch.bits import PhysAddr, VirtAddr, bit
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.image.btf import BtfTypes
from ptinspect.linux.running.guest_view import GuestView

ALIGNED = 1 << 19
"""What divides `vmemmap` at least: 512 MiB of memory in 64K pages, of 64 bytes each."""
VMEMMAP = "vmemmap_populate"
"""A function of kernels that keep struct pages so (CONFIG_SPARSEMEM_VMEMMAP)."""


STRUCT_PAGE = 64
"""The usual sizeof(struct page) of arm64."""
VM_STRUCT = {"vm_struct.addr": 8, "vm_struct.pages": 32}
"""Where the members have been since v2.6: next, addr, size, flags, pages (include/linux/vmalloc.h)."""
TASK_BYTES = 4096
"""How far into a task_struct its vm_struct is looked for."""
MAX_OTHERS = 16
"""Other stacks that are looked at for one that fits."""


@dataclass(frozen=True)
class Misled:
    """An address of a stack that leads to memory which is none of the stack's pages."""

    address: VirtAddr
    """The lowest such address."""
    pa: PhysAddr
    """Where it leads."""


def misled(
    view: GuestView, task: int, base: int, size: int, others: Callable[[], Iterable[tuple[int, int]]] = tuple
) -> Misled | None:
    """Return where the stack of the task_struct at `task` leads to memory that is not its own.

    `others` gives task and base of other stacks: where the kernel file does not tell the size of a struct
    page, one of them has to fit the usual one. None where the stack leads to its own memory, is not
    mapped, or the kernel does not tell which that is.
    """
    try:
        length = _struct_page(view)
        found = _misled(view, task, base, size, length or STRUCT_PAGE)
        if found is not None and length is None:
            fitting = (_fits(view, task, base, size) for task, base in islice(others(), MAX_OTHERS))
            return found if any(fitting) else None
        return found
    except (GuestError, KernelFileError):
        return None


def is_own(view: GuestView, task: int, base: int, size: int) -> bool:
    """Tell whether it is known that a stack leads to its own memory; False where nothing tells."""
    try:
        return _struct_page(view) is not None and _fits(view, task, base, size)
    except (GuestError, KernelFileError):
        return False


def _fits(view: GuestView, task: int, base: int, size: int) -> bool:
    try:
        length = _struct_page(view) or STRUCT_PAGE
        return bool(_pages(view, task, base, size)) and _misled(view, task, base, size, length) is None
    except (GuestError, KernelFileError):
        return False


def _misled(view: GuestView, task: int, base: int, size: int, length: int) -> Misled | None:
    for number, page in enumerate(_pages(view, task, base, size)):
        address = base + number * view.regime.granule
        try:
            pa = view.pa_of(address)
        except GuestError:
            continue
        if (page - (pa >> view.regime.granule_bits) * length) % ALIGNED:
            return Misled(VirtAddr(address), pa)
    return None


def _struct_page(view: GuestView) -> int | None:
    """Return the size of a struct page; None where the kernel file does not tell it."""
    return view.types.size("page") if isinstance(view.types, BtfTypes) else None


def _pages(view: GuestView, task: int, base: int, size: int) -> list[int]:
    """Return the addresses of the struct pages of a stack; none where the kernel does not tell them."""
    if view.image is None or VMEMMAP not in view.image.symbols:
        return []
    area = _area(view, task, base, size)
    if not area or view.read_u64(area + _offset(view, "vm_struct.addr")) != base:
        return []
    listed = view.read_u64(area + _offset(view, "vm_struct.pages"))
    count = size // view.regime.granule
    return list(struct.unpack(f"<{count}Q", view.read_virt(listed, 8 * count)))


def _offset(view: GuestView, path: str) -> int:
    try:
        return view.types.offset(path)
    except KernelFileError:
        if isinstance(view.types, BtfTypes):
            raise
        return VM_STRUCT[path]


def _area(view: GuestView, task: int, base: int, size: int) -> int:
    """Return the vm_struct of a stack: by its member, else what the task points to that fits; or 0."""
    if isinstance(view.types, BtfTypes):
        return view.read_u64(task + view.types.offset("task_struct.stack_vm_area"))
    words = struct.unpack(f"<{TASK_BYTES // 8}Q", view.read_virt(task, TASK_BYTES))
    at = VM_STRUCT["vm_struct.addr"]
    for word in dict.fromkeys(words):
        if not bit(word, 55) or word % 8 or not view.regime.contains(VirtAddr(word)):
            continue
        try:
            address, length = struct.unpack("<2Q", view.read_virt(word + at, 16))
        except GuestError:
            continue
        if address == base and length in (size, size + view.regime.granule):  # with its guard page
            return int(word)
    return 0
