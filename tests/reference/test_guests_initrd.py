"""The initial RAM disk, read back by an independent reader of the format."""

from __future__ import annotations

import gzip
import stat
import struct
from dataclasses import dataclass

from ptinspect.reference import initrd


@dataclass
class Read:
    mode: int
    data: bytes
    device: tuple[int, int]
    inode: int
    mtime: int
    owner: tuple[int, int]


def read_newc(data: bytes) -> dict[str, Read]:
    found = {}
    at = 0
    while True:
        magic, *text = struct.unpack_from("6s" + "8s" * 13, data, at)
        assert magic == b"070701"
        fields = [int(t, 16) for t in text]
        inode, mode, uid, gid, _links, mtime, size, _major, _minor, rmajor, rminor, namesize, check = fields
        assert check == 0
        name = data[at + 110 : at + 110 + namesize]
        assert name.endswith(b"\0")
        body = at + (110 + namesize + 3) // 4 * 4
        at = body + (size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return found
        content = data[body : body + size]
        assert len(content) == size
        found[name[:-1].decode()] = Read(mode, content, (rmajor, rminor), inode, mtime, (uid, gid))


def test_it_holds_the_shell_the_first_process_and_the_console() -> None:
    shell = bytes(range(251)) * 3
    files = read_newc(gzip.decompress(initrd.build(shell)))
    assert files["bin/busybox"].data == shell
    assert stat.S_IMODE(files["bin/busybox"].mode) == 0o755
    assert files["init"].data.startswith(b"#!/bin/busybox sh\n")
    assert files["init"].mode == stat.S_IFREG | 0o755
    assert initrd.READY.encode() in files["init"].data
    assert files["bin/sh"].mode == stat.S_IFLNK | 0o777
    assert files["bin/sh"].data == b"busybox"
    assert (files["dev/console"].mode, files["dev/console"].device) == (stat.S_IFCHR | 0o600, (5, 1))
    assert (files["dev/null"].mode, files["dev/null"].device) == (stat.S_IFCHR | 0o666, (1, 3))
    for name in ("proc", "sys", "tmp", "dev", "bin"):
        assert stat.S_ISDIR(files[name].mode)


def test_parents_come_first_and_inodes_differ() -> None:
    files = read_newc(gzip.decompress(initrd.build(b"x")))
    names = list(files)
    for name in names:
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)
    assert len({f.inode for f in files.values()}) == len(files)


def test_the_bytes_depend_on_the_shell_alone() -> None:
    assert initrd.build(b"one") == initrd.build(b"one")
    assert initrd.build(b"one") != initrd.build(b"two")
    image = initrd.build(b"one")
    assert image[4:8] == bytes(4)  # MTIME of RFC 1952
    assert all((f.mtime, f.owner) == (0, (0, 0)) for f in read_newc(gzip.decompress(image)).values())
