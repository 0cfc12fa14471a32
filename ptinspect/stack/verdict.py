"""Why the kernel faulted: the syndrome, the stack and the tables joined into one verdict with its evidence.

The judge is the one of console logs (linux/death.py): here the guest itself can be read.
"""

from __future__ import annotations

from collections.abc import Sequence

from ptinspect.analysis.classify import only_bit11
from ptinspect.analysis.paths import side_by_side
from ptinspect.arch.bits import bit
from ptinspect.arch.esr import Esr
from ptinspect.arch.regime import Regime
from ptinspect.dataclass import dataclass, replace
from ptinspect.linux import death
from ptinspect.linux.running.stacks import Stack
from ptinspect.linux.stack_range import holding
from ptinspect.tables.walk import Walk
from ptinspect.text import counted

CANARY = "__stack_chk_fail"
"""Calls panic() where a function's canary was overwritten (kernel/panic.c)."""


@dataclass(frozen=True)
class Change:
    """Show which descriptor on a path differs, beyond bit 11, from a snapshot or before its last write."""

    level: int
    name: str
    descriptor_pa: int
    before: int
    """What it held then."""
    after: int
    """What memory holds now."""
    snapshot: str
    """Name of the snapshot; empty for one that a recording shows."""
    kinds: tuple[str, ...]
    """In which ways it differs: words of analysis.classify.KINDS."""
    position: int = 0
    """Where in the recording it was written."""

    @property
    def then(self) -> str:
        """When it held what it held."""
        return f"in snapshot {self.snapshot}" if self.snapshot else f"until position {self.position:,}"


@dataclass(frozen=True)
class Gone:
    """An address of a stack that the kernel's own table does not lead to the stack's memory any more."""

    address: int
    """The lowest such address."""
    walk: Walk
    changes: Sequence[Change] = ()
    """What changed on that path since the newest snapshot that holds it."""
    pa: int | None = None
    """Where it led then; None if it is not known."""


@dataclass(frozen=True)
class Facts:
    """What was read from the stopped guest."""

    esr: Esr
    far: int
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
    """Bytes used before the first fault; None if it is not known."""
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
    stacks: Sequence[Stack] = ()
    """All stacks of this CPU, if SP may be on none of them; else empty."""
    level: str = "EL1"
    """EL1, or EL2 for a kernel with VHE: whose registers these are."""
    unwritten: Sequence[str] = ()
    """ESR and FAR, as far as the guest has never written them: what stands here for them is not data."""

    @property
    def on_stack(self) -> bool:
        """True if the last fault was an access to the stack."""
        return self.stack is not None and self.stack.contains(self.far) and self.esr.is_abort


@dataclass(frozen=True)
class Why:
    """The verdict."""

    code: str
    """One of linux.death.CODES."""
    text: str
    evidence: tuple[str, ...]
    """What supports it."""
    unknown: tuple[str, ...] = ()
    """What is not known."""
    change: Change | None = None
    """The descriptor that the verdict names."""


def path_changes(now: Walk, then: Walk, snapshot: str, regime: Regime) -> tuple[Change, ...]:
    """Return the first descriptor of a path that differs by more than bit 11, else nothing.

    Past it the two paths lead through other tables: nothing there can be compared.
    """
    for row in side_by_side((then, now), regime):
        (old, new), (kinds,) = row.steps, row.kinds
        if kinds is None or old is None or new is None or old.raw is None or new.raw is None:
            break
        if not only_bit11(kinds):
            return (Change(new.level, new.name, new.descriptor_pa, old.raw, new.raw, snapshot, kinds),)
    return ()


def faulting(facts: Facts) -> Walk | None:
    """Return the walk of the stack's own address that does not translate, or that of the faulting address."""
    found = facts.walk if facts.gone is None else facts.gone.walk
    return None if found is None or found.outcome == "mapped" else found


def with_change(facts: Facts, change: Change) -> Facts:
    """Return the facts with a change of a descriptor on one of the paths that they have."""

    def on(walk: Walk | None) -> bool:
        return walk is not None and any(step.descriptor_pa == change.descriptor_pa for step in walk.steps)

    gone = facts.gone
    if gone is not None and on(gone.walk):
        gone = replace(gone, changes=(change,))
    return replace(facts, gone=gone, changes=(change,) if on(facts.walk) else facts.changes)


