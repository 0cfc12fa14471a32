"""The tasks of the running kernel: who is current on a CPU, and the list of all, from memory alone.

Offsets come from the kernel file's own types. Memory may be damaged: every list is walked within
bounds, and a task that makes no sense is an error, never a row.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import cached_property

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64, bit
from ptinspect.arch.sysregs import CpuState, translation_register
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, KernelFileError, UserError
from ptinspect.linux.image.entry import EntryCode, RunningKernel, entry_of
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.linux.running.member_offsets import COMM_BYTES
from ptinspect.text import escape


def per_cpu_offset(state: CpuState) -> int:
    """Return what to add to a per-CPU symbol's address for one CPU: TPIDR_EL1, TPIDR_EL2 under VHE.

    Source: arch/arm64/include/asm/percpu.h (__my_cpu_offset).
    """
    name = translation_register(state, "TPIDR")
    return state.system.get(name, 0)


def per_cpu_pointer(
    view: RunningKernel, state: CpuState, name: str, entry: EntryCode | None = None
) -> int | None:
    """Return the value of a per-CPU pointer of the kernel's; None if it is not known where it lies."""
    try:
        link = (entry or entry_of(view)).pointers.get(name)
        if link is None and view.image is not None and name in view.image.symbols:
            link = view.image.lookup(name)
        if link is None:
            return None
        return view.read_u64((link + view.kaslr_offset + per_cpu_offset(state)) & MASK64)
    except (GuestError, KernelFileError):
        return None


MAX_TASKS = 32_768
"""Tasks that a walk of the list collects at most (Linux PID_MAX_DEFAULT)."""
MAX_PARENTS = 4_096
SOME = 8
"""Tasks that are named where a name means several."""
MAX_PID = 1 << 22
"""PID_MAX_LIMIT, include/linux/threads.h."""
IDLE_CODE_BYTES = 0x40
AHEAD = 128 << 10
"""Bytes around a task that are read with it: four slabs of them, which lie near each other whatever the CPU
(Linux mm/slub.c, slub_max_order: PAGE_ALLOC_COSTLY_ORDER, 32 KiB with 4K pages)."""
SP = "thread.cpu_context.sp"
MEMBERS = ("stack", "comm", "pid", "tgid", "tasks", "real_parent", SP)
"""Members of task_struct without which no task is read."""
THREADS = ("task_struct.signal", "signal_struct.thread_head", "task_struct.thread_node")
"""What leads to the threads of a process: pointer to the head, head, link."""


@dataclass(frozen=True)
class Task:
    """One thread of the guest."""

    address: int
    """Address of its task_struct."""
    pid: int
    """Its thread id; 0 for the idle tasks."""
    tgid: int
    """The process's id."""
    comm: str
    """Its name as it stands in memory, unescaped."""
    stack: int
    """Lowest address of its kernel stack."""
    saved_sp: int
    """The stack pointer that it was switched away with; stale while it runs."""
    cpu: int | None
    """The CPU that it runs on, by the registers; None if it runs on none."""

    @property
    def printable(self) -> str:
        """Its name, with `?` for what cannot be printed."""
        return "".join(c if c.isprintable() else "?" for c in self.comm)

    @property
    def label(self) -> str:
        """Its name, escaped, and its thread id: `init (1)`."""
        return f"{escape(self.comm)} ({self.pid})"


@dataclass(frozen=True)
class TaskList:
    """All tasks that were found."""

    tasks: tuple[Task, ...]
    """In the order of the kernel's list, threads after their leader; idle tasks first."""
    incomplete: str = ""
    """Why there may be more; empty if the list was walked to its end."""


