"""Faults put into the tables: a descriptor poked, or the stack's mapping lost at the end of the rewrite.

The latter was so in the bug report on lost table entries (`linux.kpti.verdict`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ptinspect.arch.bits import MASK64, PhysAddr
from ptinspect.arch.descriptor import BIT11
from ptinspect.arch.regime import root_pa
from ptinspect.dataclass import dataclass
from ptinspect.errors import GuestError, TargetError, TargetTimeout, UserError
from ptinspect.files import replacing
from ptinspect.guest.guest import Guest
from ptinspect.guest.rewrite.rewrite import Runner
from ptinspect.memory.source import number_at

if TYPE_CHECKING:
    from ptinspect.guest.opening import Machine
    from ptinspect.link.journal import Change
    from ptinspect.linux.running.guest_view import GuestView


def descriptor_at(guest: Guest, pa: int) -> int:
    """Return the descriptor at a physical address of the stopped guest. Raises UserError, MemoryReadError."""
    if pa % 8:
        raise UserError(f"pa:{pa:#x}: a descriptor is eight bytes at a multiple of 8")
    return number_at(guest.stopped.memory, pa)


def poke(guest: Guest, pa: int, value: int) -> Change:
    """Write a descriptor and remember what was there. Raises UserError, MemoryReadError, TargetError."""
    from ptinspect.link.journal import POKE, Change

    made = Change(pa, descriptor_at(guest, pa), value, what=POKE)
    guest.stopped.changes.make([made])
    return made


def undo_poke(guest: Guest) -> Change:
    """Write back what the last poke replaced, and return that poke.

    Raises UserError if there was none, or the guest has changed the descriptor since.
    """
    from ptinspect.link.journal import POKE

    changes = guest.stopped.changes
    done = changes.made(POKE)
    if not done:
        raise UserError("nothing was poked")
    last = done[-1]
    now = descriptor_at(guest, last.pa)
    if now != last.new:
        raise UserError(f"pa:{last.pa:#x} holds {now:#x}, not {last.new:#x}: the guest changed it since")
    changes.undo([last])
    return last


Fault = Literal["lost", "reverted"]
"""The entry of the stack is cleared, or has the value that it had in the boot's own table."""
DEATH_SECONDS = 60.0
"""Seconds that a guest gets to die in."""
QUIET_SECONDS = 2.0
"""Seconds of silence after a panic after which nothing more is waited for."""
PANIC = b"Kernel panic - not syncing"
PMD = 2
"""Level of the tables whose entry is cleared."""


def inject(guest: Guest, fault: Fault, timeout: float) -> Change:
    """Run through the rewrite, and change the entry of the boot CPU's stack where all is written.

    The tables before the rewrite and those without the fault are kept as the snapshots `before` and `after`.
    Raises GuestError if the kernel does not rewrite its tables, or the fault makes no difference.
    """
    runner = Runner(guest, timeout)
    runner.place_kernel()
    boot = boot_root(guest)
    if not runner.enter():
        raise GuestError(runner.reason)
    runner.capture("before")
    stop = runner.run_to([runner.point("after_writes")])
    runner.capture("after")
    sp = guest.stopped.cpu_state(stop.cpu).sp
    return poke(guest, *(lost(guest.view, sp) if fault == "lost" else reverted(guest.view, sp, boot)))


def boot_root(guest: Guest) -> bytes:
    """Return the root table in TTBR1 as it is now, before paging_init() makes the kernel's own.

    Its address would not do: up to v5.3 the boot's own root is swapper_pg_dir itself, into which
    paging_init() copies the new one (arch/arm64/mm/mmu.c; head.S puts the boot's lower tables after it).
    """
    view = guest.view
    return view.memory.read(root_pa(view.state, view.regime), view.regime.root_size)


