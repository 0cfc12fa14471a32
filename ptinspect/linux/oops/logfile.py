"""A log as a stream: unpacked, decoded, and only read closely where the kernel reports something.

Memory is bounded by CHUNK and BATCH, whatever the log's size.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise

from ptinspect.linux.oops import messages
from ptinspect.linux.oops.deaths import Reader
from ptinspect.linux.oops.lines import Normaliser, Row, rows
from ptinspect.packing import HEAD, DamagedError, chunks, packing_of
from ptinspect.typed import BinaryIO, cast

CHUNK = 4 << 20
"""Bytes that are unpacked and searched at a time."""
BATCH = 24 << 10
"""Bytes that are taken apart at a time while a report is open."""
MAX_ROW = 1 << 20
"""Bytes of a row that are kept while its end is looked for."""
TOGETHER = 4
"""Rows at the end of a chunk that wait for the next one: a line may be wrapped there."""
WORDS = (
    b"panic", b"Insufficient", b"Unable", b"Internal", b"Bad", b"Unhandled", b"Unexpected", b"SError",
    b"Synchronous External", b"nVHE hyp", b"[#", b"BUG", b"WARNING", b"LOCKUP", b"Watchdog:", b"INFO: rcu",
    b"INFO: task", b"Booting", b"Linux version", b"Linux\xc2\xa0version",
)  # fmt: skip
"""Words one of which is in each line that begins a report or a boot; `messages.triggers` decides."""

_TIME = rb"^[^\[\n]{0,100}\[ {0,6}(\d{1,9}\.\d{3,9})\]"
"""A row with the kernel's own time stamp."""
_PART = rb"^(\w{3,20}#\d{1,9}) Part(\d{1,4})\r?$"
"""The first row of a part of a dump that pstore kept."""


class Log:
    """The bytes of a log, unpacked if it is packed (`ptinspect.packing`), as UTF-8."""

    def __init__(self, file: BinaryIO) -> None:
        self.whole = True
        """False once the file turned out to be damaged: what came before that was read."""
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        """Yield the log in chunks."""
        pieces = self._unpacked()
        chunk = next(pieces, b"")
        mark = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}.get(chunk[:2])
        decoder = codecs.getincrementaldecoder(mark)(errors="replace") if mark is not None else None
        ends = b""
        while chunk:
            text = _narrow(chunk) if decoder is None else decoder.decode(chunk).encode("utf-8", "replace")
            ends = ends or _ends(text)
            yield text if ends == b"\n" else text.replace(ends, b"\n")
            chunk = next(pieces, b"")

    def _unpacked(self) -> Iterator[bytes]:
        """Yield what the file holds, CHUNK bytes at a time."""
        head = self._file.read(HEAD)
        file = cast(BinaryIO, _Joined(head, self._file))
        kind = packing_of(head)
        if not kind:
            yield from iter(lambda: file.read(CHUNK), b"")
            return
        waiting = bytearray()
        try:
            for piece in chunks(file, kind, strict=True):
                waiting += piece
                while len(waiting) >= CHUNK:
                    yield bytes(waiting[:CHUNK])
                    del waiting[:CHUNK]
        except (DamagedError, OSError):
            self.whole = False
        if waiting:
            yield bytes(waiting)


def _ends(first: bytes) -> bytes:
    """Return what rows end with: LF, or CR, or a string's `\\n` where the whole log is one."""
    head = first[:MAX_ROW]
    found = (end for end in (b"\n", b"\r", b"\\n") if end in head.rstrip())
    return next(found, b"\n")


def _narrow(chunk: bytes) -> bytes:
    """Return bytes without the zeros of UTF-16 that has no mark, as a shell appends it to another log."""
    many = chunk.count(0) * 8 > len(chunk)
    return re.sub(rb"(?<!\x00)\x00(?!\x00)", b"", chunk) if many else chunk


