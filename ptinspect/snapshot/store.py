"""Snapshot files.

Format, version 1: a zip file (`.npz`) whose members are numpy arrays, deflated or stored, without
pickled objects, so that `numpy.load(file, allow_pickle=False)` opens it:

    document   uint8 (length)          UTF-8 JSON: format, version, name, root, regime, cpus, ram,
                                       meta, va_range, truncated; numbers of 64 bits as hex strings
    level      int8 (n)                level of each table, sorted by (level, va); row 0 is the root
    pa         uint64 (n)              physical address of each table
    va         uint64 (n)              first virtual address that it translates
    readable   bool (n)                false where the table could not be read
    planes     uint8 (8, n, words)     the descriptors as byte planes: planes[i] holds byte i (0 is the
                                       lowest) of every descriptor; words is granule / 8

Neighbouring descriptors share all bytes but one or two, so each plane is long runs of equal bytes,
which deflate packs well and fast. Descriptors are rebuilt by

    raw = numpy.ascontiguousarray(numpy.moveaxis(planes, 0, -1)).view("<u8")[..., 0]

A reader ignores members and JSON fields that it does not know; any other change is a new version.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch.regime import LEVEL_LAST, Regime
from ptinspect.errors import SnapshotError, UserError
from ptinspect.files import replacing
from ptinspect.snapshot import document
from ptinspect.snapshot.model import Snapshot
from ptinspect.tables import storage
from ptinspect.tables.index import Tables

MAX_FILE_BYTES = 1 << 30
"""Largest file that `load` opens by default."""
MAX_TABLE_BYTES = storage.MOST
"""Largest size of all tables together, uncompressed."""
MAX_DOCUMENT_BYTES = 16 << 20
MAX_HEADER_BYTES = 4096

_HEADER = re.compile(
    rb"\{'descr': '([|<][a-z]\d)', 'fortran_order': False, 'shape': \((\d{1,18}(?:, \d{1,18})*),?\), \} *\n"
)
_MAGIC = b"\x93NUMPY\x01\x00"
_STEP = 1 << 20
_Array = NDArray[Any]


def save(snapshot: Snapshot, path: str | Path) -> None:
    """Write a snapshot to `path`, which is replaced only when all is written.

    Raises SnapshotError if it is larger than `load` accepts, or cannot be written.
    """
    tables = snapshot.tables
    if tables.raw.nbytes > MAX_TABLE_BYTES:
        raise SnapshotError(
            f"{tables.raw.nbytes >> 20} MiB of tables: a file holds at most {MAX_TABLE_BYTES >> 20}",
            "capture a part (--range), or fewer tables",
        )
    text = np.frombuffer(document.encode(snapshot), dtype=np.uint8)
    if text.nbytes > MAX_DOCUMENT_BYTES:
        raise SnapshotError(f"{text.nbytes} bytes of registers and notes are too much for a snapshot file")
    arrays: dict[str, _Array] = {
        "document": text,
        "level": tables.level,
        "pa": tables.pa.astype("<u8", copy=False),
        "va": tables.va.astype("<u8", copy=False),
        "readable": tables.readable,
    }
    path = Path(path)
    try:
        with replacing(path) as file:
            _write(arrays, tables.raw, file)
        if path.is_file():
            _sync_directory(path.resolve().parent)
    except OSError as error:
        raise SnapshotError(f"cannot write {path}: {error.strerror or error}") from error
    except UserError as error:
        raise SnapshotError(error.message, error.hint) from error


def _write(arrays: dict[str, _Array], raw: NDArray[np.uint64], file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with _member(archive, name) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
        with _member(archive, "planes") as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (8, *raw.shape)}
            np.lib.format.write_array_header_1_0(member, header)
            for plane in range(8):
                for start in range(0, raw.shape[0], max(_STEP // raw.shape[1], 1)):
                    words = raw[start : start + max(_STEP // raw.shape[1], 1)].astype("<u8", copy=False)
                    member.write(words.view(np.uint8)[:, plane::8].tobytes())


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Begin an array in the file."""
    entry = zipfile.ZipInfo(f"{name}.npy")
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry._compresslevel = 1  # type: ignore[attr-defined]
    return archive.open(entry, "w", force_zip64=True)


