"""Judge a death that did not come through the kernel's bad-stack path, and say what supports it."""

from __future__ import annotations

import re

from ptinspect.arch.esr import EC_BRK, EC_IABT, Esr
from ptinspect.dataclass import replace
from ptinspect.linux import death
from ptinspect.linux.death import CHAIN_REPEATS, Verdict
from ptinspect.linux.oops.depth import at_exception_entry, chain, function
from ptinspect.linux.oops.incident import Fault, Incident
from ptinspect.linux.stack_range import StackRange
from ptinspect.text import Pattern
from ptinspect.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from ptinspect.linux.oops.printed_walk import Path

NEAR = 64 << 10
"""Bytes around SP within which a faulting address may have to do with the stack."""
STACK_ALIGN = 32 << 10
"""Bytes that a stack with a guard is aligned to, at least: twice THREAD_SIZE (THREAD_ALIGN, from 4.14 on)."""
FIRST_PAGE = 4096
MIN_KERNEL = 1 << 63
"""Addresses of the kernel's half have bit 63 set."""
ASKED_FOR = "sysrq triggered crash"
"""What sysrq_handle_crash panics with (Linux drivers/tty/sysrq.c)."""
SERROR = "an SError is reported by the memory system or a device"
"""What an SError is (Arm ARM, asynchronous exceptions)."""
READ_ONLY = 2
"""AP[2:1] of a descriptor: bit 1 forbids stores (Arm ARM, D8.4)."""
MODE = 0xF
"""PSTATE.M: 0 is EL0."""

_CANARY = Pattern(r"stack-protector|[Kk]ernel stack is corrupted in")
_END_MAGIC = Pattern(r"corrupted stack end detected")
_OVERFLOW = Pattern(r"stack overflow|stack guard|[Ss]tack")
_AFTERMATH = Pattern(
    r"(?:[\w ,'()/-]{1,60}: )?Fatal exception|Oops|Attempted to kill the idle|Aiee|[Bb]ad mode|"
    r"Unhandled exception|HYP panic"
)
_PANIC = Pattern(r"(?:v|nmi_)?panic(?:\+|$)", "panic")
_KILLED = Pattern(r"Attempted to kill init! exitcode=0x([0-9a-fA-F]{8})")
_KASAN = Pattern(r"KASAN: ([\w-]+)")
_ANYWHERE = frozenset({"vmalloc-out-of-bounds", "invalid-access", "out-of-bounds", "wild-memory-access"})
"""KASAN's kinds of accesses that do not tell what memory it was (Linux mm/kasan/report_generic.c)."""
_ON_STACK = Pattern(r"belongs to (?:the )?(?:stack|virtual mapping.*stack)|located in stack of")
_OWN_EXIT = ("__arm64_sys_exit", "do_group_exit", "get_signal", "sys_exit")
_DYING = {
    "die", "make_task_dead", "__do_kernel_fault", "arm64_notify_die", "bug_handler", "die_kernel_fault",
    "el1_sync", "el1h_64_sync", "el1t_64_sync", "do_mem_abort", "el1_abort", "brk_handler",
    "arm64_serror_panic",
}  # fmt: skip
_LEVELS = {
    "lockup": "a CPU did not get away from what it was doing; it ran on its stack, and nothing died",
    "rcu-stall": "RCU waited for a CPU; nothing faulted, and nothing died",
    "hung-task": "a task slept for too long; nothing faulted, and nothing died",
}


def other_cause(incident: Incident, esr: Esr | None) -> Verdict:
    """Return the verdict on a panic, an oops, a lockup and the like."""
    first = incident.first
    if first.kind == "kasan":
        return _sanitizer(first)
    if first.kind in _LEVELS:
        then = f": panic() was called because of it: {first.panic}" if first.panic else ""
        text = _LEVELS[first.kind].replace(", and nothing died", "") if then else _LEVELS[first.kind]
        return _with_room(f"{text}{then}", (f"the kernel reported: {first.headline}",), "why it happened")
    if first.kind in ("panic", "warning"):
        return _panic(first, esr)
    if first.mixed and {"sp", "pc"} & {*first.doubtful}:
        unknown = ("lines of several CPUs are interleaved: a value may belong to another one",)
        return Verdict("unknown", (first.headline,), unknown)
    if "esr" in first.doubtful:
        esr = None
    if first.panic.startswith("HYP panic"):
        return _hyp(first, esr)
    path = None
    if first.path and "path" not in first.doubtful:
        from ptinspect.linux.oops.printed_walk import path_of

        path = path_of(first, first.release)
    found = _fault(first, esr, path)
    cut = () if first.trace or first.ended else ("the call trace: not in the log",)
    if first.kind == "oops" and first.far is None and (esr is None or esr.is_abort):
        cut = ("the faulting address, which may be in the guard of a stack: not in the log", *cut)
    if first.mixed and first.elided:
        cut = ("lines of several CPUs are interleaved: a call of the trace may be another one's",)
    return replace(
        found,
        evidence=tuple(dict.fromkeys((*found.evidence, *first.notes))),
        unknown=(*found.unknown, *cut),
    )


