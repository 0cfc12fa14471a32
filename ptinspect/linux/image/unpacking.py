"""Kernel files as users have them: the Image or vmlinux in what is packed, wrapped, or a Debian package.

What is found inside is kept in the user's cache, where it is also booted from: QEMU reads it when it starts.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, BinaryIO

from ptinspect import debfile
from ptinspect.errors import KernelFileError, TargetError, UserError
from ptinspect.files import open_input
from ptinspect.linux.image.container import HEADER_SIZE, Blob, FileBytes, ImageHeader, parse_header
from ptinspect.linux.image.derived import derived
from ptinspect.linux.image.vmlinux import Vmlinux
from ptinspect.linux.image.wrappers import is_efi, machine_of, pe_size, within
from ptinspect.packing import HEAD, joined, packing_of, unpacked

MAX_IMAGE = 384 << 20
"""Bytes that an Image may have, and what it is wrapped in; real ones are below 100 MB."""
MAX_ELF = 4 << 30
"""Bytes that a packed vmlinux may have, debug information included."""
MAX_LAYERS = 6
"""How often a kernel may be wrapped and packed: a package, a unified kernel image, EFI zboot, gzip."""
MAX_FILES = 8
"""Files kept in the cache."""
SPARE_SECONDS = 3600.0
"""How long a file is kept at least, for somebody may be about to boot it."""
VERSION = 1
"""Version of what is made; files of another one are made anew."""
IN_PACKAGES = (
    "boot/vmlinuz-*", "boot/vmlinux-*", "boot/Image*", "lib/modules/*/vmlinuz*", "usr/lib/modules/*/vmlinuz*",
    "usr/lib/linux-image-*/vmlinuz*", "usr/lib/debug/boot/vmlinux-*", "usr/lib/debug/lib/modules/*/vmlinux",
)  # fmt: skip
"""Where a kernel lies in a Debian package: those of Debian, of Ubuntu, and of the kernel's own bindeb-pkg."""
_ELF = b"\x7fELF"
_PIECE = 1 << 20
_TABLES = 1024
"""Bytes at the start of a file in which its headers lie."""


class UnknownFile(KernelFileError):
    """Report a file that is none of the kinds that are known."""


def plain(path: Path) -> Path:
    """Return the Image or ELF file that a kernel file is, or that is inside it: then a file of the cache.

    Raises KernelFileError if it cannot be read, is damaged, or is no kernel; UnknownFile if it may be
    anything.
    """
    return _inside(path, _is_image, "plain")


def bootable(path: Path, *, firmware: bool) -> Path:
    """Return the file that QEMU is to be given: with a firmware what that starts, else an Image.

    A vmlinux is made into an Image. Raises KernelFileError, UnknownFile.
    """
    found = _inside(path, _for_firmware, "efi") if firmware else plain(path)
    return _image_of(found) if is_elf(found) else found


def is_elf(path: Path) -> bool:
    """Tell whether a file begins as an ELF file does. Raises KernelFileError if it cannot be read."""
    with _opened(path) as file:
        return _head(file, path).startswith(_ELF)


def open_bytes(path: Path) -> tuple[FileBytes, None] | tuple[Blob, ImageHeader]:
    """Open a kernel file: an ELF file as it stands, an Image with its header; from inside what it is in.

    Raises KernelFileError if it cannot be read or is neither.
    """
    file = _opened(plain(path))
    if _head(file, path).startswith(_ELF):
        return FileBytes(file), None
    with file:
        data = _limited(file, str(path))
    header = parse_header(data)
    if header is None:
        raise KernelFileError(f"{path}: it changed while it was read")
    if header.big_endian:
        raise KernelFileError(f"{path}: a big-endian kernel; ptinspect reads only little-endian ones")
    return Blob(data), header


def _is_image(data: bytes | bytearray) -> bool:
    return parse_header(bytes(data[:HEADER_SIZE])) is not None


def _for_firmware(data: bytes) -> bool:
    return is_efi(data) or _is_image(data)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_input(path)
    except OSError as error:
        raise KernelFileError(f"{path}: {error.strerror or error}") from error


def _inside(path: Path, wanted: Callable[[bytes], bool], what: str) -> Path:
    """Return the file if it is an ELF file or one that is wanted, else what is inside it, from the cache."""
    with _opened(path) as file:
        head = _head(file, path)
        size = os.fstat(file.fileno()).st_size
    if head.startswith(_ELF) or wanted(head):
        if (whole := pe_size(head)) > size:
            raise KernelFileError(f"{path}: truncated: {size} bytes of at least {whole}", "copy it again")
        return path

    def write(out: IO[bytes]) -> None:
        with _opened(path) as file:
            _unwrap(file, str(path), wanted, out)

    return _kept(path, what, write)


