"""The messages of the kernel's that a death is made of: first lines, and values by name.

Formats: Linux arch/arm64/kernel/traps.c, arch/arm64/kernel/process.c and arch/arm64/mm/fault.c from 4.4
to 6.12; kernel/panic.c, kernel/watchdog.c, kernel/rcu/tree_stall.h, mm/kasan/report.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from ptinspect.linux.oops.incident import FaultKind, Pagetable, PathEntry
from ptinspect.linux.stack_range import StackRange
from ptinspect.text import Pattern, holds

PANIC = Pattern(r"Kernel panic - not syncing:? ?(.{0,300})", "Kernel panic")
HEADLINES: tuple[tuple[FaultKind, Pattern], ...] = (
    ("bad-stack", Pattern(r"Insufficient stack space to handle exception", "Insufficient")),
    (
        "fault",
        Pattern(
            r"Unable to handle kernel [\w '/,=-]{1,80} at virtual address \(?(?:0x)?([0-9a-fA-F]+)",
            "Unable to",
        ),
    ),
    ("fault", Pattern(r"BUG: (?:unable to handle|kernel NULL pointer dereference)", "BUG: ")),
    ("oops", Pattern(r"Bad mode in .{1,60} handler detected", "Bad mode")),
    ("oops", Pattern(r"Unhandled (?:64|32)-bit \w+ (?:sync )?exception on CPU", "-bit")),
    ("oops", Pattern(r"Unexpected kernel BRK exception at EL1", "Unexpected")),
    (
        "oops",
        Pattern(
            r"(?:Unhandled (?:fault|prefetch abort)|Synchronous External Abort):",
            "Unhandled",
            "Synchronous Ext",
        ),
    ),
    ("oops", Pattern(r"nVHE hyp (?:panic|BUG) at: ", "nVHE hyp")),
    ("serror", Pattern(r"(?:SError Interrupt on CPU|Bad mode in Error handler)", "SError", "Bad mode")),
    ("bug", Pattern(r"kernel BUG at ", "kernel BUG")),
    ("kasan", Pattern(r"BUG: (?:KASAN|KFENCE|KCSAN|KMSAN): ", "BUG: ")),
    (
        "lockup",
        Pattern(
            r"(?:BUG: soft lockup - CPU|[Ww]atchdog detected hard LOCKUP|Watchdog: CPU|hard LOCKUP)",
            "BUG: soft",
            "LOCKUP",
            "Watchdog",
        ),
    ),
    (
        "rcu-stall",
        Pattern(r"INFO: (?:rcu\w* .{0,20}?detected .{0,20}?stall|.{0,20}?self-detected stall)", "INFO: "),
    ),
    ("hung-task", Pattern(r"INFO: task .{1,40} blocked for more than", "INFO: ")),
    ("warning", Pattern(r"WARNING: (?:CPU: \d|at |\S{1,200}\.[chS]:\d{1,7}(?: at\b|$))", "WARNING: ")),
    (
        "warning",
        Pattern(r"BUG: (?:scheduling while atomic|sleeping function|workqueue lockup|Bad )", "BUG: "),
    ),
)
"""Kind of a report -> what its first line looks like, most telling first."""
INTERNAL = Pattern(
    r"Internal error: (.{0,200})|(?:Oops\b.{0,80}|[a-z][\w ,-]{2,100}(?: 0x[0-9a-f]+)?: [0-9a-f]{4}) ?"
    r"(\[#\d{1,6}\].{0,100})",
    "Internal error: ",
    "[#",
)
"""The line with the count of oopses: arm64's and arm's, or another architecture's (`Oops[#1]:`)."""
BOOT = Pattern(r"(Booting Linux on physical CPU|Linux version \d)", "Booting Linux", "Linux version")
DIED = Pattern(r"Code: (?:[0-9a-f]{8} ){1,4}\([0-9a-f]{8}\)", "Code: ")
"""The instructions that die() prints, and nobody else (arch/arm64/kernel/traps.c, dump_kernel_instr)."""
STATE = Pattern(r"pstate ?: [0-9a-f]{8}(?= )", "pstate")
"""Where the registers of a report begin."""
END = Pattern(r"---\[ end (?:trace|Kernel panic)", "---[ end")
CALL_TRACE = ("Call trace:", "call trace:", "Call Trace:", "Backtrace:")
_SYMBOLIC = r"[A-Za-z_$<][\w.$<>:,]{0,250}\+0x[0-9a-f]+/0x[0-9a-f]+"
_BEFORE_FRAME = r"(?:\[?<[0-9a-fx()ptrval]{4,20}>\]? ?)?(?:\? )?"
FRAME_LINE = Pattern(rf"{_BEFORE_FRAME}({_SYMBOLIC})", "+0x")
"""A line of a call trace: `symbol+0x0/0x10`."""
_ADDRESS_FRAME = Pattern(rf"{_BEFORE_FRAME}(0x[0-9a-f]{{1,16}})(?: ?\(P\w?\))?$", "0x")
_FRAME_AT_END = Pattern(rf"[\s\]>):;|]({_SYMBOLIC})(?: \[[^\]]{{1,90}}\])?(?: \(P?\w?\))?$", "+0x")
_SOURCE = r"\((?:[^()\s]{1,200}:(?:\d+|\?)|\?\?:)"
_DECODED_FRAME = Pattern(rf"(?:\? )?([A-Za-z_$][\w.$]{{0,250}}) {_SOURCE}", " (")
_BARE_FRAME = Pattern(r"(?:\? )?([A-Za-z_][\w.]{2,250})(?: \[\w+\])?$")
INLINE = Pattern(r"\[inline\]\s*$", "[inline]")
"""A line that decode_stacktrace.sh or syzbot adds for a call that was inlined."""
BROADCAST = Pattern(r"(?:Message from syslogd|Broadcast message from)", "Message from", "Broadcast message")
SOURCE_CODE = Pattern(
    r"[\"'`](?:Internal error|Unable to handle|Kernel panic|Insufficient|BUG: )|"
    r"(?:pr_\w+|printk\w*|panic|die|WARN\w*|BUG\w*|dev_\w+)\(.{0,40}\"|\\n\"",
    '"',
    "'",
    "`",
)
"""A line of a patch or a program that prints such a message."""
EXCEPTION_STACK = Pattern(r"Exception stack\(|[0-9a-f]{4}: (?: |[0-9a-f]{8,16} ?)+$")
"""Lines inside of a call trace that show an exception frame (Linux up to 4.15, dump_mem)."""
DROPPED = Pattern(
    r"\*\* \d+ printk messages dropped|callbacks suppressed", "messages dropped", "callbacks suppressed"
)
NOTES = Pattern(
    r"(?:KASAN: .{1,60} in range \[|(?:Read|Write) at addr |Free of addr |(?:Read|Write) of size \d+ |"
    r"The buggy address (?:belongs to|is located)|Invalid (?:read|write|free) at 0x|"
    r"(?:Out-of-bounds|Use-after-free|Memory corruption).{0,20} at 0x|"
    r"user address but active_mm|address between user and kernel).{0,200}",
    "KASAN: ",
    " of ",
    " at addr ",
    "The buggy address ",
    " at 0x",
    "user address but active_mm",
    "address between user and kernel",
)
"""What KASAN, KFENCE and the fault handler print about the address."""
NUMBER = Pattern(r"\[#(\d{1,6})\]")
"""The count of oopses since boot (kernel/panic.c, arm64 traps.c: die_counter)."""
_TRIGGERS = (
    "Kernel panic - not syncing", "Insufficient stack space", "Unable to handle kernel", "Internal error:",
    "Bad mode in ", "Unhandled 64-bit", "Unhandled 32-bit", "Unhandled fault", "Unhandled prefetch",
    "Synchronous External Abort:", "Unexpected kernel BRK", "SError Interrupt", "nVHE hyp ",
    "WARNING: ", "LOCKUP", "Watchdog: CPU", "blocked for more than", "Booting Linux on physical CPU",
    "Linux version ",
)  # fmt: skip
_TRIGGER = Pattern(r"detected.{0,20}stall|\[#\d{1,6}\]|(?<!DE)BUG(?:: | at )", "stall", "[#", "BUG")

