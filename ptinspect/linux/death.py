"""What a kernel died of, as far as its stack tells: one set of verdicts, thresholds and rules.

Pure. The facts come from a stopped guest (stack/verdict_facts.py) or from a console log (linux/oops).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ptinspect.arch.bits import MASK64
from ptinspect.arch.esr import EC_DABT, EC_IABT, EC_SP_ALIGNMENT, Esr
from ptinspect.dataclass import dataclass
from ptinspect.linux.stack_range import StackRange

CODES: Mapping[str, str] = {
    "reverted-entry": "the stack lost its mapping: a table entry on its path went back to an older value",
    "lost-entry": "the stack lost its mapping: an entry on its path is empty or invalid",
    "stack-mapping-lost": "the stack lost its mapping; where is not known: no walk or snapshot tells",
    "deep-call-chain": "calls filled the stack: there is a recursion, or there are frames enough to fill it",
    "guard-page-hit": "an access below a stack, or no room left above its base; no chain of calls is proved",
    "sp-corrupted": "the stack pointer itself is wrong: misaligned, or in none of the stacks",
    "stack-corruption": "data on the stack is wrong (canary, end marker, a frame of zeros), with no overflow",
    "not-a-stack-problem": "the kernel died of something else",
    "unknown": "nothing proves any of these",
}
"""Code -> what it means. A code is never renamed."""

DEEP = 0.75
"""Part of a stack that calls must have used to be called a deep chain before the stack is full."""
ONE_STEP = 2048
"""Bytes that no single frame of a kernel takes; above them SP was moved, or a frame is far too large
(CONFIG_FRAME_WARN, lib/Kconfig.debug). Of larger stacks it is a quarter."""
CHAIN_AVERAGE = 512
"""Bytes for each frame up to which a whole call trace explains a full stack by itself."""
CHAIN_REPEATS = 4
"""Times that a function must be on a stack to call it recursion."""
CHAIN_FRAMES = 3
"""Frames at least that are a chain."""
ENDLESS = ("why the calls do not end",)
"""What no chain of calls tells."""


@dataclass(frozen=True)
class Verdict:
    """What a death was."""

    code: str
    """One of CODES."""
    evidence: tuple[str, ...] = ()
    """What supports it."""
    unknown: tuple[str, ...] = ()
    """What is not known."""


@dataclass(frozen=True)
class Calls:
    """The calls on a stack, as far as they are known."""

    names: Sequence[str] = ()
    """Functions, innermost first, those that report the death left out."""
    sizes: Sequence[int] = ()
    """Bytes of each frame; empty if they are not known."""
    whole: bool = True
    """False if the trace was cut: frames are missing."""
    recursion: str = ""
    """What proves that calls or exceptions repeat without end, if not a function's number in `names`."""

    @property
    def often(self) -> tuple[str, int]:
        """The function that is in it most often, and how often."""
        counts = Counter(self.names)
        return max(counts.items(), key=lambda item: item[1], default=("", 0))

    @property
    def cycle(self) -> tuple[str, ...]:
        """The functions that call each other in a circle, innermost first; empty if none repeats enough."""
        name, repeats = self.often
        if repeats < CHAIN_REPEATS:
            return ()
        names = list(self.names)
        first = names.index(name)
        return tuple(dict.fromkeys(names[first : names.index(name, first + 1)]))[:8]

    @property
    def largest(self) -> tuple[str, int]:
        """The function with the largest frame, and its bytes; 0 if sizes are not known."""
        return max(zip(self.names, self.sizes, strict=False), key=lambda frame: frame[1], default=("", 0))


