"""The exception entry, recognised from its instructions."""

from __future__ import annotations

import pytest
import stack_guest as sg
from stack_guest import KERNEL, VECTORS, Image, StackGuest

from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.image.entry import recognise_code, recognise_entry


@pytest.fixture
def image() -> Image:
    return StackGuest().image


def test_sizes_labels_and_stacks_come_from_the_code(image: Image) -> None:
    entry = recognise_entry(image)  # type: ignore[arg-type]
    assert (entry.frame_size, entry.thread_size, entry.irq_stack_size) == (0x150, 0x4000, 0x4000)
    assert [v.kind for v in entry.vectors] == ["sync", "irq", "fiq", "error"]
    assert (entry.sync.va, entry.sync.label) == (VECTORS + 0x200, sg.EL1_SYNC)
    assert entry.sync.overflow == VECTORS + 0x21C
    assert entry.vectors[1].label == sg.EL1_IRQ
    assert entry.labels == (sg.EL1_SYNC, sg.EL1_IRQ, sg.EL0_SYNC)
    assert entry.bad_stack == sg.BAD_STACK
    assert entry.overflow_stack == (sg.OVERFLOW, 0x1000)
    assert entry.pointers == {"irq_stack_ptr": sg.IRQ_POINTER, "__entry_task": sg.ENTRY_TASK}


@pytest.mark.parametrize(("shift", "size"), [(14, 1 << 14), (15, 1 << 15), (16, 1 << 16)])
def test_the_stack_size_is_the_tested_bit(image: Image, shift: int, size: int) -> None:
    at = VECTORS + 0x200
    image.put(at, sg.vector(at, sg.EL1_SYNC, sg.OVERFLOW + 0x1000, shift=shift, frame=0x140))
    entry = recognise_entry(image)  # type: ignore[arg-type]
    assert (entry.thread_size, entry.frame_size) == (size, 0x140)


def test_a_vector_that_does_not_test_for_overflow(image: Image) -> None:
    for i in range(4):
        at = VECTORS + 0x200 + 0x80 * i
        image.put(at, [sg.sub_sp(sg.FRAME), sg.b(at + 4, sg.EL1_SYNC), *[sg.NOP] * 20])
    entry = recognise_entry(image)  # type: ignore[arg-type]
    assert entry.thread_size is entry.overflow_stack is entry.bad_stack is None
    assert entry.sync.overflow is None


def test_irq_and_sdei_stacks_of_a_kernel_that_switches_in_functions(image: Image) -> None:
    at = KERNEL + 0x6000
    image.put(
        at,
        [0xA9BF7BFD, sg.MOV_FP_SP, *sg.load_per_cpu(16, 17, at + 8, sg.IRQ_POINTER), 0x9140121F],
        "call_on_irq_stack",
    )
    normal, critical, entry_task = sg.PER_CPU + 0x830, sg.PER_CPU + 0x838, sg.ENTRY_TASK
    at = KERNEL + 0x7000
    words = [
        *sg.load_per_cpu(5, 6, at, normal),
        sg.NOP,
        *sg.load_per_cpu(5, 6, at + 20, critical),
        sg.movz(6, 0x4000),
        0x8B0600A5,
        sg.add(31, 5, 0),
        *sg.load_per_cpu(0, 1, at + 48, entry_task),
    ]
    image.put(at, words, "__sdei_asm_handler")
    entry = recognise_entry(image)  # type: ignore[arg-type]
    assert entry.irq_stack_size == 0x4000
    assert entry.pointers["irq_stack_ptr"] == sg.IRQ_POINTER
    assert entry.pointers["sdei_stack_normal_ptr"] == normal
    assert entry.pointers["sdei_stack_critical_ptr"] == critical


def test_code_that_is_no_vector(image: Image) -> None:
    image.put(VECTORS + 0x200, [sg.NOP] * 32)
    with pytest.raises(KernelFileError, match="unknown entry code"):
        recognise_entry(image)  # type: ignore[arg-type]


def test_a_vector_without_a_frame() -> None:
    image = Image()
    for slot in range(0, 0x800, 0x80):
        image.put(VECTORS + slot, [sg.b(VECTORS + slot, sg.EL1_SYNC)])
    with pytest.raises(GuestError):
        recognise_code(image.text_at, VECTORS, {})


def test_the_current_task_is_named_late_in_the_entry(image: Image) -> None:
    """Before v5.0 or so SP_EL0 is written at the end of kernel_entry, after the registers are stored."""
    at = sg.EL0_SYNC + 4 * 16
    image.put(at + 16, [sg.NOP] * 30 + [sg.MSR_SP_EL0 | 28])
    assert recognise_entry(image).pointers["__entry_task"] == sg.ENTRY_TASK  # type: ignore[arg-type]
