"""What loggers, terminals, phones and mailers put in front of the kernel's words, and where those begin.

Two ways: layers whose form is known (time stamps, syslog, quotes, CPU and task tags), and columns that are
learned from the log itself: what stands in front of lines that the kernel is known to print.
Kernel: kernel/printk/printk.c (print_time, print_caller); util-linux dmesg; systemd logs-show.c; Android's
logger and the vendors' printk (MediaTek, Qualcomm, Exynos, Samsung).
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from ptinspect.dataclass import dataclass, field
from ptinspect.text import Pattern

MAX_COLUMN = 160
"""Characters of a column that is learned."""
ENOUGH = 2
"""Known lines with the same column before it is taken away from others."""

_QUOTE = Pattern(r"[ \t]*(?:>|\|(?=[ \t]|$))[ \t]?")
_SAYS = r"(?:kernel|linux|KERNEL)(?:\[\d+\]:|:)"
_SAYS_WORDS = tuple(name + after for name in ("kernel", "linux", "KERNEL") for after in ":[")
_NUMBERED = Pattern(r"[ \t]*\d{1,8}(?:\t|[:-](?=[<\[]))")
_LEVEL = Pattern(r"[ \t]*<\d{1,3}>")
_FACILITY = Pattern(
    r"(?:kern|user|daemon|syslog)(?: +:|:) *[a-z]{4,6} *: ?",
    *(name + after for name in ("kern", "user", "daemon", "syslog") for after in " :"),
)
_KMSG = Pattern(r"\d{1,3},\d{1,12},(?P<micro>\d{1,20}),[^;\n]{0,60};")
_TIME = r"\d\d?:\d\d:\d\d(?:[.,]\d{1,9})?"
_ZONE = r"(?: ?(?:Z|[A-Z]{2,5}|[+-]\d\d:?\d\d))?"
_SYSLOG = Pattern(
    r"(?:<\d{1,3}>\d? ?)?(?:"
    rf"[^\s\d\[\]:=]{{2,12}} +\d{{1,2}} +{_TIME}|"
    rf"\d{{1,2}}[^\s\d\[\]:=]{{1,3}} +\d{{1,2}} +{_TIME}|"
    rf"(?:[^\s\[\]:=]{{1,12}} )?\d{{4}}-\d\d-\d\d[T ]{_TIME}{_ZONE}|"
    r"\d{9,10}\.\d{3,9}"
    rf")[ \t]+(?:\S{{1,255}}[ \t]+)?(?:{_SAYS}|(?:kernel|linux|KERNEL)(?: -| \d+) - -)",
    *_SAYS_WORDS,
    " - -",
)
_MONOTONIC = Pattern(
    rf"\[ *(?P<seconds>\d+\.\d{{3,9}})(?: <[^>]{{0,20}}>)?\][ \t]+(?:\S{{1,255}}[ \t]+)?{_SAYS}", *_SAYS_WORDS
)
_LOGCAT = Pattern(rf"\d\d-\d\d {_TIME} +(?:\w+ +)?\d+ +\d+ [VDIWEF] (?:KERNEL|kernel|auditd)? *:")
_LOGCAT_BRIEF = Pattern(r"[VDIWEF]/\w+ *\( *\d+\):", "):")
_CLOCK = Pattern(
    rf"[A-Z][a-z]{{2}} +\d{{1,2}} {_TIME}(?=[ \t]+\[)|"
    rf"\[?\d{{4}}-\d\d-\d\d[T _]{_TIME}{_ZONE}\]?(?: \d\d[OE][ +])?|\[?{_TIME}\]?(?=[ \t]|\[)[ \t]*",
    ":",
)
_EXPORTED = Pattern(r"[ \t]*MESSAGE=", "MESSAGE=")
_BROADCAST = Pattern(rf"[ \t]*{_SAYS} ?(?=\[|[A-Z])", *_SAYS_WORDS)
STAMP = r"\[ {0,12}(?P<seconds>\d{1,9}\.\d{3,9})[^\]\[]{0,40}\]"
"""A time stamp of the kernel's: seconds since boot."""
_STAMP = Pattern(STAMP)
_RELATIVE = Pattern(
    r"\[(?: *\+\d{1,8}\.\d{3,9}| *<? *\+?\d{1,8}\.\d{3,9} *>?|[^\]\[]{1,12}\d{1,2} \d\d:\d\d|"
    r"[^\]\[\d]{1,12}[^\]\[]{0,12} +\d{1,2} \d\d:\d\d:\d\d \d{4})\]"
)
_BEFORE_STAMP = Pattern(rf"[^\[\]]{{1,100}}[>:;|][ \t]*(?={STAMP})")
_CALLER = Pattern(r" ?\[ {0,12}([TC]\d{1,9})\]")
_CPU_TAG = Pattern(
    r"(?i)"
    r" ?(?:c(?P<c>\d{1,3})(?: +\d{1,7}(?= ))? {1,2}|(?P<rt>\d{3}): ?|-?\((?P<mtk>\d{1,2})\)\[[^\]\[]{1,40}\]|"
    r"\[ *(?P<exynos>\d{1,3}): *[^\]\[:]{1,24}: *\d{1,7}\]|\(CPU:(?P<qcom>\d{1,3})-[^)]{1,40}\)|"
    r"\[cpu ?(?P<cpu>\d{1,3})\])"
)
_BEFORE_TAG = ("-(", *"[(0123456789", *(letter + digit for letter in "cC" for digit in "0123456789"))
_TAG = Pattern(r"(?:\[(?!(?:0x)?[0-9a-f]{8,16}\]|<)[^\]\[]{0,60}\])+")
_VALUE = Pattern(r"[0-9a-f]{12}|0x[0-9a-f]|=|\+0x|(?:\S+ +){12}")
_STEP = Pattern(r"\d+|[^\W\d_][^\W\d]*|\s+|.")

