"""What a kernel records about itself in VMCOREINFO: in a note of a dump, or in its own memory.

Source: Linux Documentation/admin-guide/kdump/vmcoreinfo.rst, kernel/vmcore_info.c (crash_core.c),
arch/arm64/kernel/vmcore_info.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ptinspect.dataclass import dataclass
from ptinspect.errors import MemoryReadError
from ptinspect.memory.source import PhysicalMemory, RamBlock

START = b"OSRELEASE="
PAGE = 4096
STEP = 4 << 20
MAX_FOUND = 16
Progress = Callable[[int, int], None]
"""Called with the number of bytes that were searched, and that of all."""


@dataclass(frozen=True)
class VmcoreInfo:
    """Hold the lines that matter; None for those that are not there."""

    release: str
    """`uname -r`."""
    page_size: int | None
    """PAGESIZE: the granule."""
    va_bits: int | None
    """NUMBER(VA_BITS): as the kernel was configured."""
    t1sz: int | None
    """NUMBER(TCR_EL1_T1SZ): as it is (from v5.5)."""
    swapper: int | None
    """SYMBOL(swapper_pg_dir): virtual address, KASLR included."""
    voffset: int | None
    """NUMBER(kimage_voffset): virtual minus physical address of the image (from v4.12)."""
    kaslr_offset: int | None
    """KERNELOFFSET."""
    where: str


def parse(text: str, where: str) -> VmcoreInfo | None:
    """Read the text; None if it is no VMCOREINFO of an arm64 kernel."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def number(name: str, base: int) -> int | None:
        try:
            return int(found[name], base)
        except (KeyError, ValueError):
            return None

    swapper = number("SYMBOL(swapper_pg_dir)", 16)
    if "OSRELEASE" not in found or swapper is None:
        return None
    release = re.sub(r"[^\x21-\x7e]", "?", found["OSRELEASE"])[:64]
    return VmcoreInfo(
        release=release,
        page_size=number("PAGESIZE", 10),
        va_bits=number("NUMBER(VA_BITS)", 10),
        t1sz=number("NUMBER(TCR_EL1_T1SZ)", 16),
        swapper=swapper,
        voffset=number("NUMBER(kimage_voffset)", 16),
        kaslr_offset=number("KERNELOFFSET", 16),
        where=where,
    )


def search(
    memory: PhysicalMemory, ram: Sequence[RamBlock], progress: Progress | None = None
) -> Iterator[VmcoreInfo]:
    """Go through the pages of RAM that begin as VMCOREINFO does: the kernel keeps it in a page of its own."""
    total = sum(block.size for block in ram)
    done = found = 0
    first = np.frombuffer(START[:8], "<u8")[0]
    for block in ram:
        for at in range(block.start, block.end, STEP):
            size = min(STEP, block.end - at)
            if progress is not None:
                progress(done, total)
            done += size
            try:
                data = memory.read(at, size & ~7)
            except MemoryReadError:
                continue
            words = np.frombuffer(data, "<u8")[:: PAGE // 8]
            for page in np.flatnonzero(words == first).tolist():
                text = data[page * PAGE : page * PAGE + PAGE].split(b"\0")[0]
                info = parse(text.decode("ascii", "replace"), f"guest memory at pa:{at + page * PAGE:#x}")
                if info is not None:
                    found += 1
                    yield info
                if found >= MAX_FOUND:
                    return
