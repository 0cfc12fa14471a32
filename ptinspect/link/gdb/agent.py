"""The other side of gdbscripts/ptinspect_agent.py, which runs inside GDB."""

from __future__ import annotations

import binascii
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ptinspect.errors import MiError, TargetError
from ptinspect.link.gdb.mi import GdbLink, Reply, console_command, quote

SCRIPT = "ptinspect_agent.py"
BYTES_PER_SECOND = 500_000
"""Slowest link for which a batch is given time."""
BASE_SECONDS = 10.0
WRITE_CHUNK = 64 << 10
RELAY_SECONDS = 40.0
"""Longer than the script waits for a relay to start."""
TURN_SECONDS = 0.5
"""Longest that is waited for a stub that is far away, for each part of what is written."""
AREAS_SECONDS = 120.0
"""Each area costs GDB some round trips, of which a stub that is far away takes its time."""
LAYOUT, VIRTUAL = "-ptinspect-registers", "-ptinspect-virtual"
CODE_CHUNK = 4 << 10
"""Bytes of code that are disassembled at one go."""


def script_path() -> Path:
    """Return the script for GDB: in the installed package, or beside it in a source tree.

    Raises TargetError if it is in neither place.
    """
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "gdbscripts", package.parent / "gdbscripts"):
        if (folder / SCRIPT).is_file():
            return folder / SCRIPT
    raise TargetError(f"{SCRIPT} is missing from this installation of ptinspect")


def load_line(name: str = SCRIPT) -> str:
    """Return the command of GDB's that loads a script. Raises TargetError if it is missing.

    It becomes a module: what GDB sources shares one namespace, and other scripts (gef's) have a Path, a
    Frame, ... of their own in it.
    """
    folder, module = str(script_path().parent), name.removesuffix(".py")
    path = "__import__('sys').path"
    return f"python {path}.insert(0, {folder!r}); import {module}; {path}.remove({folder!r})"


def load_command() -> str:
    """Return the MI command that loads the script. Raises TargetError if it is missing."""
    return console_command(load_line())


def heir_command(words: Sequence[str]) -> str:
    """Return the MI command that bequeaths the guest to this command (Agent.bequeath)."""
    return f"-ptinspect-heir {' '.join(map(quote, words))}"


