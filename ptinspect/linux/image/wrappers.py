"""What a kernel is wrapped in beside being packed: EFI zboot, a unified kernel image, U-Boot's formats.

Source: Linux drivers/firmware/efi/libstub/zboot-header.S and Makefile.zboot; the UAPI group's specification
of unified kernel images (`.linux`); U-Boot include/image.h and doc/usage/fit; Devicetree specification 5
(the format of a FIT); PE Format (COFF header, section table).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from ptinspect.errors import KernelFileError
from ptinspect.packing import HEAD, packing_of

ZBOOT_KIND = slice(24, 56)
"""The name of the packing in an EFI zboot header."""
UIMAGE = b"\x27\x05\x19\x56"
_UIMAGE_KERNEL, _UIMAGE_ARM64 = 2, 22
FDT = b"\xd0\x0d\xfe\xed"
_BEGIN, _END, _PROPERTY, _NOP = 1, 2, 3, 4
MAX_NODES = 10_000
MAX_NAME = 256
"""Bytes of a name in a device tree; its specification has 31."""
MAX_DEPTH = 16
"""Nodes within each other; a kernel lies in the third."""
_PE_ARM64 = 0xAA64
MACHINES: Mapping[int, str] = {
    0x14C: "x86",
    0x8664: "x86-64",
    0x1C0: "32-bit Arm",
    0x1C2: "32-bit Arm",
    0x5032: "RISC-V",
    0x5064: "RISC-V",
    0x6232: "LoongArch",
    0x6264: "LoongArch",
}
"""The machine in a PE header, for others than arm64."""
MARKS: Mapping[tuple[int, bytes], str] = {
    (0x202, b"HdrS"): "x86",
    (0x38, b"RSC\x05"): "RISC-V",
    (0x24, b"\x18\x28\x6f\x01"): "32-bit Arm",
}
"""What else marks a kernel of another machine: (offset, bytes).

Source: Documentation/arch/x86/boot.rst, riscv/boot-image-header.rst, arch/arm/boot/compressed/head.S.
"""


def machine_of(data: bytes) -> str:
    """Return the machine that a kernel is for, if it is another one than arm64; else nothing."""
    machine = MACHINES.get(_pe_machine(data), "")
    return machine or next((name for (at, mark), name in MARKS.items() if data.startswith(mark, at)), "")


def is_efi(data: bytes) -> bool:
    """Tell whether a firmware can start this: a PE file, as an Image with the EFI stub is."""
    return data.startswith(b"MZ")


def pe_size(data: bytes) -> int:
    """Return where the sections of a PE file end, as an Image with the EFI stub is; 0 for another file."""
    sections = _pe_sections(data) if _pe_machine(data) else ()
    return max((offset + size for _, (offset, size) in sections), default=0)


def within(data: bytes, name: str) -> bytes | None:
    """Return what a file wraps, packed or not; None if it is no wrapper that is known.

    Raises KernelFileError if it is damaged, or wraps something else than an arm64 kernel.
    """
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        return _zboot(data, name)
    if data.startswith(UIMAGE):
        return _uimage(data, name)
    if data.startswith(FDT):
        return _fit(data, name)
    if _pe_machine(data) == _PE_ARM64:
        places = [place for section, place in _pe_sections(data) if section == b".linux"]
        return _part(data, *places[0], f"{name}: the unified kernel image") if places else None
    return None


def _part(data: bytes, offset: int, size: int, what: str) -> bytes:
    """Return a part of a file. Raises KernelFileError if it is not there."""
    if not size or offset + size > len(data):
        raise KernelFileError(f"{what} is truncated or damaged")
    return data[offset : offset + size]


def _zboot(data: bytes, name: str) -> bytes:
    what = f"{name}: the EFI zboot image"
    offset, size = struct.unpack("<II", _part(data, 8, 8, what))
    payload = _part(data, offset, size, what)
    if not packing_of(payload[:HEAD]):
        kind = data[ZBOOT_KIND].split(b"\0")[0].decode("ascii", "replace")
        raise KernelFileError(
            f"{what} is packed with {kind!r}, which ptinspect cannot unpack, or is damaged",
            "give the vmlinux, or the plain Image (arch/arm64/boot/Image)",
        )
    return payload


def _uimage(data: bytes, name: str) -> bytes:
    what = f"{name}: the uImage"
    header = _part(data, 0, 64, what)
    size = int.from_bytes(header[12:16], "big")
    machine, kind = header[29], header[30]
    if (machine, kind) != (_UIMAGE_ARM64, _UIMAGE_KERNEL):
        raise KernelFileError(f"{what} holds no arm64 kernel (architecture {machine}, type {kind})")
    return _part(data, 64, size, what)


def _pe_machine(data: bytes) -> int:
    at = int.from_bytes(data[0x3C:0x40], "little")
    if data[:2] != b"MZ" or data[at : at + 4] != b"PE\0\0":
        return 0
    return int.from_bytes(data[at + 4 : at + 6], "little")


def _pe_sections(data: bytes) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield the name of each section, and its offset and size in the file."""
    at = int.from_bytes(data[0x3C:0x40], "little")
    count, optional = (int.from_bytes(data[at + o : at + o + 2], "little") for o in (6, 20))
    for row in range(at + 24 + optional, at + 24 + optional + 40 * count, 40):
        header = data[row : row + 40]
        if len(header) == 40:
            size, _, stored, offset = struct.unpack_from("<IIII", header, 8)
            yield header[:8].rstrip(b"\0"), (offset, min(size, stored))


