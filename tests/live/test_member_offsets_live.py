"""Offsets told from memory, against the kernel's own description of its types (BTF)."""

from __future__ import annotations

import pytest
from session import NEWER, launched, need_guest

from ptinspect.errors import KernelFileError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.running.member_offsets import MemberOffsets

PATHS = (
    "task_struct.stack",
    "task_struct.comm",
    "task_struct.pid",
    "task_struct.tgid",
    "task_struct.real_parent",
    "task_struct.tasks",
    "task_struct.thread.cpu_context",
    "task_struct.thread.cpu_context.sp",
    "cpu_context.fp",
    "cpu_context.sp",
    "cpu_context.pc",
    "pt_regs.sp",
    "pt_regs.pc",
    "pt_regs.pstate",
    "pt_regs.stackframe",
)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("5.10-cloud-dbg", "--memory 512 --smp 2"),
        ("6.12-cloud", "--memory 512 --cpu max"),
        ("6.12-16k", "--memory 1024 --cpu max"),
        ("7.3-cloud", f"--memory 512 --cpu max {NEWER}"),
    ],
)
def test_what_memory_tells_is_what_the_kernel_says(name: str, options: str) -> None:
    with launched(name, options) as live:
        live("kpti run --timeout 300")
        view = live.ctx.guest.view
        seen, kernel = MemberOffsets(view), KernelImage.open(need_guest(name).kernel)
        assert view.image is not None and "init_task" in view.image.symbols
        wrong = {
            path: (seen.offset(path), kernel.types.offset(path))
            for path in PATHS
            if seen.offset(path) != kernel.types.offset(path)
        }
        assert wrong == {}
        with pytest.raises(KernelFileError, match=r"memory does not tell where mm_struct.pgd is"):
            seen.offset("mm_struct.pgd")
