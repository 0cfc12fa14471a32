"""A vmlinux with debug information: GDB gets its symbols at once, the rest when it is asked to read it."""

from __future__ import annotations

import re

import pytest
from session import launched

from ptinspect.errors import MiError


def test_symbols_are_there_without_the_debug_information() -> None:
    with launched("5.10-cloud-dbg") as live:
        kernel = live.ctx.guest.kernel
        assert kernel is not None and kernel.is_elf
        for name in ("init_task", "start_kernel", "swapper_pg_dir"):
            said = "".join(live(f"gdb p/x (unsigned long)&{name}")["lines"])
            assert int(re.findall(r"0x[0-9a-f]+", said)[-1], 16) == kernel.lookup(name)
        assert "section .init.text" in live("gdb info symbol start_kernel")["lines"][0]
        with pytest.raises(MiError, match="No struct type") as caught:
            live("gdb p sizeof(struct task_struct)")
        command = caught.value.hint.partition(": ")[2]
        assert command == f"gdb symbol-file {kernel.path}"
        live(command)
        assert "main.c" in live("gdb info line start_kernel")["lines"][0]
        for name in ("kernel_clone", "vmap", "do_sys_open", "__create_pgd_mapping", "handle_bad_stack"):
            for address in range(kernel.lookup(name), kernel.lookup(name) + 0x140, 0x50):
                said = " ".join(live(f"gdb info line *{address:#x}")["lines"])
                found = re.match(r'Line (\d+) of "(.+?)"', said)
                assert found is not None and kernel.source_line(address) == f"{found[2]}:{found[1]}", said
        assert kernel.source_line(0x1000) == ""
