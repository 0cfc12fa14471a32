"""Where a running kernel keeps things in its tasks, by its memory: for files that describe no types.

`init_task` is known by its symbol, and so is much of what is in it: its name, its stack, that it is its
own parent. The list of tasks and the saved stack pointers are derived from the other tasks, which have to
agree. What is not certain is left open.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64, bit
from ptinspect.errors import GuestError, KernelFileError, PtinspectError
from ptinspect.linux.image.entry import RunningKernel, entry_of
from ptinspect.linux.image.image import GET_BTF, KernelImage
from ptinspect.memory.source import read_start

MOST_BYTES = 0x4000
"""Bytes of init_task that are looked at; a task_struct with everything turned on is about 10 KiB."""
STACK_WITHIN = 0x100
"""The stack's address follows thread_info and the task's state (include/linux/sched.h)."""
COMM_BYTES = 16
"""TASK_COMM_LEN, include/linux/sched.h."""
STACK_END_MAGIC = 0x57AC6E9D
"""What the kernel writes to the lowest word of a task's stack (include/uapi/linux/magic.h)."""
SOME = 8
"""Tasks that have to agree."""
CPU_CONTEXT = {"fp": 80, "sp": 88, "pc": 96}
"""Offsets in struct cpu_context: x19 to x28, fp, sp, pc (arch/arm64/include/asm/processor.h)."""
PT_REGS = {"sp": 248, "pc": 256, "pstate": 264}
"""Offsets in struct pt_regs, which begins with struct user_pt_regs (uapi/asm/ptrace.h)."""
SWITCH_BYTES = 0x400
ENTRY_WORDS = 96


_LEARNED: WeakKeyDictionary[KernelImage, dict[str, int]] = WeakKeyDictionary()
"""Offsets that were found at any stop: later the kernel's memory may be damaged."""


