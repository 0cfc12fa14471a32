"""Whether a stack's addresses lead to the pages that the kernel gave it."""

from __future__ import annotations

from typing import Any

import pytest
import stack_guest as sg
from fakes import FakeSession, context, run, text
from stack_guest import SIZE, StackGuest

from ptinspect.commands.stack.stack import depths
from ptinspect.linux.image.btf import BtfTypes
from ptinspect.linux.running.stack_pages import misled
from ptinspect.linux.running.stacks import Stacks
from ptinspect.stack.depth import depth_of_cpu
from ptinspect.stack.kernel_code import KernelCode

STRUCT_PAGE = 64
VMEMMAP = 0xFFFF_FDFF_FE00_0000 - (0x4000_0000 >> 12) * STRUCT_PAGE
FIELDS = {
    "task_struct.stack_vm_area": 40,
    "vm_struct.addr": 8,
    "vm_struct.pages": 32,
}
OTHER = 0x6123_4000


class Btf(sg.Types, BtfTypes):
    """The types of a kernel file."""


class Guest(StackGuest):
    """A task whose stack is in vmalloc space, with what the kernel keeps of it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = self.new_stack()
        self.me = self.task(0, "swapper/0", self.base)
        self.link_tasks([self.me])
        self.image.types = Btf({**sg.OFFSETS, **FIELDS})
        self.image.types.size = {"page": STRUCT_PAGE}.__getitem__  # type: ignore[attr-defined]
        self.image.symbols["vmemmap_populate"] = [sg.KERNEL + 0x9000]
        self.area = sg.LINEAR + 0x1800_0000
        view = self.view()
        pages = [view.pa_of(self.base + i) for i in range(0, SIZE, 4096)]
        self.put(self.me + 40, self.area)
        self.put(self.area + 8, self.base)
        self.put(self.area + 32, self.area + 0x100)
        self.put(self.area + 0x100, *(VMEMMAP + (pa >> 12) * STRUCT_PAGE for pa in pages))

    def move(self, offset: int, pa: int) -> None:
        """Have one page of the stack lead elsewhere."""
        self.tree.map(self.base + offset, pa, level=3)
        self.tree.memory.write(pa, bytes(4096))

    def found(self) -> Any:
        return misled(self.view(), self.me, self.base, SIZE)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_stack_that_is_where_it_has_to_be(guest: Guest) -> None:
    assert guest.found() is None


@pytest.mark.parametrize("offset", [0, 0x1000, 0x3000])
def test_a_page_that_leads_elsewhere(guest: Guest, offset: int) -> None:
    guest.move(offset, OTHER)
    found = guest.found()
    assert (found.address, found.pa) == (guest.base + offset, OTHER)


def test_a_page_that_is_not_mapped_leads_nowhere(guest: Guest) -> None:
    guest.tree.set(guest.base, 3, 0)
    assert guest.found() is None


@pytest.mark.parametrize(
    "lacking", ["task_struct.stack_vm_area", "vm_struct.pages", "page", "symbol", "addr"]
)
def test_nothing_is_claimed_where_the_kernel_does_not_tell(guest: Guest, lacking: str) -> None:
    guest.move(0, OTHER)
    fields = {name: at for name, at in {**sg.OFFSETS, **FIELDS}.items() if name != lacking}
    sizes = {} if lacking == "page" else {"page": STRUCT_PAGE}
    guest.image.types = Btf(fields)

    def size(name: str) -> int:
        from ptinspect.errors import KernelFileError

        if name not in sizes:
            raise KernelFileError(f"no {name}")
        return sizes[name]

    guest.image.types.size = size  # type: ignore[attr-defined]
    if lacking == "symbol":
        del guest.image.symbols["vmemmap_populate"]
    if lacking == "addr":
        guest.put(guest.area + 8, guest.base + 0x1000)
    assert guest.found() is None


def test_the_end_mark_of_memory_that_is_not_the_stack_is_not_destroyed(guest: Guest) -> None:
    state = guest.cpu(guest.me, guest.base + SIZE - sg.FRAME)
    guest.move(0, OTHER)
    stacks = Stacks(guest.view(state))
    found = depth_of_cpu(stacks, state)
    assert found.end_magic_intact is None
    assert f"{guest.base:#x} leads to pa:{OTHER:#x}" in found.elsewhere


def test_a_destroyed_mark_is_told_all_the_same(guest: Guest) -> None:
    state = guest.cpu(guest.me, guest.base + SIZE - sg.FRAME)
    guest.put(guest.base, 0)
    found = depth_of_cpu(Stacks(guest.view(state)), state)
    assert "END MARK DESTROYED" in text(depths([found], KernelCode(guest.view(state))))
    assert (found.end_magic_intact, found.elsewhere, found.doubt) == (False, "", "")
    del guest.image.symbols["vmemmap_populate"]
    found = depth_of_cpu(Stacks(guest.view(state)), state)
    assert found.end_magic_intact is False
    assert "or the mapping leads to other memory" in found.doubt


def test_stack_says_so(guest: Guest) -> None:
    state = guest.cpu(guest.me, guest.base + SIZE - sg.FRAME)
    guest.move(0, OTHER)
    ctx = context()
    guest.attach(ctx.guest, FakeSession(guest.tree.memory, cpus=[state]))
    shown = text(run(ctx, "stack"))
    assert "THE MAPPING LEADS ELSEWHERE" in shown and "END MARK" not in shown
    assert run(ctx, "stack tasks").result["tasks"][0]["end_magic_intact"] is None


def test_a_kernel_file_without_types_is_read_as_far_as_memory_tells(guest: Guest) -> None:
    """The vm_struct is what a task points to that names its stack; another stack has to fit."""
    other = guest.new_stack()
    task = guest.task(9, "other", other, parent=guest.me)
    area = guest.area + 0x1000
    guest.put(task + 40, area)
    guest.put(guest.area + 16, SIZE + 4096)
    view = guest.view()
    pages = [view.pa_of(other + i) for i in range(0, SIZE, 4096)]
    guest.put(area + 8, other, SIZE)
    guest.put(area + 32, area + 0x100)
    guest.put(area + 0x100, *(VMEMMAP + (pa >> 12) * STRUCT_PAGE for pa in pages))
    guest.move(0, OTHER)
    guest.image.types = sg.Types(sg.OFFSETS)  # type: ignore[assignment]
    view = guest.view()
    assert misled(view, guest.me, guest.base, SIZE) is None, "no other stack is known to fit"
    found = misled(view, guest.me, guest.base, SIZE, lambda: [(task, other)])
    assert found is not None and found.pa == OTHER
    assert misled(view, task, other, SIZE, lambda: [(guest.me, guest.base)]) is None
    guest.put(area + 0x100, VMEMMAP + 8)
    assert misled(view, guest.me, guest.base, SIZE, lambda: [(task, other)]) is None
