"""Areas of a user address space: lists and maple trees made by hand, sound and damaged ones."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

import pytest

from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.running import user_areas
from ptinspect.linux.running.user_areas import areas_of

BASE = 0xFFFF_0000_1000_0000
LIST = {"mm_struct.mmap": 0, "vm_area_struct.vm_next": 16}
TREE = {
    "mm_struct.mm_mt": 64, "maple_tree.ma_root": 8, "maple_range_64.pivot": 8, "maple_range_64.slot": 128,
    "maple_arange_64.pivot": 8, "maple_arange_64.slot": 80,
}  # fmt: skip
COMMON = {
    "mm_struct.start_brk": 336, "mm_struct.brk": 344, "mm_struct.start_stack": 352,
    "mm_struct.context.vdso": 984, "vm_area_struct.vm_start": 0, "vm_area_struct.vm_end": 8,
    "vm_area_struct.vm_file": 128, "file.f_path.dentry": 72, "file.f_path.mnt": 64, "dentry.d_parent": 24,
    "dentry.d_name.name": 40, "dentry.d_name.len": 36, "dentry.d_hash.pprev": 16, "mount.mnt": 32,
    "vfsmount.mnt_root": 0, "mount.mnt_parent": 16, "mount.mnt_mountpoint": 24,
}  # fmt: skip
LEAF, RANGE, ARANGE = 1, 2, 3


class Kernel:
    """Memory with structures in it, as 6.12 lays them out."""

    def __init__(self, own: Mapping[str, int]) -> None:
        self.layout = COMMON | own
        self.memory = bytearray(1 << 20)
        self.next = BASE
        self.mm = self.new(2048)
        self.reads = 0

    @property
    def types(self) -> Kernel:
        return self

    def offset(self, path: str) -> int:
        if path not in self.layout:
            raise KernelFileError(f"the kernel has no {path!r}")
        return self.layout[path]

    def read_virt(self, va: int, length: int) -> bytes:
        self.reads += 1
        if not BASE <= va <= BASE + len(self.memory) - length:
            raise GuestError(f"{va:#x} is not mapped")
        return bytes(self.memory[va - BASE : va - BASE + length])

    def new(self, size: int) -> int:
        self.next += size + -size % 256
        return self.next - size - -size % 256

    def put(self, va: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self.memory, va - BASE, *words)

    def set(self, structure: int, path: str, value: int) -> None:
        self.put(structure + self.layout[path], value)

    def area(self, start: int, end: int, file: int = 0) -> int:
        vma = self.new(256)
        self.set(vma, "vm_area_struct.vm_start", start)
        self.set(vma, "vm_area_struct.vm_end", end)
        self.set(vma, "vm_area_struct.vm_file", file)
        return vma

    def chain(self, vmas: list[int]) -> None:
        self.set(self.mm, "mm_struct.mmap", vmas[0])
        for vma, after in zip(vmas, [*vmas[1:], 0], strict=True):
            self.set(vma, "vm_area_struct.vm_next", after)

    def node(self, kind: int, entries: list[tuple[int, int]], last: int) -> int:
        """A node with (last address, slot) of each entry; the last pivot may be missing, as in the kernel."""
        node, name = self.new(256), "maple_arange_64" if kind == ARANGE else "maple_range_64"
        count = 9 if kind == ARANGE else 15
        pivots = [end for end, _ in entries][:count]
        if pivots and len(entries) <= count and kind != ARANGE and last != (1 << 64) - 1:
            pivots[-1] = last
        elif 1 < len(entries) <= count:
            pivots[-1] = 0
        self.put(node + 8, *pivots)
        self.put(node + self.layout[f"{name}.slot"], *(slot for _, slot in entries))
        return node | kind << 3 | 4

    def tree(self, ranges: list[tuple[int, int, int]], fan: int) -> None:
        """A maple tree over (start, end, vma), `fan` entries to a leaf and to a node above."""
        entries, at = [], 0
        for start, end, vma in ranges:
            if start > at:
                entries.append((start - 1, 0))
            entries.append((end - 1, vma))
            at = end
        entries.append(((1 << 64) - 1, 0))
        kind = LEAF
        while True:
            groups = [entries[i : i + fan] for i in range(0, len(entries), fan)]
            nodes = [(group[-1][0], self.node(kind, group, group[-1][0])) for group in groups]
            if len(nodes) == 1:
                self.put(self.mm + 72, nodes[0][1] | 2)
                return
            entries, kind, fan = nodes, ARANGE, min(fan, 10)

    def dentry(self, name: bytes, parent: int, *, hashed: bool = True) -> int:
        found, text = self.new(256), self.new(256)
        self.memory[text - BASE : text - BASE + len(name)] = name
        self.set(found, "dentry.d_parent", parent or found)
        self.set(found, "dentry.d_name.name", text)
        self.put(found + 32, len(name) << 32)
        self.set(found, "dentry.d_hash.pprev", BASE * hashed)
        return found

    def mount(self, root: int, parent: int = 0, at: int = 0) -> int:
        found = self.new(256)
        self.set(found, "mount.mnt", root)
        self.set(found, "mount.mnt_parent", parent or found)
        self.set(found, "mount.mnt_mountpoint", at)
        return found

    def file(self, dentry: int, mount: int) -> int:
        found = self.new(256)
        self.set(found, "file.f_path.dentry", dentry)
        self.set(found, "file.f_path.mnt", mount + self.layout["mount.mnt"])
        return found


def listed(kernel: Kernel) -> list[tuple[int, int, str]]:
    found = areas_of(kernel, kernel.mm)
    assert found.incomplete == "", found.incomplete
    return [(a.start, a.end, a.name) for a in found.areas]


def special(kernel: Kernel) -> None:
    kernel.set(kernel.mm, "mm_struct.start_brk", 0x60_0000)
    kernel.set(kernel.mm, "mm_struct.brk", 0x60_4000)
    kernel.set(kernel.mm, "mm_struct.start_stack", 0xFFFF_F000_1800)
    kernel.set(kernel.mm, "mm_struct.context.vdso", 0xFFFF_8000_2000)


RANGES = {
    (0x40_0000, 0x41_0000): "anonymous",
    (0x60_0000, 0x60_5000): "[heap]",
    (0xFFFF_8000_0000, 0xFFFF_8000_2000): "[vvar]",
    (0xFFFF_8000_2000, 0xFFFF_8000_3000): "[vdso]",
    (0xFFFF_F000_0000, 0xFFFF_F000_2000): "[stack]",
}


def test_a_list_up_to_6_0() -> None:
    kernel = Kernel(LIST)
    special(kernel)
    kernel.chain([kernel.area(*place) for place in RANGES])
    assert listed(kernel) == [(*place, name) for place, name in RANGES.items()]


@pytest.mark.parametrize("fan", [2, 3, 7, 10, 15, 16])
@pytest.mark.parametrize("count", [1, 5, 16, 200])
def test_a_tree_from_6_1(count: int, fan: int) -> None:
    kernel, random_ = Kernel(TREE), random.Random(count * 100 + fan)
    special(kernel)
    at, expected = 0x1000, []
    for _ in range(count):
        start = at + random_.choice((0, 0, 0x3000))
        at = start + random_.choice((0x1000, 0x5000))
        expected.append((start, at, kernel.area(start, at)))
    kernel.tree(expected, fan)
    assert [(start, end) for start, end, _ in listed(kernel)] == [(start, end) for start, end, _ in expected]


def test_an_address_space_without_areas() -> None:
    assert listed(Kernel(LIST)) == listed(Kernel(TREE)) == []


def test_names_of_files() -> None:
    kernel = Kernel(LIST)
    top = kernel.dentry(b"/", 0)
    root = kernel.mount(top)
    usr = kernel.dentry(b"usr", top)
    tmp = kernel.dentry(b"tmp", top)
    other = kernel.dentry(b"/", 0)
    mounted = kernel.mount(other, root, tmp)
    bind = kernel.mount(usr, mounted, kernel.dentry(b"bind", other))
    cases = {
        "/usr/my prog": kernel.file(kernel.dentry(b"my prog", usr), root),
        "/tmp/x": kernel.file(kernel.dentry(b"x", other), mounted),
        "/tmp/bind/y": kernel.file(kernel.dentry(b"y", usr), bind),
        "/usr/gone (deleted)": kernel.file(kernel.dentry(b"gone", usr, hashed=False), root),
        "/memfd:m (deleted)": kernel.file(
            kernel.dentry(b"memfd:m", other, hashed=False), kernel.mount(other)
        ),
    }  # fmt: skip
    cases[r"/usr/\x1b[31m\nred\xff"] = kernel.file(kernel.dentry(b"\x1b[31m\nred\xff", usr), root)
    kernel.chain([kernel.area(0x1000 * i, 0x1000 * (i + 1), f) for i, f in enumerate(cases.values())])
    assert [name for _, _, name in listed(kernel)] == list(cases)


def said(kernel: Kernel) -> tuple[int, str]:
    found = areas_of(kernel, kernel.mm)
    assert kernel.reads < 100_000
    return len(found.areas), found.incomplete


def test_a_list_without_an_end() -> None:
    kernel = Kernel(LIST)
    first, second = kernel.area(0x1000, 0x2000), kernel.area(0x2000, 0x3000)
    kernel.chain([first, second])
    kernel.set(second, "vm_area_struct.vm_next", first)
    assert said(kernel) == (2, "the areas are damaged at 0x1000")
    kernel.set(second, "vm_area_struct.vm_next", 0x1234)
    assert said(kernel) == (2, "the areas could not be read: 0x1234 is no address of the kernel's")
    kernel.set(second, "vm_area_struct.vm_end", 0x2000)
    assert said(kernel) == (1, "the areas are damaged at 0x2000")


def test_too_many_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_areas, "MAX_AREAS", 3)
    kernel = Kernel(LIST)
    kernel.chain([kernel.area(0x1000 * i, 0x1000 * (i + 1)) for i in range(5)])
    assert said(kernel) == (3, "more than 3 areas")


def test_damaged_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(TREE)
    kernel.tree(
        [(0x1000 * i, 0x1000 * (i + 1), kernel.area(0x1000 * i, 0x1000 * (i + 1))) for i in range(40)], 4
    )
    root = struct.unpack_from("<Q", kernel.memory, kernel.mm + 72 - BASE)[0]
    assert said(kernel) == (40, "")
    sound = bytes(kernel.memory)
    first_slot = (root & ~0xFF) + 80
    kernel.put(first_slot, root)
    assert said(kernel)[1].endswith("the maple tree has no end")
    kernel.put(first_slot, 0)
    assert said(kernel)[1].endswith("0x0 is no node of a maple tree")
    kernel.memory[:] = sound
    kernel.put((root & ~0xFF) + 8, 0xFFFF_0000_0000)
    assert "the maple tree" in said(kernel)[1] or "the tree has" in said(kernel)[1]
    kernel.memory[:] = sound
    kernel.set(BASE + 2048, "vm_area_struct.vm_end", 0x1800)
    count, why = said(kernel)
    assert (count, why.split(": ")[1]) == (0, "the tree has 0x0 to 0xfff, the area 0x0 to 0x17ff")
    kernel.memory[:] = sound
    for bad, what in ((BASE, "node"), (BASE | 1, "root")):
        kernel.put(kernel.mm + 72, bad)
        assert said(kernel) == (0, f"the areas could not be read: {bad:#x} is no {what} of a maple tree")
    kernel.put(kernel.mm + 72, root)
    monkeypatch.setattr(user_areas, "MAX_NODES", 5)
    assert said(kernel)[1].endswith("the maple tree has no end")


def test_a_name_that_cannot_be_read_costs_no_area() -> None:
    kernel = Kernel(LIST)
    top = kernel.dentry(b"/", 0)
    looped = kernel.dentry(b"a", top)
    kernel.set(looped, "dentry.d_parent", kernel.dentry(b"b", looped))
    long = kernel.dentry(b"c", top)
    kernel.put(long + 32, 5000 << 32)
    root = kernel.mount(top)
    files = [kernel.file(looped, root), kernel.file(long, root), 0x1000]
    kernel.chain([kernel.area(0x1000 * i, 0x1000 * (i + 1), f) for i, f in enumerate(files)])
    found = areas_of(kernel, kernel.mm)
    assert [a.name for a in found.areas] == ["a file"] * 3
    assert found.incomplete.startswith("the name of a file could not be read")


def test_a_kernel_file_without_these_types() -> None:
    kernel = Kernel(LIST)
    kernel.layout = {}
    assert said(kernel)[0] == 0
    assert "no 'mm_struct.start_brk'" in said(kernel)[1]


def test_random_memory_never_ends_in_a_loop_or_an_error() -> None:
    random_ = random.Random(4)
    for own in (LIST, TREE):
        for _ in range(60):
            kernel = Kernel(own)
            kernel.tree([(0, 0x1000, kernel.area(0, 0x1000))], 4) if own is TREE else None
            for _ in range(400):
                at = random_.randrange(0, 1 << 14, 8)
                word = random_.choice(
                    (0, 1 << 12, BASE + random_.randrange(0, 1 << 14, 8), BASE | 0x400 | 0x1E)
                )
                struct.pack_into("<Q", kernel.memory, at, word)
            said(kernel)