class Tasks:
    """Read tasks through the kernel's own tables, at one stop."""

    def __init__(self, view: GuestView) -> None:
        """Prepare. Raises GuestError without a kernel file.

        Whatever asks for a task raises KernelFileError as long as neither the file nor memory tells where
        it keeps what.
        """
        if view.image is None:
            raise GuestError("tasks need the kernel file: its types tell where a task keeps what", "--kernel")
        self.view = view
        self.image: KernelImage = view.image

    @cached_property
    def _at(self) -> dict[str, int]:
        return {name: self.view.types.offset(f"task_struct.{name}") for name in MEMBERS}

    @cached_property
    def _thread_list(self) -> tuple[int, ...] | None:
        """Where the threads of a process are, as THREADS; None where nothing tells."""
        try:
            return tuple(map(self.view.types.offset, THREADS))
        except KernelFileError:
            return None

    # -- one task -------------------------------------------------------------------------------

    def read(self, address: int) -> Task:
        """Read the task at `address`. Raises GuestError if there is none that makes sense."""
        if not bit(address, 55) or address % 16 or not self.view.regime.contains(address):
            raise GuestError(f"{address:#x} is no address of a task")
        at = self._at
        first = min(at.values())
        whole = self._bytes(address + first, max(at.values()) + COMM_BYTES - first)

        def member(name: str, size: int) -> bytes:
            return whole[at[name] - first :][:size]

        pid, tgid = (int.from_bytes(member(name, 4), "little", signed=True) for name in ("pid", "tgid"))
        stack, sp = (int.from_bytes(member(name, 8), "little") for name in ("stack", SP))
        raw = member("comm", COMM_BYTES)
        comm, end, _ = raw.partition(b"\0")
        if not (0 <= pid < MAX_PID and 0 <= tgid < MAX_PID and end and bit(stack, 55) and not stack & 0xFFF):
            raise GuestError(f"{address:#x} holds no task: pid {pid}, stack {stack:#x}, name {raw!r}")
        name = comm.decode("utf-8", "backslashreplace")
        return Task(address, pid, tgid, name, stack, sp, self._running.get(address))

    def current(self, state: CpuState) -> Task | None:
        """Return the task that a CPU runs; None where that is not known (early boot, EL2, no sense).

        In the kernel SP_EL0 holds it (asm/current.h); in user mode, and at its border, where SP_EL0 is
        the user's stack pointer still or again, the per-CPU `__entry_task` does (entry.S, kernel_entry).
        """
        address = self.current_address(state)
        if address is None:
            return None
        try:
            return self.read(address)
        except GuestError:
            return None

    def current_address(self, state: CpuState) -> int | None:
        """Return where the current task of a CPU should be, unchecked; None if nothing tells."""
        if state.el and not state.pstate & 1:
            return None  # SP_EL0 is the stack pointer itself
        if at_user_border(state):
            return per_cpu_pointer(self.view, state, "__entry_task")
        return state.system.get("SP_EL0")

    @cached_property
    def _running(self) -> dict[int, int]:
        """Address -> CPU of the tasks that run."""
        found: dict[int, int] = {}
        for state in self.view.states:
            address = self.current_address(state)
            if address:
                found.setdefault(address, state.cpu)
        return found

    # -- all tasks ------------------------------------------------------------------------------

    def init_task(self) -> Task:
        """Return the boot CPU's idle task, pid 0, which heads the list.

        By its symbol; else from the run queue of a CPU, or as the first ancestor of a task that runs.
        Raises GuestError if none of that leads to it.
        """
        if "init_task" in self.image.symbols:
            return self.read(self.view.symbol("init_task"))
        for state in self.view.states:
            found = self._first_ancestor(state)
            if found is not None:
                return found
        raise GuestError(
            "no task was found: has the kernel come far enough?", "a kernel file that names init_task"
        )

    def _first_ancestor(self, state: CpuState) -> Task | None:
        address = self.current_address(state)
        try:
            for _ in range(MAX_PARENTS):
                if not address:
                    return None
                task = self.read(address)
                parent = self._u64(address + self._at["real_parent"])
                if parent == address:
                    return task if task.pid == 0 else None
                address = parent
        except GuestError:
            pass
        return None

    def idle_tasks(self) -> Iterator[Task]:
        """Yield the idle tasks of the CPUs, which are on no list: each run queue names its own."""
        pointer = idle_pointer(self.image)
        for state in self.view.states:
            base = per_cpu_offset(state)
            if pointer is None or not base:
                continue
            try:
                address = self._u64((pointer + self.view.kaslr_offset + base) & MASK64)
                task = self.read(address)
            except GuestError:
                continue
            if task.pid == 0:
                yield task

    def named(self, which: int | str) -> Task:
        """Return a task by its PID or its name; the running one of several idle tasks.

        A name may be cut off where only one task's begins so. Raises UserError if none is meant, or several.
        """
        listed = self.all()
        if isinstance(which, int):
            found = [task for task in listed.tasks if task.pid == which]
        else:
            found = [task for task in listed.tasks if task.comm == which]
            found = found or [task for task in listed.tasks if task.comm.startswith(which)]
        if not found:
            more = f" ({listed.incomplete})" if listed.incomplete else ""
            what = f"has PID {which}" if isinstance(which, int) else f"is called {which!r}"
            raise UserError(f"no task {what}{more}", "stack tasks --all lists them")
        if len({task.pid for task in found}) > 1:
            some = ", ".join(task.label for task in found[:SOME])
            cut = ", …" if len(found) > SOME else ""
            raise UserError(f"'task:{which}' is ambiguous: {some}{cut}", "task:PID names one")
        return min(found, key=lambda task: task.cpu is None)

    def all(self) -> TaskList:
        """Walk the list of processes and the threads of each. Raises GuestError if there is no beginning."""
        first = self.init_task()
        found = {first.address: first}
        for task in self.idle_tasks():
            found.setdefault(task.address, task)
        reason = ""
        at = self._at["tasks"]
        link = self._u64(first.address + at)
        while link != first.address + at:
            leader = (link - at) & MASK64
            if leader in found:
                reason = f"the list of tasks does not close: {leader:#x} comes twice"
                break
            if len(found) >= MAX_TASKS:
                reason = f"more than {MAX_TASKS} tasks"
                break
            try:
                found[leader] = self.read(leader)
                self._read_ahead(leader)
                reason = self._threads(leader, found) or reason
                link = self._u64(leader + at)
            except GuestError as error:
                reason = f"the list of tasks is damaged: {error.message}"
                break
        for address in self._running:
            if address not in found:
                try:
                    found[address] = self.read(address)
                except GuestError:
                    continue
        return TaskList(tuple(found.values()), reason)

    def _read_ahead(self, leader: int) -> None:
        """Have what is read next of the list come in one go, with its neighbours: others are among them."""
        places = [self._u64(leader + self._at["tasks"])]
        if self._thread_list is not None:
            places.append(self._u64(leader + self._thread_list[0]))
        self.view.read_ahead([(place & -AHEAD, AHEAD) for place in places if bit(place, 55)])

    def newest(self, known: Container[int]) -> list[Task]:
        """Return the processes at the end of the list that are not known yet: the newest stand there.

        New threads of a known process are not found. Raises GuestError if there is no list.
        """
        at = self._at["tasks"]
        head = self.init_task().address + at
        found: list[Task] = []
        link = self._u64(head + 8)
        while link != head and (link - at) & MASK64 not in known and len(found) < MAX_TASKS:
            found.append(self.read((link - at) & MASK64))
            link = self._u64(link + 8)
        return found

    def _threads(self, leader: int, found: dict[int, Task]) -> str:
        """Add the other threads of a process; return why they may not be all."""
        if self._thread_list is None:
            return "of each process only the first thread: the kernel file describes no types"
        pointer, in_head, node = self._thread_list
        head = self._u64(leader + pointer) + in_head
        link = self._u64(head & MASK64)
        count = 0
        while link != head:
            thread = (link - node) & MASK64
            count += 1
            if len(found) >= MAX_TASKS or count > MAX_TASKS:
                return f"more than {MAX_TASKS} threads"
            if thread not in found:
                found[thread] = self.read(thread)
            link = self._u64(thread + node)
        return ""

    def _u64(self, va: int) -> int:
        return int.from_bytes(self._bytes(va, 8), "little")

    def _bytes(self, va: int, length: int) -> bytes:
        va &= MASK64
        if not bit(va, 55):
            raise GuestError(f"{va:#x} is no address of the kernel's")
        return self.view.read_virt(va, length)