@dataclass(frozen=True)
class Facts:
    """What is known of a CPU that died, or stands in a fault. What is not known is None or empty."""

    sp: int | None = None
    """SP at the exception that found the stack as it is."""
    x29: int | None = None
    """The frame pointer then."""
    stacks: Sequence[StackRange] = ()
    stack: StackRange | None = None
    """The one that SP is on, or has run off."""
    esr: Esr | None = None
    """The syndrome of that exception; None if it is an earlier one's, or not known."""
    far: int | None = None
    """The faulting address; None as `esr` is."""
    frame: int = 0
    """Bytes of an exception frame, at most."""
    no_room: bool = False
    """True if the kernel found too little room on the stack, or the CPU stands at such an exception."""
    in_entry: bool = False
    """True if the exception entry itself faulted."""
    used: int | None = None
    """Bytes of the stack that were in use."""
    calls: Calls = Calls()
    """The calls on it."""
    gone: Verdict | None = None
    """Set if the stack's own mapping is not what it has to be: reverted-entry, lost-entry or
    stack-mapping-lost."""
    canary: bool = False
    """True if a function found its canary overwritten (`__stack_chk_fail`)."""
    end_mark: bool | None = None
    """False if the marker at the stack's base was overwritten (STACK_END_MAGIC) and the kernel died."""
    damage: str = ""
    """What shows that an access went to data on a stack that is not its own (KASAN)."""
    zeros: bool = False
    """True if what was restored from the stack was a frame of zeros."""
    ordinary: str = ""
    """What shows that the kernel died, or stands, with room on a stack that is mapped."""


def judge(facts: Facts) -> Verdict:
    """Return the verdict on facts; a code other than `unknown` only where they prove it."""
    found = _sp_wrong(facts) or facts.gone or _used_up(facts) or _corrupted(facts)
    if found is None and facts.ordinary:
        return Verdict("not-a-stack-problem", (facts.ordinary,))
    return found or Verdict("unknown")


def place(address: int, stack: StackRange) -> str:
    """Return in words where `address` lies relative to a stack."""
    if stack.holds_sp(address):
        return f"in the {stack.kind} stack, {address - stack.base:#x} above its base"
    if address < stack.base:
        return f"{stack.base - address:#x} bytes below the base of the {stack.kind} stack"
    return f"{address - stack.top:#x} bytes above the top of the {stack.kind} stack"


def single_bit(sp: int, stack: StackRange) -> int | None:
    """Return the bit in which `sp` differs from an address of `stack`, if it is exactly one."""
    outside = ~(stack.size - 1) & MASK64
    difference = (sp ^ stack.base) & outside
    return difference.bit_length() - 1 if difference and difference & (difference - 1) == 0 else None


def _sp_wrong(facts: Facts) -> Verdict | None:
    """Judge a stack pointer that points to no stack."""
    sp, x29 = facts.sp, facts.x29
    if sp is None or not facts.no_room or not facts.stacks:
        return None
    unknown = ("what changed SP", "how deep the stack was: SP does not tell")
    grounds: list[str] = []
    if sp % 16 and facts.esr is not None and facts.esr.ec == EC_SP_ALIGNMENT:
        grounds.append(
            f"SP {sp:#x} is not a multiple of 16 and ESR shows an SP alignment fault: "
            "every store to the stack faults"
        )
        if x29 is not None and not any(s.contains(x29) for s in facts.stacks):
            grounds.append(f"x29 {x29:#x} is in none of the stacks either")
        return Verdict("sp-corrupted", tuple(grounds), unknown)
    if facts.stack is not None:
        return None
    ranges = ", ".join(f"{s.kind} [{s.base:#x}..{s.top:#x}]" for s in facts.stacks)
    grounds.append(f"SP {sp:#x} is in none of the stacks, nor within a stack's size below one: {ranges}")
    task = next((s for s in facts.stacks if s.kind == "task"), None)
    bit = single_bit(sp, task) if task is not None else None
    if bit is not None:
        grounds.append(f"it differs from an address of the task stack in bit {bit} alone")
    if task is not None and x29 is not None and task.contains(x29):
        grounds.append(
            f"x29 {x29:#x} is still in the task stack: {task.top - x29} bytes up to the last frame record"
        )
    return Verdict("sp-corrupted", tuple(grounds), unknown)