_BEGINNINGS = (
    "Insufficient stack space", "Unable to handle", "Internal error:", "Kernel panic - not", "kernel BUG at",
    "BUG: ", "WARNING: ", "Bad mode in", "Unhandled ", "Unexpected kernel", "SError Interrupt on", "INFO: ",
    "Mem abort info", "Data abort info", "ESR: 0x", "ESR:0x", "ESR = 0x", "EC = 0x", "Exception class =",
    "FSC = 0x", "FAR: 0x", "FAR:0x", "Task stack: ", "IRQ stack: ", "Overflow stack: ", "swapper pgtable:",
    "user pgtable:", "init pgtable:", "idmap pgtable:", "Tainted: [", "Hardware name: ", "Workqueue: ",
    "Modules linked in", "PC is at ", "LR is at ", "pc : ", "lr : ", "sp : ", "Call trace:", "Call Trace:",
    "Backtrace:", "Exception stack(", "Code: ", "---[", *("-" * dashes + "[" for dashes in range(8, 13)),
    "SMP: stop", "SMP: fail", "Kernel Offset: ", "CPU features: ", "Memory Limit", "PHYS_OFFSET: ",
    "Starting crashdump", "Booting Linux on", "Fixing recursive fault", "BUG_ON", "The buggy address",
    "KASAN: ", "Allocated by task", "Freed by task", "Message from syslogd", "Broadcast message from",
    "watchdog: ", "rcu: ",
    *(words + digit for words in (
        "CPU: ", "SET = ", "EA = ", "ISV = ", "CM = ", "GCS = ", "Read of size ", "Write of size ",
        "Rebooting in ", "Linux version ",
    ) for digit in "0123456789"),
)  # fmt: skip
_BEFORE_WORD = r"(?<![\w.\"'(])"
_VALUES = Pattern(
    rf"{_BEFORE_WORD}(?:x(?:[12]?[0-9]|30) ?: ?[0-9a-f]{{5}}|pstate: ?[0-9a-f]|task: [0-9a-f]{{8}}|"
    r"\[(?:0x)?[0-9a-f]{8,16}\] (?:\*?pgd|user address|address ))"
)
_NAMES = Pattern(
    rf"{_BEFORE_WORD}(?:Process \S+ ?\(pid|note: \S+\[\d|\*\* \d+ printk messages|"
    r"(?:Panic|Oops|Emergency)#\d+ Part\d)",
    "(pid",
    "note: ",
    " printk messages",
    " Part",
)


def begins(text: str) -> bool:
    """Tell whether a text begins as the kernel begins the lines that a report is made of."""
    return text.startswith(_BEGINNINGS) or (_VALUES.match(text) or _NAMES.match(text)) is not None


def _beginning(text: str) -> int:
    """Return where a text begins to be such a line; its length if it does nowhere."""
    found = [len(text), *(form.start() for form in (_VALUES.search(text), _NAMES.search(text)) if form)]
    for word in _BEGINNINGS:
        at = text.find(word)
        while at > 0 and (text[at - 1].isalnum() or text[at - 1] in "_.\"'("):
            at = text.find(word, at + 1)
        found += [at] if at >= 0 else []
    return min(found)


@dataclass(frozen=True)
class Peeled:
    """A line without what is in front of it."""

    text: str
    """What is left."""
    layers: int = 0
    """How many layers were taken away, quotes left out."""
    stamped: bool = False
    """True if one of them was a time or a logger's name."""
    time: str = ""
    """Seconds since boot, as printed, or empty."""
    caller: str = ""
    """`T<pid>` or `C<cpu>`, or empty."""


