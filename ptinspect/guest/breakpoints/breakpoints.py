"""Breakpoints at symbols: they wait until it is known where the kernel runs, and follow it.

Code of the kernel runs where it lies while the MMU is off, or is mapped there by the identity map; then at
the kernel's own addresses. A breakpoint is set where its code may run next: until the kernel has gone over to
its own addresses at the physical place, from then on at the virtual one; code of the identity map keeps its
physical place (`linux.image.code_parts`). One in a module (`NAME [MODULE]`) waits until that is
loaded, each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Unpack

from ptinspect.arch.bits import MASK64, bit
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import KernelFileError, MiError, PtinspectError, TargetTimeout, UserError
from ptinspect.guest.breakpoints.followed_addresses import (
    LOADED,
    has,
    in_module,
    link_address,
    missing,
    module_of,
    state_of,
)  # fmt: skip
from ptinspect.guest.breakpoints.kernel_place import LOOK_SECONDS, KernelPlace
from ptinspect.guest.expression import Address
from ptinspect.link.gdb.slots import Purpose, fitting
from ptinspect.link.session import Session, StopInfo
from ptinspect.link.state import Manner

if TYPE_CHECKING:
    from ptinspect.guest.breakpoints.numbered import Other, Watched
    from ptinspect.guest.guest import Guest
    from ptinspect.linux.image.image import KernelImage

NOT_USER = "($cpsr & 0xc) != 0"
"""True in the kernel (PSTATE.EL, Arm ARM C5.2.18): a user program's address may be the same number."""


@dataclass
class SymbolBreakpoint:
    """A breakpoint that follows the kernel."""

    id: int
    address: Address
    """Where it is, as typed."""
    hardware: bool = True
    temporary: bool = False
    cpu: int | None = None
    condition: str | None = None
    purpose: Purpose = Purpose.USER
    enabled: bool = True
    hits: int = 0
    """How often it was hit at places where it is no more."""
    ignored: int = 0
    """The hit, counted from 1, up to which none stops the guest."""
    places: dict[int, int] = field(default_factory=dict)
    """GDB's numbers by address, of where it is set now; none while it is pending."""

    @property
    def pending(self) -> bool:
        """Whether it is set nowhere yet."""
        return not self.places