class MemberOffsets:
    """Answer for member offsets, as far as the memory of a stopped guest tells them."""

    def __init__(self, view: RunningKernel) -> None:
        """Prepare; memory is read when something is asked."""
        self._view = view

    def offset(self, path: str) -> int:
        """Return the offset in bytes of a member. Raises KernelFileError if memory does not tell it."""
        image = self._view.image
        assert image is not None
        known = _LEARNED.setdefault(image, {})
        if path in known:
            return known[path]
        kind, _, member = path.partition(".")
        value: int | None = None
        try:
            if kind == "pt_regs":
                value = PT_REGS.get(member)
                value = self._stackframe if member == "stackframe" else value
            elif kind == "cpu_context":
                value = CPU_CONTEXT.get(member)
            elif kind == "task_struct":
                value = self._in_task(member)
        except PtinspectError:
            value = None
        if value is None:
            assert self._view.image is not None
            raise KernelFileError(
                f"{self._view.image.path.name} describes no types (BTF), and memory does not tell where "
                f"{path} is",
                GET_BTF,
            )
        known[path] = value
        return value

    def _in_task(self, member: str) -> int | None:
        """Return the offset of a member of task_struct; None if nothing tells."""
        if member.startswith("thread.cpu_context"):
            if self._saved is None:
                return None
            return self._saved - (0 if member.endswith(".sp") else CPU_CONTEXT["sp"])
        if member == "tgid":
            return None if self._pid is None else self._pid + 4
        known = {
            "stack": lambda: self._stack,
            "comm": lambda: self._comm,
            "real_parent": lambda: self._parent,
            "pid": lambda: self._pid,
            "tasks": lambda: self._tasks,
        }
        return known[member]() if member in known else None

    # -- init_task ------------------------------------------------------------------------------

    @cached_property
    def _init(self) -> int:
        return self._view.symbol("init_task")

    @cached_property
    def _data(self) -> bytes:
        """init_task and what follows it, as far as it is mapped."""
        return read_start(self._view.read_virt, self._init, MOST_BYTES)

    @cached_property
    def _words(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._data[: len(self._data) & ~7], "<u8")

    def _positions(self, value: int, end: int = MOST_BYTES) -> list[int]:
        """Return the offsets in init_task of the words that hold a value."""
        return [8 * i for i in np.flatnonzero(self._words[: end // 8] == np.uint64(value)).tolist()]

    @cached_property
    def _stack(self) -> int | None:
        assert self._view.image is not None
        names = [n for n in ("init_stack", "init_thread_union") if n in self._view.image.symbols]
        for name in names:
            found = self._positions(self._view.symbol(name), STACK_WITHIN)
            if len(found) == 1:
                return found[0]
        return None

    @cached_property
    def _comm(self) -> int | None:
        """Its name is swapper, or swapper/0 (init/init_task.c, kernel/sched/idle.c)."""
        at = self._data.find(b"swapper")
        if at < 0 or self._data.find(b"swapper", at + 1) >= 0 or at % 8:
            return None
        return at

    @cached_property
    def _parent(self) -> int | None:
        """It is its own real_parent and parent, two pointers that follow each other."""
        own = self._positions(self._init)
        return next((at for at in own if at + 8 in own), None)

    @cached_property
    def _pid(self) -> int | None:
        """pid and tgid stand before real_parent, the stack protector's canary between them if there is one.

        Other tasks tell which: both numbers are the same there, and no two tasks have the same.
        """
        if self._parent is None:
            return None
        good = []
        for at in (self._parent - 8, self._parent - 16):
            pids = []
            for task in self._others:
                pair = self._view.read_virt(task + at, 8)
                pid, tgid = (int.from_bytes(pair[i : i + 4], "little", signed=True) for i in (0, 4))
                pids.append(pid if pid == tgid else -1)
            if pids and min(pids) > 0 and max(pids) < 1 << 22 and len(set(pids)) == len(pids):
                good.append(at)
        return good[0] if len(good) == 1 else None

    # -- other tasks ----------------------------------------------------------------------------

    def _is_task(self, address: int) -> bool:
        """Tell whether there is a task at an address: its name makes sense, its stack has its end mark.

        A stack that cannot be read says nothing: the reason to look may be that its mapping is gone.
        """
        if self._comm is None or self._stack is None or address % 16 or not bit(address, 55):
            return False
        try:
            comm, end, _ = self._view.read_virt(address + self._comm, COMM_BYTES).partition(b"\0")
            stack = self._view.read_u64(address + self._stack)
            if not (end and comm and all(32 < c < 127 for c in comm)) or stack & 0xFFF or not bit(stack, 55):
                return False
        except GuestError:
            return False
        try:
            return self._view.read_u64(stack) == STACK_END_MAGIC
        except GuestError:
            return True

    @cached_property
    def _tasks(self) -> int | None:
        """The list of all tasks: its next and its previous entry lie in tasks, at this very place."""
        found = []
        for i, (forward, back) in enumerate(
            zip(self._words.tolist(), self._words.tolist()[1:], strict=False)
        ):
            at, here = 8 * i, self._init + 8 * i
            if here in (forward, back) or not (bit(forward, 55) and bit(back, 55)):
                continue
            if not (self._is_task((forward - at) & MASK64) and self._is_task((back - at) & MASK64)):
                continue
            if self._view.read_u64((forward + 8) & MASK64) == here and self._view.read_u64(back) == here:
                found.append(at)
        return found[0] if len(found) == 1 else None

    @cached_property
    def _others(self) -> list[int]:
        """Some other tasks, the oldest first."""
        return list(self._walk())

    def _walk(self) -> Iterator[int]:
        if self._tasks is None:
            return
        link = self._view.read_u64(self._init + self._tasks)
        for _ in range(SOME):
            task = (link - self._tasks) & MASK64
            if task == self._init or not self._is_task(task):
                return
            yield task
            link = self._view.read_u64(link)

    @cached_property
    def _saved(self) -> int | None:
        """The saved SP stands between the frame pointer and the place in __switch_to, or ret_from_fork."""
        assert self._stack is not None
        entry = entry_of(self._view)
        size = entry.thread_size or entry.irq_stack_size or 0
        votes: dict[int, int] = {}
        for task in self._others:
            stack = self._view.read_u64(task + self._stack)
            words = np.frombuffer(self._view.read_virt(task, len(self._words) * 8), "<u8").tolist()
            for i in range(1, len(words) - 1):
                on_stack = stack < words[i] <= stack + size
                if on_stack and self._returns(words[i + 1]):
                    votes[8 * i] = votes.get(8 * i, 0) + 1
        best = max(votes, key=lambda at: votes[at], default=None)
        if best is None or list(votes.values()).count(votes[best]) > 1:
            return None
        return best

    def _returns(self, address: int) -> bool:
        """Tell whether a switched-away task goes on at this address."""
        image = self._view.image
        assert image is not None
        for name, size in (("__switch_to", SWITCH_BYTES), ("ret_from_fork", 4)):
            if name in image.symbols and 0 <= address - self._view.symbol(name) < size:
                return True
        return False

    # -- exceptions -----------------------------------------------------------------------------

    @cached_property
    def _stackframe(self) -> int | None:
        """Where the entry stores x29 and the interrupted pc (x22), or zeros: `kernel_entry`, entry.S.

        Zeros since c2c6b27b5aa1 ("arm64: stacktrace: unwind exception boundaries", v6.13), which lets the
        record's type say that registers lie around it.
        """
        entry = entry_of(self._view)
        offset = self._view.kaslr_offset
        code = self._view.read_virt((entry.sync.label + offset) & MASK64, 4 * ENTRY_WORDS)
        for word in a64.words(code):
            at = a64.frame_record(word)
            if at is not None:
                return at if at + 16 <= entry.frame_size else None
        return None