def _sync_directory(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def load(
    path: str | Path, *, max_file_bytes: int = MAX_FILE_BYTES, max_table_bytes: int = MAX_TABLE_BYTES
) -> Snapshot:
    """Read a snapshot file, believing nothing in it.

    Sizes are checked in the zip directory and the array headers before anything is decompressed.
    Raises SnapshotError if it cannot be read, is not a snapshot, is truncated or damaged, larger than
    the bounds, of an unknown version, or contradicts itself.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SnapshotError(f"{path} is not a regular file")
        if status.st_size > max_file_bytes:
            raise SnapshotError(
                f"{path} is too large: {status.st_size} bytes, at most {max_file_bytes} are read"
            )
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise SnapshotError(f"{path} is not a snapshot, or is truncated: it is not a zip file")
            with zipfile.ZipFile(file) as archive:
                return _read(_Archive(archive), max_table_bytes)
    except SnapshotError as error:
        text = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise SnapshotError(text, error.hint) from error.__cause__
    except OSError as error:
        raise SnapshotError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise SnapshotError(f"{path} is damaged or truncated: {error}") from error


def _read(archive: _Archive, max_table_bytes: int) -> Snapshot:
    text = archive.array("document", "|u1", (None,), MAX_DOCUMENT_BYTES).tobytes()
    return document.decode(text, lambda regime, root_pa: _tables(archive, max_table_bytes, regime, root_pa))


def _tables(archive: _Archive, max_table_bytes: int, regime: Regime, root_pa: int) -> Tables:
    words = regime.granule // 8
    most = max_table_bytes // regime.granule
    level = archive.array("level", "|i1", (None,), most)
    count = level.shape[0]
    with archive.member("planes", "|u1", (8, count, words), max_table_bytes) as (_, pieces):
        raw = storage.zeros(count, words).view("<u8")  # may take disk: only where the file has as much
        columns = raw.view(np.uint8).reshape(-1, 8)
        done = 0
        for piece in pieces:
            _spread(piece, done, columns)
            done += piece.shape[0]
    flags = archive.array("readable", "|b1", (count,), most)
    tables = Tables(
        level=level,
        pa=archive.array("pa", "<u8", (count,), most * 8).astype(np.uint64, copy=False),
        va=archive.array("va", "<u8", (count,), most * 8).astype(np.uint64, copy=False),
        raw=raw.astype(np.uint64, copy=False),
        readable=flags.view(np.uint8) != 0,
    )
    check_tables(tables, regime, root_pa)
    return tables


class _Archive:
    """Take arrays of known type and bounded size out of a zip file."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        if "document.npy" not in self._entries:
            raise SnapshotError("not a ptinspect snapshot")

    def array(self, name: str, kind: str, shape: tuple[int | None, ...], max_bytes: int) -> _Array:
        """Read one array. Raises SnapshotError unless type and shape (None: any length) are these."""
        with self.member(name, kind, shape, max_bytes) as (found, pieces):
            array = np.empty(found, dtype=kind)
            room, done = array.reshape(-1).view(np.uint8), 0
            for piece in pieces:
                room[done : done + piece.shape[0]] = piece
                done += piece.shape[0]
            return array

    @contextmanager
    def member(
        self, name: str, kind: str, shape: tuple[int | None, ...], max_bytes: int
    ) -> Iterator[tuple[tuple[int, ...], Iterator[NDArray[np.uint8]]]]:
        """Open one array: its shape, and its bytes piece by piece; raises as `array` does."""
        entry = self._entries.get(f"{name}.npy")
        if entry is None:
            raise SnapshotError(f"the array {name!r} is missing")
        if entry.file_size > max_bytes + MAX_HEADER_BYTES:
            raise SnapshotError(f"the array {name!r} is too large: {entry.file_size} bytes, not {max_bytes}")
        with self._archive.open(entry) as member:
            found_kind, found_shape, header = _header(member, name)
            fits = len(found_shape) == len(shape) and all(
                wanted in (None, got) for wanted, got in zip(shape, found_shape, strict=True)
            )
            if found_kind != kind or not fits:
                wanted = tuple("n" if size is None else size for size in shape)
                raise SnapshotError(f"the array {name!r} is {found_kind}{found_shape}, not {kind}{wanted}")
            size = int(np.prod(found_shape, dtype=object)) * np.dtype(kind).itemsize
            if size != entry.file_size - header:
                raise SnapshotError(f"the array {name!r} has not the size that its header gives")
            yield found_shape, _pieces(member, size, name)


def _header(member: IO[bytes], name: str) -> tuple[str, tuple[int, ...], int]:
    """Read the header of a .npy member: type, shape, and the header's own length."""
    start = member.read(10)
    length = int.from_bytes(start[8:10], "little")
    if start[:8] != _MAGIC or len(start) != 10 or length > MAX_HEADER_BYTES - 10:
        raise SnapshotError(f"{name!r} is not an array")
    found = _HEADER.fullmatch(member.read(length))
    if found is None:
        raise SnapshotError(f"{name!r} is not a plain array")
    return found[1].decode(), tuple(int(size) for size in found[2].split(b", ")), 10 + length


def _pieces(member: IO[bytes], size: int, name: str) -> Iterator[NDArray[np.uint8]]:
    """Decompress exactly so many bytes, a bounded part at once."""
    while size:
        data = member.read(min(_STEP, size))
        if not data:
            raise SnapshotError(f"the array {name!r} is truncated")
        size -= len(data)
        yield np.frombuffer(data, dtype=np.uint8)


def _spread(piece: NDArray[np.uint8], start: int, columns: NDArray[np.uint8]) -> None:
    """Put a piece of the byte planes, which begins at byte `start` of them, into the descriptors' bytes.

    `columns` has a row for each descriptor and is zero: what is zero need not be written.
    """
    count = columns.shape[0]
    while piece.shape[0]:
        plane, first = divmod(start, count)
        part = piece[: count - first]
        if part.any():
            columns[first : first + part.shape[0], plane] = part
        piece, start = piece[part.shape[0] :], start + part.shape[0]


def check_tables(tables: Tables, regime: Regime, root_pa: int) -> None:
    """Raise SnapshotError, naming the rule, if the tables contradict themselves or the regime."""
    level, pa, va = tables.level, tables.pa, tables.va
    first = regime.start_level
    if not len(tables):
        raise SnapshotError("there is no table, not even the root")
    _must(bool(((level >= first) & (level <= LEVEL_LAST)).all()), "a level that the regime does not have")
    _must(bool((np.diff(level) >= 0).all()), "rows that are not sorted by level")
    _must(int(np.count_nonzero(level == first)) == 1, "not exactly one root table")
    _must(int(pa[0]) == root_pa, "a first row that is not the root")
    _must(int(va[0]) == regime.va_min, "a root that does not begin at the start of the half")
    same = level[1:] == level[:-1]
    _must(bool((~same | (va[1:] > va[:-1])).all()), "rows that are not sorted by virtual address")
    _must(_unique(level, pa), "a table that appears twice at one level")
    inside = (va >= np.uint64(regime.va_min)) & (va <= np.uint64(regime.va_max))
    _must(bool(inside.all()), "a virtual address outside the regime's half")
    low = np.uint64(regime.granule - 1)
    _must(not bool((pa[1:] & low).any()), "a table that is not aligned to the granule")
    _must(not bool((pa >> np.uint64(56)).any()), "a physical address of more than 56 bits")
    for number in range(first + 1, LEVEL_LAST + 1):
        covered = np.uint64(regime.entry_size(number - 1) - 1)
        aligned = not bool((va[level == number] & covered).any())
        _must(aligned, f"a level {number} table at a virtual address that is not its first")
    _must(not bool(tables.raw[0, regime.entries(first) :].any()), "descriptors past the end of the root")
    _must(not bool(tables.raw[~tables.readable].any()), "descriptors in a table that could not be read")


def _unique(level: NDArray[np.int8], pa: NDArray[np.uint64]) -> bool:
    """Tell whether every (level, pa) is there once."""
    order = np.lexsort((pa, level))
    pa, level = pa[order], level[order]
    return not bool(((pa[1:] == pa[:-1]) & (level[1:] == level[:-1])).any())


def _must(holds: bool, problem: str) -> None:
    if not holds:
        raise SnapshotError(f"the tables contradict themselves: {problem}")
