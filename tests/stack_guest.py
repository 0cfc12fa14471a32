"""A small kernel in a byte table with an exception entry, stacks, tasks and functions, for tests.

    guest = StackGuest()
    init = guest.task(0, "swapper/0", guest.new_stack())
    guest.link_tasks([init])
    stacks = Stacks(guest.view(guest.cpu(init, sp=…)))

Addresses are those of a 4K kernel with 48 bits; the entry code is assembled here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from builders import TreeBuilder, cpu_state, regime_4k
from fake_kernel import IMAGE, KERNEL, KernelFile, Types, View

from ptinspect.arch.sysregs import CpuState
from ptinspect.errors import KernelFileError

VECTORS = KERNEL + 0x1_0800
BAD_STACK = KERNEL + 0x1_1000
EL1_SYNC = KERNEL + 0x1_1AC0
EL1_IRQ = KERNEL + 0x1_1C00
EL0_SYNC = KERNEL + 0x1_2000
PER_CPU = KERNEL + 0x20_0000
LINEAR = 0xFFFF_0000_0000_0000
STACKS = 0xFFFF_8000_1200_0000
FRAME = 0x150
SIZE = 0x4000
MAGIC = 0x57AC6E9D
OFFSETS: Mapping[str, int] = {
    "task_struct.stack": 32,
    "task_struct.comm": 1752,
    "task_struct.pid": 1304,
    "task_struct.tgid": 1308,
    "task_struct.tasks": 1048,
    "task_struct.real_parent": 1320,
    "task_struct.thread.cpu_context": 2800,
    "task_struct.thread.cpu_context.sp": 2904,
    "task_struct.thread_node": 1496,
    "task_struct.signal": 1848,
    "signal_struct.thread_head": 16,
    "cpu_context.fp": 80,
    "cpu_context.pc": 96,
    "rq.idle": 2424,
    "pt_regs.sp": 248,
    "pt_regs.pc": 256,
    "pt_regs.pstate": 264,
    "pt_regs.stackframe": 304,
}


def b(at: int, to: int) -> int:
    return 0x14000000 | (to - at) >> 2 & 0x3FFFFFF


def bl(at: int, to: int) -> int:
    return 0x94000000 | (to - at) >> 2 & 0x3FFFFFF


def b_ne(at: int, to: int) -> int:
    return 0x54000001 | ((to - at) >> 2 & 0x7FFFF) << 5


def tbnz(at: int, to: int, register: int, position: int) -> int:
    return 0x37000000 | position << 19 | ((to - at) >> 2 & 0x3FFF) << 5 | register


def adrp(register: int, at: int, to: int) -> int:
    pages = (to >> 12) - (at >> 12)
    return 0x90000000 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5 | register


def add(d: int, n: int, value: int) -> int:
    return 0x91000000 | value << 10 | n << 5 | d


def sub_sp(value: int) -> int:
    return 0xD10003FF | value << 10


def movz(d: int, value: int) -> int:
    return 0xD2800000 | value << 5 | d


def ldr(t: int, n: int, m: int) -> int:
    return 0xF8606800 | m << 16 | n << 5 | t


def push_record(size: int) -> int:
    """stp x29, x30, [sp, #-size]!"""
    return 0xA9807BFD | (-size // 8 & 0x7F) << 15


def pop_record(size: int) -> int:
    """ldp x29, x30, [sp], #size"""
    return 0xA8C07BFD | (size // 8 & 0x7F) << 15


MOV_FP_SP = 0x910003FD
RET = 0xD65F03C0
NOP = 0xD503201F
MRS_TPIDR_EL1 = 0xD538D080
MSR_SP_EL0 = 0xD5184100


def vector(at: int, label: int, overflow_top: int, *, shift: int = 14, frame: int = FRAME) -> list[int]:
    """One vector of the kernel's own exceptions (kernel_ventry)."""
    slow = at + 0x1C
    return [
        sub_sp(frame), 0x8B2063FF, 0xCB2063E0, tbnz(at + 12, slow, 0, shift), 0xCB2063E0, 0xCB2063FF,
        b(at + 0x18, label),
        0xD51BD040, 0xCB2063E0, 0xD51BD060,
        adrp(0, at + 0x28, overflow_top), add(31, 0, overflow_top & 0xFFF), MRS_TPIDR_EL1,
        0x8B2063FF, 0xD53BD040, 0xCB2063E0, 0xF274CC1F, b_ne(at + 0x44, BAD_STACK),
        0xCB2063FF, 0xD53BD060, b(at + 0x50, label),
    ]  # fmt: skip


IRQ_POINTER, ENTRY_TASK, OVERFLOW = PER_CPU + 0x50, PER_CPU + 0x2A8, PER_CPU + 0x2B0


def load_per_cpu(d: int, t: int, at: int, pointer: int) -> list[int]:
    """ldr_this_cpu: four instructions."""
    return [adrp(d, at, pointer), add(d, d, pointer & 0xFFF), MRS_TPIDR_EL1 | t, ldr(d, d, t)]


STORE_FRAME = [*[0xA90007E0] * 16, add(29, 31, 0x130)]
"""What a label of the entry begins with, as far as it matters here: stores, and the frame record."""


def irq_entry() -> list[int]:
    at = EL1_IRQ + 4 * len(STORE_FRAME)
    return [
        *STORE_FRAME, *load_per_cpu(25, 26, at, IRQ_POINTER), movz(26, SIZE), 0x8B1A033A, add(31, 26, 0),
        0xD63F0020, add(31, 19, 0),
    ]  # fmt: skip


def user_entry() -> list[int]:
    at = EL0_SYNC + 4 * 16
    return [
        *STORE_FRAME[:-1], *load_per_cpu(28, 20, at, ENTRY_TASK), MSR_SP_EL0 | 28, add(29, 31, 0x130),
        bl(at + 24, KERNEL + 0x3000),
    ]  # fmt: skip


class Image(KernelFile):
    """A kernel file: code, symbols, types."""

    linked, size = False, 0x40_0000

    def __init__(self) -> None:
        self.code = bytearray(self.size)
        self.symbols: dict[str, list[int]] = {}
        self.types = Types(dict(OFFSETS))

    def put(self, va: int, words: Sequence[int], name: str = "") -> int:
        """Place instructions; return the address behind them."""
        data = struct.pack(f"<{len(words)}I", *words)
        self.code[va - KERNEL : va - KERNEL + len(data)] = data
        if name:
            self.symbols[name] = [va]
        return va + len(data)

    def text_at(self, va: int, length: int) -> bytes:
        if not KERNEL <= va <= KERNEL + len(self.code) - length:
            raise KernelFileError(f"{va:#x}: not in the file")
        return bytes(self.code[va - KERNEL : va - KERNEL + length])


class StackGuest:
    """Memory, tables and the kernel file."""

    def __init__(self) -> None:
        self.tree = TreeBuilder(regime_4k(48))
        self.tree.map(KERNEL, IMAGE, size=4 << 20, level=2)
        self.tree.map(LINEAR, 0x4000_0000, size=1 << 30, level=2)
        self.image = Image()
        image = self.image
        image.symbols["_text"] = [KERNEL]
        image.symbols["vectors"] = [VECTORS]
        for i, label in enumerate((EL1_SYNC, EL1_IRQ, EL1_SYNC, EL1_SYNC)):
            at = VECTORS + 0x200 + 0x80 * i
            image.put(at, vector(at, label, OVERFLOW + 0x1000))
        for i in range(4):
            at = VECTORS + 0x400 + 0x80 * i
            image.put(at, [sub_sp(FRAME), b(at + 4, EL0_SYNC)])
        image.put(BAD_STACK, [NOP], "__bad_stack")
        image.put(EL1_SYNC, [*STORE_FRAME, bl(EL1_SYNC + 68, KERNEL + 0x3000)], "el1_sync")
        image.put(EL1_IRQ, irq_entry(), "el1_irq")
        image.put(EL0_SYNC, user_entry(), "el0_sync")
        self._stack = STACKS
        self._pa = 0x5800_0000
        self._task = LINEAR + 0x1000_0000

    def write(self, va: int, data: bytes) -> None:
        """Write by virtual address, page by page."""
        view = self.view()
        while data:
            part = min(len(data), 4096 - va % 4096)
            self.tree.memory.write(view.pa_of(va), data[:part])
            va, data = va + part, data[part:]

    def put(self, va: int, *values: int) -> None:
        """Write 64-bit words."""
        self.write(va, b"".join((v & (1 << 64) - 1).to_bytes(8, "little") for v in values))

    def new_stack(self, size: int = SIZE) -> int:
        """Map a stack of scattered pages, zeroed; return its base."""
        base, self._stack = self._stack, self._stack + 2 * SIZE
        for page in range(0, size, 4096):
            self.tree.map(base + page, self._pa, level=3)
            self.tree.memory.write(self._pa, bytes(4096))
            self._pa += 3 * 4096
        return base

    def task(self, pid: int, comm: str, stack: int, **more: Any) -> int:
        """Make a task_struct; return its address."""
        address, self._task = self._task, self._task + 0x2000
        self.write(address, bytes(0x1800))
        self.put(address + OFFSETS["task_struct.stack"], stack)
        self.write(address + OFFSETS["task_struct.comm"], comm.encode().ljust(16, b"\0"))
        self.write(address + OFFSETS["task_struct.pid"], pid.to_bytes(4, "little") * 2)
        self.put(address + OFFSETS["task_struct.real_parent"], more.get("parent", address))
        self.put(address + OFFSETS["task_struct.thread.cpu_context.sp"], more.get("sp", stack + SIZE - 0x200))
        signal = address + 0x1000
        self.put(address + OFFSETS["task_struct.signal"], signal)
        self.link([signal + 16, address + OFFSETS["task_struct.thread_node"]])
        self.put(stack, MAGIC)
        return address

    def link(self, heads: Sequence[int]) -> None:
        """Make a circular list of list_heads."""
        for before, here, following in zip([heads[-1], *heads], heads, [*heads[1:], heads[0]], strict=False):
            self.put(here, following, before)

    def link_tasks(self, tasks: Sequence[int]) -> None:
        """Put tasks on the kernel's list."""
        self.link([task + OFFSETS["task_struct.tasks"] for task in tasks])

    def cpu(self, task: int, sp: int, number: int = 0, **more: int) -> CpuState:
        """A CPU in the kernel that runs `task`; its per-CPU area lies in the linear map."""
        system = {
            "SP_EL0": task, "TPIDR_EL1": self.per_cpu(number), "SCTLR_EL1": 1, "ELR_EL1": 0,
            "VBAR_EL1": VECTORS,
        } | {name: value for name, value in more.items() if name.isupper()}  # fmt: skip
        x = [0] * 31
        x[29], x[30] = more.get("x29", 0), more.get("x30", 0)
        pc = more.get("pc", KERNEL + 0x5000)
        return CpuState(number, tuple(x), sp, pc, more.get("pstate", 0x3C5), system)

    def per_cpu(self, number: int) -> int:
        """What is added to a per-CPU symbol."""
        return LINEAR + 0x2000_0000 + 0x10_0000 * number - PER_CPU & (1 << 64) - 1

    def per_cpu_put(self, number: int, pointer: int, value: int) -> None:
        """Set a per-CPU variable."""
        self.put(pointer + self.per_cpu(number) & (1 << 64) - 1, value)

    def view(self, *states: CpuState) -> Any:
        """The kernel as a debugger sees it."""
        return View(self.tree, self.image, states or (cpu_state(0),))

    def attach(self, guest: Any, session: Any) -> None:
        """Have a Guest attached to it by a session: what runs is seen as the CPUs of the session are."""
        guest.session, guest._kernel = session, self.image
        guest._look_at_kernel = lambda: self.view(*session.cpus)
