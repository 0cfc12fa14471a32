"""Breakpoints at symbols that are set at reset: by KASLR, by UEFI, linked at 0, on a QEMU of one's own."""

from __future__ import annotations

from session import BOOT_SECONDS, KASLR_BOOT, Live, fresh, launched, need_guest, of_somebody_else
from test_boot_ways import MOVES, REWRITES, booted

from ptinspect.arch.a64 import words

LIMIT = f"--timeout {BOOT_SECONDS:.0f}"


def stands_at(live: Live, name: str, number: int | None = None) -> int:
    """Check by QEMU's own translation that the CPU is about to run this function; return where that runs."""
    session, kernel = live.ctx.guest.stopped, live.ctx.guest.kernel
    assert kernel is not None
    state, link = session.cpu_state(session.current_cpu), kernel.lookup(name)
    pa = session.gva2gpa(state.pc)
    assert pa is not None
    pairs = zip(words(session.memory.read(pa, 64)), words(kernel.text_at(link, 64)), strict=True)
    assert sum(here == there for here, there in pairs) >= 12, hex(state.pc)  # ftrace has patched a few
    assert number is None or session.stop.breakpoint == number
    return state.pc - link


def test_from_the_first_instruction_with_kaslr() -> None:
    """5.10 runs where it was linked before it moves; its boot code runs at physical addresses."""
    with launched("5.10-cloud", f"{MOVES} --smp 4") as live:
        hot = live("break kernel_init")
        assert hot["pending"]
        pc = live(f"until primary_entry {LIMIT}")["pc"]
        assert int(pc, 16) == 0x4020_0000 + live.ctx.guest.kernel.header.entry_offset  # type: ignore[union-attr]
        live(f"until __primary_switched {LIMIT}")
        stands_at(live, "__primary_switched")
        live(f"until start_kernel {LIMIT}")
        offset = stands_at(live, "start_kernel")
        live(f"continue {LIMIT}")
        assert stands_at(live, "kernel_init", hot["id"]) == offset != 0
        listed = live("break")["breakpoints"]
        assert [b["id"] for b in listed] == [hot["id"]] and "pending" not in listed[0]


def test_the_rewrite_of_a_kernel_that_is_linked_at_0() -> None:
    with launched("7.3-cloud", REWRITES) as live:
        made = live("break idmap_kpti_install_ng_mappings")
        assert "pending" not in made  # it runs where it lies
        assert live("break panic")["pending"]
        third = live("break do_one_initcall --ignore 2")
        assert third["pending"] and third["ignore"] == 2
        live(f"until start_kernel {LIMIT}")
        stands_at(live, "start_kernel")
        live(f"continue {LIMIT}")
        stands_at(live, "do_one_initcall", third["id"])
        entries = [f"((int *) __initcall_start + {n})" for n in (2, 1)]  # include/linux/init.h
        called = [live(f"print (unsigned long) {at} + *{at} == $x0")["value"] for at in entries]
        assert "0x1" in called, "a hit counts twice if QEMU's step from there executes nothing"
        live(f"delete {third['id']}")
        live(f"continue {LIMIT}")
        stands_at(live, "idmap_kpti_install_ng_mappings", made["id"])
        assert live("regs x0")["registers"]["x0"] == "0x0"


def test_by_uefi() -> None:
    with booted("6.12-cloud", f"{MOVES} --smp 2", uefi=True) as live:
        made = live("break start_kernel")
        assert made["pending"] and made["places"] == []
        live(f"until primary_entry {LIMIT}")
        stands_at(live, "primary_entry")
        live(f"continue {LIMIT}")
        assert stands_at(live, "start_kernel", made["id"]) != 0


def test_in_the_background_on_a_qemu_of_ones_own_and_after_a_reset() -> None:
    own = of_somebody_else("6.12-cloud", append=KASLR_BOOT, extra=("-action", "reboot=reset"))
    with own as qemu, fresh(f"attach {qemu.gdb_socket}") as live:
        made = live("break kernel_init")  # there is no kernel file yet
        live(f"kernel {need_guest('6.12-cloud').kernel}")
        live("continue --background")
        live(f"continue {LIMIT}")
        assert stands_at(live, "kernel_init", made["id"]) != 0
        live("monitor system_reset")
        assert live("break")["breakpoints"][0]["pending"]
        live(f"continue {LIMIT}")
        stands_at(live, "kernel_init", made["id"])