def _judged(known: death.Facts, evidence: tuple[str, ...]) -> Verdict:
    """Return the judge's verdict, and before its own evidence what the log shows besides."""
    found = death.judge(known)
    return replace(found, evidence=(*evidence, *found.evidence))


def _with_room(ordinary: str, evidence: tuple[str, ...], *unknown: str) -> Verdict:
    """Return the verdict on a death with room on its stack."""
    return replace(_judged(death.Facts(ordinary=ordinary), evidence), unknown=unknown)


def _sanitizer(first: Fault) -> Verdict:
    """Judge a report of KASAN's or the like: did it write to a stack's data?"""
    evidence = (f"the kernel reported: {first.headline}", *first.notes)
    kind = _KASAN.search(first.headline)
    said = "\n".join(first.notes)
    written, read = re.search(r"Write (?:of|at)|Free of", said) is not None, re.search("Read (?:of|at)", said)
    on_stack = (kind is not None and kind[1].startswith("stack-")) or _ON_STACK.search(said) is not None
    if on_stack and not read:
        note = "the access was to data on a stack" + (": it was written to" if written else "")
        return _judged(death.Facts(damage=note), evidence)
    if kind is not None and kind[1] in _ANYWHERE and not on_stack and "belongs to the object" not in said:
        return Verdict(
            "unknown", evidence, ("whether the address is in a stack or its guard: the report does not tell",)
        )
    what = "a read: nothing on a stack was overwritten by it" if read else "an access to other memory"
    text = f"it is {what}, and the report was printed in the ordinary way"
    return _with_room(text, evidence, "why it happened")


def _hyp(first: Fault, esr: Esr | None) -> Verdict:
    """Judge a panic of KVM's own code at EL2 (Linux arch/arm64/kvm/handle_exit.c, nvhe_hyp_panic_handler)."""
    abort = esr is not None and esr.is_abort and first.far is not None
    evidence = (
        *(() if first.kind == "panic" else (first.headline,)),
        "KVM's code at EL2 gave up, and had the kernel panic",
        *(() if esr is None else (f"ESR_EL2 {esr.raw:#x}: {esr.text}",)),
        *((f"FAR_EL2 {first.far:#x}",) if abort else ()),
    )
    if esr is not None and esr.ec == EC_BRK:
        return _with_room("it stopped itself, by BRK: it did not fault", evidence, "what it found wrong")
    if abort and first.far is not None and first.far < FIRST_PAGE:
        return _with_room(f"the address is in no stack{_kind_of(first.far)}", evidence, "why it was used")
    repeated, times = chain(first).often
    traced = (f"its call trace holds {repeated} {times} times",) if times >= CHAIN_REPEATS else ()
    unknown = ("whether EL2's own stack had room: neither SP_EL2 nor its bounds are in the log",)
    return Verdict("unknown", (*evidence, *traced), unknown)


def _panic(  # noqa: PLR0911 (one return for each ground)
    first: Fault, esr: Esr | None
) -> Verdict:
    """Judge a panic without a report before it."""
    text = first.panic
    if text.startswith("HYP panic"):
        return _hyp(first, esr)
    caller = _caller(first)
    evidence = (f"panic() was called with: {text}", *((f"by {caller}",) if caller else ()))
    if text.startswith("Asynchronous SError"):
        evidence = (*evidence, SERROR)
    killed = _KILLED.search(text)
    known = death.Facts(canary=bool(_CANARY.search(text)), end_mark=not _END_MAGIC.search(text))
    found = _judged(known, evidence)
    if found.code != "unknown":
        return found
    if not text or _AFTERMATH.match(text):
        return Verdict("unknown", evidence, ("the fault that led to this panic: it is not in the log",))
    if _OVERFLOW.search(text):
        return Verdict(
            "unknown", evidence, ("SP, the faulting address and the stacks' bounds: they are not in the log",)
        )
    if killed is not None:
        return _init_died(first, evidence, int(killed[1], 16))
    faulted = next((frame for frame in first.trace if function(frame) in _DYING), "")
    if faulted and not caller:
        return Verdict("unknown", evidence, (f"the exception before it ({faulted}): it is not in the log",))
    found = _with_room("its text gives another reason than a fault of the stack", evidence)
    unknown = ["what led to it: see the lines before the panic"]
    if first.kind == "warning":
        at = f" at pc {first.pc}" if first.pc else ""
        warned = f"the kernel warned before it{at}: {first.headline}"
        found, unknown = replace(found, evidence=(*found.evidence, warned)), ["why it warned"]
    elif text == ASKED_FOR:
        written = any(frame.startswith("write_sysrq_trigger") for frame in first.trace)
        who = f"{first.comm or 'a task'} wrote to /proc/sysrq-trigger" if written else "sysrq's key c"
        asked = f"it was asked for: {who}"
        found, unknown = replace(found, evidence=(*found.evidence, asked)), ["why it was asked for"]
    elif faulted or not caller:
        unknown.append("whether an exception came before it: none is in the log")
    return replace(found, unknown=tuple(unknown))


