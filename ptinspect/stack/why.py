"""Why the kernel faulted: the syndrome, the stack and the tables joined into one verdict with its evidence.

The codes are those of a console log (linux/death.py): here the guest itself can be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptinspect.analysis.compare import kinds_of, only_bit11
from ptinspect.arch.esr import Esr
from ptinspect.arch.regime import Regime
from ptinspect.linux.stacks import Stack
from ptinspect.paging.walk import Walk

DEEP = 0.75
"""Part of a stack that frames must fill to be called a deep call chain."""
ONE_STEP = 2048
"""Bytes that no single frame of a kernel takes; above them SP was moved, or a frame is far too large
(CONFIG_FRAME_WARN, lib/Kconfig.debug)."""
CANARY = "__stack_chk_fail"
"""Calls panic() where a function's canary was overwritten (kernel/panic.c)."""


@dataclass(frozen=True)
class Change:
    """Say which descriptor on a path differs from a snapshot, beyond bit 11."""

    level: int
    """Level of its table."""
    name: str
    """Linux's name of the level."""
    descriptor_pa: int
    """Where it is."""
    before: int
    """What the snapshot holds."""
    after: int
    """What memory holds now."""
    snapshot: str
    """Name of the snapshot."""
    kinds: tuple[str, ...]
    """In which ways it differs: words of analysis.compare.KINDS."""


@dataclass(frozen=True)
class Gone:
    """An address of a stack that the kernel's own table does not lead to the stack's memory any more."""

    address: int
    """The lowest such address."""
    walk: Walk
    """Its walk now."""
    changes: Sequence[Change] = ()
    """What changed on that path since the newest snapshot that holds it."""
    pa: int | None = None
    """Where it led then; None if it is not known."""


@dataclass(frozen=True)
class Facts:
    """What was read from the stopped guest."""

    esr: Esr
    """ESR_EL1 decoded."""
    far: int
    """FAR_EL1."""
    in_entry: bool
    """True if the last exception was taken on a store of the exception entry itself (ELR_EL1)."""
    handling: bool
    """True if the CPU stands in the exception entry or on the path of a bad stack."""
    stack: Stack | None
    """The task's stack, or the one that SP is on."""
    sp: int
    """SP, or what it was before the CPU changed to the overflow stack."""
    frame_size: int
    """Bytes of an exception frame."""
    used_before: int | None = None
    """Bytes used before the first fault; None if no frame tells."""
    repeated: int = 0
    """Exception frames that could not be stored, nested in each other."""
    frames: int = 0
    """Frames of functions on the stack."""
    walk: Walk | None = None
    """The walk of the faulting address through the kernel's own table."""
    changes: Sequence[Change] = ()
    """What changed on that path since the newest snapshot that holds it."""
    gone: Gone | None = None
    """Where the stack's own mapping is not what it has to be."""
    chain: Sequence[tuple[str, int]] = ()
    """Function and size of each frame on the stack, the innermost first."""
    dying: Sequence[str] = ()
    """The functions between the CPU and what it died of, where it stands in panic() or die()."""
    magic: bool | None = None
    """Whether the stack's end mark is intact; None if it cannot be read."""
    earlier: bool = False
    """True if ESR and FAR may be of a later fault than the one that used the stack up."""
    level: str = "EL1"
    """EL1, or EL2 for a kernel with VHE: whose registers these are."""


@dataclass(frozen=True)
class Why:
    """The verdict."""

    code: str
    """One of linux.death.CODES."""
    text: str
    """The verdict in one sentence."""
    evidence: tuple[str, ...]
    """What supports it."""
    unknown: tuple[str, ...] = ()
    """What cannot be told from here."""
    change: Change | None = None
    """The descriptor that the verdict names."""


def path_changes(now: Walk, then: Walk, snapshot: str, regime: Regime) -> tuple[Change, ...]:
    """Return the first descriptor of a path that differs by more than bit 11, else nothing.

    Behind it the two paths lead through other tables: nothing there can be compared.
    """
    for new, old in zip(now.steps, then.steps, strict=False):
        if new.raw is None or old.raw is None or new.descriptor_pa != old.descriptor_pa:
            break
        kinds = kinds_of(old.raw, new.raw, new.level, regime)
        if not only_bit11(kinds):
            return (Change(new.level, new.name, new.descriptor_pa, old.raw, new.raw, snapshot, kinds),)
    return ()


