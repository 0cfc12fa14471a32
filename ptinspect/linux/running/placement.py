"""Find where in physical memory a kernel lies, by the header of its Image and by its code."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ptinspect.arch.bits import PhysAddr, align_up
from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError
from ptinspect.linux.image.container import HEADER_SIZE, ImageHeader, parse_header
from ptinspect.linux.image.image import BOUNDARY, KernelImage
from ptinspect.memory.source import PhysicalMemory, RamBlock

PROBES = 16
"""Places of the code at which file and memory are compared."""
PROBE_BYTES = 256
ENOUGH = 0.75
"""Share of instructions that must agree: alternatives, jump labels and ftrace patch some at boot."""
LIKELY = 32
"""Candidates near the start of RAM that are looked at before all others."""
EFI_BOUNDARY = 64 << 10
"""What the EFI stub aligns a kernel to that it moves about (efistub.h: EFI_KIMG_ALIGN); a boot loader that
keeps to booting.rst takes 2 MiB."""
_MAGIC_WORD = int.from_bytes(b"ARMd", "little")


@dataclass(frozen=True)
class Placement:
    """Where the image lies."""

    pa: PhysAddr
    """Physical address of its first byte."""
    match: float | None
    """Share of compared instructions at which file and memory agree; None if the file holds no code."""
    provenance: str
    """How it was found."""
    settled: bool = True
    """False while a firmware or a boot loader runs: what is in memory is a copy that it may yet move."""

    @property
    def agrees(self) -> bool:
        """True unless the code in memory is another kernel's."""
        return self.match is None or self.match >= ENOUGH


def find_image(
    memory: PhysicalMemory, image: KernelImage, ram: Sequence[RamBlock], hint: int | None = None
) -> Placement | None:
    """Find the image in guest RAM by its header and its code.

    Returns None if no place of RAM holds such a header. If there are some, but another kernel's
    code follows each, the answer's `match` is below ENOUGH.
    """
    best: Placement | None = None
    for pa, header in headers(memory, ram, image.text_offset, hint):
        if image.header is not None and (header.image_size, header.entry_offset) != (
            image.header.image_size,
            image.header.entry_offset,
        ):
            match: float | None = 0.0
        else:
            match = compare(memory, image, pa)
        found = Placement(PhysAddr(pa), match, "its Image header in RAM")
        if found.agrees:
            return found
        best = found if best is None or (match or 0.0) > (best.match or 0.0) else best
    return best


def find_code(
    memory: PhysicalMemory,
    image: KernelImage,
    ram: Sequence[RamBlock],
    hint: int | None = None,
    boundary: int = BOUNDARY,
) -> Placement | None:
    """Find the image in guest RAM by its code alone, at `hint` first; None if it is nowhere."""
    places = itertools.chain([] if hint is None else [hint], code_places(memory, image, ram, boundary))
    return first_matching(memory, image, ((pa, "its code in RAM") for pa in places))


def first_matching(
    memory: PhysicalMemory, image: KernelImage, places: Iterable[tuple[int, str]]
) -> Placement | None:
    """Return the first of some addresses, each with its provenance, at which the image's code is."""
    for pa, provenance in places:
        match = compare(memory, image, pa)
        if match is not None and match >= ENOUGH:
            return Placement(PhysAddr(pa), match, provenance)
    return None


def code_places(
    memory: PhysicalMemory, image: KernelImage, ram: Sequence[RamBlock], boundary: int = BOUNDARY
) -> Iterator[int]:
    """Yield the places where an image may lie by a piece of its code, wherever its header is.

    The header's page is free memory after boot (Linux commit e2a073dde921 ("arm64: omit [_text, _stext)
    from permanent kernel mapping") (in v5.11)), and what is allocated first may be a table there.
    """
    begin, length = image.code_range
    for block in ram:
        places = _places(block, image.text_offset, begin + length, boundary)
        yield from _with_code(memory, image, places)


