"""Kernel files in miniature: Images, packed ones, vmlinux files; symbols and types as real ones have them."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.image.symbols import SymbolTable

BANNER = b"Linux version 5.10.0-test (builder@host) (gcc) #1 SMP Test\n"
TEXT_VA = 0xFFFF_8000_1000_0000
TEXT_SIZE = 0x4_0000
BANNER_AT = 0x6_0000


def header(
    *,
    text_offset: int = 0,
    size: int = 0x10_0000,
    flags: int = 0b1010,
    entry: int = 0x1_0000,
    magic: bytes = b"ARMd",
) -> bytes:
    code = struct.pack("<II", 0x91005A4D, 0x14000000 | (entry - 4) // 4)
    return code + struct.pack("<QQQ", text_offset, size, flags) + bytes(24) + magic + bytes(4)


def image(
    *, size: int = 0x8_0000, seed: int = 1, text: Iterable[tuple[int, bytes]] = (), **more: object
) -> bytes:
    """Return an Image whose code is random words, with `text` (offset, bytes) written over it."""
    data = bytearray(size)
    data[:64] = header(**more)  # type: ignore[arg-type]
    code = np.random.default_rng(seed).integers(0, 1 << 32, TEXT_SIZE // 4, dtype=np.uint32)
    data[0x1_0000 : 0x1_0000 + TEXT_SIZE] = code.tobytes()
    data[BANNER_AT - 16 : BANNER_AT] = b"Linux version %s"
    data[BANNER_AT : BANNER_AT + len(BANNER)] = BANNER
    for offset, raw in text:
        data[offset : offset + len(raw)] = raw
    return bytes(data)


def zboot(payload: bytes, kind: bytes, machine: int = 0xAA64) -> bytes:
    """Pack an Image as drivers/firmware/efi/libstub/zboot-header.S does."""
    head = b"MZ\0\0zimg" + struct.pack("<IIII", 512, len(payload), 0, 0) + kind.ljust(32, b"\0")
    pe = b"PE\0\0" + struct.pack("<HH", machine, 0)
    return (head + b"\xcd\x23\x82\x81" + struct.pack("<I", 64) + pe).ljust(512, b"\0") + payload


def unified(kernel: bytes) -> bytes:
    """Wrap a kernel as ukify does: a PE file with a section `.linux`, signed at its end."""
    names = (b".text", b".osrel", b".linux")
    bodies = (bytes(512), b"ID=test".ljust(512, b"\0"), kernel.ljust(-(-len(kernel) // 512) * 512, b"\0"))
    at, table, raw = 1024, b"", b""
    for name, body in zip(names, bodies, strict=True):
        size = len(kernel) if name == b".linux" else len(body)
        table += name.ljust(8, b"\0") + struct.pack("<IIIIIIHHI", size, 0x1000, len(body), at, 0, 0, 0, 0, 0)
        raw, at = raw + body, at + len(body)
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    pe = b"PE\0\0" + struct.pack("<HHIIIHH", 0xAA64, 3, 0, 0, 0, 112, 0x206) + bytes(112)
    return (dos + pe + table).ljust(1024, b"\0") + raw + b"signature" * 100


def uimage(data: bytes, *, machine: int = 22, kind: int = 2) -> bytes:
    """Wrap a kernel as `mkimage -A arm64 -T kernel` does."""
    head = struct.pack(
        ">IIIIIIIBBBB", 0x27051956, 0, 0, len(data), 0x40200000, 0x40200000, 0, 5, machine, kind, 0
    )
    return head + b"Linux".ljust(32, b"\0") + data


def fit(kernel: bytes, *, machine: bytes = b"arm64", external: bool = False) -> bytes:
    """Wrap a kernel as `mkimage -f` does, with a device tree beside it; `external`: as with -E."""
    strings = b""

    def has(name: bytes, value: bytes) -> bytes:
        nonlocal strings
        at = len(strings)
        strings += name + b"\0"
        return struct.pack(">III", 3, len(value), at) + value + bytes(-len(value) % 4)

    def node(name: bytes, *content: bytes) -> bytes:
        text = name + b"\0"
        return struct.pack(">I", 1) + text + bytes(-len(text) % 4) + b"".join(content) + struct.pack(">I", 2)

    where = [has(b"data", kernel)]
    if external:
        where = [has(b"data-offset", struct.pack(">I", 0)), has(b"data-size", struct.pack(">I", len(kernel)))]
    other = node(b"other", has(b"type", b"kernel\0"), has(b"arch", b"arm64\0"), has(b"data", b"not this one"))
    image = node(b"kernel-1", has(b"type", b"kernel\0"), has(b"arch", machine + b"\0"), *where)
    conf = node(b"configurations", has(b"default", b"c1\0"), node(b"c1", has(b"kernel", b"kernel-1\0")))
    tree = node(b"", has(b"description", b"test\0"), node(b"images", other, image), conf) + struct.pack(
        ">I", 9
    )
    total = 56 + len(tree) + len(strings)
    head = struct.pack(">10I", 0xD00DFEED, total, 56, 56 + len(tree), 40, 17, 16, 0, len(strings), len(tree))
    whole = head + bytes(16) + tree + strings
    return whole + bytes(-len(whole) % 4) + kernel if external else whole


def packed(data: bytes) -> dict[str, bytes]:
    zipped, xz = gzip.compress(data, 1), lzma.compress(data, preset=0)
    return {"gzip": zipped, "xz": xz, "zboot gzip": zboot(zipped, b"gzip"), "zboot xz": zboot(xz, b"xzkern")}


def table(symbols: Sequence[tuple[str, int, str]]) -> SymbolTable:
    names, addresses, kinds = zip(*symbols, strict=True) if symbols else ((), (), ())
    return SymbolTable(list(names), np.array(addresses, np.uint64), "".join(kinds))


def opened(path: Path, symbols: Sequence[tuple[str, int, str]], data: bytes = b"") -> KernelImage:
    """Write a kernel file, `image` unless told otherwise, and open it: it has these symbols."""
    path.write_bytes(data or image())
    return with_symbols(KernelImage.open(path), symbols)


def with_symbols(kernel: KernelImage, symbols: Sequence[tuple[str, int, str]], why: str = "") -> KernelImage:
    """Give a kernel file these symbols; none, and why."""
    kernel.__dict__["_table"] = (table(symbols), why)
    return kernel


SYMBOLS = table(
    [
        ("_stext", TEXT_VA + 0x1_0000, "T"),
        ("vectors", TEXT_VA + 0x1_0800, "T"),
        ("_etext", TEXT_VA + 0x1_0000 + TEXT_SIZE, "R"),
        ("primary_entry", TEXT_VA + 0x1_0000, "T"),
    ]
)


def vmlinux(
    *,
    symbols: Sequence[tuple[str, int, int, int]] = (),
    sections: Sequence[tuple[str, int, bytes]] = (),
    machine: int = 183,
    kind: int = 2,
    code: bytes | None = None,
    va: int = TEXT_VA,
) -> bytes:
    """Return an ELF file: one PT_LOAD with `code`, symbols (name, value, info, section), further sections."""
    code = image() if code is None else code
    strings, symtab = b"\0", bytes(24)
    for name, value, info, section in symbols:
        symtab += struct.pack("<IBBHQQ", len(strings), info, 0, section, value, 0)
        strings += name.encode() + b"\0"
    listed = [
        (".text", 1, 6, va, code, 0),
        (".symtab", 2, 0, 0, symtab, 3),
        (".strtab", 3, 0, 0, strings, 0),
        *((name, kind_, 0, 0, raw, 0) for name, kind_, raw in sections),
    ]
    names, bodies, at = b"\0", b"", 64 + 56
    heads = bytes(64)
    for name, type_, flags, address, raw, link in listed:
        body_at = at + len(bodies)
        heads += struct.pack(
            "<IIQQQQIIQQ",
            len(names),
            type_,
            flags,
            address,
            body_at,
            len(raw),
            link,
            0,
            8,
            24 if type_ == 2 else 0,
        )
        names += name.encode() + b"\0"
        bodies += raw
    heads += struct.pack("<IIQQQQIIQQ", len(names), 3, 0, 0, at + len(bodies), len(names) + 10, 0, 0, 1, 0)
    names += b".shstrtab\0"
    bodies += names
    table_at = at + len(bodies)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    count = len(heads) // 64
    elf = ident + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, va, 64, table_at, 0, 64, 56, 1, 64, count, count - 1
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, at, va, va, len(code), len(code) + 0x1000, 0x1000)
    return elf + load + bodies + heads


class BtfBuilder:
    """Write BTF: types get their ids in the order in which they are added, from 1."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def string(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(
        self, kind: int, name: str, size: int, extra: bytes = b"", *, vlen: int = 0, flag: bool = False
    ) -> int:
        info = kind << 24 | vlen | int(flag) << 31
        self.types += struct.pack("<III", self.string(name), info, size) + extra
        self.count += 1
        return self.count

    def integer(self, name: str, size: int) -> int:
        return self.add(1, name, size, struct.pack("<I", 8 * size))

    def pointer(self, target: int) -> int:
        return self.add(2, "", target)

    def array(self, element: int, count: int) -> int:
        return self.add(3, "", 0, struct.pack("<III", element, 1, count))

    def struct(
        self,
        name: str,
        size: int,
        members: Sequence[tuple[str, int, int]],
        *,
        union: bool = False,
        flag: bool = False,
    ) -> int:
        """Members: (name, type, offset in bits; with `flag`, the width in bits 31:24)."""
        extra = b"".join(struct.pack("<III", self.string(n), t, o) for n, t, o in members)
        return self.add(5 if union else 4, name, size, extra, vlen=len(members), flag=flag)

    def typedef(self, name: str, target: int, kind: int = 8) -> int:
        return self.add(kind, name, target)

    def blob(self) -> bytes:
        head = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return head + self.types + self.strings