class Agent:
    """Read and write guest-physical memory in batches."""

    def __init__(self, gdb: GdbLink, file: int | None = None) -> None:
        """Use a GDB that has run `load_command()`; `file` is a file that it has inherited."""
        self._gdb = gdb
        self._file = file
        self._plain = False

    def read(self, ranges: Sequence[tuple[int, int]]) -> bytes:
        """Return the bytes of the ranges (pa, size), one after another, in one round trip.

        An address without RAM reads as zeros: check before. Raises TargetError.
        """
        total = sum(size for _, size in ranges)
        words = ["-ptinspect-read", ",".join(f"{pa:x}:{size:x}" for pa, size in ranges)]
        words += [] if self._file is None else [str(self._file)]
        reply = self._gdb.request(" ".join(words), BASE_SECONDS + total / BYTES_PER_SECOND)
        data = self._decode(reply)
        if len(data) != total:
            raise MiError(f"GDB's answer to a read of {total} bytes holds {len(data)}")
        return data

    def _decode(self, reply: Reply) -> bytes:
        try:
            if self._file is None:
                return binascii.a2b_base64(reply.field("data"), strict_mode=True)
            return os.pread(self._file, int(reply.field("size")), 0)
        except (ValueError, OSError) as error:
            raise MiError(f"GDB's answer to a read is damaged: {error}") from error

    def write(self, parts: Iterable[tuple[int, bytes]]) -> None:
        """Write bytes at guest-physical addresses, few of them in one round trip. Raises TargetError."""
        words: list[str] = []
        for pa, data in parts:
            for start in range(0, len(data), WRITE_CHUNK):
                words += [f"{pa + start:x}", data[start : start + WRITE_CHUNK].hex()]
                if sum(map(len, words)) > WRITE_CHUNK:
                    self._write(words)
                    words = []
        if words:
            self._write(words)

    def _write(self, words: Sequence[str]) -> None:
        self._gdb.request(f"-ptinspect-write {' '.join(words)}", BASE_SECONDS + TURN_SECONDS * len(words) / 2)

    def disassemble(self, address: int, code: bytes) -> str:
        """Return GDB's lines for these bytes as instructions at an address. Raises MiError before GDB 13."""
        parts = []
        for start in range(0, len(code), CODE_CHUNK):
            words = f"-ptinspect-disassemble {address + start:x} {code[start : start + CODE_CHUNK].hex()}"
            parts.append(self._text(words, "text"))
        return "".join(parts)

    def layout(self) -> str:
        """Return GDB's list of where the stub has its registers. Raises TargetError."""
        return self._text(LAYOUT, "layout")

    def _text(self, command: str, field: str) -> str:
        """Return the text in a field of the answer. Raises TargetError."""
        data = self._gdb.request(command, BASE_SECONDS).field(field)
        try:
            return binascii.a2b_base64(data).decode("utf-8", "replace")
        except ValueError as error:
            raise MiError(f"GDB's answer to {command.split(maxsplit=1)[0]} is damaged: {error}") from error

    def leave_physical_mode(self) -> bool:
        """Switch the stub to virtual addresses and flush GDB's caches; return whether pipelining works."""
        return self._gdb.request(VIRTUAL, BASE_SECONDS).field("wire") == b"yes"

    def look(self) -> tuple[bytes, bool]:
        """Return a digest of the state of all CPUs, and whether the guest was found running and was stopped.

        The digest is empty where the stub's socket is not known. Raises TargetError.
        """
        how, _, digest = self._gdb.request("-ptinspect-look", BASE_SECONDS).field("looked").partition(b" ")
        return digest, how == b"ran"

    def registers(self, threads: Sequence[int], numbers: Sequence[int]) -> list[list[str]]:
        """Return what the stub gives for registers of GDB's threads, in hex, asked for all at once.

        A row for each thread: the packet of general registers, and the registers of these numbers, which
        are the stub's. An error of the stub's stands in the place of its answer. Raises TargetError where
        there is no pipeline.
        """
        words = ["-ptinspect-registers", ",".join(map(str, threads)), ",".join(map(str, numbers))]
        rows = self._gdb.request(" ".join(words).strip(), BASE_SECONDS).field("registers").decode().split(";")
        found = [row.split(",") for row in rows]
        if [len(row) for row in found] != [len(numbers) + 1] * len(threads):
            raise MiError("GDB's answer to a read of registers is damaged")
        return found

    def frames(self, plain: bool) -> None:
        """Have GDB make frames of SP and PC alone, or by its own means, which read memory at every stop.

        Its own are for the user's commands, until ptinspect lets the guest run again; always in a GDB that
        ptinspect did not start.
        """
        if self._file is not None and plain is not self._plain:
            self._plain = plain
            self._gdb.request(f"-ptinspect-frames {'plain' if plain else 'gdb'}", BASE_SECONDS)

    def watch(self, areas: Sequence[tuple[int, int]]) -> list[int]:
        """Stop the guest at accesses to areas (address, size); return GDB's numbers. Raises MiError."""
        if not areas:
            return []
        words = ",".join(f"{address:x}:{size:x}" for address, size in areas)
        numbers = self._gdb.request(f"-ptinspect-watch {words}", AREAS_SECONDS).field("numbers")
        return [int(number) for number in numbers.split(b",")]

    def unwatch(self) -> None:
        """Watch none of these areas any more."""
        self._gdb.request("-ptinspect-unwatch", AREAS_SECONDS)

    def bequeath(self, words: Sequence[str]) -> None:
        """Have GDB run this command if it has to end while it is attached and nobody is left to detach it."""
        self._gdb.request(heir_command(words), BASE_SECONDS)

    def relay(self, words: Sequence[str]) -> bool:
        """Have this command, with two sockets, pass on what GDB and the stub say; False if it cannot."""
        request = f"-ptinspect-relay {' '.join(map(quote, words))}"
        return self._gdb.request(request, RELAY_SECONDS).field("relayed") == b"yes"