def find_near(memory: PhysicalMemory, image: KernelImage, addresses: Sequence[int]) -> Placement | None:
    """Find the image that one of these addresses lies in, by its code; None if there is none.

    The EFI stub puts a kernel at a multiple of 64 KiB (EFI_BOUNDARY), not of 2 MiB, where it chooses freely.
    """
    shift = image.text_offset % EFI_BOUNDARY
    for inside in addresses:
        first = align_up(max(inside - shift - image.size + 1, 0), EFI_BOUNDARY) + shift
        places = _with_code(memory, image, list(range(first, inside + 1, EFI_BOUNDARY)))
        found = first_matching(memory, image, ((pa, "its code, where registers lead") for pa in places))
        if found is not None:
            return found
    return None


def _with_code(memory: PhysicalMemory, image: KernelImage, places: list[int]) -> Iterator[int]:
    """Yield those of some places at which the image would have a piece of its code where memory holds it."""
    begin, length = image.code_range
    if length < PROBE_BYTES or not places:
        return
    at = begin + (length // 2 & ~(PROBE_BYTES - 1))
    words = np.frombuffer(image.text_at(image.text_va + at, PROBE_BYTES), np.uint64)
    addresses = np.array(places, dtype=np.uint64) + np.uint64(at)
    raw, readable = memory.read_tables(addresses, PROBE_BYTES)
    hits = readable & ((raw == words).mean(axis=1) >= ENOUGH)
    yield from (places[row] for row in np.flatnonzero(hits).tolist())


def _places(block: RamBlock, text_offset: int, length: int, boundary: int = BOUNDARY) -> list[int]:
    """Return where an Image may lie in a block that has `length` bytes of it, in ascending order.

    Not in flash. It lies at a multiple of 2 MiB plus text_offset (Documentation/arch/arm64/booting.rst).
    """
    if not block.writable:
        return []
    bases = range(align_up(block.start, boundary), block.end, boundary)
    places = sorted({base + offset for base in bases for offset in {0, text_offset}})
    return [pa for pa in places if pa + length <= block.end]


def headers(
    memory: PhysicalMemory, ram: Sequence[RamBlock], text_offset: int = 0, hint: int | None = None
) -> Iterator[tuple[int, ImageHeader]]:
    """Yield the places in RAM that hold an Image header, `hint` and the start of RAM first."""
    groups = [[] if hint is None else [hint]]
    for block in ram:
        places = [pa for pa in _places(block, text_offset, HEADER_SIZE) if pa != hint]
        groups += [places[:LIKELY], places[LIKELY:]]
    for places in filter(None, groups):
        raw, readable = memory.read_tables(np.array(places, dtype=np.uint64), HEADER_SIZE)
        hits = readable & (raw[:, 7] & np.uint64(0xFFFF_FFFF) == np.uint64(_MAGIC_WORD))
        for row in np.flatnonzero(hits).tolist():
            header = parse_header(raw[row].astype("<u8").tobytes())
            if header is not None:
                yield places[row], header


def compare(memory: PhysicalMemory, image: KernelImage, pa: int) -> float | None:
    """Return the share of instructions, 0 to 1, in which file and memory agree, if the image lies at `pa`.

    PROBES pieces spread over the text are compared word by word. None if the file holds no code.
    """
    begin, length = image.code_range
    if length < PROBE_BYTES:
        return None
    pieces = max(min(PROBES, length // PROBE_BYTES), 1)
    offsets = begin + np.arange(pieces) * (length // pieces & ~(PROBE_BYTES - 1))
    texts = [image.text_at(image.text_va + at, PROBE_BYTES) for at in offsets.tolist()]
    ours = np.frombuffer(b"".join(texts), "<u4").reshape(pieces, -1)
    raw, readable = memory.read_tables(np.uint64(pa) + offsets.astype(np.uint64), PROBE_BYTES)
    return float(np.count_nonzero((ours == raw.view("<u4"))[readable]) / ours.size)


def mismatch(image: KernelImage, found: Placement) -> KernelFileError:
    """Return the error for a kernel file that is another kernel's."""
    share = 0.0 if found.match is None else found.match
    how = "another kernel's header" if not share else f"{share:.0%} of its instructions agree with memory"
    return KernelFileError(
        f"{image.path.name} is not the kernel in this guest: {how} at pa:{found.pa:#x}",
        "name the file that was booted: kernel FILE; to use this one all the same: kernel FILE --force",
    )
