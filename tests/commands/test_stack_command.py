"""`stack` and `stack tasks`: what they answer."""

from __future__ import annotations

import pytest
from fakes import FakeSession, context, run, text
from stack_guest import IRQ_POINTER, KERNEL, MAGIC, OFFSETS, SIZE, StackGuest

from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError


class Guest(StackGuest):
    """Three tasks on two CPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.bases = [self.new_stack() for _ in range(3)]
        self.idle = self.task(0, "swapper/0", self.bases[0])
        self.sleeper = self.task(1, "init", self.bases[1], parent=self.idle)
        self.shell = self.task(42, "sh\x1b[2J", self.bases[2], parent=self.sleeper)
        self.link_tasks([self.idle, self.sleeper, self.shell])
        self.irq = self.new_stack()
        self.per_cpu_put(0, IRQ_POINTER, self.irq)
        self.states = [
            self.cpu(self.shell, self.bases[2] + 0x3CC0),
            self.cpu(self.idle, self.bases[0] + 0x3E00, 1),
        ]

    def context(self) -> Context:
        ctx = context()
        self.attach(ctx.guest, FakeSession(self.tree.memory, cpus=self.states))
        return ctx


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def ctx(guest: Guest) -> Context:
    return guest.context()


def test_the_stack_of_the_cpu_that_stopped(ctx: Context, guest: Guest) -> None:
    result = run(ctx, "stack").result
    base = guest.bases[2]
    assert (result["cpu"], result["kind"]) == (0, "task")
    assert (result["base"], result["top"], result["sp"]) == (hex(base), hex(base + SIZE), hex(base + 0x3CC0))
    assert (result["used"], result["free"], result["size"]) == (0x340, 0x3CC0, SIZE)
    assert (result["used_percent"], result["free_percent"]) == (5.1, 94.9)
    assert result["task"] == {"comm": "sh\\x1b[2J", "pid": 42, "tgid": 42, "address": hex(guest.shell)}
    assert result["end_magic_intact"] is True
    assert len(result["cpus"]) == 1


def test_every_frame_has_its_fields(ctx: Context, guest: Guest) -> None:
    guest.image.put(KERNEL + 0x5000, [0xD10103FF], "work")
    result = run(ctx, "stack").result
    assert set(result["frames"][0]) >= {"pc", "symbol", "sp", "size"}
    assert result["frames"][0]["symbol"] == "work+0x0"


def test_all_cpus(ctx: Context) -> None:
    result = run(ctx, "stack --cpu all").result
    assert [(one["cpu"], one["task"]["pid"]) for one in result["cpus"]] == [(0, 42), (1, 0)]
    assert run(ctx, "stack --cpu 1").result["task"]["comm"] == "swapper/0"


def test_a_task_that_sleeps_and_one_that_runs(ctx: Context) -> None:
    sleeping = run(ctx, "stack --task 1").result
    assert (sleeping["cpu"], sleeping["task"]["comm"], sleeping["used"]) == (None, "init", 0x200)
    assert run(ctx, "stack --task 42").result["cpu"] == 0


@pytest.mark.parametrize(
    "which", ["42", "task:42", "task:sh\x1b[2J", "task:sh", "--task sh", "--task task:42"]
)
def test_a_task_by_its_number_and_by_its_name(ctx: Context, which: str) -> None:
    assert run(ctx, f"stack '{which}'" if which[0] != "-" else f"stack {which}").result["task"]["pid"] == 42


def test_a_name_that_several_have_and_one_that_nobody_has(ctx: Context, guest: Guest) -> None:
    for line, why in (
        ("stack task:nobody", "no task is called 'nobody'"),
        ("stack 43", "no task has PID 43"),
        ("stack nobody", "is no task"),
        ("stack task:", "names no task"),
    ):
        with pytest.raises(UserError, match=why):
            run(ctx, line)
    other = guest.task(43, "shell", guest.bases[2], parent=guest.sleeper)
    guest.link_tasks([guest.idle, guest.sleeper, guest.shell, other])
    ctx.guest.forget_stop()
    with pytest.raises(UserError, match=r"'task:s' is ambiguous: swapper/0 \(0\), sh"):
        run(ctx, "stack task:s")
    assert run(ctx, "stack task:shell").result["task"]["pid"] == 43


def test_a_beginning_of_several_words_is_ambiguous(ctx: Context) -> None:
    with pytest.raises(UserError, match="'stack t' is ambiguous: tasks, trace"):
        run(ctx, "stack t")
    with pytest.raises(UserError, match="'sn' is ambiguous: snap, snaps"):
        run(ctx, "sn")


@pytest.mark.parametrize("line", ["stack --cpu 7", "stack --cpu x", "stack --task 999", "stack -n 0"])
def test_wrong_arguments(ctx: Context, line: str) -> None:
    with pytest.raises(UserError):
        run(ctx, line)


def test_without_a_kernel_file(ctx: Context) -> None:
    ctx.guest._kernel = None
    with pytest.raises(UserError, match="kernel file"):
        run(ctx, "stack")


def test_people_see_the_headline_and_no_control_codes(ctx: Context) -> None:
    shown = text(run(ctx, "stack"))
    assert shown.startswith(
        "cpu 0: task stack of sh\\x1b[2J (42): 832 of 16384 bytes used (5.1 %), 15552 free"
    )
    assert "end mark intact" in shown
    assert "\x1b" not in shown


def test_a_destroyed_end_mark_is_shown(ctx: Context, guest: Guest) -> None:
    guest.put(guest.bases[2], MAGIC + 1)
    assert run(ctx, "stack").result["end_magic_intact"] is False
    assert "NO END MARK: overwritten, or the mapping leads to other memory" in text(run(ctx, "stack"))


def test_tasks_are_sorted_by_the_least_that_was_free(ctx: Context, guest: Guest) -> None:
    guest.put(guest.bases[1] + 0x400, 1)
    guest.put(guest.bases[0] + 0x2000, 1)
    result = run(ctx, "stack tasks").result
    rows = [(row["pid"], row["least_free"], row["deepest"], row["how"]) for row in result["tasks"]]
    assert rows == [
        (1, 0x400, SIZE - 0x400, "saved"),
        (0, 0x2000, SIZE - 0x2000, "live, cpu 1"),
        (42, 0x3CC0, 0, "live, cpu 0"),
    ]
    assert (result["total"], result["least_free"], result["incomplete"]) == (3, 0x400, "")
    assert all(row["end_magic_intact"] for row in result["tasks"])
    assert result["tasks"][0]["deepest_address"] == hex(guest.bases[1] + 0x400)


def test_a_task_whose_cpu_is_on_the_irq_stack(guest: Guest) -> None:
    guest.states[0] = guest.cpu(guest.shell, guest.irq + 0x3000)
    rows = {row["pid"]: row for row in run(guest.context(), "stack tasks").result["tasks"]}
    assert rows[42]["how"] == "on another stack, cpu 0"
    assert run(guest.context(), "stack").result["kind"] == "irq"


def test_a_stack_that_is_gone_is_a_row_all_the_same(ctx: Context, guest: Guest) -> None:
    guest.tree.set(guest.bases[1], 2, 0)
    rows = run(ctx, "stack tasks").result["tasks"]
    assert len(rows) == 3
    assert [row["end_magic_intact"] for row in rows] == [None] * 3
    assert "cannot be read" in text(run(ctx, "stack tasks"))


def test_a_damaged_list_says_so(ctx: Context, guest: Guest) -> None:
    guest.put(guest.sleeper + OFFSETS["task_struct.tasks"], 0)
    result = run(ctx, "stack tasks").result
    assert "damaged" in result["incomplete"]
    assert "damaged" in text(run(ctx, "stack tasks"))