def lost(view: GuestView, sp: int) -> tuple[PhysAddr, int]:
    """Return the descriptor that leads to the stack alone, and zero. Raises GuestError if there is none."""
    from ptinspect.tables.walk import walk

    root, image = view.swapper().pa, view.image
    assert image is not None
    text = (image.text_va + image.code_range[0] + view.kaslr_offset) & MASK64
    code = walk(view.memory, text, root, view.regime)
    both = {s.descriptor_pa for s in code.steps}  # with 64K pages a pmd entry maps stacks and code alike
    path = walk(view.memory, sp, root, view.regime)
    found = next((s for s in path.steps if s.level >= PMD and s.descriptor_pa not in both), None)
    if found is None:
        raise GuestError(f"no entry maps the stack at {sp:#x} without mapping the kernel's code too")
    return found.descriptor_pa, 0


def reverted(view: GuestView, sp: int, boot: bytes) -> tuple[PhysAddr, int]:
    """Return the root descriptor of the stack, and the value that it had in the boot's root table.

    Raises GuestError if that value makes no difference.
    """
    from ptinspect.tables.walk import walk

    step = walk(view.memory, sp, view.swapper().pa, view.regime).steps[0]
    value = int.from_bytes(boot[8 * step.index : 8 * step.index + 8], "little")
    if not value & 1:
        raise GuestError(f"the boot's own table had no root entry for the stack at {sp:#x}", "--fault lost")
    if step.raw is not None and not (value ^ step.raw) & ~BIT11:
        raise GuestError(
            f"the root entry pa:{step.descriptor_pa:#x} had the same value at boot but for bit 11: "
            "this kernel goes on with the boot's tables, so that nothing would be lost if it reverted",
            "--fault lost, or an older kernel",
        )
    return step.descriptor_pa, value


@dataclass(frozen=True)
class LosingKernel:
    """A kernel that loses the entry of its own stack, ready to be booted."""

    file: Path
    symbols: Path | None
    """A vmlinux with its symbols; None if they are in the file itself."""
    cpu: str
    """CPU model to boot it on; empty for the default."""
    changed: int
    """Instructions that are others than in the kernel that it was made of."""
    store: int
    """Link-time address of the one that clears the entry."""
    place: str
    """The same with the symbol of the rewrite."""


def losing_kernel(guest: Guest, machine: Machine, file: Path) -> LosingKernel:
    """Write the kernel of a machine into a file such that it loses the entry.

    Raises KernelFileError where it cannot be made so, UserError.
    """
    from ptinspect.guest.opening import chosen
    from ptinspect.linux.image.image import KernelImage
    from ptinspect.linux.image.unpacking import bootable
    from ptinspect.linux.kpti.code import ENTRY
    from ptinspect.linux.kpti.losing import losing

    boot = chosen(guest, machine)
    try:
        data = bootable(boot.kernel, firmware=False).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {boot.kernel}: {error.strerror or error}") from error
    made, losing_code = losing(KernelImage.open(boot.symbols), data)
    with replacing(file) as out:
        out.write(made)
    return LosingKernel(
        file=file,
        symbols=None if boot.symbols == boot.kernel else boot.symbols,
        cpu=machine.cpu or boot.cpu,
        changed=len(losing_code.words),
        store=losing_code.code.entry_va + losing_code.store,
        place=f"{ENTRY}+{losing_code.store:#x}",
    )


def run_to_death(guest: Guest) -> str:
    """Let the guest run until its console reports a death and is silent then, for DEATH_SECONDS at most.

    Returns how it ended, in words.
    """
    session = guest.stopped
    session.resume()
    end = time.monotonic() + DEATH_SECONDS
    before = -1
    while time.monotonic() < end:
        try:
            stop = session.wait_stop(QUIET_SECONDS)
        except TargetTimeout:
            text = _console(guest)
            if len(text) == before and PANIC in text:
                break
            before = len(text)
        except TargetError as error:
            return f"the guest has ended: {error.message}"
        else:
            return f"the guest stopped at {guest.place(stop.pc)}"
    session.interrupt()
    return "the guest panicked" if PANIC in _console(guest) else "the guest did not get on, and did not panic"


def _console(guest: Guest) -> bytes:
    return b"" if guest.qemu is None else guest.qemu.console.read_bytes()
