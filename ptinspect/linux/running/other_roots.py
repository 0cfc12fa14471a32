"""Root tables besides the kernel's own: those of tasks, the identity map, the trampoline of KPTI."""

from __future__ import annotations

from collections.abc import Iterator

from ptinspect.arch.bits import PhysAddr, bit
from ptinspect.arch.regime import Regime, regime_from_registers, root_pa
from ptinspect.arch.sysregs import CpuState, translation_register
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import GuestError, KernelFileError, PtinspectError, UserError
from ptinspect.linux.running.guest_view import GuestView
from ptinspect.linux.running.swapper import PAGES_APART, executable_runs, valid_entries
from ptinspect.linux.running.tasks import Task, Tasks
from ptinspect.snapshot.model import Root
from ptinspect.tables.walk import walk
from ptinspect.text import counted

IDMAP_BITS = (48, 52, 47, 42, 39, 36)
"""Widths that the identity map may have where it has not that of user addresses (Linux: IDMAP_VA_BITS)."""
TRAMP_PAGES = 3
"""Pages of code that the trampoline has at most (arch/arm64/kernel/vmlinux.lds.S, ASSERT)."""
IDMAP_PAGES = range(1, 12)
"""Pages from the identity map's root to swapper_pg_dir that are tried without symbols: it lies before
tramp_pg_dir, with its lower tables up to v5.19 (arch/arm64/kernel/vmlinux.lds.S, IDMAP_DIR_SIZE)."""


@dataclass(frozen=True)
class OtherRoot:
    """A root table, the regime it is for, and what it translates."""

    root: Root
    """The table, and why it is this one."""
    regime: Regime
    """The regime under which the CPU uses it."""
    half: str
    """What its addresses are: user, identity map; empty for kernel addresses."""
    mm: int = 0
    """Address of the mm_struct that describes its areas; 0 if there is none."""


def task_tables(view: GuestView, state: CpuState, which: int | str) -> OtherRoot:
    """Return the user tables of a task by its number (a thread's id) or its name.

    Raises GuestError if there is no such task, or if it is a kernel thread, which has none.
    """
    tasks = Tasks(view)
    try:
        task = tasks.named(which)
    except UserError as error:
        raise GuestError(error.message, error.hint) from error
    found = _address_space(view, task, "mm")
    if found is None:
        raise GuestError(f"{_name(task)} is a kernel thread: it has no user tables", _borrowed(view, task))
    mm, pgd = found
    root, regime = Root(view.pa_of(pgd), f"mm->pgd of {_name(task)}"), regime_from_registers(state, False)
    runs = tasks.current(state)
    if regime.e0poe and (runs is None or runs.address != task.address):
        doubt = f"POR_EL0 is that of {_name(runs)}, not of this task" if runs else "POR_EL0 is another task's"
        regime = replace(regime, doubt=regime.doubt or doubt)
    return OtherRoot(root, regime, "user", mm)


def current_tables(view: GuestView, state: CpuState) -> OtherRoot:
    """Return the user tables of the task that a CPU runs; of a kernel thread, those that it borrows.

    Raises GuestError if the task is not known, or is a kernel thread that borrows none.
    """
    task = Tasks(view).current(state)
    if task is None:
        raise GuestError(f"it is not known which task cpu {state.cpu} runs")
    found, why = _address_space(view, task, "mm"), "mm->pgd of"
    if found is None:
        found, why = _address_space(view, task, "active_mm"), "active_mm->pgd, borrowed by the kernel thread"
    if found is None:
        raise GuestError(f"{_name(task)} on cpu {state.cpu} is a kernel thread: it has no user tables")
    mm, pgd = found
    if pgd == _kernel_pgd(view):
        raise GuestError(
            f"{_name(task)} on cpu {state.cpu} is a kernel thread and borrows no user tables: "
            "its active_mm is the kernel's own"
        )
    root = Root(view.pa_of(pgd), f"{why} {_name(task)}, current on cpu {state.cpu}")
    return OtherRoot(root, regime_from_registers(state, False), "user", mm)


def _name(task: Task) -> str:
    return f"task {task.pid} ({task.printable})"


def _address_space(view: GuestView, task: Task, member: str) -> tuple[int, int] | None:
    """Return the addresses of a task's mm or active_mm and of its root table; None if it has none."""
    mm = view.read_u64(task.address + view.types.offset(f"task_struct.{member}"))
    if not mm:
        return None
    pgd = view.read_u64(mm + view.types.offset("mm_struct.pgd"))
    if not bit(pgd, 55) or pgd % 64:
        raise GuestError(f"{_name(task)}: {member}->pgd is {pgd:#x}, which is no table")
    return mm, pgd