def _kept(path: Path, what: str, write: Callable[[IO[bytes]], None]) -> Path:
    """Return the file of the cache that `write` makes from a kernel file. Raises KernelFileError."""
    version = f"{what} {VERSION}"
    try:
        return derived(path, "kernels", version, ".kernel", write, keep=MAX_FILES, spare=SPARE_SECONDS)
    except KernelFileError:
        raise
    except TargetError as error:
        raise KernelFileError(error.message, error.hint) from error
    except UserError as error:
        raise KernelFileError(f"{path}: what is inside it cannot be kept: {error.message}") from error
    except debfile.DAMAGE as error:
        raise KernelFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _image_of(elf: Path) -> Path:
    """Return the Image that a vmlinux is made into, as by `objcopy -O binary` (arch/arm64/boot/Makefile).

    Raises KernelFileError if it holds no code, or does not begin with the header of an Image.
    """

    def write(out: IO[bytes]) -> None:
        with _opened(elf) as file:
            kernel = Vmlinux(elf, FileBytes(file))
            first = min(segment.va for segment in kernel.segments)
            size = max(segment.va + segment.size for segment in kernel.segments) - first
            data = bytearray(min(size, MAX_IMAGE))
            for segment in kernel.segments if size <= MAX_IMAGE and kernel.has_code else ():
                part = kernel.data.read(segment.offset, segment.size)
                data[segment.va - first : segment.va - first + len(part)] = part
        if not _is_image(data):
            raise KernelFileError(
                f"{elf}: an ELF file that cannot be booted: it has no code, or does not begin as an Image",
                f"launch IMAGE --symbols {elf}",
            )
        out.write(data)

    return _kept(elf, "boot", write)


def _head(file: BinaryIO, path: Path) -> bytes:
    """Return the first bytes of a file that was just opened, which stays at its beginning."""
    try:
        return file.peek(_TABLES)[:_TABLES]  # type: ignore[attr-defined, no-any-return]
    except OSError as error:
        raise KernelFileError(f"{path}: {error.strerror or error}") from error


def _unwrap(file: BinaryIO, name: str, wanted: Callable[[bytes], bool], out: IO[bytes]) -> None:
    """Go inside until it is an ELF file or wanted, and write that. Raises KernelFileError, DamagedError."""
    stream = file
    for _ in range(MAX_LAYERS):
        head = stream.peek(HEAD)[:HEAD]  # type: ignore[attr-defined]
        if head.startswith(_ELF):
            _copy(stream, name, out)
            return
        if debfile.is_package(head):
            stream = joined(_in_package(stream, name))
        elif kind := packing_of(head):
            stream = unpacked(stream, kind)
        else:
            data = _limited(stream, name)
            if wanted(data):
                out.write(data)
                return
            stream = io.BufferedReader(io.BytesIO(_next(data, name)))
    raise KernelFileError(f"{name}: packed and wrapped more than {MAX_LAYERS} times")


def _next(data: bytes, name: str) -> bytes:
    """Return what is inside something that is not packed. Raises KernelFileError."""
    if machine := machine_of(data):
        raise KernelFileError(f"{name}: a kernel or program for {machine}, not for arm64")
    inner = within(data, name)
    if inner is None:
        raise UnknownFile(
            f"{name}: neither an arm64 Image nor an ELF file, nor one that is packed in a known way",
            "give the Image or vmlinuz that QEMU boots, or the vmlinux it was made from",
        )
    return inner


def _limited(stream: BinaryIO, name: str) -> bytes:
    data = stream.read(MAX_IMAGE + 1)
    if len(data) > MAX_IMAGE:
        raise KernelFileError(f"{name}: larger than {MAX_IMAGE >> 20} MiB, and no ELF file")
    return data


def _copy(stream: BinaryIO, name: str, out: IO[bytes]) -> None:
    done = 0
    while data := stream.read(_PIECE):
        done += len(data)
        if done > MAX_ELF:
            raise KernelFileError(f"{name}: an ELF file of more than {MAX_ELF >> 30} GiB")
        out.write(data)


def _in_package(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the bytes of the first kernel in a package. Raises KernelFileError if there is none."""
    for path, _, source in debfile.files(stream, name):
        if any(fnmatchcase(path, pattern) for pattern in IN_PACKAGES):
            while data := source.read(_PIECE):
                yield data
            return
    raise KernelFileError(
        f"{name}: no kernel in this package",
        "Debian's are in linux-image-* up to 6.18, then in linux-binary-*; those with symbols in *-dbg",
    )
