"""What of Linux depends on its release alone, and how a release is read from text.

Only facts that neither the running kernel nor its file tells are here. Each table begins with the oldest
release; an entry holds from its release on, up to the next one. Stable releases that took a change in later
have their first version with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptinspect.dataclass import dataclass
from ptinspect.text import Pattern
from ptinspect.typed import TypeVar

Series = tuple[int, int]
"""Major and minor number: 5.10 and all its stable releases are (5, 10)."""
T = TypeVar("T")

_BANNER = Pattern(r"Linux version (\S+)", "Linux version")
_NUMBERS = Pattern(r"v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,4}))?(?!\d)(-\d)?")
_DISTRIBUTION = Pattern(
    r"#\d+ [\w ]*Debian (\d{1,3})\.(\d{1,3})\.(\d{1,4})|\(Ubuntu \S+ (\d{1,3})\.(\d{1,3})\.(\d{1,4})\)"
)


@dataclass(frozen=True)
class Release:
    """One release of Linux."""

    major: int
    """The first number."""
    minor: int
    """The second one."""
    patch: int | None
    """The third one, 0 if there is none; None where a distribution hides it (`5.10.0-32-arm64`)."""

    @property
    def series(self) -> Series:
        """The first two numbers, which the facts of a release go by."""
        return self.major, self.minor

    def __str__(self) -> str:
        """Return the release as `uname -r` begins: 5.10 or 5.10.223."""
        return f"{self.major}.{self.minor}" + (f".{self.patch}" if self.patch else "")


def parse(text: str) -> Release | None:
    """Read a release (`6.12.111+deb13-arm64`, `v5.10`) or a whole banner (`Linux version …`).

    The names of distributions' kernels stay at patch level 0 (`5.10.0-32-arm64`, `5.15.0-91-generic`);
    Debian's and Ubuntu's banners tell the true one at their end. None if the text begins with no release.
    """
    banner = _BANNER.search(text)
    if banner is not None and (true := _DISTRIBUTION.search(text, banner.end())) is not None:
        major, minor, patch = (int(number) for number in true.groups() if number is not None)
        return Release(major, minor, patch)
    found = _NUMBERS.match(banner[1] if banner is not None else text.strip())
    if found is None:
        return None
    patch = int(found[3] or 0)
    hidden = found[3] == "0" and found[4] is not None
    return Release(int(found[1]), int(found[2]), None if hidden else patch)


def _latest(table: Sequence[tuple[Series, T]], release: Release) -> T | None:
    """Return the last entry that is not younger than a release; None if all are."""
    return next((value for since, value in reversed(table) if since <= release.series), None)


# -- translation ------------------------------------------------------------------------------------

MAIR_EL1: tuple[tuple[Series, int], ...] = (
    ((4, 16), 0x0000_BBFF_440C_0400),
    ((5, 10), 0x000C_0400_BB44_FFFF),
    ((5, 14), 0x0000_0004_0044_FFFF),
)
"""MAIR_EL1 on a CPU without MTE (arch/arm64/mm/proc.S: MAIR_EL1_SET; asm/memory.h: MT_*).