def _kernel_pgd(view: GuestView) -> int | None:
    """Return the address of swapper_pg_dir, which is init_mm's."""
    try:
        return view.symbol("swapper_pg_dir")
    except (GuestError, KernelFileError):
        return None if not view.placed else (view.swapper().pa + view.voffset) & (1 << 64) - 1


def _borrowed(view: GuestView, task: Task) -> str:
    """Return in words which tables a kernel thread borrows."""
    found = _address_space(view, task, "active_mm")
    if found is None or found[1] == _kernel_pgd(view):
        return "it borrows none at the moment"
    pa = view.pa_of(found[1])
    return f"it borrows those at pa:{pa:#x} (active_mm): --root pa:{pa:#x}"


def identity_map(view: GuestView, state: CpuState) -> OtherRoot:
    """Return the table of the identity map, which maps the kernel's identity text to itself.

    Found by symbol, else in TTBR0 of a CPU, else below swapper_pg_dir. Raises GuestError if none does.
    """
    image = view.image
    if image is None or "__idmap_text_start" not in image.symbols:
        raise GuestError("the identity map is found by the kernel file", "--kernel FILE, or --root ADDRESS")
    text = view.pa_of_link(image.lookup("__idmap_text_start"))
    end = view.pa_of_link(image.lookup("__idmap_text_end")) - 4
    own = regime_from_registers(state, False)
    candidates = list(_idmap_candidates(view))
    # Width first: a lower table of the identity map is a root for narrower addresses, and maps the same.
    for bits in dict.fromkeys((own.va_bits, *IDMAP_BITS)):
        for pa, why in candidates:
            try:
                regime = replace(own, va_bits=bits, epd=False)
                same = all(walk(view.memory, at, pa, regime).pa == at for at in (text, end))
            except PtinspectError:
                continue
            if same:
                said = f"{why}; maps the identity text at pa:{text:#x} to itself, {bits}-bit addresses"
                return OtherRoot(Root(PhysAddr(pa), said), regime, "identity map")
    raise GuestError("no table was found that maps the kernel's identity text to itself")


def _idmap_candidates(view: GuestView) -> Iterator[tuple[int, str]]:
    image = view.image
    assert image is not None
    for name in ("idmap_pg_dir", "init_idmap_pg_dir", "__pi_init_idmap_pg_dir"):
        if name in image.symbols:
            yield view.pa_of_link(image.lookup(name)), f"symbol {name}"
    swapper = view.swapper().pa
    for pages in IDMAP_PAGES:
        yield swapper - pages * view.regime.granule, f"{counted(pages, 'page')} below swapper_pg_dir"
    for other in view.states:
        name = translation_register(other, "TTBR0")
        if other.system.get(name):
            yield root_pa(other, regime_from_registers(other, False)), f"{name} of cpu {other.cpu}"


def trampoline(view: GuestView) -> OtherRoot:
    """Return the table that TTBR1 holds in user mode with KPTI: tramp_pg_dir.

    By symbol, else as the page below swapper_pg_dir that has one entry and maps code of the image alone.
    Raises GuestError if there is none, or if it maps nothing, as where KPTI is off.
    """
    image, regime, swapper = view.image, view.regime, view.swapper().pa
    if image is not None and "tramp_pg_dir" in image.symbols:
        pa = view.pa_of_link(image.lookup("tramp_pg_dir"))
        if valid_entries(view.memory, pa, regime) == 0:
            raise GuestError("tramp_pg_dir maps nothing: KPTI is off, or not set up yet")
        return OtherRoot(Root(pa, "symbol tramp_pg_dir"), regime, "")
    for pages in PAGES_APART:
        pa = PhysAddr(swapper - pages * regime.granule)
        if valid_entries(view.memory, pa, regime) == 1 and _maps_vectors_alone(view, pa):
            why = f"{counted(pages, 'page')} below swapper_pg_dir, one entry"
            return OtherRoot(Root(pa, why), regime, "")
    raise GuestError("no trampoline table was found: KPTI is off, not set up yet, or not built in")


def _maps_vectors_alone(view: GuestView, pa: int) -> bool:
    """Tell whether all code that a table maps is the trampoline's; True without a kernel file."""
    image = view.image
    if image is None or "tramp_vectors" not in image.symbols:
        return True
    vectors = view.pa_of_link(image.lookup("tramp_vectors"))
    runs = executable_runs(view.memory, pa, view.regime)
    few = len(runs) == 1 and runs[0].size <= TRAMP_PAGES * view.regime.granule
    return few and runs[0].pa <= vectors < runs[0].pa + runs[0].size
