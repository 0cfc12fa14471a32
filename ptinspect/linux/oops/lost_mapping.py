"""Judge a stack whose mapping is lost: where the walk of its address ends, and what was there before."""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.arch.descriptor import BIT11
from ptinspect.dataclass import replace
from ptinspect.linux.death import Verdict
from ptinspect.linux.oops.depth import at_exception_entry
from ptinspect.linux.oops.incident import Fault
from ptinspect.linux.oops.kpti_registers import KptiRegisters, describe
from ptinspect.linux.oops.log_facts import Facts
from ptinspect.linux.oops.printed_walk import Path, PathStep
from ptinspect.linux.stack_range import StackRange

BOOT_TABLES = 8
"""Pages after swapper_pg_dir in which tables made by head.S may lie (Linux up to 4.19, vmlinux.lds.S)."""


def joined(deaths: Sequence[Facts]) -> list[Facts]:
    """Give each CPU that died after the rewrite what the others of the same boot printed about the tables.

    One CPU rewrites, the others wait for it, and all have the same tables: the registers of the one
    show for all that the rewrite was finished (its x2, the root's address, is an argument on each CPU),
    and a walk that ends in an entry explains each address that uses it.
    """
    return [_with_others(death, deaths) for death in deaths]


def _with_others(death: Facts, deaths: Sequence[Facts]) -> Facts:
    found = death.lost
    if not death.kpti_place or found is None:
        return death
    address, level, _ = found
    about = death.incident.bad_stack or death.incident.first
    for other in deaths:
        if other is death or not other.kpti_place or other.incident.boot != death.incident.boot:
            continue
        report = other.incident.bad_stack or other.incident.first
        kpti, path = other.kpti, other.path
        root = kpti.swapper_pa if kpti is not None else None
        missing = death.kpti is None and death.other_kpti is None
        if missing and kpti is not None and root is not None and root == about.registers.get(2):
            death = replace(death, other_kpti=(kpti, report))
        ends = path is not None and path.end is not None and path.end.level == level
        if death.other_path is None and path is not None and ends and path.same_entry(address, level):
            death = replace(death, other_path=(path, report))
    return death


def lost_mapping(facts: Facts, address: int, level: int, stack: StackRange) -> Verdict:
    """Return what became of the mapping of a stack: an address in it did not translate (`Facts.lost`)."""
    evidence = _fault_evidence(facts, address, level, stack)
    unknown = ["what other addresses translate to: only one walk was printed"]
    path, by = facts.path, ""
    if facts.other_path is not None and (path is None or not stack.contains(path.address)):
        path, by = facts.other_path[0], f", which {_who(facts.other_path[1])} printed,"
    end = path.end if path is not None else None
    which = "which entry is missing, and what it held before"
    if path is None or not path.steps or not (by or stack.contains(path.address)):
        evidence.append("the log holds no walk of an address in this stack")
        return Verdict("stack-mapping-lost", tuple(evidence), (which,))
    if end is None:
        last = path.steps[-1]
        evidence.append(
            f"the walk of {path.address:#x} is cut in the log: it goes to {last.name}, "
            f"{last.descriptor.raw:#x}: {describe(last.descriptor, user=path.user)}"
        )
        return Verdict("stack-mapping-lost", tuple(evidence), (which,))
    ends = f"ends at level {end.level} ({end.name}): {describe(end.descriptor)}"
    evidence.append(f"the walk of {path.address:#x}{by} {ends}")
    if end.level == level and path.same_entry(address, level):
        evidence.append(
            f"{address:#x} uses the same {end.name} entry, and its fault was at level {level}: they agree"
        )
    elif end.level != level:
        evidence.append(f"the fault at {address:#x} was at level {level}: the two do not agree")
    finished = _finished(facts)
    unmarked = [step for step in path.tables if not step.descriptor.raw & BIT11]
    if finished and unmarked and end.level == level:
        return _reverted(facts, path, unmarked, [*evidence, *finished], unknown)
    evidence.extend(finished)
    if not unmarked and path.tables:
        evidence.append("every table descriptor above it has bit 11: none is a value from before the rewrite")
    elif unmarked:
        names = ", ".join(step.name for step in unmarked)
        unknown.append(
            f"whether {names} went back to an older value: bit 11 is clear, but is a finished rewrite proved?"
        )
    if path.assumed:
        unknown.append("granule and size of the addresses: not in the log, 4K and 48 bits are assumed")
    return Verdict(
        "lost-entry",
        tuple(evidence),
        (f"what the {end.name} entry held before, and what cleared it", *unknown),
    )


