"""A directory that holds a recorded boot: QEMU's log, the machine's states, and all that a replay needs."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ptinspect.dataclass import dataclass, field
from ptinspect.errors import TargetError, UserError
from ptinspect.files import replacing
from ptinspect.link.qemu.machine import LaunchOptions, escape, find_program
from ptinspect.link.qemu.replay_log import HEADER

MANIFEST, LOG, STATES, CONSOLE = "timeline.json", "replay.log", "states.qcow2", "console.log"
KERNEL, INITRD = "kernel", "initrd"
FORMAT = 1
SHIFT = 1
"""2**SHIFT ns of virtual time for each instruction. With `shift=auto` QEMU 11.1 waits for ever in a replay
that goes on from a state; with a number it does not."""
FIRST_STATE = "init"
"""Name of the state at the beginning."""
CLUSTER = 16
"""log2 of the bytes of a cluster of the file of states."""
PROBE_SECONDS = 30.0
PLAIN_MACHINE = re.compile(r"virt(,(gic-version|virtualization|secure|highmem|its|mte|acpi)=\w+)*")
"""Machines whose properties name no file (`dumpdtb`, `firmware` do)."""
WHOLE = {"bios", "dtb", "initrd", "kernel"}
"""Options whose value is the name of a file that is read (QEMU qemu-options.hx)."""
DISKS = {"drive", "blockdev", "hda", "hdb", "hdc", "hdd", "cdrom", "sd", "pflash", "mtdblock"}
FILE = re.compile(r"(?:^|,)file=((?:[^,]|,,)+)")
"""The same in a list of properties: of -device loader, -fw_cfg, -acpitable, -smbios, -drive."""


class Named(NamedTuple):
    """A file that an argument names."""

    word: int
    text: str
    """How it names it."""
    name: str
    """The copy's name in the directory of the recording."""

    @property
    def original(self) -> Path:
        """The file that was named."""
        return Path(self.text.replace(",,", ","))


@dataclass(frozen=True)
class Recording:
    """Describe a recorded boot."""

    directory: Path
    qemu: str
    """What `QEMU --version` prints first."""
    program: str
    """The QEMU that recorded it: to be read, not to be started."""
    machine: str
    cpu: str
    memory: int
    """RAM in MiB."""
    append: str
    extra: tuple[str, ...]
    """Further arguments of QEMU."""
    initrd: bool
    symbols: str
    """The file with the kernel's symbols when it was recorded; the kernel itself where it is empty."""
    end: int | None = None
    """Its length in instructions; None while nobody has measured it."""
    events: Mapping[str, int] = field(default_factory=dict)
    """Positions that have a name."""
    files: tuple[Named, ...] = ()
    """Copies of the files that further arguments name."""
    id: str = ""
    """What tells it from all others; empty in old ones."""

    @property
    def kernel(self) -> Path:
        """The kernel that was booted."""
        return self.directory / KERNEL

    @property
    def console(self) -> Path:
        """What the guest printed while it was recorded."""
        return self.directory / CONSOLE

    def save(self) -> None:
        """Write the manifest. Raises UserError."""
        fields = {**asdict(self), "format": FORMAT}
        del fields["directory"]
        with replacing(self.directory / MANIFEST) as file:
            file.write(json.dumps(fields, indent=2).encode() + b"\n")

    def complete(self, program: str = "") -> bool:
        """Tell whether QEMU has ended the log itself; if not, the log is made such that it can be replayed.

        Raises UserError, TargetError.
        """
        return _finish_log(self.directory / LOG, find_program(program))

    @property
    def foreign(self) -> tuple[str, ...]:
        """What it wants QEMU to be started with that may name files or programs of this machine."""
        machine = () if PLAIN_MACHINE.fullmatch(self.machine) else (self.machine,)
        return (*machine, *self.extra)

    def replayed(self, program: str = "") -> LaunchOptions:
        """Return what QEMU is started with to replay it. Raises UserError where QEMU is another one."""
        found = qemu_version(find_program(program))
        if found != self.qemu:
            raise UserError(
                f"the boot was recorded by {self.qemu} ({self.program}); this is {found}",
                "name that one with --qemu",
            )
        _check_states(self.directory / STATES)
        return LaunchOptions(
            self.kernel,
            self.directory / INITRD if self.initrd else None,
            machine=self.machine,
            cpu=self.cpu,
            memory=self.memory,
            append=self.append,
            extra=(
                *with_copies(self.extra, self.files, self.directory),
                *_arguments(self.directory, "replay"),
                "-no-shutdown",
            ),
            program=program,
        )