def _fit(data: bytes, name: str) -> bytes:
    """Return the kernel of the default configuration of a FIT, else the first kernel in it."""
    what = f"{name}: the device tree"
    nodes = dict(_nodes(data, what))
    default = nodes.get("/configurations", {}).get("default", b"").rstrip(b"\0").decode("utf-8", "replace")
    chosen = nodes.get(f"/configurations/{default}", {}).get("kernel", b"").split(b"\0")[0]
    wanted = f"/images/{chosen.decode('utf-8', 'replace')}"
    kernels = [
        path for path, has in nodes.items() if path.startswith("/images/") and has.get("type") == b"kernel\0"
    ]
    path = wanted if wanted in nodes else kernels[0] if kernels else ""
    if not path:
        raise KernelFileError(f"{name}: a device tree, with no kernel in it")
    has = nodes[path]
    machine = has.get("arch", b"arm64").rstrip(b"\0").decode("utf-8", "replace")
    if machine != "arm64":
        raise KernelFileError(f"{name}: the kernel in the FIT is for {machine!r}, not arm64")
    if "data" in has:
        return has["data"]
    size = int.from_bytes(has.get("data-size", b""), "big")
    if "data-position" in has:
        return _part(data, int.from_bytes(has["data-position"], "big"), size, what)
    end = (int.from_bytes(data[4:8], "big") + 3) & ~3
    return _part(data, end + int.from_bytes(has.get("data-offset", b""), "big"), size, what)


def _nodes(data: bytes, what: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the path and the properties of each node. Raises KernelFileError."""
    offset, strings = struct.unpack(">II", _part(data, 8, 8, what))
    path: list[str] = []
    has: dict[str, bytes] = {}
    for _ in range(MAX_NODES):
        token = int.from_bytes(_part(data, offset, 4, what), "big")
        offset += 4
        if token == _BEGIN:
            name = _name(data, offset, what)
            if len(path) > MAX_DEPTH:
                raise KernelFileError(f"{what} is damaged: nodes within nodes, more than {MAX_DEPTH}")
            path.append(name.decode("utf-8", "replace"))
            has = {}
            yield "/".join(path) or "/", has
            offset = (offset + len(name) + 4) & ~3
        elif token == _PROPERTY:
            length, at = struct.unpack(">II", _part(data, offset, 8, what))
            key = _name(data, strings + at, what).decode("utf-8", "replace")
            has[key] = _part(data, offset + 8, length, what) if length else b""
            offset = (offset + 8 + length + 3) & ~3
        elif token == _END and path:
            path.pop()
        elif token != _NOP:
            return


def _name(data: bytes, at: int, what: str) -> bytes:
    """Return a name, which ends with a zero. Raises KernelFileError if none does."""
    end = data.find(b"\0", at, at + MAX_NAME)
    if end < 0:
        raise KernelFileError(f"{what} is truncated or damaged")
    return data[at:end]