def _init_died(first: Fault, evidence: tuple[str, ...], code: int) -> Verdict:
    signal = code & 0x7F
    evidence = (
        *evidence,
        f"init was killed by signal {signal}" if signal else f"init left with status {code >> 8 & 0xFF}",
    )
    if any(function(frame) in _DYING for frame in first.trace):
        unknown = "the fault inside of the kernel that killed init: it is not in the log"
        return Verdict("unknown", evidence, (unknown,))
    if signal and not any(frame.startswith(_OWN_EXIT) for frame in first.trace):
        return Verdict("unknown", evidence, ("whether a fault inside of the kernel killed init",))
    text = "it left by itself or by a signal of its own: the kernel did not fault"
    return _with_room(text, evidence, "why init ended")


def _caller(first: Fault) -> str:
    """Return the function that called panic(), from the call trace."""
    frames = [*first.trace]
    while frames and not _PANIC.match(frames[0]):
        frames.pop(0)
    # the address after a call that does not return may be the next function's first: here panic()'s own
    own = len(frames) > 1 and frames[0].startswith("vpanic+") and "+0x0/" in frames[1]
    while frames and _PANIC.match(frames[0]):
        frames.pop(0)
    caller = next(iter(frames[own:]), "")
    return f"the function right before {caller.split('+')[0]}" if "+0x0/" in caller else caller


def _fault(  # noqa: PLR0911 (one return for each ground)
    first: Fault, esr: Esr | None, path: Path | None
) -> Verdict:
    """Judge a fault or BUG that the kernel reported in the ordinary way."""
    evidence = (first.headline, *_syndrome(first, esr), *_walked(esr, path))
    if first.kind == "serror":
        if first.pstate is not None and first.pstate & MODE == 0:
            text = "the CPU was in user mode: the kernel's stack was empty"
            return _with_room(text, evidence, "which device or memory reported the error")
        return _ordinary(first, evidence)
    if first.sp is None:
        return _without_sp(first, evidence)
    zeros = sum(first.registers.get(number) == 0 for number in range(19, 30)) == 11
    if zeros and first.pc == first.lr == "0x0":
        return _judged(death.Facts(zeros=True), evidence)
    if at_exception_entry(first.pc):
        unknown = ("why the entry faulted",)
        return Verdict("unknown", (*evidence, f"pc {first.pc} is an exception entry"), unknown)
    guard = _below_base(first, esr)
    if guard is not None:
        return guard
    if first.far is not None and abs(first.far - first.sp) <= NEAR and first.far >= MIN_KERNEL:
        near = f"FAR {first.far:#x} is {abs(first.far - first.sp)} bytes from SP {first.sp:#x}"
        unknown = ("whether FAR is in the stack or in its guard: its bounds are not in the log",)
        return Verdict("unknown", (*evidence, near), unknown)
    if first.far is not None:
        where = f"FAR {first.far:#x} is nowhere near SP {first.sp:#x}{_kind_of(first.far)}"
        evidence = (*evidence, where)
    if not re.match(r"[A-Za-z_]", first.pc) and not re.match(r"[A-Za-z_]", first.lr):
        unknown = ("where the CPU came from: neither pc nor lr is in a known function",)
        return Verdict("unknown", evidence, unknown)
    return _ordinary(first, evidence)


def _without_sp(first: Fault, evidence: tuple[str, ...]) -> Verdict:
    """Judge a report whose SP was cut out: it was printed, and what it is about is no address of a stack."""
    elsewhere = first.far is None or first.far < MIN_KERNEL
    if not elsewhere or not first.trace or not re.match(r"[A-Za-z_]", first.pc) or "sp" in first.damaged:
        return Verdict("unknown", evidence, ("SP: not in the log, or damaged",))
    if first.far is not None:
        evidence = (*evidence, f"FAR {first.far:#x} is in no stack{_kind_of(first.far)}")
    text = "the report was printed in the ordinary way, registers and calls: the exception's frame was stored"
    evidence = (*evidence, f"pc {first.pc}")
    return _with_room(text, evidence, "the cause of the fault itself", "SP: not in the log")