def create(directory: Path, options: LaunchOptions, symbols: Path) -> tuple[Recording, LaunchOptions]:
    """Prepare a new directory for a recording; return it, and what QEMU is started with.

    Raises UserError where it cannot be written or holds something, or where QEMU cannot record the machine.
    """
    if options.smp != 1:
        raise UserError("QEMU records machines with one CPU only", "launch --timeline DIR --smp 1")
    program, files = find_program(options.program), named_files(options.extra)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UserError(f"{directory} is not empty", "a recording has a directory of its own")
        folder = directory.absolute()
        shutil.copyfile(options.kernel, folder / KERNEL)
        if options.initrd is not None:
            shutil.copyfile(options.initrd, folder / INITRD)
        for file in files:
            shutil.copyfile(file.original, folder / file.name)
        (folder / STATES).write_bytes(empty_image(1 << 20))
    except OSError as error:
        raise UserError(f"cannot record into {directory}: {error.strerror or error}") from error
    made = Recording(
        folder,
        qemu_version(program),
        program,
        options.machine,
        options.cpu,
        options.memory,
        options.append,
        tuple(options.extra),
        options.initrd is not None,
        "" if symbols == options.kernel else str(symbols.absolute()),
        files=files,
        id=secrets.token_hex(8),
    )
    made.save()
    extra = (*with_copies(options.extra, files, folder), *_arguments(folder, "record"))
    return made, replace(options, extra=extra, console=made.console)


