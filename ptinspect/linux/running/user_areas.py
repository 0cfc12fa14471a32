"""The areas of a user address space, named as /proc/PID/maps names them, from the kernel's own structures.

Up to v6.0 they are a list (mm_struct.mmap); since Linux commit 524e00b36e8c ("mm: remove rb tree") (in
v6.1) only a maple tree has them (mm_struct.mm_mt). The guest is not trusted: every walk is bounded, what
does not add up ends it, and what was found until then stays.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ptinspect.arch.bits import MASK64, bit
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, KernelFileError, PtinspectError
from ptinspect.linux.layout.regions import Region
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.text import escape

MAX_AREAS = 16_384
"""Areas that are read at most."""
MAX_NODES = 8_192
MAX_SLOTS = 31
MAX_HEIGHT = 31
"""Levels of a maple tree (MAPLE_HEIGHT_MAX, lib/maple_tree.c)."""
MAX_STEPS = 256
"""Directories and mounts on the way from a file to the root."""
MAX_NAME = 255
MAX_PATH = 4096
LEAF, RANGE, ARANGE = 1, 2, 3
"""Kinds of maple nodes (enum maple_type, include/linux/maple_tree.h)."""
NODE = 4
"""Bit that is set in all references to nodes (MAPLE_ENODE_NULL); bit 1 is, in that to the root."""
ANONYMOUS = "anonymous"


@dataclass(frozen=True)
class AreaList:
    """The areas of one address space, in ascending order."""

    areas: tuple[Region, ...]
    """Range and name of each: a path, [heap], [stack], [vdso], [vvar] or `anonymous`."""
    incomplete: str = ""
    """Why there may be more, or names are missing; empty if all were read."""


def areas_of(kernel: GuestView, mm: int) -> AreaList:
    """Return the areas of the address space that an mm_struct describes. Never raises for a bad guest."""
    found: list[Region] = []
    try:
        reader = _Reader(kernel, mm)
        for start, end, vma in reader.areas():
            if len(found) >= MAX_AREAS:
                return AreaList(tuple(found), f"more than {MAX_AREAS} areas")
            if not (found[-1].end if found else 0) <= start < end <= 1 << 56:
                return AreaList(tuple(found), f"the areas are damaged at {start:#x}")
            found.append(Region(start, end, reader.name(start, end, vma)))
    except PtinspectError as error:
        return AreaList(tuple(found), f"the areas could not be read: {error.message}")
    return AreaList(tuple(found), reader.doubt)


class _Reader:
    """Read one address space."""

    def __init__(self, kernel: GuestView, mm: int) -> None:
        self.kernel, self.mm = kernel, mm
        self.at = kernel.types.offset
        self.doubt = ""
        self._paths: dict[int, str] = {}
        self._nodes = 0
        self._brk = self._member("start_brk"), self._member("brk")
        self._stack = self._member("start_stack")
        vdso = self._if_any("mm_struct.context.vdso")
        self._vdso = 0 if vdso is None else self._u64(mm + vdso)

    def areas(self) -> Iterator[tuple[int, int, int]]:
        """Yield first address, first address past the end, and vm_area_struct."""
        first = self._if_any("mm_struct.mmap")
        if first is None:
            root = self._u64(self.mm + self.at("mm_struct.mm_mt") + self.at("maple_tree.ma_root"))
            if root & 3 not in (0, 2):
                raise GuestError(f"{root:#x} is no root of a maple tree")
            if root:
                yield from self._tree(root)
            return
        vma = self._u64(self.mm + first)
        while vma:
            yield (*self._range(vma), vma)
            vma = self._u64(vma + self.at("vm_area_struct.vm_next"))

    def _tree(self, root: int) -> Iterator[tuple[int, int, int]]:
        for first, last, vma in self._node(root, 0, MASK64, 0):
            start, end = self._range(vma)
            if (start, end) != (first, last + 1):
                raise GuestError(f"the tree has {first:#x} to {last:#x}, the area {start:#x} to {end - 1:#x}")
            yield start, end, vma

    def _node(self, entry: int, first: int, last: int, depth: int) -> Iterator[tuple[int, int, int]]:
        """Yield the areas of one node and of those below it (mas_next() in lib/maple_tree.c)."""
        kind, node = entry >> 3 & 0xF, entry & ~0xFF
        self._nodes += 1
        if not entry & NODE or kind not in (LEAF, RANGE, ARANGE):
            raise GuestError(f"{entry:#x} is no node of a maple tree")
        if depth > MAX_HEIGHT or self._nodes > MAX_NODES:
            raise GuestError("the maple tree has no end")
        name = "maple_arange_64" if kind == ARANGE else "maple_range_64"
        begin, after = self.at(f"{name}.pivot"), self.at(f"{name}.slot")
        count = min((after - begin) // 8, MAX_SLOTS)  # slots follow, one more than pivots
        words = struct.unpack(f"<{2 * count + 1}Q", self._bytes(node + begin, 8 * (2 * count + 1)))
        pivots, slots = words[:count], words[count:]
        for number, slot in enumerate(slots):
            pivot = pivots[number] if number < len(pivots) else 0
            end = pivot if pivot or not number else last
            if not first <= end <= last:
                raise GuestError(f"a node of the maple tree is damaged at {first:#x}")
            if kind != LEAF:
                yield from self._node(slot, first, end, depth + 1)
            elif slot > 4096 and not slot & 3:
                yield first, end, slot
            if end == last:
                return
            first = end + 1

    def _range(self, vma: int) -> tuple[int, int]:
        at = self.at
        return self._u64(vma + at("vm_area_struct.vm_start")), self._u64(vma + at("vm_area_struct.vm_end"))

    # -- names ----------------------------------------------------------------------------------

    def name(self, start: int, end: int, vma: int) -> str:
        """Name an area (show_map_vma() in fs/proc/task_mmu.c)."""
        file = self._u64(vma + self.at("vm_area_struct.vm_file"))
        if file:
            if file not in self._paths:
                self._paths[file] = self._named(file)
            return self._paths[file]
        if self._vdso and start == self._vdso:
            return "[vdso]"
        if self._vdso and end == self._vdso:
            return "[vvar]"
        if start < self._brk[1] and end > self._brk[0]:
            return "[heap]"
        return "[stack]" if start <= self._stack <= end else ANONYMOUS

    def _named(self, file: int) -> str:
        try:
            return self._path(file)
        except PtinspectError as error:
            self.doubt = f"the name of a file could not be read: {error.message}"
            return "a file"

    def _path(self, file: int) -> str:
        """Return the path of a file from the root of all mounts (prepend_path() in fs/d_path.c)."""
        at = self.at
        dentry = self._u64(file + at("file.f_path.dentry"))
        mount = self._u64(file + at("file.f_path.mnt")) - at("mount.mnt")
        root, up = at("mount.mnt") + at("vfsmount.mnt_root"), at("dentry.d_parent")
        gone = not self._u64(dentry + at("dentry.d_hash.pprev")) and self._u64(dentry + up) != dentry
        parts: list[str] = []
        for _ in range(MAX_STEPS):
            parent = self._u64(dentry + up)
            if dentry == self._u64(mount + root) or parent == dentry:
                above = self._u64(mount + at("mount.mnt_parent"))
                if above == mount:
                    path = "/" + "/".join(reversed(parts))
                    return path[:MAX_PATH] + (" (deleted)" if gone else "")
                dentry, mount = self._u64(mount + at("mount.mnt_mountpoint")), above
                continue
            parts.append(self._component(dentry))
            dentry = parent
        raise GuestError("the directories have no end")

    def _component(self, dentry: int) -> str:
        length = int.from_bytes(self._bytes(dentry + self.at("dentry.d_name.len"), 4), "little")
        if length > MAX_NAME:
            raise GuestError(f"a name of {length} bytes")
        text = self._bytes(self._u64(dentry + self.at("dentry.d_name.name")), length)
        name = text.decode("utf-8", "backslashreplace")
        return escape(name)

    # -- memory ---------------------------------------------------------------------------------

    def _member(self, name: str) -> int:
        return self._u64(self.mm + self.at(f"mm_struct.{name}"))

    def _if_any(self, path: str) -> int | None:
        """Return the offset of a member that not every kernel has."""
        try:
            return self.at(path)
        except KernelFileError:
            return None

    def _u64(self, va: int) -> int:
        return int.from_bytes(self._bytes(va, 8), "little")

    def _bytes(self, va: int, length: int) -> bytes:
        if not bit(va, 55) or not 0 <= va <= MASK64 - length:
            raise GuestError(f"{va:#x} is no address of the kernel's")
        return self.kernel.read_virt(va, length)
