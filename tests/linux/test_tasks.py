"""The list of tasks, whole, damaged and without an end."""

from __future__ import annotations

import pytest
import stack_guest as sg
from stack_guest import LINEAR, OFFSETS, SIZE, StackGuest

from ptinspect.errors import GuestError
from ptinspect.linux.running.tasks import Task, TaskList, Tasks, idle_pointer, look_up

TASKS = OFFSETS["task_struct.tasks"]


class Guest(StackGuest):
    """Init, two processes, and the CPU runs the last."""

    def __init__(self) -> None:
        super().__init__()
        self.init = self.task(0, "swapper/0", self.new_stack())
        self.first = self.task(1, "init", self.new_stack(), parent=self.init)
        self.second = self.task(42, "sh", self.new_stack(), parent=self.first)
        self.link_tasks([self.init, self.first, self.second])

    def tasks(self, current: int | None = None) -> Tasks:
        current = self.second if current is None else current
        return Tasks(self.view(self.cpu(current, 0)))

    def all(self) -> TaskList:
        return self.tasks().all()


@pytest.fixture
def guest() -> Guest:
    return Guest()


def names(listed: TaskList) -> list[str]:
    return [task.comm for task in listed.tasks]


def test_a_task(guest: Guest) -> None:
    found = guest.tasks().read(guest.first)
    assert isinstance(found, Task)
    assert (found.pid, found.tgid, found.comm, found.cpu) == (1, 1, "init", None)
    assert found.saved_sp == found.stack + SIZE - 0x200


def test_the_list_from_the_ancestor_of_the_current_task(guest: Guest) -> None:
    listed = guest.all()
    assert names(listed) == ["swapper/0", "init", "sh"]
    assert listed.incomplete == ""
    assert [task.cpu for task in listed.tasks] == [None, None, 0]


def test_the_list_from_the_symbol(guest: Guest) -> None:
    guest.image.symbols["init_task"] = [guest.init]
    assert names(guest.tasks(current=0).all()) == ["swapper/0", "init", "sh"]


def test_what_a_look_asks_of_the_kernel_file_is_looked_up_before(guest: Guest) -> None:
    types = guest.image.types
    asked: set[str] = set()
    types.offset = lambda path: (asked.add(path), sg.Types.offset(types, path))[1]  # type: ignore[method-assign]
    look_up(guest.image)  # type: ignore[arg-type]
    before = set(asked)
    assert len(guest.all().tasks) == 3 and before >= {"task_struct.pid", "rq.idle"} and asked == before


def test_threads_stand_behind_their_leader(guest: Guest) -> None:
    thread = guest.task(43, "worker", guest.new_stack(), parent=guest.first)
    node = OFFSETS["task_struct.thread_node"]
    guest.link([guest.second + 0x1000 + 16, guest.second + node, thread + node])
    guest.link_tasks([guest.init, guest.second, guest.first])
    assert names(guest.all()) == ["swapper/0", "sh", "worker", "init"]


def test_the_idle_task_of_another_cpu_is_found_by_its_run_queue(guest: Guest) -> None:
    idle = guest.task(0, "swapper/1", guest.new_stack())
    pointer = sg.PER_CPU + 0x800
    guest.image.symbols["runqueues"] = [pointer - OFFSETS["rq.idle"]]
    guest.per_cpu_put(1, pointer, idle)
    states = [guest.cpu(guest.second, 0), guest.cpu(guest.first, 0, 1)]
    assert names(Tasks(guest.view(*states)).all()) == ["swapper/0", "swapper/1", "init", "sh"]


def test_the_run_queue_from_the_code_of_idle_task(guest: Guest) -> None:
    offsets, queues, at = sg.PER_CPU + 0x3000, sg.PER_CPU + 0x1240, sg.KERNEL + 0x8000
    words = [
        sg.adrp(2, at, offsets), sg.add(2, 2, offsets & 0xFFF),
        sg.adrp(1, at + 8, queues), sg.add(1, 1, queues & 0xFFF),
        0xF860D840, 0x8B010001, 0xF944BC20, sg.RET, sg.adrp(3, at + 32, offsets),
    ]  # fmt: skip
    guest.image.put(at, words, "idle_task")
    assert idle_pointer(guest.image) == queues + OFFSETS["rq.idle"]  # type: ignore[arg-type]
    guest.image.put(at, [sg.NOP] * 2)
    assert idle_pointer(guest.image) is None  # type: ignore[arg-type]


def test_the_newest_processes_stand_at_the_end(guest: Guest) -> None:
    tasks = guest.tasks()
    assert [task.comm for task in tasks.newest({guest.init, guest.first})] == ["sh"]
    assert [task.comm for task in tasks.newest({guest.init})] == ["sh", "init"]
    assert tasks.newest({guest.second}) == []


def test_a_list_that_loops_elsewhere_is_cut(guest: Guest) -> None:
    guest.put(guest.second + TASKS, guest.first + TASKS)
    listed = guest.all()
    assert names(listed) == ["swapper/0", "init", "sh"]
    assert "does not close" in listed.incomplete


@pytest.mark.parametrize("link", [0, 0x1000, LINEAR + 0x3FFF_F000 + TASKS, (1 << 64) - 8])
def test_a_damaged_link_ends_the_list_with_a_reason(guest: Guest, link: int) -> None:
    guest.put(guest.first + TASKS, link)
    listed = guest.all()
    assert names(listed)[:2] == ["swapper/0", "init"]
    assert "damaged" in listed.incomplete


def test_a_damaged_list_of_threads(guest: Guest) -> None:
    guest.put(guest.first + OFFSETS["task_struct.signal"], 0x10)
    assert "damaged" in guest.all().incomplete


def test_threads_without_an_end(guest: Guest) -> None:
    node = guest.first + OFFSETS["task_struct.thread_node"]
    guest.put(node, node)
    assert "threads" in guest.all().incomplete


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (OFFSETS["task_struct.pid"], b"\xff\xff\xff\x7f"),
        (OFFSETS["task_struct.comm"], b"x" * 16),
        (OFFSETS["task_struct.stack"], (0x1234).to_bytes(8, "little")),
        (OFFSETS["task_struct.stack"], (LINEAR + 8).to_bytes(8, "little")),
    ],
)
def test_what_is_no_task_is_an_error(guest: Guest, offset: int, value: bytes) -> None:
    guest.write(guest.first + offset, value)
    with pytest.raises(GuestError, match="holds no task"):
        guest.tasks().read(guest.first)


def test_no_ancestor_of_pid_0(guest: Guest) -> None:
    guest.put(guest.first + OFFSETS["task_struct.real_parent"], guest.first)
    with pytest.raises(GuestError, match="no task was found"):
        guest.tasks().init_task()


def test_parents_in_a_circle(guest: Guest) -> None:
    guest.put(guest.first + OFFSETS["task_struct.real_parent"], guest.second)
    with pytest.raises(GuestError):
        guest.tasks().init_task()


def test_on_sp_el0_as_stack_pointer_there_is_no_current(guest: Guest) -> None:
    state = guest.cpu(guest.second, 0, pstate=0x3C4)
    assert Tasks(guest.view(state)).current(state) is None