def load(directory: Path) -> Recording:
    """Read a recording's manifest. Raises UserError if the directory holds none."""
    try:
        fields: dict[str, Any] = json.loads((directory / MANIFEST).read_bytes())
        if fields.pop("format") != FORMAT:
            raise UserError(f"{directory} holds a recording of another version of ptinspect")
        _check(fields)
        fields["extra"] = tuple(fields["extra"])
        fields["files"] = tuple(Named(*file) for file in fields.get("files", ()))
        return Recording(directory.absolute(), **fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{directory} holds no recording", "launch --timeline DIR makes one") from error


def _check(fields: Mapping[str, Any]) -> None:
    """Raise ValueError where a manifest's fields are not what this module writes."""
    texts = [fields[name] for name in ("qemu", "program", "machine", "cpu", "append", "symbols")]
    words, events, end = fields["extra"], fields.get("events", {}), fields.get("end")
    positions = [fields["memory"], *events.values(), *(() if end is None else (end,))]
    good = isinstance(words, list) and isinstance(fields["initrd"], bool)
    good = good and all(b"\0" not in os.fsencode(text) for text in (*texts, *words, fields.get("id", "")))
    for at, text, name in fields.get("files", ()):
        good = good and type(at) is int and 0 < at < len(words) and isinstance(text, str)
        good = good and re.fullmatch(r"file\d+", name) is not None
    if not good or any(type(at) is not int or at < 0 for at in positions):
        raise ValueError("a field has another type")


def qemu_version(program: str) -> str:
    """Return the first line that `QEMU --version` prints. Raises TargetError."""
    return _run([program, "--version"]).partition("\n")[0].strip()


def empty_image(size: int) -> bytes:
    """Return an empty disk image for QEMU to keep states in (QEMU docs/interop/qcow2.txt, version 3).

    A cluster each for the header, the table of reference counts, their block, and the table of clusters.
    """
    cluster = 1 << CLUSTER
    tables = -(-size // (cluster * (cluster // 8)))
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQIIII",
        b"QFI\xfb", 3, 0, 0, CLUSTER, size, 0, tables, 3 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104, 0, 0,
    )  # fmt: skip
    counts = struct.pack(">4H", 1, 1, 1, 1)
    parts = (header, struct.pack(">Q", 2 * cluster), counts, b"")
    return b"".join(part.ljust(cluster, b"\0") for part in parts)


def _check_states(file: Path) -> None:
    """Raise UserError if the file of states leads QEMU to other files, which it would read, or write to.

    Source: QEMU docs/interop/qcow2.txt: backing_file_offset, and of incompatible_features all but "dirty".
    """
    try:
        with file.open("rb") as image:
            magic, version, backing, features = struct.unpack(">4sIQ56xQ", image.read(80))
    except (OSError, struct.error) as error:
        raise UserError(f"{file} is no file of states") from error
    if magic != b"QFI\xfb" or version != 3 or backing or features & ~1:
        raise UserError(f"{file} is no file of states that was made here: it may lead to other files")


def _arguments(folder: Path, mode: str) -> tuple[str, ...]:
    where = escape(folder / LOG)
    drive = f"file={escape(folder / STATES)},format=qcow2,if=none,snapshot=off,id=rr"
    icount = f"shift={SHIFT},rr={mode},rrfile={where},rrsnapshot={FIRST_STATE}"
    return ("-icount", icount, "-drive", drive)


def _finish_log(log: Path, program: str) -> bool:
    """Write the start of a log whose QEMU was killed: it does that last; False if it had to be written.

    What it writes there, its version of the format, a recording of nothing by the same QEMU shows.
    """
    try:
        with log.open("r+b") as file:
            if any(file.read(HEADER)):
                return True
            with tempfile.TemporaryDirectory() as folder:
                other = Path(folder) / LOG
                words = [program, "-machine", "none", "-display", "none", "-monitor", "stdio", "-S"]
                _run([*words, "-icount", f"shift={SHIFT},rr=record,rrfile={escape(other)}"], "quit\n")
                header = other.read_bytes()[:HEADER]
            file.seek(0)
            file.write(header)
            return False
    except OSError as error:
        raise UserError(f"cannot use {log}: {error.strerror or error}") from error


def _run(words: list[str], typed: str = "") -> str:
    try:
        done = subprocess.run(
            words, input=typed, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise TargetError(f"cannot run {words[0]}: {error}") from error
    return done.stdout


def named_files(words: Sequence[str]) -> tuple[Named, ...]:
    """Return the files that arguments name and QEMU reads. Raises UserError for disks, which it writes to."""
    found: list[Named] = []
    for at, (word, value) in enumerate(pairwise(words), 1):
        option = word.lstrip("-") if word.startswith("-") else ""
        if option in DISKS and ("file" in value or "=" not in value):
            raise UserError(
                f"a recording cannot keep a disk: -{option} {value}",
                "the guest may write to it: use an initial RAM disk; -bios FILE for a firmware",
            )
        texts = [value.replace(",", ",,")] if option in WHOLE else FILE.findall(value)
        for text in texts:
            named = Named(at, text, f"file{len(found)}")
            if named.original.is_file():
                found.append(named)
    return tuple(found)


def with_copies(words: Sequence[str], files: Sequence[Named], folder: Path) -> tuple[str, ...]:
    """Return the arguments, with the copies in a directory for the files."""
    changed = list(words)
    for named in files:
        copy, old = folder / named.name, changed[named.word]
        whole = words[named.word - 1].lstrip("-") in WHOLE
        changed[named.word] = (
            str(copy) if whole else old.replace(f"file={named.text}", f"file={escape(copy)}")
        )
    return tuple(changed)