_HEX16 = r"([0-9a-fA-F]{16})(?![0-9a-fA-F])"
_ESR = Pattern(r"\bESR(?::| =) ?0x([0-9a-fA-F]+)", "ESR")
_CODE = Pattern(r"\bcode:? 0x([0-9a-fA-F]+) --", "code")
_ESR_LATE = Pattern(r", ESR:? 0x([0-9a-fA-F]+) --", ", ESR")
_ESR_HYP = Pattern(r"\bPC:[0-9a-f]{16} ESR:(?:0x)?([0-9a-f]{8,16})\b", " ESR:")
_OOPS_ESR = Pattern(r"^(?:[A-Za-z][\w ()/:.'-]{0,80})?: ([0-9a-fA-F]{8,16})(?= |$)")
_FAR = Pattern(r"\bFAR(?::| =) ?0x([0-9a-fA-F]+)|\bFAR:([0-9a-f]{16}) HPFAR:", "FAR")
_UNHANDLED = Pattern(r"\((?:0x)([0-9a-f]{8})\) at 0x([0-9a-f]{16})(?![0-9a-f])", ") at 0x")
"""ESR and FAR of an abort that nobody handles (Linux up to 4.16, arch/arm64/mm/fault.c, do_mem_abort)."""
_STACK = Pattern(
    r"\b(Task|IRQ|Overflow|SDEI[\w ]{0,20}?) ?stack:\s*\[0x([0-9a-fA-F]+)\.\.0x([0-9a-fA-F]+)\]", "stack:"
)
_CPU = Pattern(
    r"\bCPU: (\d{1,5}) (?:UID: \d{1,10} )?PID: (\d{1,10}) Comm: (.{1,40}?) (?:Kdump: loaded )?"
    r"(?:Not tainted|Tainted: (?:[A-Z-] *){1,80}(?=\s|$|\d))"
    r"(?:\s+(\d+\.\d\S{0,100}|\d\S{0,100}(?= #))|(?=\s|$))"
)
_CPU_BARE = Pattern(r"\bCPU: (\d{1,5}) (?:UID: \d{1,10} )?PID: (\d{1,10}) Comm: (.{1,40}?)$", "CPU: ")
_PSTATE = Pattern(r"\bpstate: ([0-9a-fA-F]{8})(?![0-9a-fA-F])")
_PC = Pattern(r"\b(?:pc : |PC is at )(?!\[<)(\S{1,260})")
_LR = Pattern(r"\b(?:lr : |LR is at )(?!\[<)(\S{1,260})")
_BARE_SYMBOL = Pattern(r"\b(pc|lr) : ([A-Za-z_][\w.]{2,250})$")
_SOURCE_LINE = Pattern(r"\b(pc|lr) : ([A-Za-z_$][\w.$]{0,250}) " + _SOURCE, " (")
_PC_BARE = Pattern(r"\bpc : \[<([0-9a-f]{16})>\]", "pc : [<")
_LR_BARE = Pattern(r"\blr : \[<([0-9a-f]{16})>\]", "lr : [<")
_SP = Pattern(r"\bsp : " + _HEX16)
_REGISTER = Pattern(r"\bx([0-9]|[12][0-9]|30)\s?: ([0-9a-fA-F]+)(?![0-9a-fA-F])")
_PAGETABLE = Pattern(
    r"\b(swapper|user|init|idmap) pgtable: (\d{1,2})k pages, (\d{2})-bit VAs, "
    r"pgdp? ?= {0,24}(?:0x)?([0-9a-fA-F]+|\S+)",
    "pgtable: ",
)
_PATH = Pattern(r"\[(?:0x)?([0-9a-fA-F]{8,16})\] \*?(?=pgd ?=)", "pgd")
_ENTRY = Pattern(r"\*?\b(pgd|p4d|pud|pmd|pte) ?= ?([0-9a-fA-F]+)")
_LIMIT = Pattern(r"\bProcess (.{1,40}?) \(pid: (\d{1,10}), stack limit = 0x", "stack limit = 0x")
_NUMBER_ALONE = Pattern(r"(?:0x[0-9a-fA-F]{1,16}|[0-9a-fA-F]{8,16})$")

