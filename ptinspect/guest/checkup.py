"""What should hold in the tables of a healthy kernel, asked of a guest, a snapshot or a pair of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptinspect.analysis.findings import Findings
from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError
from ptinspect.guest.capturing import snapshot_of
from ptinspect.guest.guest import Guest
from ptinspect.guest.regions import names_of
from ptinspect.guest.table_choice import Tables

if TYPE_CHECKING:
    from ptinspect.analysis.aliases import Places
    from ptinspect.linux.image.image import KernelImage
    from ptinspect.linux.layout.regions import Layout
    from ptinspect.snapshot.model import Snapshot

ZERO_LEVELS = ("p4d", "pud", "pmd", "pte")
"""Levels whose tables KASAN's zero shadow shares."""


@dataclass(frozen=True)
class Checkup:
    """Hold which rules some tables break."""

    snapshot: Snapshot
    """The snapshot that was named, or a capture of the guest."""
    before: Snapshot | None
    """The earlier snapshot that it was compared with."""
    findings: Findings


def checkup(
    guest: Guest,
    tables: Tables,
    *,
    against: str | None = None,
    rewrite_done: bool = False,
    partial: bool = False,
    limit: int = 100,
) -> Checkup:
    """Apply the rules (analysis.check) to some tables, or to what changed in them since a snapshot.

    `rewrite_done`: the rewrite has ended; `partial`: a capture of a part is sound; `limit`: findings that
    are kept of each rule.
    """
    from ptinspect.analysis.check import Pair, check, check_pair, check_stacks

    snapshot = snapshot_of(guest, tables)
    places = _places(names_of(snapshot)[1])
    before = guest.snapshot_or_file(against) if against else None
    guest.progress(f"checking {len(snapshot.tables):,} tables")
    found = Findings(limit=limit, shared=_shared(_kernel(guest), snapshot), partial=partial)
    if before is not None:
        check_pair(Pair(before, snapshot, rewrite_done, _early(guest.kernel, snapshot), places), found)
    else:
        check(snapshot, found, rewrite_done=rewrite_done, places=places)
        check_stacks(snapshot, found)
    return Checkup(snapshot, before, found)


def _kernel(guest: Guest) -> KernelImage | None:
    """Return the kernel file; None too if it cannot be read."""
    try:
        return guest.kernel
    except KernelFileError:
        return None


def _places(names: Layout) -> Places:
    """Return where the areas lie that rules speak of."""
    from ptinspect.analysis.aliases import Places

    def of(*wanted: str) -> tuple[tuple[int, int], ...]:
        return tuple((region.start, region.end) for region in names.regions if region.name in wanted)

    return Places(
        text=of("kernel text"),
        linear=of("linear map"),
        vmalloc=of("vmalloc"),
        modules=of("modules", "bpf"),
        fixmap=of("fixmap"),
    )


def _shared(kernel: KernelImage | None, snapshot: Snapshot) -> frozenset[int]:
    """Return the tables of KASAN's zero shadow (mm/kasan/init.c), as far as the kernel file names them."""
    if kernel is None or "swapper_pg_dir" not in kernel.symbols:
        return frozenset()
    base = snapshot.root.pa - kernel.lookup("swapper_pg_dir")
    names = (f"kasan_{which}_{level}" for which in ("early_shadow", "zero") for level in ZERO_LEVELS)
    return frozenset(kernel.lookup(name) + base for name in names if name in kernel.symbols)


def _early(kernel: KernelImage | None, snapshot: Snapshot) -> list[tuple[int, int, str]]:
    """Return where the tables of early boot lie, as far as the kernel file names them."""
    if kernel is None:
        return []
    found = []
    for start, end, skip in (("init_pg_dir", "init_pg_end", 0), ("swapper_pg_dir", "swapper_pg_end", 1)):
        try:
            base = snapshot.root.pa - kernel.lookup("swapper_pg_dir")
            first = kernel.lookup(start) + base + skip * snapshot.regime.granule
            found.append((first, kernel.lookup(end) + base, start))
        except KernelFileError:
            continue
    return found