def _used_up(facts: Facts) -> Verdict | None:
    """Judge a stack that was used down to its base, or nearly."""
    stack, sp = facts.stack, facts.sp
    untold = stack is None and (sp is None or not facts.stacks)
    if untold and facts.no_room and (facts.calls.recursion or facts.calls.cycle):
        return Verdict("deep-call-chain", _calls_say(facts.calls)[:1], ("how deep the stack was", *ENDLESS))
    if stack is None:
        return None
    abort = facts.esr is not None and facts.esr.ec in (EC_IABT, EC_DABT)
    below = facts.far is not None and abort and stack.below(facts.far)
    if facts.in_entry and not below:
        return None
    free = sp - stack.base if sp is not None else stack.size
    deep = facts.used is not None and facts.used >= stack.size * DEEP
    low = -stack.size < free < stack.size * (1 - DEEP) and deep
    full = -stack.size <= free < facts.frame
    grounds: list[str] = []
    if below and facts.no_room:
        grounds.append(f"the access is below the {stack.kind} stack: its guard")
    if full and facts.no_room:
        grounds.append(
            f"an exception frame of {facts.frame} bytes does not fit above the base: the stack is used up"
        )
    why, chain = _chain(facts, stack)
    if chain and (low or full or below):
        return Verdict("deep-call-chain", (*grounds, *why), ENDLESS)
    if (below or full) and facts.no_room:
        return Verdict("guard-page-hit", (*grounds, *why), (_open_question(facts, stack),))
    return None


def _step(facts: Facts, stack: StackRange) -> str:
    """Return in words what moved SP by more than calls do, or nothing."""
    limit = max(ONE_STEP, stack.size // 4)
    name, largest = facts.calls.largest
    if largest > limit:
        return f"{name}'s frame takes {largest} bytes: one function used that much, or SP was changed"
    gap = facts.x29 - facts.sp if facts.x29 is not None and facts.sp is not None else 0
    if gap > limit and facts.x29 is not None and stack.contains(facts.x29):
        return f"SP is {gap} bytes below the last frame record (x29): one step, more than one function takes"
    return ""


def _chain(facts: Facts, stack: StackRange) -> tuple[tuple[str, ...], bool]:
    """Return what the calls tell, and whether they explain that the stack is full."""
    calls = facts.calls
    count = len(calls.names)
    step = _step(facts, stack)
    said = _calls_say(calls)
    if step or calls.recursion or calls.cycle or not (count and calls.whole):
        return (step,) if step else said, bool(not step and (calls.recursion or calls.cycle))
    if calls.sizes:
        total = sum(calls.sizes)
        return (f"{count} frames take {total} bytes",), count >= CHAIN_FRAMES and total >= DEEP * stack.size
    each = stack.size // count
    if count >= CHAIN_FRAMES and each <= CHAIN_AVERAGE:
        return (f"{said[0]}, {each} bytes each on average: they fill the stack",), True
    few = f"the call trace holds only {count} frames: {each} bytes each, more than calls usually take"
    return (few,), False


def _calls_say(calls: Calls) -> tuple[str, ...]:
    """Return what the calls show by themselves, whatever the stack's size."""
    held = f"the call trace holds {len(calls.names)} frames" + ("" if calls.whole else " and was cut")
    if calls.recursion:
        return (calls.recursion,)
    if calls.cycle:
        return (f"{held}; {calls.often[1]} times over: {' <- '.join(calls.cycle)}",)
    if not calls.names:
        return ()
    return (held,) if calls.whole else (f"{held}: how many used the stack up is not known",)


def _open_question(facts: Facts, stack: StackRange) -> str:
    if _step(facts, stack):
        return "whether one function used that much, or SP was changed"
    if not facts.calls.names:
        return "what used the stack up, and by how many frames: there is no call trace"
    if not facts.calls.whole:
        return "by how many frames the stack was used up: the call trace was cut"
    return "which frame took so much, or whether SP was changed"


def _corrupted(facts: Facts) -> Verdict | None:
    """Judge data on the stack that is not what was put there."""
    if facts.canary:
        return Verdict("stack-corruption", ("the canary of a frame was overwritten",), ("what overwrote it",))
    if facts.end_mark is False:
        note = "the marker at the base of the task's stack (STACK_END_MAGIC) was overwritten"
        return Verdict(
            "stack-corruption", (note,), ("whether the stack grew down to it, or a stray write did it",)
        )
    if facts.damage:
        unknown = "whether anything but this access went wrong"
        return Verdict("stack-corruption", (facts.damage,), (unknown,))
    if facts.zeros:
        note = "pc, lr and x19 to x29 are all zero: what was restored from the stack was a frame of zeros"
        unknown = "whether the stack was overwritten, or its mapping leads to other memory now"
        return Verdict("stack-corruption", (note,), (unknown,))
    return None