class _Joined(io.RawIOBase):
    """A file whose first bytes were read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self._head[: len(buffer)]
        self._head = self._head[len(buffer) :]
        data += self._rest.read(len(buffer) - len(data))
        buffer[: len(data)] = data
        return len(data)


def read(chunks: Iterable[bytes]) -> Reader:
    """Find the deaths in a log that comes in chunks, of any length each."""
    search = _Search(Reader())
    for chunk in chunks:
        begins = search.number + search.kept.count(b"\n")
        for row, part in _in_order(chunk):
            if row is not None:
                search.end()
                search.number = begins + row
            search.chunk(part)
    search.end()
    return search.reader


def _in_order(log: bytes) -> Iterator[tuple[int | None, bytes]]:
    """Yield a log, or the parts of a dump that pstore kept; rows before each, None if it goes on as it is.

    Part1 is the newest (Linux fs/pstore/platform.c, pstore_dump), so that the files by name are backwards.
    """
    if len(log) < MAX_ROW and _newest_first(log):
        rows = log.split(b"\n")
        yield from zip(reversed(range(len(rows))), (row + b"\n" for row in reversed(rows)), strict=True)
        return
    heads = list(re.finditer(_PART, log, re.MULTILINE)) if b" Part2" in log and len(log) < CHUNK else []
    if len(heads) < 2 or any(int(b[2]) != int(a[2]) + 1 or a[1] != b[1] for a, b in pairwise(heads)):
        yield None, log
        return
    edges = [0, *(head.start() for head in heads), len(log)]
    before, *parts = (log[start:end] for start, end in pairwise(edges))
    yield None, before
    row = log.count(b"\n")
    for part in reversed(parts):
        row -= part.count(b"\n")
        yield row, part


def _newest_first(log: bytes) -> bool:
    """Tell whether time goes back from row to row, as `journalctl -r` and pages of log servers show it."""
    found = islice(re.finditer(_TIME, log, re.MULTILINE), 256)
    times = [float(match[1]) for match in found]
    falls = sum(before > after for before, after in pairwise(times))
    return falls > 8 and falls > 9 * sum(before < after for before, after in pairwise(times))


class _Search:
    """Go from one first line to the next, and through the lines of the reports between."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.normaliser = Normaliser()
        self.kept = b""
        self.number = 1
        self.fresh = BATCH
        """Bytes that are left of the beginning, where a log may be inside of a report."""

    def chunk(self, chunk: bytes) -> None:
        """Take the next bytes; a row that has no end yet is kept."""
        data = self.kept + chunk
        end = data.rfind(b"\n") + 1
        for _ in range(TOGETHER):
            end = data.rfind(b"\n", 0, max(end - 1, 0)) + 1 or end
        if len(data) < (self.fresh if end else MAX_ROW):
            self.kept = data
            return
        self._go(data[: end or len(data)])
        self.kept = data[end:] if end else b""

    def end(self) -> None:
        """Take what is left."""
        if self.kept:
            self._go(self.kept)
            self.kept = b""
        self._flush()

    def _go(self, data: bytes) -> None:
        position, hits = 0, dict.fromkeys(WORDS, -1)
        while position < len(data):
            start = _next(data, position, hits) if self._idle else position
            if start > position and not self._begins_inside(data[position:start]):
                passed = data.count(b"\n", position, start)
                self.number, self.normaliser.place = self.number + passed, self.normaliser.place + passed
                position = start
                if position >= len(data):
                    return
            stop = data.find(b"\n", min(position + BATCH, len(data)), position + MAX_ROW) + 1
            stop = stop or min(position + MAX_ROW, len(data))
            self._batch(data[position:stop])
            position = stop

    def _batch(self, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        found = [Row(row.number, row.raw) for row in rows(text, self.number)]
        self.number += data.count(b"\n")
        for line in self.normaliser.lines(found, last=False):
            self.reader.feed(line)
        if self._idle:
            self._flush()

    def _begins_inside(self, data: bytes) -> bool:
        """Tell whether the bytes before a first line are of a report that the log begins inside of."""
        start = data[: self.fresh]
        self.fresh -= len(start)
        text = start.decode("utf-8", "replace")
        return messages.STATE.search(text) is not None or messages.DIED.search(text) is not None

    @property
    def _idle(self) -> bool:
        """True if the next rows matter only from the next first line on."""
        return self.reader.idle and not self.normaliser.waits

    def _flush(self) -> None:
        for line in self.normaliser.lines((), last=True):
            self.reader.feed(line)


def _next(data: bytes, position: int, hits: dict[bytes, int]) -> int:
    """Return where the next row begins that may begin a report; `hits` are where the words are."""
    while True:
        for word, at in hits.items():
            if 0 <= at < position or at == -1:
                found = data.find(word, position)
                hits[word] = found if found >= 0 else len(data)
        at = min(hits.values())
        if at >= len(data):
            return len(data)
        start = max(data.rfind(b"\n", position, at) + 1, position)
        stop = data.find(b"\n", at)
        stop = len(data) if stop < 0 else stop
        after = data.find(b"\n", stop + 1)
        two = data[max(start, at - 256) : min(after if after >= 0 else len(data), at + 512)]
        if _triggers(two.decode("utf-8", "replace")):
            return start
        position = min(stop + 1, len(data))


def _triggers(rows: str) -> bool:
    """Tell whether a row, joined with the next one in whichever way it was wrapped, may begin a report."""
    folded = " ".join(rows.split()) + " "
    return messages.triggers(folded) or messages.triggers(rows.replace("=\n", "").replace("\n", ""))
