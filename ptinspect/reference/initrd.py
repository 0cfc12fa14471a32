"""The initial RAM disk of the reference guests: a static shell and a first process, as cpio.gz.

The format is "newc" of cpio(5), as Documentation/driver-api/early-userspace/buffer-format.rst of
the kernel describes it. Device nodes are only headers there, so that no root is needed. The bytes
depend on nothing but the shell.
"""

from __future__ import annotations

import stat
import zlib

from ptinspect.dataclass import dataclass

READY = "ptinspect guest ready"
"""The line on the console by which the first process is known to run."""
POWEROFF = "ptinspect.poweroff"
"""A word on the kernel's command line: power off when ready."""

INIT = f"""#!/bin/busybox sh
export PATH=/bin HOME=/ PS1='guest# '
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
exec </dev/console >/dev/console 2>&1
echo "{READY}"
case " $(cat /proc/cmdline) " in
*" {POWEROFF} "*) poweroff -f ;;
esac
while :; do
  setsid cttyhack sh
  sleep 1
done
"""
"""The first process: mounts, prints that it is ready, then keeps a shell on the console."""

_DIRECTORIES = ("bin", "dev", "proc", "root", "sys", "tmp")


@dataclass(frozen=True)
class Entry:
    """Describe a file of a cpio archive."""

    path: str
    """Path without a leading slash."""
    mode: int
    """Type and permission bits, as in stat(2)."""
    data: bytes = b""
    """Content of a file, or target of a symbolic link."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


def build(busybox: bytes) -> bytes:
    """Return the initial RAM disk, gzipped; `busybox` is a static arm64 executable."""
    entries = [
        *(Entry(name, stat.S_IFDIR | 0o755) for name in _DIRECTORIES),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
        Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
        Entry("init", stat.S_IFREG | 0o755, INIT.encode()),
    ]
    return zlib.compress(cpio(entries), 9, wbits=16 + zlib.MAX_WBITS)  # gzip, without a name or a time


def cpio(entries: list[Entry]) -> bytes:
    """Return a newc archive; owners and times are 0, inode numbers count from 1."""
    out = bytearray()
    for inode, entry in enumerate(entries, 1):
        _append(out, entry, inode)
    _append(out, Entry("TRAILER!!!", 0), 0)
    return bytes(out)


def _append(out: bytearray, entry: Entry, inode: int) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    _align(out)
    out += entry.data
    _align(out)


def _align(out: bytearray) -> None:
    out += bytes(-len(out) % 4)