def at_user_border(state: CpuState) -> bool:
    """Tell whether SP_EL0 is a user's stack pointer: in user mode, in the entry from it and the exit to it.

    There are the vectors, the trampoline of KPTI among them, and what follows up to `msr sp_el0`.
    """
    value = state.system.get("SP_EL0")
    return state.el == 0 or (value is not None and not bit(value, 55))


def look_up(image: KernelImage) -> None:
    """Have the kernel file's types find, and keep, what a look at tasks asks. Raises KernelFileError."""
    for path in (*(f"task_struct.{name}" for name in MEMBERS), *THREADS):
        image.types.offset(path)
    idle_pointer(image)


def idle_pointer(image: KernelImage) -> int | None:
    """Return the link-time address of the run queue's pointer to the idle task, per CPU; None unknown.

    `runqueues` by its symbol, else from the code of idle_task(), kernel/sched/core.c:
    `per_cpu_offset[cpu]` is indexed with the CPU, and the other address it builds is `runqueues`.
    """
    try:
        offset = image.types.offset("rq.idle")
        if "runqueues" in image.symbols:
            return image.lookup("runqueues") + offset
        if "idle_task" not in image.symbols:
            return None
        start = image.lookup("idle_task")
        words = a64.words(image.text_at(start, IDLE_CODE_BYTES))
    except KernelFileError:
        return None
    if a64.RET in words:
        words = words[: words.index(a64.RET)]
    built = {}
    for i in range(len(words)):
        address = a64.address_built(words, i, start)
        if address is not None:
            built[address[0]] = address[1]
    indexed = set(map(a64.index_register, words))
    others = [address for register, address in built.items() if register not in indexed]
    return others[0] + offset if len(others) == 1 and len(built) == 2 else None