FOREIGN: tuple[tuple[str, Pattern], ...] = (
    ("x86", Pattern(r"\bRIP: 0010:|\bEIP: |\bCR2: [0-9a-f]{8}", "RIP: 0010:", "EIP: ", "CR2: ")),
    ("riscv", Pattern(r"\bepc ?: [0-9a-f]{8}|\bepc : \S+\+0x", "epc")),
    (
        "arm",
        Pattern(
            r"\bpsr: ?[0-9a-f]{8}|Mode SVC_32|\] (?:PREEMPT |SMP |THUMB2 )*ARM$", "psr:", "Mode SVC_32", "ARM"
        ),
    ),
    ("powerpc", Pattern(r"\bNIP: +[0-9a-f]{8}|\bNIP \[[0-9a-f]{8}", "NIP")),
    ("mips", Pattern(r"\bepc   : [0-9a-f]{8}|\(ExcCode [0-9a-f]", "epc   : ", "(ExcCode ")),
    ("loongarch", Pattern(r"\bERA: [0-9a-f]{16}|, era == [0-9a-f]{8}", "ERA: ", ", era == ")),
    ("s390", Pattern(r"\bKrnl PSW : ", "Krnl PSW : ")),
)
"""Architecture -> what only its logs hold."""
_NATIVE_WORDS = ("ESR: 0x", "ESR:0x", "ESR=0x", "ESR= 0x", "ESR = 0x", "(current EL)")
_NATIVE = Pattern(
    r"\bpstate: [0-9a-f]{8}|\bx29\s?: [0-9a-f]{16}|pgtable: \d+k pages", "pstate: ", "x29", "pgtable: "
)

