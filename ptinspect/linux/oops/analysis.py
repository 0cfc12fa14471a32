"""Explain a console log with no guest: every death in it, and the verdict on each."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from ptinspect.linux.death import Verdict
from ptinspect.linux.oops.incident import Incident
from ptinspect.linux.oops.kpti_registers import ROLES, explain
from ptinspect.linux.oops.log_facts import Facts, facts_of
from ptinspect.linux.oops.logfile import Log, read
from ptinspect.linux.oops.lost_mapping import joined
from ptinspect.linux.oops.verdict import verdict

MAX_PANICS = 256
"""Deaths of one log that are explained; the rest is counted."""


@dataclass(frozen=True)
class RegisterNote:
    """A register of the first report, with its role in the rewrite where it has one."""

    name: str
    """`x0` to `x30`, `sp`."""
    value: int
    """As printed."""
    role: str = ""
    """The name in idmap_kpti_install_ng_mappings, or empty."""
    meaning: str = ""
    """What it holds there, or empty."""


@dataclass(frozen=True)
class Panic:
    """What a log tells about one death, and what follows from it."""

    facts: Facts
    """The values and what was worked out from them."""
    registers: tuple[RegisterNote, ...]
    """The registers of the first report."""
    verdict: Verdict
    """What it was."""

    @property
    def incident(self) -> Incident:
        """The values as printed."""
        return self.facts.incident


@dataclass(frozen=True)
class Analysis:
    """The deaths of one log."""

    panics: tuple[Panic, ...]
    """In the order of the log; at most MAX_PANICS."""
    total: int
    """How many were found."""
    complete: bool = True
    """False if the log is damaged: a compressed file that ends too early. What came before that was read."""


def analyse(log: bytes | BinaryIO) -> Analysis:
    """Explain a console log: its bytes, or a file that is read as a stream. Raises OSError of the file's."""
    source = Log(io.BytesIO(log) if isinstance(log, bytes) else log)
    reader = read(source)
    deaths = [facts_of(incident) for incident in islice(reader.finish(), MAX_PANICS)]
    return Analysis(tuple(explain_death(facts) for facts in joined(deaths)), reader.total, source.whole)


def explain_death(facts: Facts) -> Panic:
    """Work out what one death was."""
    first = facts.incident.first
    kpti = facts.kpti
    notes: Mapping[int, tuple[str, str]] = {}
    if kpti is not None:
        known = {number for step in kpti.levels for number in range(step.first, step.first + 3)}
        known |= {2, 3, 4} if kpti.swapper_pa is not None else set()
        notes = {number: (ROLES[number][0], explain(number, kpti)) for number in known}
    registers = [
        RegisterNote(f"x{number}", value, *notes.get(number, ("", "")))
        for number, value in sorted(first.registers.items())
    ]
    if first.sp is not None:
        registers.append(RegisterNote("sp", first.sp))
    return Panic(facts, tuple(registers), verdict(facts))