class SymbolBreakpoints:
    """The breakpoints at symbols of one session, and the steward that sets them on the way."""

    def __init__(self, guest: Guest, session: Session) -> None:
        self._guest, self.session = guest, session
        self.place = KernelPlace(guest)
        self.all: list[SymbolBreakpoint] = []
        """By number."""
        self.others: dict[int, Other] = {}
        """What else stops the guest, and is listed, by number."""
        self.watched: dict[int, Watched] = {}
        """What the watchpoints watch, by number."""
        self.typed: dict[int, str] = {}
        """Conditions of the other breakpoints as they were typed, by number."""
        self._passing: list[SymbolBreakpoint] = []
        """Those of a run that is under way."""
        self._ours: dict[int, int] = {}
        """GDB's numbers of the breakpoints at `place.stops`, by address."""
        self._lacks = self._back = False
        self._awaited = False
        self._kernel: KernelImage | None = None
        session.escort.stewards.append(self)

    # -- what people set ------------------------------------------------------------------------

    def add(
        self, address: Address, *, purpose: Purpose = Purpose.USER, **manner: Unpack[Manner]
    ) -> SymbolBreakpoint:
        """Set a breakpoint at an address that names a symbol: where that is now, and where it will be.

        Raises KernelFileError for a symbol that the kernel file does not have, OutOfSlots.
        """
        self.tidy()
        made = SymbolBreakpoint(0, address, purpose=purpose, **manner)
        if self._guest.kernel is not None:
            if not module_of(address):
                link_address(self._guest.kernel, address)
            self.look()
        try:
            self._set(made)
            made.id = next(iter(made.places.values()), 0) or self.session.reserve_breakpoint()
        except PtinspectError:  # one of several places is none
            self._clear(made)
            raise
        self.all.append(made)
        return made

    def waits_until(self, address: Address) -> str:
        """Return what has to happen before it is known where code will run; empty if it is known."""
        from ptinspect.linux.image.code_parts import part_of

        kernel, place, module = self._guest.kernel, self.place, module_of(address)
        if kernel is not None and module:
            try:
                again = " again" * bool(state_of(self._guest, address))
                return "" if self._wanted(kernel, address) else f"module {module} is loaded{again}"
            except KernelFileError:
                return f"module {module} has it"
        lies = place.lies and kernel is not None and part_of(kernel, self.linked_at(address)) == "identity"
        return "" if kernel is not None and (place.known or lies) else "it is known where the kernel runs"

    def delete(self, number: int) -> bool:
        """Delete one of these; False if there is none of this number."""
        found = next((one for one in self.all if one.id == number), None)
        if found is None:
            return False
        self.all.remove(found)
        self._clear(found)
        return True

    def hits(self, one: SymbolBreakpoint) -> int:
        """Return how often one was hit, wherever it was."""
        there = self.session.places
        return one.hits + sum(there.get(number, 0) for number in one.places.values())

    def alter(
        self,
        number: int,
        *,
        enabled: bool | None = None,
        condition: str | None = None,
        ignore: int | None = None,
    ) -> bool:
        """Alter one of these as `Session.alter_place` does; False if there is none of this number.

        Raises MiError if GDB does not understand the condition.
        """
        one = next((one for one in self.all if one.id == number), None)
        if one is None:
            return False
        for address, place in one.places.items():
            self.session.alter_place(
                place,
                enabled=enabled,
                condition=None if condition is None else self._guarded(condition, not bit(address, 55)),
                ignore=ignore,
            )
        one.ignored = one.ignored if ignore is None else self.hits(one) + ignore
        one.enabled = one.enabled if enabled is None else enabled
        one.condition = one.condition if condition is None else condition or None
        return True

    def addresses(self, address: Address) -> set[int]:
        """Return where code at an address that follows the kernel may run, as far as that is known."""
        kernel = self._guest.kernel
        if kernel is None:
            return set()
        self.look()
        found = set(self._wanted(kernel, address))
        if module_of(address) and state_of(self._guest, address) and not found:
            hint = "what initialises a module (__init) is freed by now: break there before that is loaded"
            raise missing(self._guest, address, hint)
        return found

    def shown_at(self, address: Address) -> int:
        """Return where an address that follows the kernel is: as linked while nobody knows."""
        kernel = self._guest.kernel
        found = {} if kernel is None else self._wanted(kernel, address)
        return next(iter(found), self.linked_at(address))

    def linked_at(self, address: Address) -> int:
        """Return where an address is linked; 0 while no kernel file has it."""
        try:
            return 0 if self._guest.kernel is None else link_address(self._guest.kernel, address)
        except KernelFileError:
            return 0

    @contextlib.contextmanager
    def passing(self, places: Sequence[Address]) -> Iterator[list[SymbolBreakpoint]]:
        """Stop at these addresses too, for one run."""
        made: list[SymbolBreakpoint] = []
        try:
            for place in places:
                made.append(self.add(place))
                self._passing.append(made[-1])
                self.all.remove(made[-1])
            yield made
        finally:
            for one in made:
                self._passing.remove(one)
                if self._guest.state == "stopped":
                    self._clear(one)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Stop at none of them for a block."""
        held, self.all = self.all, []
        for one in held:
            self._clear(one)
        try:
            yield
        finally:
            self.all = [*held, *self.all]
            self.refresh()

    @contextlib.contextmanager
    def backwards(self) -> Iterator[None]:
        """Have all of them wherever their code may have run before, for a block."""
        self._back = True
        try:
            self.refresh()
            yield
        finally:
            self._back = False
            self.refresh()

    def refresh(self) -> None:
        """Have all of them where they are to be, if the guest is stopped."""
        self.tidy()
        if self.all and self._guest.state == "stopped" and self._guest.kernel is not None:
            self.look()
            with contextlib.suppress(KernelFileError):  # which is told when the guest is to run
                for one in self.all:
                    self._set(one)

    def follow_another(self) -> list[SymbolBreakpoint]:
        """Have all follow the kernel file that was named now; return those that it has no symbol for.

        These are deleted: they would stop the guest for another kernel's code.
        """
        kernel = self._guest.kernel
        lost = [] if kernel is None else [one for one in self.all if not has(kernel, one.address)]
        for one in lost:
            self.delete(one.id)
        self.refresh()
        return lost

    def tidy(self) -> None:
        """Delete the temporary one that the guest has stopped at, and those that GDB has no more."""
        if self._guest.state != "stopped":
            return
        if not self.all:
            return
        there = self.session.places
        for one in tuple(self.all):
            gone = {at: number for at, number in one.places.items() if number not in there}
            for address, number in gone.items():  # somebody has deleted it in GDB
                del one.places[address]
                self._drop(number)
            if (gone and not one.places) or (one.temporary and one.id == self.session.stop.breakpoint):
                self.delete(one.id)

    # -- on the way -----------------------------------------------------------------------------

    @property
    def pause(self) -> float | None:
        """Seconds until the guest is to be looked at: often where slots lacked for stops that would tell."""
        if not self.active:
            return None
        pause = self.place.pause
        return pause if pause is None or not self._lacks else LOOK_SECONDS

    @property
    def active(self) -> bool:
        """Whether anything depends on where the kernel runs."""
        return bool(self.all or self._passing or self._awaited)

    def depart(self) -> None:
        """Set what can be set; the guest is about to run."""
        self.tidy()
        self._update()

    def passes(self, stop: StopInfo) -> bool:
        """Look at a stop on the way; tell whether the guest runs on."""
        if stop.breakpoint in {one.id for one in (*self.all, *self._passing)}:
            return not self._runs_here(stop)
        self._update()
        return not (self._awaited and self.place.known)

    def rest(self) -> None:
        """Take away what stops the guest for nobody: another one drives it now."""
        self._arm(())

    def await_place(self, seconds: float) -> StopInfo | None:
        """Run until it is known where the kernel runs; return the stop, None if it is known already.

        It may be another stop than that for which it runs. Raises TargetTimeout; the guest is stopped then.
        """
        self.look()
        if self.place.known:
            return None
        self._awaited = True
        try:
            return self.session.run_until([], seconds, purpose=Purpose.REWRITE)
        finally:
            self._awaited = False
            if self._guest.state == "stopped":
                with contextlib.suppress(PtinspectError):
                    self.look()

    def look(self) -> None:
        """Find out where the kernel runs, as far as that is known now. Raises KernelFileError."""
        kernel = self._guest.kernel
        if kernel is None:
            return
        if kernel is not self._kernel:
            self._kernel = kernel
            self.place.forget()
        self.place.look(kernel)

    def _update(self) -> None:
        if not self.active:
            self._arm(())
            return
        if self._guest.kernel is None:
            numbers = ", ".join(str(one.id) for one in self.all if one.pending)
            raise UserError(
                f"breakpoint {numbers} waits for the kernel file", f"kernel FILE, or delete {numbers}"
            )
        self.look()
        if self.session.slots.limited:
            self._arm(())
        for one in (*self.all, *self._passing):
            self._set(one)
        goes_on = self.all or self._passing or not self.place.known  # else it was known that was waited for
        self._arm((*self.place.stops, *self._loads()) if goes_on else ())

    def _loads(self) -> tuple[int, ...]:
        """Return where a module is when it has been loaded, if a breakpoint is in one."""
        kernel, offset = self._guest.kernel, self.place.offset
        if kernel is None or offset is None or not self.place.known or LOADED not in kernel.symbols:
            return ()
        wanted = any(module_of(one.address) for one in (*self.all, *self._passing))
        return ((kernel.lookup(LOADED) + offset) & MASK64,) if wanted else ()

    def _arm(self, wanted: Sequence[int]) -> None:
        """Have breakpoints at these places that nobody sees; those that matter least are done without."""
        taken = {address for one in (*self.all, *self._passing) for address in one.places}
        new = [at for at in wanted if at not in taken]
        for address in [at for at in self._ours if at not in new]:
            self._drop(self._ours.pop(address))
        missing = [at for at in new if at not in self._ours]
        slots = self.session.slots
        fits, lacks = fitting(missing, slots.free("breakpoint")) if missing else ([], [])
        self._lacks = bool(lacks)
        for address in fits:
            made = self.session.set_breakpoint(address, purpose=Purpose.PLACE, inner=True)
            self._ours[address] = made.id

    def _set(self, one: SymbolBreakpoint) -> None:
        """Have a breakpoint where its code may run now, and nowhere else."""
        kernel = self._guest.kernel
        try:
            wanted = {} if kernel is None else self._wanted(kernel, one.address)
        except KernelFileError as error:  # it was named before its kernel was
            raise KernelFileError(f"breakpoint {one.id}: {error.message}", f"delete {one.id}") from error
        for address in [at for at in one.places if at not in wanted]:
            self._leave(one, one.places.pop(address))
        for address, physical in wanted.items():
            if address in one.places:
                continue
            condition = self._guarded(one.condition or "", physical) or None
            made = self.session.set_breakpoint(
                address,
                hardware=one.hardware,
                cpu=one.cpu,
                condition=condition,
                purpose=one.purpose,
                of=one.id or next(iter(one.places.values()), None),
                inner=physical,
            )
            one.places[address] = made.id
            if not one.enabled:
                self.session.alter_place(made.id, enabled=False)
            if one.ignored and (left := one.ignored - self.hits(one)) > 0:
                self.session.alter_place(made.id, ignore=left)

    def _wanted(self, kernel: KernelImage, address: Address) -> dict[int, bool]:
        """Return where code may run, virtual addresses first, and whether each is a physical one."""
        from ptinspect.linux.image.code_parts import part_of

        if module_of(address):
            return dict.fromkeys(in_module(self._guest, address) if self.place.known else (), False)
        link, place = link_address(kernel, address), self.place
        part, few = part_of(kernel, link), self.session.slots.limited
        identity = part == "identity"
        found = {}
        if place.offset is not None and not identity:
            found[(link + place.offset) & MASK64] = False
        rare = few and (part == "text" or place.offset is not None)  # one slot must do
        if identity or self._back or not (place.known or rare):
            found |= {base + link - kernel.text_va: True for base in place.bases}
        return found

    def _guarded(self, condition: str, physical: bool) -> str:
        """Return a condition for GDB, at a physical place for the kernel alone."""
        words = condition_for_gdb(self._guest, condition)
        if not physical:
            return words
        return f"{NOT_USER} && ({words})" if words else NOT_USER

    def _clear(self, one: SymbolBreakpoint) -> None:
        for number in one.places.values():
            self._leave(one, number)
        one.places.clear()

    def _leave(self, one: SymbolBreakpoint, number: int) -> None:
        """Take one of the places of a breakpoint away; how often it was hit there still counts."""
        one.hits += self.session.places.get(number, 0)
        self._drop(number)

    def _drop(self, number: int) -> None:
        with contextlib.suppress(MiError):  # somebody has deleted it in GDB
            self.session.delete_place(number)

    def _runs_here(self, stop: StopInfo) -> bool:
        """Tell whether a CPU at a physical place of code runs that code: where it lies, not in user mode."""
        state = self.session.cpu_state(stop.cpu)
        if bit(stop.pc, 55):
            return True
        if state.el == 0:
            return False
        try:
            return int(self._guest.view.pa_of(stop.pc)) == stop.pc
        except PtinspectError:
            return True


def symbol_breakpoints(guest: Guest) -> SymbolBreakpoints:
    """Return the breakpoints at symbols of the guest's session. Raises UserError, TargetLost."""
    session = guest.target
    for found in session.escort.stewards:
        if isinstance(found, SymbolBreakpoints):
            return found
    return SymbolBreakpoints(guest, session)


def condition_for_gdb(guest: Guest, condition: str | None) -> str:
    """Return a condition as GDB evaluates it; empty for none, for which nothing of C is imported."""
    if not condition:
        return ""
    from ptinspect.guest.expressions.conditions import for_gdb

    return for_gdb(guest, condition)


def timed_out(error: TargetTimeout, waiting: Sequence[SymbolBreakpoint]) -> TargetTimeout:
    """Return the error with what is still pending."""
    pending = [one.address for one in waiting if one.pending]
    names = ", ".join(one.text for one in pending if not module_of(one))
    modules = ", ".join(dict.fromkeys(module_of(one) for one in pending if module_of(one)))
    unknown = f"; it is not known yet where {names} will be" if names else ""
    return TargetTimeout(
        f"{error.message}{unknown}{f'; not loaded: {modules}' if modules else ''}", error.hint
    )