def explain(facts: Facts) -> Why:
    """Judge. Every code is given only with what proves it; `unknown` says what is missing."""
    evidence = _evidence(facts)
    on_stack = facts.stack is not None and facts.stack.contains(facts.far) and facts.esr.is_abort
    lost = on_stack and facts.walk is not None and facts.walk.outcome == "fault"
    if facts.gone is not None or (lost and (facts.handling or facts.in_entry)):
        return _lost(facts, evidence)
    missing: tuple[str, ...] = ("no exception is being handled: ESR and FAR are of an earlier one",)
    found = None if facts.stack is None else _used_up(facts, facts.stack, evidence)
    if found is None and facts.stack is not None:
        found = _dead(facts, facts.stack, evidence, on_stack)
    return found or Why(
        "unknown", "nothing proves a fault of the stack", evidence, () if facts.handling else missing
    )


def _used_up(facts: Facts, stack: Stack, evidence: tuple[str, ...]) -> Why | None:
    """Judge a stack that was used down to its base, or nearly."""
    free, used = facts.sp - stack.base, facts.used_before
    full = -stack.size < free < stack.size * (1 - DEEP) and used is not None and used >= stack.size * DEEP
    below = facts.handling and facts.esr.is_abort and stack.base - stack.size <= facts.far < stack.base
    largest = max(facts.chain, key=lambda frame: frame[1], default=("", 0))
    one = largest[1] > max(ONE_STEP, stack.size // 4)
    step = f"{largest[0]}'s frame takes {largest[1]} bytes: one function used that much, or SP was changed"
    if full and facts.frames >= 3 and not (below and one):
        names = [name for name, _ in facts.chain]
        often = max(names, key=names.count, default="")
        times = f", {often} {names.count(often)} times" if names.count(often) > facts.frames // 2 else ""
        text = f"{facts.frames} frames fill the stack{times}"
        return Why("deep-call-chain", text, evidence, (step,) if one else ())
    if not below:
        return None
    text = f"the access was {stack.base - facts.far} bytes below the stack"
    return Why("guard-page-hit", text, evidence, (step if one else "what made that address",))


def _dead(facts: Facts, stack: Stack, evidence: tuple[str, ...], on_stack: bool) -> Why | None:
    """Judge a death, or an exception, with room left on a stack that is mapped."""
    if CANARY in facts.dying:
        text = "a frame's canary was overwritten"
        return Why("stack-corruption", text, (*evidence, f"panic() by {CANARY}"), ("what overwrote it",))
    if facts.dying and facts.magic is False:
        text = "the end mark of the stack was overwritten"
        return Why("stack-corruption", text, evidence, ("whether the stack grew down to it",))
    room = facts.frame_size <= facts.sp - stack.base <= stack.size
    if not room or not (facts.handling or facts.dying) or (on_stack and facts.handling):
        return None
    what = "the kernel died of something else" if facts.dying else "the exception"
    text = f"{what}, with room on the stack" if facts.dying else f"{what} has nothing to do with the stack"
    return Why("not-a-stack-problem", text, evidence)


def _lost(facts: Facts, evidence: tuple[str, ...]) -> Why:
    """Judge a stack on a path that leads nowhere, or elsewhere."""
    stack = facts.stack
    walk = facts.walk if facts.gone is None else facts.gone.walk
    changes = facts.changes if facts.gone is None else facts.gone.changes
    assert stack is not None and walk is not None
    healthy = (
        f"the stack itself is healthy ({facts.used_before} bytes used); its"
        if facts.used_before is not None and facts.used_before < stack.size * DEEP
        else "the stack's"
    )
    if not changes:
        last = walk.steps[-1] if walk.steps else None
        where = "" if last is None else f" at level {last.level} ({last.name}), pa:{last.descriptor_pa:#x}"
        no_older = "which descriptor changed: no snapshot holds this path with other values"
        return Why("stack-mapping-lost", f"{healthy} mapping was lost{where}", evidence, (no_older,))
    change = changes[0]
    code = "lost-entry" if "lost" in change.kinds else "reverted-entry"
    text = (
        f"{healthy} mapping was lost at level {change.level} ({change.name}), descriptor "
        f"pa:{change.descriptor_pa:#x}: {change.after:#x}, which held {change.before:#x} in snapshot "
        f"{change.snapshot}"
    )
    unknown: tuple[str, ...] = ()
    if {"new", "invalid"} & set(change.kinds):
        was = "the entry was not valid in the snapshot either: not a loss and not a reversal"
        code, unknown = "stack-mapping-lost", (was,)
    return Why(code, text, evidence, unknown, change)


def _evidence(facts: Facts) -> tuple[str, ...]:
    esr, stack = facts.esr, facts.stack
    later = " (of the last fault: the first one may have been another)" if facts.earlier else ""
    found = [f"ESR_{facts.level} {esr.raw:#x}: {esr.text}{later}"]
    place = ""
    if stack is not None:
        bounds = f"the {stack.kind} stack [{stack.base:#x}..{stack.top:#x}]"
        if stack.contains(facts.far):
            place = f": in {bounds}, {facts.far - stack.base} bytes above its base"
        elif stack.base - stack.size <= facts.far < stack.base:
            place = f": {stack.base - facts.far} bytes below {bounds}"
        else:
            place = f": not in {bounds}"
    found.append(f"FAR_{facts.level} {facts.far:#x}{place}")
    if stack is not None:
        near = stack.base - stack.size <= facts.sp <= stack.top
        room = f"{facts.sp - stack.base} bytes free" if near else f"not on the {stack.kind} stack"
        found.append(f"SP {facts.sp:#x}: {room}")
    if facts.used_before is not None:
        by = f", by {facts.frames} frames" if facts.frames else " (x29 tells: the frames cannot be read)"
        found.append(f"{facts.used_before} bytes used before the fault{by}")
    return (*found, *_chain(facts), *_paths(facts))


def _chain(facts: Facts) -> list[str]:
    """Say what the frames tell."""
    found = []
    if facts.chain and facts.stack is not None and facts.used_before is not None:
        largest = sorted(facts.chain, key=lambda frame: -frame[1])[:3]
        found.append("largest frames: " + ", ".join(f"{name} {size} bytes" for name, size in largest))
    if facts.dying:
        found.append(f"the CPU is in {' <- '.join(facts.dying)}")
    if facts.magic is not None:
        found.append(f"the end mark of the stack is {'intact' if facts.magic else 'overwritten'}")
    if facts.in_entry:
        found.append("the exception entry itself faulted: no store to the stack succeeds")
    if facts.repeated:
        found.append(f"{facts.repeated} nested exceptions of {facts.frame_size} bytes, none of them stored")
    return found


def _paths(facts: Facts) -> list[str]:
    """Say what the tables tell of the faulting address and of the stack."""
    found = []
    walk, gone = facts.walk, facts.gone
    if walk is not None and walk.outcome == "fault":
        agrees = "" if walk.fault_level == facts.esr.level else f", ESR says level {facts.esr.level}"
        found.append(f"the walk of FAR ends at level {walk.fault_level}{agrees}: {walk.reason}")
    elif walk is not None:
        found.append(f"the kernel's own table maps FAR ({walk.outcome})")
    if gone is not None and gone.walk.outcome == "fault":
        found.append(
            f"the walk of the stack's own {gone.address:#x} ends at level {gone.walk.fault_level}: "
            f"{gone.walk.reason}"
        )
    elif gone is not None and gone.walk.pa is not None and gone.pa is not None:
        found.append(
            f"the stack's own {gone.address:#x} leads to pa:{gone.walk.pa:#x}, and led to pa:{gone.pa:#x}: "
            "not a fault, but memory of something else"
        )
    changes = dict.fromkeys((*facts.changes, *(() if gone is None else gone.changes)))
    found += [
        f"pa:{c.descriptor_pa:#x} ({c.name}): {c.before:#x} in snapshot {c.snapshot}, {c.after:#x} now"
        for c in changes
    ]
    return found