def explain(facts: Facts) -> Why:
    """Judge. Every code is given only with what proves it; `unknown` names what is missing."""
    evidence = _evidence(facts)
    gone = _gone(facts)
    found = death.judge(_known(facts, None if gone is None else gone[0]))
    unknown = tuple(text for text in found.unknown if text not in death.ENDLESS)
    if found.code == "unknown" and not facts.handling:
        unknown = ("no exception is being handled: ESR and FAR are of an earlier one",)
    text, change = _text(facts, found), None
    if gone is not None and found.code == gone[0].code:
        text, change = gone[1:]
    elif found.code == "deep-call-chain":
        change = _lost_elsewhere(facts)
    shown = tuple(dict.fromkeys((*evidence, *found.evidence)))
    return Why(found.code, text, shown, unknown, change)


def _known(facts: Facts, gone: death.Verdict | None) -> death.Facts:
    """Return what the judge needs to know."""
    stack = facts.stack
    dead = bool(facts.dying)
    room = stack is not None and facts.frame_size <= facts.sp - stack.base <= stack.size
    ordinary = ""
    if room and (dead or facts.handling) and not (facts.on_stack and facts.handling):
        ordinary = "the stack is mapped and has room" + (", and the kernel is dying" if dead else "")
    return death.Facts(
        sp=facts.sp,
        stacks=facts.stacks,
        stack=stack if not facts.stacks else holding(facts.sp, facts.stacks),
        esr=facts.esr if facts.handling else None,
        far=facts.far if facts.handling else None,
        frame=facts.frame_size,
        no_room=facts.handling,
        in_entry=facts.in_entry and facts.handling,
        used=facts.used_before,
        calls=death.Calls([name for name, _ in facts.chain], [size for _, size in facts.chain]),
        gone=gone,
        canary=CANARY in facts.dying,
        end_mark=facts.magic if dead else None,
        ordinary=ordinary,
    )


def _text(facts: Facts, found: death.Verdict) -> str:
    """Return a verdict in one sentence."""
    stack = facts.stack
    if found.code == "deep-call-chain":
        name, often = death.Calls([name for name, _ in facts.chain]).often
        times = f", {name} {often} times" if often > len(facts.chain) // 2 else ""
        lost = _lost_elsewhere(facts)
        over = "" if lost is None else f": its handlers need {facts.far:#x}, whose mapping was {_held(lost)}"
        return f"{len(facts.chain)} frames fill the stack{times}{over}"
    if found.code == "guard-page-hit" and stack is not None:
        if stack.below(facts.far) and facts.esr.is_abort:
            return f"the access was {stack.base - facts.far} bytes below the stack"
        return f"no room for an exception is left above the base of the {stack.kind} stack"
    if found.code == "not-a-stack-problem":
        if facts.dying:
            return "the kernel died of something else, with room on the stack"
        return "the exception has nothing to do with the stack"
    return found.evidence[0] if found.evidence else "nothing proves a fault of the stack"


def _gone(facts: Facts) -> tuple[death.Verdict, str, Change | None] | None:
    """Return why the stack is on a path that leads nowhere or elsewhere, in a sentence; None if it is not."""
    stack = facts.stack
    lost = facts.on_stack and facts.walk is not None and facts.walk.outcome != "mapped"
    if stack is None or (facts.gone is None and not (lost and (facts.handling or facts.in_entry))):
        return None
    walk = facts.walk if facts.gone is None else facts.gone.walk
    changes = facts.changes if facts.gone is None else facts.gone.changes
    healthy = (
        f"the stack itself is healthy ({facts.used_before} bytes used); its"
        if facts.used_before is not None and facts.used_before < stack.size * death.DEEP
        else "the stack's"
    )
    if not changes:
        steps = () if walk is None else walk.steps
        last = next((step for step in reversed(steps) if step.raw is not None), None)
        where = "" if last is None else f" at level {last.level} ({last.name}), pa:{last.descriptor_pa:#x}"
        no_older = "which descriptor changed: no snapshot holds this path with other values"
        return (
            death.Verdict("stack-mapping-lost", unknown=(no_older,)),
            f"{healthy} mapping was lost{where}",
            None,
        )
    change = changes[0]
    text = f"{healthy} mapping was {_held(change)}"
    if {"new", "invalid"} & set(change.kinds):
        was = "the entry was not valid in the snapshot either: not a loss and not a reversal"
        return death.Verdict("stack-mapping-lost", unknown=(was,)), text, change
    return death.Verdict("reverted-entry" if _older(change, walk) else "lost-entry"), text, change