Values = dict[str, object]
"""Values of one line by slot: `esr`, `far`, `stack:task`, `x29`, `path`, …"""


def triggers(text: str) -> bool:
    """Tell whether a text holds what it must hold for anything to be found in it."""
    return holds(text, _TRIGGERS) or _TRIGGER.search(text) is not None


def is_native(text: str) -> bool:
    """Tell whether a line holds what only logs of arm64 hold."""
    return holds(text, _NATIVE_WORDS) or _NATIVE.search(text) is not None


@lru_cache(maxsize=4096)  # lines of CPUs that print at once are read for each way of sorting them
def values(text: str) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """Return the values in one line, by name, and the names of values whose digits are cut."""
    found: Values = {}
    damaged: list[str] = []
    if ":" in text or "=" in text or " is at " in text or "code" in text or "ESR" in text:
        _registers(text, found, damaged)
        _fault(text, found, damaged)
        _context(text, found)
        _walk(text, found, damaged)
    return found, tuple(damaged)


def _registers(text: str, found: Values, damaged: list[str]) -> None:
    if "x" in text and ":" in text:
        for match in _REGISTER.finditer(text):
            if len(match[2]) == 16:
                found[f"x{match[1]}"] = int(match[2], 16)
            elif len(match[2]) > 8:
                damaged.append(f"x{match[1]}")
    if "sp : " in text and (pointer := _SP.search(text)) is not None:
        found["sp"] = int(pointer[1], 16)
    elif "sp : " in text and re.search(r"\bsp : [0-9a-fA-F]", text):
        damaged.append("sp")
    for name, pattern, bare in (("pc", _PC, _PC_BARE), ("lr", _LR, _LR_BARE)):
        symbol = pattern.search(text)
        if symbol is not None and _is_place(symbol[1]):
            found[name] = symbol[1]
        elif (address := bare.search(text)) is not None:
            found[f"{name}:bare"] = f"0x{address[1]}"
    if any(f"{name} : " in text and name not in found for name in ("pc", "lr")):
        for match in (*_SOURCE_LINE.finditer(text), *_BARE_SYMBOL.finditer(text)):
            found.setdefault(match[1], match[2])
    if (state := _PSTATE.search(text)) is not None:
        found["pstate"] = int(state[1], 16)