@dataclass
class Columns:
    """The columns that were learned from a log."""

    counts: Counter[str] = field(default_factory=Counter)
    """Pattern of a column -> the known lines it stood in front of."""
    known: list[re.Pattern[str]] = field(default_factory=list)
    """Those that are taken away, the longest first."""

    def learn(self, text: str) -> None:
        """Learn from a line without its known layers: what stands before words that the kernel prints?"""
        bare = text.strip()
        if begins(bare) or " " not in bare:  # nothing in front, or one word of a call trace
            return
        text = text[:MAX_COLUMN]
        column = text[: _beginning(text)]
        if column == text or not column.strip() or _VALUE.search(column) is not None:
            return
        pattern = _shape(column)
        self.counts[pattern] += 1
        if self.counts[pattern] == ENOUGH:
            self.known.append(re.compile(pattern))
            self.known.sort(key=lambda known: -len(known.pattern))

    def strip(self, text: str) -> str | None:
        """Return the text after a learned column; None if there is none."""
        for known in self.known:
            match = known.match(text)
            if match is not None:
                return text[match.end() :]
        return None


def _shape(column: str) -> str:
    """Return a pattern for columns like this one: other numbers, other words, the same signs."""
    parts = []
    for match in _STEP.finditer(column):
        step = match[0]
        if step.isdigit():
            parts.append(r"\d+")
        elif step.isspace():
            parts.append(r"\s+")
        elif len(step) == 1 and step.isalpha():
            parts.append(r"[^\W\d_]")
        else:
            parts.append(re.escape(step))
    if parts and parts[-1] == r"\s+":
        parts[-1] = r"\s"
    return "".join(parts)


def quotes(text: str) -> str:
    """Return a line without the quotes of mails and tables: `> `, `>> `, `| `."""
    while text[:1] in " \t>|" and (match := _QUOTE.match(text)) is not None:
        text = text[match.end() :]
    return text


@lru_cache(maxsize=1024)  # a row is looked at alone, and again when it is known where rows go on
def peel(text: str) -> Peeled:
    """Take away the layers whose form is known."""
    layers, stamped, time, caller = 0, False, "", ""
    for _ in range(6):
        found = _layer(text)
        if found is None:
            break
        layer, match = found
        if layer in (_STAMP, _MONOTONIC):
            time = match["seconds"]
        elif layer is _KMSG:
            micro = int(match["micro"])
            time = f"{micro // 1_000_000}.{micro % 1_000_000:06}"
        text = text[match.end() :]
        layers += 1
        stamped = stamped or layer not in (_LEVEL, _NUMBERED)
        if layer in (_STAMP, _RELATIVE):
            text, caller = _tags(text, caller)
        if layer in (_SYSLOG, _MONOTONIC, _CLOCK, _LOGCAT, _LOGCAT_BRIEF, _FACILITY):
            text = text[1:] if text.startswith(" ") and _layer(text.lstrip(" \t")) is None else text.lstrip()
    return Peeled(text, layers, stamped, time, caller)


def _layer(text: str) -> tuple[Pattern, re.Match[str]] | None:
    """Return the known layer that a text begins with, and what it matches."""
    first = text.lstrip(" \t")[:1]
    patterns: tuple[Pattern, ...]
    if first == "[":
        patterns = (_MONOTONIC, _STAMP, _RELATIVE, _CLOCK)
        text_at = len(text) - len(text.lstrip(" \t"))
    elif first == "<":
        patterns, text_at = (_SYSLOG, _LEVEL), 0
    elif first.isdigit():
        patterns, text_at = (_SYSLOG, _NUMBERED, _LOGCAT, _KMSG, _CLOCK), 0
    elif first.isalpha():
        patterns, text_at = (_SYSLOG, _LOGCAT_BRIEF, _FACILITY, _EXPORTED, _BROADCAST), 0
    else:
        return None
    for pattern in patterns:
        match = pattern.match(text, text_at)
        if match is not None:
            return pattern, match
    match = _BEFORE_STAMP.match(text) if "[" in text[:110] else None
    return (_BEFORE_STAMP, match) if match is not None else None


def _tags(text: str, caller: str) -> tuple[str, str]:
    """Take away what kernels and phones print after a time stamp: the task, the CPU."""
    if not text.removeprefix(" ").startswith(_BEFORE_TAG):
        return text, caller
    match = _CALLER.match(text)
    if match is not None:
        return text[match.end() :], match[1]
    match = _CPU_TAG.match(text)
    if match is not None:
        cpu = next(value for value in match.groups() if value is not None)
        rest = text[match.end() :]
        return rest, caller or f"C{int(cpu)}"
    match = _TAG.match(text)
    return (text[match.end() :] if match is not None else text), caller