Linux commits 9f3419315f3c ("arm64: mte: Add PROT_MTE support to mmap() and mprotect()") (in v5.10, MT_NORMAL
becomes 0), 21cfe6edbadb and 58cc6b72a212 ("arm64: mm: Remove unused support for Normal-WT memory type", "…
Device-GRE …") (in v5.14). With MTE byte 1 is 0xf0, from v5.10 on.
"""


def mair_el1(release: Release | None) -> int | None:
    """Return MAIR_EL1 as a release sets it on a CPU without MTE; None if it is not known."""
    return None if release is None else _latest(MAIR_EL1, release)


def image_in_upper_half(release: Release) -> bool:
    """Tell whether the kernel is linked into the upper half of its addresses, the linear map below it.

    Source: Linux commit 14c127c957c1 ("arm64: mm: Flip kernel VA space") (in v5.4).
    """
    return release.series >= (5, 4)


def indirect_permissions(release: Release) -> bool:
    """Tell whether the kernel uses indirect permissions where the CPU has them (FEAT_S1PIE).

    Source: Linux commit 9e9bb6ede00a ("arm64: enable Permission Indirection Extension (PIE)") (in v6.5).
    """
    return release.series >= (6, 5)


NO_BPF_REGION: Mapping[Series, int] = {(5, 15): 17, (5, 16): 3}
"""Stable release -> its first version in which BPF programs have no part of the address space."""


def has_bpf_region(release: Release) -> bool:
    """Tell whether BPF programs have a part of the address space of their own.

    Source: Linux commits 91fc957c9b1d ("arm64/bpf: don't allocate BPF JIT programs in module memory") (in
    v5.0), b89ddf4cca43 ("arm64/bpf: Remove 128MB limit for BPF JIT programs") (in v5.17).
    """
    first = NO_BPF_REGION.get(release.series)
    gone = first is not None and release.patch is not None and release.patch >= first
    return (5, 0) <= release.series < (5, 17) and not gone


def kaslr_needs_no_rewrite(release: Release) -> bool:
    """Tell whether a kernel that KASLR moved makes its mappings nG from the start, for KPTI.

    Source: Linux commit b89d82ef01b3 ("arm64: kpti: Avoid rewriting early page tables when KASLR is
    enabled") (in v5.0).
    """
    return release.series >= (5, 0)


# -- exceptions -------------------------------------------------------------------------------------

EXCEPTION_FRAMES: tuple[tuple[Series, int], ...] = (
    ((4, 8), 0x130),
    ((4, 14), 0x140),
    ((5, 10), 0x150),
    ((6, 18), 0x140),
)
"""Bytes of an exception frame: sizeof(struct pt_regs) (arch/arm64/include/asm/ptrace.h).

Linux commits 73267498c04a ("arm64: unwind: reference pt_regs via embedded stack frame") (in v4.14),
1ec2f2c05b2a ("arm64: ptrace: prepare for EL1 irq/rcu tracking") (in v5.10), b3cf07851b6c ("arm64: entry:
Switch to generic IRQ entry") (in v6.18). v6.13 made one of its members smaller and another larger.
"""


def exception_frames(release: Release | None) -> tuple[int, ...]:
    """Return the sizes in bytes that an exception frame can have: one, or all if the release is not known."""
    known = None if release is None else _latest(EXCEPTION_FRAMES, release)
    return tuple(dict.fromkeys(size for _, size in EXCEPTION_FRAMES)) if known is None else (known,)


def releases_with_frame(size: int) -> str:
    """Return the releases whose exception frame has this size, for people: `4.14 to 5.9, 6.18 and later`."""
    spans = []
    for number, (since, known) in enumerate(EXCEPTION_FRAMES):
        if known == size:
            name = f"{since[0]}.{since[1]}"
            after = EXCEPTION_FRAMES[number + 1 :][:1]
            spans.append(f"{name} to {_before(after[0][0])}" if after else f"{name} and later")
    return ", ".join(spans)


def _before(series: Series) -> str:
    """Return the release before one: the last of 4.x is 4.20, of 5.x and 6.x the 19th."""
    major, minor = series
    if minor:
        return f"{major}.{minor - 1}"
    return f"{major - 1}.{20 if major == 5 else 19}"


# -- the kernel's text of its page tables -----------------------------------------------------------


@dataclass(frozen=True)
class TextForm:
    """One form of /sys/kernel/debug/kernel_page_tables."""

    name: str
    """First release that has it."""
    since: Series
    """The same as numbers."""
    holes: bool = True
    """What is not mapped has lines too."""
    sect: bool = False
    """`BLK` depends on both type bits, not on the table bit alone."""
    gp: bool = True
    """There is a column for PTE_GP."""
    zero: bool = False
    """It begins at address 0, for its state is not set up: a line too many, and no first marker."""
    capitals: bool = False
    """Some markers are written in other letters: `vmalloc() Area`, `Linear Mapping`."""
    bpf: bool = False
    """There are markers for the part of BPF programs."""
    all_fixmap: bool = False
    """The fixmap's marker counts the slots for early mappings too (FIXADDR_TOT_START)."""


TEXT_FORMS: Mapping[str, TextForm] = {
    form.name: form
    for form in (
        TextForm("4.16", (4, 16), holes=False, gp=False, capitals=True),
        TextForm("5.0", (5, 0), holes=False, gp=False),
        TextForm("5.4", (5, 4), holes=False, gp=False),
        TextForm("5.6", (5, 6), gp=False, zero=True),
        TextForm("5.8", (5, 8), zero=True),
        TextForm("5.10", (5, 10), zero=True, bpf=True),
        TextForm("5.11", (5, 11), zero=True, bpf=True),
        TextForm("5.12", (5, 12), bpf=True),
        TextForm("5.17", (5, 17)),
        TextForm("6.4", (6, 4), all_fixmap=True),
        TextForm("6.5", (6, 5), all_fixmap=True),
        TextForm("6.9", (6, 9), all_fixmap=True),
        TextForm("6.13", (6, 13), all_fixmap=True, sect=True),
        TextForm("6.15", (6, 15), all_fixmap=True, sect=True),
    )
}
"""By name, oldest first; those of which only the addresses differ (linux/layout/geometry.py) are here too.

Sources: arch/arm64/mm/{dump,ptdump}.c of v4.17 to v7.1, one by one: "arm64: mm: display non-present entries
in ptdump" is in v5.6, the column GP in v5.8, the markers of BPF in v5.10, `.level = -1` in v5.12,
FIXADDR_TOT_START in v6.4, dc9b74a76320 ("arm64/ptdump: Test both PTE_TABLE_BIT and PTE_VALID for block
mappings") in v6.13.
"""


def text_form(release: Release) -> TextForm | None:
    """Return the form of the text that a release prints; None if it is older than all that are known."""
    return _latest([(form.since, form) for form in TEXT_FORMS.values()], release)


# -- the fixmap -------------------------------------------------------------------------------------

DATA_SLOT: Mapping[Series, int] = {
    (4, 14): 271,
    (4, 19): 234,
    (5, 4): 184,
    (5, 10): 105,
    (5, 15): 28,
    (5, 16): 14,
}
"""Stable release -> its first version with three pages of trampoline text and its data after them.

Source: Linux commit bd09128d16fa ("arm64: Add percpu vectors for EL1") (in v5.17) and its kind in stable
releases; 1c9a8e8768e4 ("arm64: entry: simplify trampoline data page") (in v6.0) undid the slot.
"""
EARLY_PAGE, EARLY_PAGE_STABLE = (7, 2), (6, 12, 111)
"""Releases that have a page more in each slot of the fixmap for early mappings: "arm64: fixmap: Allow 256K
early_ioremap() at any offset" (not in v7.1.3 and v6.18.2, in v7.2 and v6.12.111). Of stable releases between
the two it is not known which have it."""


def has_data_slot(release: Release) -> bool:
    """Tell whether the trampoline's data has a slot of the fixmap after its text."""
    if release.series >= (5, 17):
        return release.series < (6, 0)
    first = DATA_SLOT.get(release.series)
    return first is not None and release.patch is not None and release.patch >= first


def has_early_page(release: Release) -> bool | None:
    """Tell whether each slot of the fixmap for early mappings has a page more than 256 KiB; None: unknown."""
    if not EARLY_PAGE_STABLE[:2] <= release.series < EARLY_PAGE:
        return release.series >= EARLY_PAGE
    if release.series > EARLY_PAGE_STABLE[:2] or release.patch is None:
        return None
    return release.patch >= EARLY_PAGE_STABLE[2]