def _is_place(text: str) -> bool:
    """Tell whether a word is `symbol+0x0/0x10`, or a number."""
    frame = FRAME_LINE.match(text)
    return frame[1] == text if frame is not None else _NUMBER_ALONE.match(text) is not None


def _fault(text: str, found: Values, damaged: list[str]) -> None:
    for pattern in (_ESR, _CODE, _ESR_LATE, _ESR_HYP):
        if (match := pattern.search(text)) is not None:
            if len(match[1]) in (8, 16):
                found["esr"] = int(match[1], 16)
            else:
                damaged.append("ESR")
            break
    if (match := _UNHANDLED.search(text)) is not None:
        found["esr"], found["far"] = int(match[1], 16), int(match[2], 16)
    if (match := _FAR.search(text)) is not None:
        digits = match[1] or match[2]
        if len(digits) == 16:
            found["far"] = int(digits, 16)
        else:
            damaged.append("FAR")
    if (match := _STACK.search(text)) is not None:
        kind = match[1].lower()
        if (
            len(match[2]) == len(match[3])
            and len(match[2]) in (8, 16)
            and int(match[2], 16) < int(match[3], 16)
        ):
            found[f"stack:{kind}"] = StackRange(kind, int(match[2], 16), int(match[3], 16))
        else:
            damaged.append(f"{kind} stack")


def _context(text: str, found: Values) -> None:
    if (match := _CPU.search(text)) is not None:
        found["cpu"] = (int(match[1]), int(match[2]), match[3], match[4] or "")
    elif (match := _CPU_BARE.search(text)) is not None:
        found["cpu"] = (int(match[1]), int(match[2]), match[3].partition(" ")[0], "")
    elif (match := _LIMIT.search(text)) is not None:
        found["process"] = (int(match[2]), match[1])


def _walk(text: str, found: Values, damaged: list[str]) -> None:
    if (match := _PAGETABLE.search(text)) is not None and match[2] in ("4", "16", "64"):
        pgdp = int(match[4], 16) if re.fullmatch(r"[0-9a-fA-F]{16}", match[4]) else None
        found["pagetable"] = Pagetable(match[1], int(match[2]) << 10, int(match[3]), pgdp)
    match = _PATH.search(text)
    if match is None:
        return
    entries: list[PathEntry] = []
    for entry in _ENTRY.finditer(text, match.end()):
        if len(entry[2]) != len(match[1]) and len(entry[2]) != 16:
            damaged.append(entry[1])
            break
        entries.append(PathEntry(entry[1], int(entry[2], 16)))
    found["path"] = (int(match[1], 16), tuple(entries))


def oops_esr(internal: str) -> int | None:
    """Return the ESR in the text after `Internal error: `, or None: `Oops: 96000006 [#1] SMP`."""
    match = _OOPS_ESR.match(internal)
    if match is None or len(match[1]) not in (8, 16):
        return None
    return int(match[1], 16)


def frame(text: str) -> str | None:
    """Return the symbol or address of a line of a call trace, or None."""
    match = FRAME_LINE.match(text)
    if match is None or text[match.end() :][:1].strip() not in ("", "("):
        match = _ADDRESS_FRAME.match(text)
    if match is not None:
        return match[1]
    match = _DECODED_FRAME.match(text) or _FRAME_AT_END.search(text) or _BARE_FRAME.match(text)
    return match[1] if match is not None and "pc : " not in text and "lr : " not in text else None