def _fault_evidence(facts: Facts, address: int, level: int, stack: StackRange) -> list[str]:
    first = facts.incident.bad_stack or facts.incident.first
    where = f"{address - stack.base:#x} above the base of the {stack.kind} stack"
    evidence = [
        f"translation fault at level {level} at {address:#x}, {where} "
        f"[{stack.base:#x}..{stack.top:#x}]: not in its guard, but in the stack itself"
    ]
    if first.far is not None and first.far == first.sp and at_exception_entry(first.pc):
        evidence.append(f"FAR is SP and pc is {first.pc}: the exception entry's own first store faulted")
    if facts.used is not None and stack == facts.stack:
        evidence.append(
            f"{facts.used} of {stack.size} bytes were used before the first fault: no deep chain of calls"
        )
    if facts.kpti_place:
        evidence.append(
            f"the fault came in {facts.kpti_place}, on the way back from the rewrite of the kernel's tables"
        )
    return evidence


def _who(report: Fault) -> str:
    """Return the CPU and the place of another report, in words."""
    return f"CPU {'?' if report.cpu is None else report.cpu} (line {report.line})"


def _rewrite(facts: Facts) -> tuple[KptiRegisters | None, str]:
    """Return the rewrite's walk, and whose registers have it if not this death's."""
    if facts.kpti is None and facts.other_kpti is not None:
        return facts.other_kpti[0], _who(facts.other_kpti[1])
    return facts.kpti, ""


def _finished(facts: Facts) -> list[str]:
    """Return what shows that the rewrite had been completed, or nothing."""
    walk, who = _rewrite(facts)
    if walk is None or not walk.complete or not any(leaf.last.raw & BIT11 for leaf in walk.leaves):
        return []
    pairs = ", ".join(f"{step.name} {step.current:#x}" for step in walk.levels)
    found = [f"the rewrite's walk was complete, cursor and end are equal at every level: {pairs}"]
    if who:
        found.insert(0, f"{who} did the rewrite: its registers show it, and x2 of both is the root's address")
    for leaf in walk.leaves:
        found.append(f"x{leaf.first + 2}, the last {leaf.name} it read, is {describe(leaf.last)}")
    return found


def _reverted(
    facts: Facts, path: Path, unmarked: list[PathStep], evidence: list[str], unknown: list[str]
) -> Verdict:
    top = unmarked[0]
    for step in unmarked:
        evidence.append(
            f"{step.name} is {step.descriptor.raw:#x}: {describe(step.descriptor)}, "
            "although the walk had marked every table"
        )
    walk, _ = _rewrite(facts)
    swapper = walk.swapper_pa if walk is not None else None
    named = "x2" if swapper is not None else "pgdp"
    swapper = swapper if swapper is not None else path.pgdp
    page = path.regime.granule
    offsets = (
        {step.name: (step.descriptor.output_address or 0) - swapper for step in unmarked}
        if swapper is not None
        else {}
    )
    near = {name: offset for name, offset in offsets.items() if 0 < offset <= BOOT_TABLES * page}
    for name, offset in near.items():
        evidence.append(
            f"the table that {name} points to is swapper_pg_dir + {offset:#x} ({named} is {swapper:#x}): "
            "one of the boot's own tables"
        )
    if top.name in near:
        evidence.append(
            "the boot's tables map the image and nothing of vmalloc: code still runs, stacks are gone"
        )
        evidence.append(f"so the {top.name} entry has gone back to its boot-time value")
    else:
        evidence.append(
            f"the task ran on this stack before, so the {top.name} entry led to other tables then: "
            "it has gone back to an older value"
        )
        unknown.insert(0, "that the value is the boot's: the address of the boot's tables is not in the log")
    if walk is not None and top.name in near:
        tables = ", ".join(f"{step.name} {step.table:#x}" for step in walk.levels[1:])
        evidence.append(f"the last tables that the walk went through lie elsewhere: {tables}")
    before = f"what the {top.name} entry held before the rewrite and after it: no earlier snapshot"
    how = "what undid the store: a lost cache line, cache maintenance or another writer; and at what moment"
    return Verdict("reverted-entry", tuple(evidence), (before, how, *unknown))
