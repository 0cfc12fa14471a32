"""The walk of one address, as a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptinspect.arch.regime import Regime
from ptinspect.output.model import Column, Note, Report, Style, Styled, Table, escape, hex_address
from ptinspect.output.views.descriptor import (
    attributes_json,
    kind_cell,
    permissions_json,
    permissions_text,
    regime_notes,
    words,
)
from ptinspect.output.views.snapshot import root_note

if TYPE_CHECKING:
    from ptinspect.snapshot.model import Root
    from ptinspect.tables.walk import Step, Walk

COLUMNS = (
    Column("level"),
    Column("index", "right"),
    Column("descriptor at"),
    Column("raw", "right"),
    Column("kind"),
    Column("leads to", "right"),
)
OUTCOME_STYLES: dict[str, Style] = {"mapped": "good", "fault": "bad", "unreadable": "bad"}


def walked(walk: Walk, root: Root, regime: Regime, label: str, place: tuple[str, str]) -> Report:
    """Show each step, the attributes, and where the walk ended; `place` names the address and its region."""
    said, region = place
    result: dict[str, Any] = {
        "va": hex_address(walk.va),
        "region": region,
        "root": {"pa": hex_address(root.pa), "provenance": root.provenance},
        "steps": [_step(step) for step in walk.steps],
        "outcome": walk.outcome,
        "pa": _hex(walk.pa),
        "fault_level": walk.fault_level,
        "permissions": None if walk.permissions is None else permissions_json(walk.permissions, regime),
        "regime": regime.name,
        "doubt": regime.doubt,
        "reason": walk.reason,
        "mmu_on": regime.mmu_on,
        "source": label,
    }
    body: list[Note | Table] = [
        Note(f"{said}: {escape(region)}" if region else said, "title"),
        root_note(root, label, regime),
        Table(COLUMNS, [_row(step) for step in walk.steps], empty="no table was looked at"),
    ]
    levels = [(f"{step.name} {step.level}", attributes_text(step)) for step in walk.steps]
    if any(text for _, text in levels):
        rows = [(Styled(name, "level"), text) for name, text in levels if text]
        body.append(Table((Column("level"), Column("attributes")), rows))
    body.append(_outcome(walk, regime))
    body.extend(regime_notes(regime))
    if not regime.mmu_on and walk.va >> 55 == 0:
        body.append(
            Note("the MMU is off: the CPU takes this address as a physical one, without tables", "dim")
        )
    return Report(result, body)


def _step(step: Step) -> dict[str, Any]:
    found = step.descriptor
    return {
        "level": step.level,
        "name": step.name,
        "table_pa": hex_address(step.table_pa),
        "index": step.index,
        "descriptor_pa": hex_address(step.descriptor_pa),
        "raw": _hex(step.raw),
        "kind": None if found is None else str(found.kind),
        "output_address": None if found is None else _hex(found.output_address),
        "bit11": None if step.raw is None else bool(step.raw >> 11 & 1),
        "attributes": None
        if found is None or found.attributes is None
        else attributes_json(found.attributes),
        "error": step.error,
    }


def _row(step: Step) -> tuple[Styled | str, ...]:
    found = step.descriptor
    if found is None or step.raw is None:
        last: tuple[Styled | str, ...] = ("?", Styled("unreadable", "bad"), "")
    else:
        leads = "" if found.output_address is None else f"pa:{found.output_address:#x}"
        last = (f"{step.raw:#018x}", kind_cell(str(found.kind)), leads)
    return (
        Styled(f"{step.name} {step.level}", "level"),
        str(step.index),
        f"pa:{step.descriptor_pa:#x}",
        *last,
    )


def _outcome(walk: Walk, regime: Regime) -> Note:
    may = "" if walk.permissions is None else f", {permissions_text(walk.permissions, regime)}"
    if walk.pa is not None:
        return Note(f"mapped to pa:{walk.pa:#x}{may}", "good")
    reason = f": {walk.reason}" if walk.reason else ""
    level = "" if walk.fault_level is None else f" at level {walk.fault_level}"
    return Note(f"{walk.outcome}{level}{reason}", OUTCOME_STYLES[walk.outcome])


def attributes_text(step: Step) -> str:
    """Return the attributes of a step in one line; empty for an invalid descriptor."""
    found = step.descriptor
    return step.error if found is None else words(found)


def _hex(value: int | None) -> str | None:
    return None if value is None else hex_address(value)
