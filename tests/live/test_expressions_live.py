"""C expressions with the kernel's types: against drgn with the kernel's DWARF; watchpoints and conditions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from session import BOOT_SECONDS, KASLR_BOOT, launched

LIMIT = f"--timeout {BOOT_SECONDS:.0f}"
STRUCTS = (
    "task_struct", "page", "mm_struct", "thread_struct", "vm_area_struct", "pt_regs", "rq", "file", "inode",
    "device", "sk_buff", "super_block", "signal_struct", "cred", "zone", "module", "tcp_sock", "irq_desc",
    "request_queue", "pglist_data",
)  # fmt: skip
VALUES = {
    "init_task.pid": "init.pid",
    "init_task.flags": "init.flags",
    "&init_task.tasks": "init.tasks.address_of_()",
    "init_task.tasks.next": "init.tasks.next",
    "init_task.comm[2]": "init.comm[2]",
    "$current": "here",
    "init_mm.pgd": "init_mm.pgd",
    "init_mm.pgd->pgd": "init_mm.pgd.pgd",
    "init_mm.mm_users.counter": "init_mm.mm_users.counter",
    "init_task.cpus_mask.bits[0]": "init.cpus_mask.bits[0]",
    "$current->prio - 100": "here.prio - 100",
    "init_task.real_parent->real_parent->pid": "init.real_parent.real_parent.pid",
    "((struct task_struct *)$SP_EL0)->stack": "here.stack",
    "init_task.in_execve": "init.in_execve",
    "init_task.sched_class": "init.sched_class",
    "init_task.sched_reset_on_fork": "init.sched_reset_on_fork",
    "&((struct page *)0)[3].flags": "3 * prog.type('struct page').size",
    "&init_task.rt + 1": "init.rt.address_of_() + 1",
    "init_task.nsproxy->uts_ns->name.sysname[0]": "init.nsproxy.uts_ns.name.sysname[0]",
    "init_task.thread.cpu_context.pc": "init.thread.cpu_context.pc",
    "system_state": "prog['system_state']",
    "jiffies_64": "prog['jiffies_64']",
    "nr_cpu_ids + 1": "prog['nr_cpu_ids'] + 1",
    "container_of($current->tasks.next, struct task_struct, tasks)->pid": (
        "drgn.container_of(here.tasks.next, 'struct task_struct', 'tasks').pid"
    ),
}
"""C, and the same for drgn."""


def members(kind: Any, before: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset in bits and width of a bit field of all members that drgn knows."""
    for member in kind.members:
        at = before + member.bit_offset
        if member.name is None:
            yield from members(member.type, at)
        else:
            yield member.name, at, member.bit_field_size or 0


def test_layouts_and_values_are_those_of_drgn_with_dwarf() -> None:
    drgn = pytest.importorskip("drgn")
    with launched("5.10-cloud-dbg") as live:
        live(f"until kernel_init {LIMIT}")
        kernel, view = live.ctx.guest.kernel, live.ctx.guest.view
        assert kernel is not None
        prog = drgn.Program(drgn.Platform(drgn.Architecture.AARCH64))
        module = prog.extra_module("kernel", create=True)
        module.address_range = (kernel.text_va, kernel.text_va + kernel.size)
        module.try_file(str(kernel.path), force=True)
        for name in STRUCTS:
            kind, made = prog.type(f"struct {name}"), live(f"ptype struct {name}")
            ours = [
                (part["name"], 8 * part["offset"], part.get("bits", 0))
                for part in made["parts"]
                if "bits" not in part
            ]
            assert made["size"] == kind.size and len(made["parts"]) == len(list(members(kind)))
            assert ours == [each for each in members(kind) if not each[2]], name
        prog.add_memory_segment(0, 2**64 - 1, lambda at, count, *_: view.read_virt(at, count), False)
        task = live("regs SP_EL0")["registers"]["SP_EL0"]
        known = {
            "prog": prog, "drgn": drgn, "init": prog["init_task"], "init_mm": prog["init_mm"],
            "here": drgn.Object(prog, "struct task_struct *", int(task, 16)),
        }  # fmt: skip
        for text, python in VALUES.items():
            wanted = eval(python, known)
            number = int(wanted.value_() if isinstance(wanted, drgn.Object) else wanted)
            found = live(f"print {text}")
            size = live(f"whatis {text}")["size"]
            assert int(found["value"], 16) == number & ((1 << 8 * size) - 1), text
        parts = {part["name"]: part["value"] for part in live("print init_task")["parts"]}
        assert parts["comm"].startswith('"swapper') and parts["pid"] == "0"


def test_watchpoints_and_conditions_wherever_the_kernel_runs() -> None:
    with launched("6.12-cloud", f"--append '{KASLR_BOOT}' --smp 2") as live:
        # set before it is known where init_task will be
        made = live("break kernel_clone if $current->pid == 2 && $sp_el0 != &init_task && $PState & 4")
        assert made["pending"]
        live(f"until kernel_init {LIMIT}")
        watch = live("watch jiffies")
        before = int(live("p jiffies")["value"], 16)
        seen = live(f"continue {LIMIT}")
        if seen["breakpoint"] != watch["id"]:  # the fork came first
            assert seen["breakpoint"] == made["id"]
            seen = live(f"continue {LIMIT}")
        assert (seen["watched"], seen["breakpoint"]) == ("jiffies", watch["id"])
        assert int(seen["old"], 16) >= before and int(seen["new"], 16) > int(seen["old"], 16)
        assert live("p jiffies")["value"] == seen["new"]
        live(f"delete {watch['id']}")
        seen = live(f"continue {LIMIT}")
        assert seen["breakpoint"] == made["id"]
        assert live("p $current->comm")["text"] == '"kthreadd"'
        assert live("p $current->pid")["decimal"] == 2
        (listed,) = live("break")["breakpoints"]
        assert listed["hits"] >= 1 and listed["condition"].startswith("$current->pid")
        read = live("rwatch system_state if system_state == SYSTEM_RUNNING")
        live("disable 1")
        seen = live(f"continue {LIMIT}")
        assert (seen["breakpoint"], seen["new"]) == (read["id"], "SYSTEM_RUNNING (3)")
        assert live("p system_state == SYSTEM_RUNNING")["decimal"] == 1