def _syndrome(first: Fault, esr: Esr | None) -> tuple[str, ...]:
    """Return what ESR tells, in words."""
    if esr is None:
        return ()
    if esr.fault or esr.detail:
        words = (esr.class_text, esr.fault or esr.detail, *esr.second_syndrome)
        return (f"ESR {esr.raw:#x}: {', '.join(words)}",)
    if esr.ec == EC_BRK:
        use = f", which Linux uses for {esr.brk_use}" if esr.brk_use else ""
        return (f"ESR {esr.raw:#x}: BRK with immediate {esr.immediate:#x}{use}",)
    if first.kind == "serror":
        kernel = first.pstate is None or first.pstate & MODE
        mode = "" if first.pstate is None else f", taken from {'the kernel' if kernel else 'user mode'}"
        return (f"ESR {esr.raw:#x}: {esr.text}{mode}", SERROR)
    return (f"ESR {esr.raw:#x}: {esr.class_text}",)


def _walked(esr: Esr | None, path: Path | None) -> tuple[str, ...]:
    """Return what the printed walk shows of the fault."""
    if path is None or not path.steps:
        return ()
    last = path.steps[-1].descriptor
    stored = esr is not None and esr.wnr and esr.fault == "permission fault"
    if stored and last.is_leaf and last.attributes is not None and (last.attributes.ap or 0) & READ_ONLY:
        return (f"the walk of {path.address:#x} ends in a {last.kind} that is read-only: pc stored to it",)
    fetch = esr is not None and esr.ec == EC_IABT
    if fetch and last.is_leaf and last.attributes is not None and last.attributes.pxn:
        return (
            f"the walk of {path.address:#x} ends in a {last.kind} that the kernel may not execute (PXN): "
            "the PC lies in it",
        )
    if last.raw & 3 == 2:
        return (
            f"the {path.steps[-1].name} entry of {path.address:#x} is {last.raw:#x}: bits [1:0] are 0b10, "
            "it lost bit 0 or had it cleared",
        )
    return ()


def _below_base(first: Fault, esr: Esr | None) -> Verdict | None:
    """Judge an unmapped address in the page right below the stack that SP is on.

    The bounds are not printed with an ordinary fault, but follow: a stack with a guard begins at a
    multiple of STACK_ALIGN, and is mapped from there up to SP.
    """
    if first.far is None or first.sp is None or esr is None or esr.fault != "translation fault":
        return None
    page = first.pagetable.page_size if first.pagetable is not None else 4096
    base = first.sp & -STACK_ALIGN
    if not base - page <= first.far < base or first.sp < MIN_KERNEL:
        return None
    evidence = [
        f"FAR {first.far:#x} is {base - first.far:#x} bytes below {base:#x} and not mapped",
        f"stacks with a guard begin at multiples of {STACK_ALIGN:#x}, and SP {first.sp:#x} is in one, mapped "
        f"up to SP: {base:#x} is its base, and FAR is in the guard",
        f"SP itself is {first.sp - base} bytes above the base: a pointer left the stack, not its depth",
    ]
    unknown = ("which pointer it was: see the code at pc", "the stack's bounds as the kernel has them")
    stack = StackRange("task", base, base + STACK_ALIGN)
    known = death.Facts(sp=first.sp, stacks=(stack,), stack=stack, esr=esr, far=first.far, no_room=True)
    return replace(death.judge(known), evidence=(first.headline, *evidence), unknown=unknown)


def _kind_of(far: int) -> str:
    if far < FIRST_PAGE:
        return ": the first page, a NULL pointer"
    return ": not an address of the kernel's half" if far < MIN_KERNEL else ""


def _ordinary(first: Fault, evidence: tuple[str, ...]) -> Verdict:
    """Conclude from an ordinary report that the stack was there: the exception's frame was stored on it."""
    if first.sp is None or first.sp < MIN_KERNEL or first.sp % 16:
        return Verdict("unknown", evidence, ("SP: it is no kernel stack pointer, or not in the log",))
    found = _with_room(
        f"the exception's frame was stored at SP {first.sp:#x} and the report printed in the "
        "ordinary way: the stack was mapped and had room",
        evidence,
        "the cause of the fault itself",
    )
    place = (f"pc {first.pc}" + (f", called from {first.lr}" if first.lr else ""),) if first.pc else ()
    return replace(found, evidence=(*found.evidence, *place))
