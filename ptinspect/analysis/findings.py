"""The rules of a check of translation tables, and its findings."""

from __future__ import annotations

from typing import Literal

from ptinspect.arch.bits import PhysAddr, VirtAddr
from ptinspect.dataclass import dataclass, field

Severity = Literal["error", "warning", "info"]

RULES: dict[str, str] = {
    "unreadable-table": "every table that an entry points to can be read",
    "reserved-encoding": "no entry has an encoding that its level reserves",
    "outside-ram": "normal memory and tables lie in RAM",
    "table-loop": "no table leads back to itself",
    "table-shared": "each table is reached by one entry; many neighbours that share one are only named",
    "writable-executable": "the kernel can write to no page that it can execute",
    "user-access": "EL0 may read, write and execute nothing of the kernel's half",
    "alias-attributes": "memory that is mapped twice has the same type, cacheability and shareability",
    "writable-alias": "the kernel can write to its text and read-only data nowhere else",
    "contiguous": "contiguous groups are uniform, aligned and follow each other",
    "entry-lost": "what was valid is still valid",
    "entry-reverted": "no entry leads elsewhere and has bit 11 clear, as an older value has",
    "entry-retargeted": "each entry leads where it led before",
    "entry-changed": "nothing but bit 11 changed",
    "mark-lost": "bit 11, once set, stays set",
    "not-marked": "at the end of the rewrite bit 11 is set in every valid entry that was there before",
    "stack-lost": "the stack of every CPU is mapped, and where it was before",
}
"""What holds on a healthy kernel, by the name of the rule."""


@dataclass(frozen=True)
class Mapping:
    """Show one of the mappings that a finding is about."""

    va: VirtAddr
    """Where the memory is mapped."""
    pa: PhysAddr
    """Where it lies."""
    level: int
    descriptor_pa: PhysAddr
    """Where the leaf's descriptor is."""
    raw: int
    text: str
    """Memory type and permissions, the tables above considered."""
    path: tuple[tuple[int, PhysAddr, int], ...]
    """Level, place and value of each descriptor on the way, the root's first."""


@dataclass(frozen=True)
class Finding:
    """Show where a rule does not hold."""

    rule: str
    """A name of RULES."""
    severity: Severity
    """`error` breaks a kernel, `warning` may be legitimate, `info` is worth knowing."""
    va_start: VirtAddr
    """First address concerned."""
    va_end: VirtAddr
    """Last address concerned."""
    level: int
    """Level of the entry, -1 to 3."""
    descriptor_pa: PhysAddr
    """Where the entry is; for a table that cannot be read, where the table is."""
    raw: int | None
    """The entry; None where it could not be read."""
    evidence: str
    """What shows it, in one line."""
    mappings: tuple[Mapping, ...] = ()
    """The mappings that it is about, where it is about what is mapped; the one to blame first."""


@dataclass
class Findings:
    """Collect findings; of each rule at most `limit` are kept, all are counted."""

    limit: int = 100
    kept: list[Finding] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    """How often each rule was broken."""
    errors: int = 0
    """How many findings are errors, those included that are not kept."""
    shared: frozenset[int] = frozenset()
    """Tables that many entries reach by design: no finding."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of two snapshots that were compared."""
    partial: bool = False
    """True if what was not captured does not matter."""
    unseen: list[str] = field(default_factory=list)
    """What was not captured and could not be judged."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Rules that could not be applied, or do not hold yet, and why."""

    def room(self, rule: str) -> int:
        """Return how many more findings of a rule are kept."""
        return max(self.limit - self.totals.get(rule, 0), 0)

    def add(self, finding: Finding) -> None:
        """Take a finding."""
        if self.room(finding.rule):
            self.kept.append(finding)
        self.count(finding.rule, 1, finding.severity)

    def count(self, rule: str, number: int, severity: Severity) -> None:
        """Count findings of a rule that are not listed."""
        if number:
            self.totals[rule] = self.totals.get(rule, 0) + number
            self.errors += number * (severity == "error")

    @property
    def complete(self) -> bool:
        """True if all that the rules speak of was captured."""
        return not self.unseen

    @property
    def ok(self) -> bool:
        """True if nothing that was found is an error, and all was captured or need not be."""
        return not self.errors and (self.complete or self.partial)
