"""Where the shadow memory of KASAN lies in the kernel's address space."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.regime import Regime
from ptinspect.linux.image import KernelImage
from ptinspect.linux.regions import Region


def shadow_of(regime: Regime, image: KernelImage | None, middle: int) -> tuple[list[Region], int]:
    """Return the shadow memory of KASAN, and by how many bytes it moves what follows `middle`.

    It is an eighth of the address space, a sixteenth with software tags. Up to v5.10 it lies above the
    middle, and modules and the image behind it; from v5.11 on it ends there, and the linear map before it
    (Linux commit f4693c2716b3 ("arm64: mm: extend linear region for 52-bit VA configurations")).
    """
    if image is None or not image.linked or "kasan_early_init" not in image.symbols:
        return [], 0
    size = 1 << min(regime.va_bits, 48) - (4 if "kasan_init_sw_tags" in image.symbols else 3)
    if image.text_va >= middle + size:
        return [Region(middle, middle + size, "KASAN shadow")], size
    return [Region(middle - size, middle, "KASAN shadow")], 0


def shifted(regions: Sequence[Region], shift: int) -> list[Region]:
    """Return the regions that KASAN's shadow moves, where they are then."""
    if not shift:
        return []
    moved = [r for r in regions if r.name in ("bpf", "modules")]
    rest = [Region(r.start + shift, r.end, r.name) for r in regions if r.name == "vmalloc"]
    return [Region(r.start + shift, r.end + shift, r.name) for r in moved] + rest
