"""The kernel's own lines in a console log: without prefixes, wrapped lines joined, all bounded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from itertools import pairwise

from ptinspect.dataclass import dataclass, field
from ptinspect.linux.oops.messages import FRAME_LINE
from ptinspect.linux.oops.prefixes import STAMP, Columns, Peeled, begins, peel, quotes
from ptinspect.text import Pattern

MAX_LINE = 4096
"""Characters of a line that are looked at; the rest of it is left out."""
NARROW = 66
"""Columns below which a line was not wrapped: folds at 72 with a name in front that was made shorter."""
WIDE = 100
"""Columns above which a log was not wrapped."""
SOFT = range(60, 78)
"""Characters of a row of quoted-printable that ends with a soft break, the `=` included (RFC 2045: 76)."""
MAX_WORDS = 1 << 14
"""Words of a log that are remembered."""
MAX_ROWS = 12
"""Rows of one wrapped line."""

_ANSI = Pattern(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[@-Z\\-_])")
_JSON = Pattern(
    r'^[\s\-,\[]*(?:\{.*)?"(?:MESSAGE|@?message|msg|log|line|text|textPayload)"\s*:\s*'
    r'("(?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+")',
    *('MESSAGE"', 'message"', 'msg"', 'log"', 'line"', 'text"', 'textPayload"'),
)
"""A line of `journalctl -o json` or `json-pretty`, of LAVA's own log, or of a container's."""
_TAIL = re.compile(r"""(?:\\[rn])*["'][\]})]*,?$|(?:\\[rn])+$""")
_MEMBER = Pattern(
    r'\s*(?:"[@\w.]{1,80}"\s*:\s*(?:"(?:[^"\\]|\\.)*+"|[\d.]+|null|true|false)|\{|\}),?\s*$',
    *('"', "{", "}"),
)
"""Any other row of `journalctl -o json-pretty`."""
_BREAK = Pattern(r"<br ?/?>|</(?:p|div|li|tr)>", "<br", "</")
_MARKUP = Pattern(r"</?(?:span|pre|code|font|div|li|tr|td|a|b|i|p)(?: [^<>]{0,300})?>", "<")
"""Tags of a web page around what the kernel printed; its own are `<TASK>`, `<IRQ>`, `<idle>`."""
_ESCAPED = Pattern(r"\\([][_*#<>+!(){}`~|.-])", "\\")
"""What Markdown needs a backslash for."""
_STAMPED = Pattern(STAMP)
_CHARACTERS = {
    **dict.fromkeys((0xA0, 0x2007, 0x202F, 0x3000, *range(0x2000, 0x2007), *range(0x2008, 0x200B)), " "),
    **dict.fromkeys((0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0xAD), None),
}
_QUOTED_PRINTABLE = Pattern(r"(?i)=(?:3D|20|09|C2=A0)", "=3D", "=3d", "=20", "=09", "=C2", "=c2")
_ASSIGNED = Pattern(r"\b(?:pgdp?|p4d|pud|pmd|pte|ESR|FAR|EC|EA|SET|FnV|CM|WnR|ISV|ISS|FSC)\s?=$")
_DECODED = {"=3d": "=", "=20": " ", "=09": "\t", "=c2=a0": " "}
_ENTITIES = {"&gt;": ">", "&lt;": "<", "&nbsp;": " ", "&quot;": '"', "&amp;": "&"}
_ENTITY = Pattern("|".join(_ENTITIES))
_OPEN = Pattern(
    r"(?:Internal error:(?: [A-Za-z][\w -]*:?)?|Kernel panic(?: -(?: not(?: syncing:?)?)?)?|"
    r"not syncing: .{0,60}\b(?:in|at|the|to|by)|"
    r"\b(?:pc|lr|sp|x\d{1,2}) ?:|(?:PC|LR) is at|Comm:|PID:|CPU:|UID:|Not|Not tainted|Tainted:[A-Z -]*|"
    r"Unable to(?: handle(?: kernel.{0,50})?)?|virtual address|at virtual|paging request(?: at)?|"
    r"\b(?:pgd|p4d|pud|pmd|pte) ?=|(?:pgd|p4d|pud|pmd|pte) ?= ?[0-9a-f]{16},|pgdp? ?=|-bit VAs,|k pages,|"
    r"pgtable:|ESR ?[:=]|FAR ?[:=]|EC =|code|Task stack:|IRQ stack:|Overflow stack:|-- [A-Z]\w{2,5}|"
    r"WARNING:(?: \S{1,200}:\d{1,7}(?: at)?)?|"
    r"kernel BUG at|Bad mode in(?: \w+){0,3}|exitcode=?|^\[[0-9a-f]{16}\]|x\d{1,2}: [0-9a-f]{1,15}|"
    r"pstate:|\bdetected on|corrupted(?: in:?)?)$",
    ":", "=", "]", "Kernel panic", "is at", "Not", "Unable to", "virtual", "paging request", "VAs,", "pages,",
    "code", "-- ", "kernel BUG", "Bad mode", "detected on", "corrupted",
)  # fmt: skip
"""What a line cannot end with: something has to follow."""
_GOES_ON = Pattern(r",? ?\*?(?:pgd|p4d|pud|pmd|pte) ?= ?[0-9a-f]", "pgd", "p4d", "pud", "pmd", "pte")
_WALK = Pattern(r"\bp[g4u]d ?=|^\[[0-9a-f]{8,16}\]$")
_WHOLE = Pattern(
    r"\bx\d{1,2} ?: [0-9a-f]{16}(?![0-9a-f])|\bsp : [0-9a-f]{16}(?![0-9a-f])|0x[0-9a-f]{16}(?![0-9a-f])|"
    r"\bp[g4um]?[dt]e? ?= ?[0-9a-f]{16}(?![0-9a-f])|\+0x[0-9a-f]+/0x[0-9a-f]+(?![0-9a-f\w])|"
    r"\baddress [0-9a-f]{16}(?![0-9a-f])|\[[0-9a-f]{16}\]|pstate: [0-9a-f]{8} |"
    r"\b(?:Not tainted|Comm|PID|kernel stack overflow|handle exception|virtual address|dereference|"
    r"paging request|syncing|Call trace|linux,dummy-virt|PREEMPT|SMP|tainted|current EL|DABT|stack|Task|"
    r"corrupted|detected|inside|scheduler|interrupt|Fatal|Attempted|exitcode|memory|blocked|lockup|hung|tasks|"
    r"Asynchronous|SError|Interrupt|unable|mount|system|working|found|enabled|killed|killing|init|handler|"
    r"synchronous|external|abort|undefined|instruction|read-only|write|address|kernel|handle|Unable|panic|"
    r"Overflow|Hardware name|Internal error|Insufficient|exception|pages|pgtable|VAs|Tainted|space)\b"
)
"""Words and values of the kernel's that are whole: to tell a line that was cut from one that was folded."""
_ELISIONS = (
    "...", "…", "[..", "[ ..", "[…", "[ …", "[snip", "[ snip", "[cut", "[ cut", "<snip", "<trim",
    "(many more",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line of the kernel's, as it was printed."""

    number: int
    """Line of the file, from 1."""
    text: str
    """What the kernel printed, prefixes removed; at most MAX_LINE characters."""
    caller: str = ""
    """`T<pid>` or `C<cpu>` where the log names it, else empty."""
    time: str = ""
    """The time stamp, seconds since boot as printed, or empty."""
    place: int = 0
    """Lines before it: unlike rows, they are as far from each other in every form of a log."""


@dataclass(frozen=True)
class Row:
    """A row of the file."""

    number: int
    """Line of the file, from 1."""
    raw: str
    """Its characters, the end of the line left out."""


@dataclass
class _Open:
    """A line that may go on in the next row."""

    number: int
    text: str
    width: int
    peeled: Peeled
    known: bool
    rows: int = 1
    flowed: bool = False
    """True if the row ends with a space: a mailer's mark of a fold (RFC 3676)."""


@dataclass
class Normaliser:
    """Turn rows into lines; what was learned from earlier rows is kept."""

    columns: Columns = field(default_factory=Columns)
    """Columns that stand in front of known lines."""
    printable: bool = False
    """True if the log is in quoted-printable: a `=` at the end of a row is a mailer's fold."""
    words: set[str] = field(default_factory=set)
    """Words that stand within rows: whole ones."""
    tail: str = ""
    """What ends rows that a program wrote as strings: `"`, `',`, `'}`."""
    terminal: int = 0
    """Columns at which rows are cut in the middle of words; 0 if they are not."""
    held: list[Row] = field(default_factory=list)
    """The last rows, which may be cut at a width."""
    pending: _Open | None = None
    place: int = 0
    """Lines that were read or passed over."""

    @property
    def waits(self) -> bool:
        """True if the last row is of a line that goes on in the next one."""
        if self.pending is not None and _OPEN.search(self.pending.text) is not None:
            return True
        last = _clean(self.held[-1].raw).rstrip() if self.held else ""
        cut = last.endswith("=") or (bool(self.terminal) and len(last) == self.terminal)
        return cut or (bool(last) and _OPEN.search(last) is not None)

    def lines(self, rows: Sequence[Row], *, last: bool = True) -> Iterator[Line]:
        """Yield the lines in `rows`, which follow the ones given before; `last` if no more follow."""
        rows = [*self.held, *rows]
        self.held = [] if last else self._unfinished(rows)
        rows = rows[: len(rows) - len(self.held)]
        pieces = [(at, piece, text) for at, text in self._whole(rows) for piece in _split(text)]
        for (at, piece, row), line in zip(pieces, self._peeled([p for _, p, _ in pieces]), strict=True):
            yield from self._row(at, row if row.endswith(piece) else piece, line)
        if last:
            yield from self._flush()

    def _unfinished(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows at the end that may go on in rows that are not here yet."""
        count = min(len(rows), 1)
        while count < min(len(rows), MAX_ROWS):
            raw = rows[-count - 1].raw
            if not (raw.endswith("=") or (self.terminal and len(_clean(raw)) == self.terminal)):
                break
            count += 1
        return list(rows[len(rows) - count :])

    def _whole(self, rows: Sequence[Row]) -> list[tuple[int, str]]:
        """Join rows that were cut at a width: by quoted-printable's soft breaks, or by a terminal."""
        found: list[tuple[int, str]] = []
        soft = False
        self.printable = self.printable or _quoted_printable(rows)
        parts = [*_parts(rows)]
        self.tail = _common_tail([text for _, text in parts]) or self.tail
        for row, whole in parts:
            text = whole.removesuffix(self.tail)
            if soft:
                found[-1] = (found[-1][0], found[-1][1] + text)
            else:
                found.append((row.number, text))
            soft = self.printable and text.endswith("=") and len(found[-1][1]) < MAX_LINE
            if soft:
                found[-1] = (found[-1][0], found[-1][1][:-1])
        texts = [text for _, text in found]
        peeled = self._peeled(texts)
        if len(self.words) < MAX_WORDS:
            self.words.update(word for text in texts for word in text.split()[1:-1])
        self.terminal = _terminal(texts, peeled, self.words) or self.terminal
        if not self.terminal:
            return found
        joined: list[tuple[int, str]] = []
        full = False
        for (number, text), line in zip(found, peeled, strict=True):
            if full and not line.stamped and len(joined[-1][1]) < MAX_LINE:
                joined[-1] = (joined[-1][0], joined[-1][1] + text)
            else:
                joined.append((number, text))
            full = len(text) == self.terminal
        return joined

    def _peeled(self, texts: Sequence[str]) -> list[Peeled]:
        """Take away what is in front of each row; columns are learned from them first."""
        peeled = [peel(quotes(text)) for text in texts]
        stamped = _stamped(peeled)
        for line in peeled:
            if line.stamped or not stamped:
                self.columns.learn(line.text)
        return [self._learned(line) for line in peeled] if self.columns.known else peeled

    def _learned(self, line: Peeled) -> Peeled:
        text = self.columns.strip(line.text)
        if text is None:
            return line
        return Peeled(text, line.layers + 1, True, line.time, line.caller)

    def _row(self, number: int, raw: str, line: Peeled) -> Iterator[Line]:
        text = line.text.strip("\t ").replace("\t", " ")
        width = len(quotes(raw).rstrip())
        width = width if width >= NARROW else len(raw.rstrip())
        if not text:
            if line.stamped or self.pending is None or not _OPEN.search(self.pending.text):
                yield from self._flush()
            if line.stamped:
                self.pending = _Open(number, "", width, line, known=False)
            return
        known = _known(text)
        before = self.pending
        if before is not None and before.rows < MAX_ROWS and self._goes_on(before, line, text, known=known):
            before.text = (before.text + _glue(before, text) + text)[:MAX_LINE]
            before.width, before.rows, before.flowed = width, before.rows + 1, raw.endswith(" ")
            return
        yield from self._flush()
        self.pending = _Open(number, text, width, line, known, flowed=raw.endswith(" "))

    def _flush(self) -> Iterator[Line]:
        done, self.pending = self.pending, None
        if done is not None and done.text:
            yield Line(done.number, done.text.rstrip(), done.peeled.caller, done.peeled.time, self.place)
            self.place += 1

    def _goes_on(self, before: _Open, line: Peeled, text: str, *, known: bool) -> bool:
        """Tell whether a row continues the line before it."""
        fewer = before.peeled.stamped and not line.stamped
        same = before.peeled.stamped == line.stamped
        if not before.text:
            return fewer
        walk = _GOES_ON.match(text) and _WALK.search(before.text)
        if not line.time and (walk or (text == "..." and "not syncing" in before.text)):
            return True
        later = same and line.time not in ("", before.peeled.time)
        if later or (known and not ((fewer or not line.stamped) and _wrapped_frame(before, text))):
            return False
        if _OPEN.search(before.text):
            return fewer or same
        if not fewer and (line.stamped or not before.known):
            return False
        first = text.partition(" ")[0]
        return before.width + 1 + len(first) >= NARROW and before.width <= WIDE


def _glue(before: _Open, text: str) -> str:
    """Return what stood between two rows: a space, or nothing where a word was cut."""
    if text.startswith(",") and _GOES_ON.match(text):
        return ""
    return "" if _cut_scores(before.text, text) > 0 and not before.flowed else " "


def _cut_scores(before: str, text: str) -> int:
    """Count the words and values that are whole if two rows are joined, less those that are with a space."""
    edge = slice(max(0, len(before) - 60), len(before) + 80)
    joined, apart = (before + text)[edge], f"{before} {text}"[edge]
    return sum(1 for _ in _WHOLE.finditer(joined)) - sum(1 for _ in _WHOLE.finditer(apart))


def _quoted_printable(rows: Sequence[Row]) -> bool:
    """Tell whether a log is in quoted-printable (RFC 2045)."""
    ends = [row.raw for row in rows if row.raw.endswith("=") and len(row.raw) in SOFT]
    if ends and any(_QUOTED_PRINTABLE.search(row.raw) for row in rows):
        return True
    return len(ends) > 1 and not any(_ASSIGNED.search(raw) for raw in ends)


def _stamped(peeled: Sequence[Peeled]) -> bool:
    """Tell whether the lines of a log have stamps, so that rows without one go on from the row before."""
    return sum(line.stamped for line in peeled) > len(peeled) // 3


def _terminal(texts: Sequence[str], peeled: Sequence[Peeled], words: Set[str]) -> int:
    """Return the width at which a terminal cut rows: all that go on have it, and none is longer."""
    longest, stamped = max(map(len, texts), default=0), _stamped(peeled)
    if not NARROW <= longest <= WIDE:
        return 0
    cut = [
        (text, after.text)
        for text, line, after in zip(texts, peeled, peeled[1:], strict=False)
        if len(text) >= NARROW
        and after.text.strip()
        and (line.stamped and not after.stamped if stamped else not _known(after.text.strip()))
    ]
    if len(cut) < 2 or any(len(text) < longest for text, _ in cut):
        return 0
    score = sum(_cut_scores(text, after) + _joined(words, text, after) for text, after in cut)
    return longest if score > 0 or (score == 0 and len(cut) > 2) else 0


def _joined(words: Set[str], text: str, after: str) -> int:
    """Tell whether the word at the edge of two rows stands elsewhere: whole (1), or its halves do (-1)."""
    if text.endswith(" ") or after.startswith(" "):
        return 0
    left, right = text.rpartition(" ")[2], after.partition(" ")[0]
    return int(left + right in words) - int(left in words and right in words)


def _known(text: str) -> bool:
    """Tell whether a line begins with words or a symbol that the kernel prints at the beginning of one."""
    return begins(text) or FRAME_LINE.match(text) is not None or stands_for_more(text)


def stands_for_more(text: str) -> bool:
    """Tell whether a line stands for lines that somebody left out."""
    return text[:10].lower().startswith(_ELISIONS)


def _wrapped_frame(before: _Open, text: str) -> bool:
    """Tell whether a symbol stands on a row of its own because the words before it filled theirs."""
    waits = re.search(r"\b(?:pc|lr|in) ?:$|is at$|\bin$|:\d{1,7} at$", before.text) is not None
    return waits and FRAME_LINE.match(text) is not None


def rows(text: str, number: int = 1) -> Iterator[Row]:
    """Yield the rows of a text; CR, LF and any mixture of them end one, empty ones are kept as such."""
    for at, line in enumerate(text.split("\n" if "\n" in text else "\r"), number):
        for raw in filter(None, line.replace("\r", "\0").split("\0")):
            if at - number > 1:
                yield Row(at - 1, "")
            number = at
            yield Row(at, raw)


def _parts(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Yield the characters of each row as they were printed; a row of JSON or HTML may hold many lines."""
    for row in rows:
        for text in _clean(row.raw[: 64 * MAX_LINE]).split("\n"):
            yield row, text


def _common_tail(texts: Sequence[str]) -> str:
    """Return what more than half of the rows end with, if it is of a program's string."""
    tails = Counter(match[0] for text in texts if (match := _TAIL.search(text, max(0, len(text) - 8))))
    tail, count = next(iter(tails.most_common(1)), ("", 0))
    return tail if 2 * count > sum(map(bool, texts)) else ""


def _split(raw: str) -> list[str]:
    """Cut a row where a further time stamp begins; cut what is longer than MAX_LINE."""
    if raw.count("[") < 2:
        return [raw[:MAX_LINE]]
    starts = [match.start() for match in _STAMPED.finditer(raw)]
    if len(starts) < 2:
        return [raw[:MAX_LINE]]
    edges = [0, *starts[1:], len(raw)]
    return [raw[a : min(b, a + MAX_LINE)] for a, b in pairwise(edges)]


def _clean(raw: str) -> str:
    """Replace what terminals, browsers, mail programs and JSON made of the characters."""
    text = _ANSI.compiled.sub("", raw) if "\x1b" in raw else raw
    if (message := _JSON.search(text)) is not None:
        import json

        text = json.loads(message[1], strict=False).rstrip("\n")
    elif _MEMBER.match(text) is not None:
        return ""
    while text.endswith("^M"):
        text = text[:-2]
    if not text.isascii():
        text = text.translate(_CHARACTERS)
    if _QUOTED_PRINTABLE.search(text) is not None:
        text = _QUOTED_PRINTABLE.compiled.sub(lambda match: _DECODED[match[0].lower()], text)
    if _MARKUP.search(text) is not None or _BREAK.search(text) is not None:
        text = _MARKUP.compiled.sub("", _BREAK.compiled.sub("\n", text))
    if _ESCAPED.search(text) is not None:
        text = _ESCAPED.compiled.sub(r"\1", text)
    if "&" in text:
        text = _ENTITY.compiled.sub(lambda match: _ENTITIES[match[0]], text)
    return text