def _older(change: Change, walk: Walk | None) -> bool:
    """Tell whether an entry holds an older value: it leads elsewhere, into memory, and has bit 11 clear."""
    if not {"retargeted", "kind"} & set(change.kinds) or bit(change.after, 11):
        return False
    last = [] if walk is None else [step.descriptor_pa for step in walk.steps if step.raw is not None]
    return walk is None or walk.outcome == "mapped" or last[-1:] != [change.descriptor_pa]


def _held(change: Change) -> str:
    """Say which entry was lost, and what it held."""
    return (
        f"lost at level {change.level} ({change.name}), descriptor pa:{change.descriptor_pa:#x}: "
        f"{change.after:#x}, which held {change.before:#x} {change.then}"
    )


def _lost_elsewhere(facts: Facts) -> Change | None:
    """Return the lost entry of data that is no stack, where that is what faults over and over."""
    faults = facts.walk is not None and facts.walk.outcome != "mapped" and facts.esr.is_abort
    if not faults or facts.on_stack or not facts.changes or {"new", "invalid"} & set(facts.changes[0].kinds):
        return None
    return facts.changes[0]


def _evidence(facts: Facts) -> tuple[str, ...]:
    esr, stack = facts.esr, facts.stack
    later = " (of the last fault: the first one may have been another)" if facts.earlier else ""
    if facts.unwritten:
        found = [f"{' and '.join(facts.unwritten)} never written: this CPU has taken no such exception yet"]
    else:
        found = [f"ESR_{facts.level} {esr.raw:#x}: {esr.text}{later}"]
    place = ""
    if stack is not None:
        bounds = f"the {stack.kind} stack [{stack.base:#x}..{stack.top:#x}]"
        if stack.contains(facts.far):
            place = f": in {bounds}, {facts.far - stack.base} bytes above its base"
        elif stack.below(facts.far):
            place = f": {stack.base - facts.far} bytes below {bounds}"
        else:
            place = f": not in {bounds}"
    if f"FAR_{facts.level}" not in facts.unwritten:
        found.append(f"FAR_{facts.level} {facts.far:#x}{place}")
    if stack is not None:
        free = f"{facts.sp - stack.base} bytes free"
        room = free if stack.near(facts.sp) else f"not on the {stack.kind} stack"
        found.append(f"SP {facts.sp:#x}: {room}")
    if facts.used_before is not None:
        by = (
            f", by {counted(facts.frames, 'frame')}"
            if facts.frames
            else " (x29 tells: the frames cannot be read)"
        )
        found.append(f"{facts.used_before} bytes used before the fault{by}")
    return (*found, *_chain(facts), *_paths(facts))


def _chain(facts: Facts) -> list[str]:
    """Return what the frames show."""
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


def _end(walk: Walk) -> int | None:
    """Return the level that the CPU reports where a walk leads nowhere."""
    return walk.steps[-1].level if walk.outcome == "unreadable" else walk.fault_level


def _paths(facts: Facts) -> list[str]:
    """Return what the tables hold of the faulting address and of the stack."""
    found = []
    walk, gone = facts.walk, facts.gone
    if walk is not None and walk.outcome != "mapped":
        level = _end(walk)
        agrees = "" if level == facts.esr.level else f", ESR says level {facts.esr.level}"
        found.append(f"the walk of FAR ends at level {level}{agrees}: {walk.reason}")
    elif walk is not None:
        found.append("the kernel's own table maps FAR")
    if gone is not None and gone.walk.outcome != "mapped":
        own, ended = f"the walk of the stack's own {gone.address:#x}", _end(gone.walk)
        found.append(f"{own} ends at level {ended}: {gone.walk.reason}")
    elif gone is not None and gone.walk.pa is not None and gone.pa is not None:
        found.append(
            f"the stack's own {gone.address:#x} leads to pa:{gone.walk.pa:#x}, and led to pa:{gone.pa:#x}: "
            "not a fault, but memory of something else"
        )
    changes = dict.fromkeys((*facts.changes, *(() if gone is None else gone.changes)))
    found += [
        f"pa:{c.descriptor_pa:#x} ({c.name}): {c.before:#x} {c.then}, {c.after:#x} now" for c in changes
    ]
    return found
