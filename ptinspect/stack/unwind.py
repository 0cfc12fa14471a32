"""Unwind a stack: frame by frame, through exception frames and changes of stack. There is no other unwinder.

The chain is that of frame records (AAPCS64 6.4.6), which the exception entry continues in pt_regs:
`stackframe` holds x29 and ELR of what was interrupted (arch/arm64/kernel/entry.S, kernel_entry).
Where a function's own frame ends is read from its prologue, as the compiler wrote it. Where stacks,
code or pt_regs are not known, the records alone are followed, each of which must lie above the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from ptinspect.arch.bits import MASK64, bit
from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass, field, replace
from ptinspect.errors import PtinspectError
from ptinspect.linux.image.entry import SLOT
from ptinspect.linux.running.stacks import TABLE, Stack
from ptinspect.stack.kernel_code import MAX_TAIL, MAX_WORDS, KernelCode, epilogue, prologue
from ptinspect.text import counted

FrameKind = Literal["function", "exception", "user", "end", "unwritten"]
"""`exception`: pt_regs of an exception; `user`: of the entry from user mode; `end`: what lies above
the last frame; `unwritten`: exceptions whose frames could not be stored."""
MAX_FRAMES = 256
LINK_REGISTER = 30 * 8
"""Offset of x30 in pt_regs."""
FRAME_POINTER = 29 * 8
ENTRY_REACH = 0x200
"""Bytes from a label of the exception entry on that belong to it, where no symbol tells."""
KERNEL_MODES = (4, 5, 8, 9)
"""PSTATE.M of EL1t, EL1h, EL2t and EL2h."""


@dataclass(frozen=True)
class RegsLayout:
    """Offsets in struct pt_regs."""

    size: int
    """Its size: the exception frame."""
    sp: int
    """Of the interrupted stack pointer."""
    pc: int
    """Of the interrupted program counter."""
    pstate: int
    """Of the interrupted PSTATE."""
    stackframe: int
    """Of the frame record."""


@dataclass(frozen=True)
class Frame:
    """One frame."""

    pc: int
    """Where it is: the program counter, the return address into it, or the interrupted instruction."""
    sp: int
    """Its lowest address: SP while it ran."""
    size: int
    """Bytes of stack that are its own."""
    kind: FrameKind
    stack: str
    """Kind of the stack it lies on; empty if on none that is known."""
    record: int | None = None
    """Address of its frame record; None if it has none."""
    exact: bool = True
    """True if the size comes from the function's prologue or the exception's registers."""
    count: int = 1
    """How many frames it stands for."""
    returns: bool = False
    """True if `pc` is a return address: the call is the instruction before."""


@dataclass(frozen=True)
class Unwound:
    """All frames, and where they end."""

    frames: tuple[Frame, ...]
    """The innermost first."""
    ended: str
    """Why there are no more."""
    complete: bool = False
    """True if the chain was followed to its own end."""
    last: Frame | None = None
    """Where the chain ends, without a frame of its own that is known: 0 bytes; None at a limit."""


def strip_pac(address: int, lower_bits: int | None, upper_bits: int | None) -> int:
    """Remove the pointer authentication code of a code address.

    The bits from the VA size up take the value of bit 55, which also names the half whose size counts
    (64 minus T0SZ or T1SZ; None if it is not known, and the address is returned as it is). The top byte
    is among them with TBI too: it is not part of the code then, but a branch gives it bit 55's value.
    Source: Arm ARM, pseudocode Strip(), CalculateBottomPACBit(), AArch64.BranchAddr().
    """
    upper = bit(address, 55)
    bits = upper_bits if upper else lower_bits
    if bits is None:
        return address
    low = (1 << bits) - 1
    return (address | ~low) & MASK64 if upper else address & low


@dataclass(frozen=True)
class Caller:
    """Where a function returns to, and the registers by which this very call is known to have returned."""

    pc: int
    """The return address; the interrupted instruction, of an exception."""
    lowest: int
    """The lowest that SP can be after the return: past the record of the function that returns."""
    highest: int
    """The highest: the caller's own record, or the same as the lowest where SP is known exactly."""
    x29: int
    """The caller's frame record, which x29 holds again after the return (AAPCS64 6.1.1)."""

    def reached(self, state: CpuState) -> bool:
        """Tell whether a CPU has come back from this very call, on the same stack and in the same frame."""
        on_it = self.lowest <= state.sp <= self.highest
        return state.pc == self.pc and state.x[29] == self.x29 and on_it


@dataclass
class _State:
    pc: int
    sp: int
    x29: int
    x30: int
    frames: list[Frame] = field(default_factory=list)
    ended: str = ""
    complete: bool = False
    interrupted: bool = False
    """True if `pc` was interrupted there, in the middle of whatever it did."""
    returns: bool = False
    """True if `pc` is a return address."""
    unframed: bool = False
    """True if the chain has ended at a `pc` that has no frame of its own among them."""


class Unwinder:
    """Follow a chain of frames through memory."""

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        code: KernelCode,
        stacks: Sequence[Stack] = (),
        layout: RegsLayout | None = None,
        *,
        vectors: Sequence[int] = (),
        labels: Sequence[int] = (),
        bad_stack: int | None = None,
        va_bits: tuple[int | None, int | None] = (None, None),
    ) -> None:
        """Prepare. `read` gives memory by virtual address and raises PtinspectError.

        `vectors` are the addresses of vector tables, `labels` those at which they go on, `bad_stack`
        the one at which they do if the stack is used up; all without effect where `layout` is None.
        `va_bits` are the sizes of the lower and of the upper half.
        """
        self._read = read
        self._code = code
        self._stacks = tuple(stacks)
        known = layout is not None
        self._labels = (*labels, *(() if bad_stack is None else (bad_stack,))) if known else ()
        self._bad_stack = bad_stack
        self._vectors = tuple(vectors) if known else ()
        self._layout = layout or RegsLayout(0, 0, 0, 0, 0)
        self._va_bits = va_bits

    def unwind(
        self,
        pc: int,
        sp: int,
        x29: int,
        x30: int,
        *,
        elr: int | None = None,
        before: int | None = None,
        limit: int = MAX_FRAMES,
    ) -> Unwound:
        """Return the frames from `pc` on.

        `elr` is where the last exception came from, and `before` what SP was then if it was another
        stack's: they count where `pc` is in the exception entry and the frame is not stored yet.
        """
        state = _State(pc, sp, x29, x30)
        if self._begin(state, elr, before):
            self._follow(state, limit)
        return self._unwound(state)

    def caller(
        self, pc: int, sp: int, x29: int, x30: int, *, elr: int | None = None, before: int | None = None
    ) -> Caller | None:
        """Return where the innermost frame returns to; None if it is not known, or in user mode.

        The arguments are those of `unwind`.
        """
        state = _State(pc, sp, x29, x30)
        if not self._begin(state, elr, before) or (not state.frames and not self._innermost(state)):
            return None
        inner = state.frames[0]
        if inner.kind != "function":
            return Caller(state.pc, state.sp, state.sp, state.x29)
        end = inner.sp + inner.size
        if inner.record is None:
            return Caller(state.pc, end, end, state.x29)
        stack = self._stack(inner.sp)
        same = state.x29 and self._stack(state.x29) is stack
        highest = state.x29 if same else MASK64 if stack is None else stack.top
        return Caller(state.pc, inner.record + 16, highest, state.x29)

    def _begin(self, state: _State, elr: int | None, before: int | None) -> bool:
        """Add the frame of an exception that is not stored yet; False where nothing is on the stack."""
        stack = self._stack(state.sp) or self._stack(state.sp - 1)
        if stack is not None and stack.kind == "task" and state.sp == stack.top:
            outside = self._entering(state.pc) or self._code.start(state.pc) is None
            if outside or not bit(state.x30, 55):  # x30 is the user's, in the entry and the exit
                return self._finish(state, "the stack is empty", complete=True)
        if elr is None or not self._entering(state.pc):
            return True
        self._add(state, state.sp + self._lowered(state.pc), None, "exception")
        end = state.frames[-1].sp + state.frames[-1].size
        if stack is not None and end == stack.top and not bit(elr, 55):
            state.frames[-1] = replace(state.frames[-1], kind="user")
            state.sp = end
            return self._finish(state, "the entry from user mode", complete=True, framed=True)
        state.pc, state.sp = elr, end if before is None else before
        self._unwritten(state)
        return True

    def _unwound(self, state: _State) -> Unwound:
        if state.complete:
            self._rest(state)
        last = None
        if state.unframed:
            kind = "" if (stack := self._stack(state.sp)) is None else stack.kind
            last = Frame(state.pc, state.sp, 0, "end", kind, returns=state.returns)
        return Unwound(tuple(state.frames), state.ended, state.complete, last)

    def after_call(self, pc: int, sp: int, x29: int, *, limit: int = MAX_FRAMES) -> Unwound:
        """Return the frames of a task that was switched away: `pc` is a return address into its caller."""
        state = _State(pc, sp, x29, 0, returns=True)
        if self._by_record(state, self._frame_end(state)):
            self._follow(state, limit, interrupted=False)
        return self._unwound(state)

    # -- the innermost frame ----------------------------------------------------------------------

    def _label(self, pc: int) -> int | None:
        """Return the label of the exception entry that `pc` lies after."""
        return max((label for label in self._labels if label <= pc < label + ENTRY_REACH), default=None)

    def _slot(self, pc: int) -> int | None:
        """Return where the vector begins that `pc` is in; None if it is in none."""
        return next((pc - (pc - base) % SLOT for base in self._vectors if base <= pc < base + TABLE), None)

    def _lowered(self, pc: int) -> int:
        """Return what the entry has lowered SP by at `pc`, where the frame is not stored yet."""
        if (slot := self._slot(pc)) is not None:
            return prologue(self._words(slot, (pc - slot) // 4)).lowered
        label = self._label(pc)
        if label is not None and label == self._bad_stack:
            return prologue(self._words(label, (pc - label) // 4)).lowered
        return self._layout.size

    def _entering(self, pc: int) -> bool:
        """Tell whether `pc` is in a vector, or after its label before the frame is stored."""
        if self._slot(pc) is not None:
            return True
        label = self._label(pc)
        return label is not None and prologue(self._words(label, (pc - label) // 4)).record is None

    def _innermost(self, state: _State) -> bool:
        """Add the frame of a function that was stopped anywhere in it; False at the chain's end."""
        if self._label(state.pc) is not None and self._plausible(state.sp):
            return self._through(state, state.sp)
        start = self._code.start(state.pc) if self._slot(state.pc) is None else None
        if start is None:
            return self._by_record(state, None)
        before = prologue(self._words(start, (state.pc - start) // 4))
        after = epilogue(self._words(state.pc, MAX_TAIL))
        if after is not None and not after.pops_record:
            end = state.sp + after.raised
        elif before.record is None:
            end = state.sp + before.lowered
        else:
            return self._by_record(state, state.x29 + before.record)
        back = self._plain(state.x30)
        if not back or start < back <= state.pc:  # never called, or x30 is of a call that has returned
            return self._by_record(state, None)
        self._add(state, end, None, "function")
        state.pc, state.sp, state.returns = back, end, True
        return True

    # -- the chain --------------------------------------------------------------------------------

    def _follow(self, state: _State, limit: int, *, interrupted: bool = True) -> None:
        while len(state.frames) < limit:
            regs = None if interrupted else self._exception(state)
            if interrupted:
                going = self._innermost(state)
            elif regs is not None:
                going = self._through(state, regs)
            else:
                going = self._by_record(state, self._frame_end(state))
            if not going:
                return
            interrupted = state.interrupted
            state.interrupted = False
        state.ended = f"limit of {counted(limit, 'frame')}"

    def _by_record(self, state: _State, end: int | None) -> bool:
        """Add the frame whose record is at x29, and go on to its caller."""
        record = state.x29
        stack = self._stack(record)
        if record == 0:
            return self._finish(state, "a frame record of zero", complete=True)
        if record % 8 or (stack is None and self._stack(state.sp) is not None):
            where = "not aligned" if record % 8 else "on no stack that is known"
            return self._finish(state, f"x29 = {record:#x} is {where}")
        if stack is self._stack(state.sp) and record < state.sp:
            return self._finish(state, f"x29 = {record:#x} lies below the frame: damage, or another stack")
        try:
            older, back = self._word(record), self._word(record + 8)
        except PtinspectError as error:
            return self._finish(state, error.message)
        if back == 0 or (older and stack and self._stack(older) is stack and older <= record):
            why = f"the next record, {older:#x}, does not lie above {record:#x}"
            return self._finish(
                state, why if back else "the return address is zero", complete=not back and not older
            )
        low, high = (record, MASK64) if stack is None else (stack.base, stack.top)
        exact = end is not None and record < end <= high and (not low <= older <= high or end <= older)
        guess = older if low <= older < high else record + 16 if stack is None else high
        self._add(state, end if exact and end is not None else guess, record, "function", exact)
        state.pc, state.x29, state.returns = self._plain(back), older, True
        following = self._stack(older)
        changes = following is not None and following is not stack
        state.sp = self._sp_at(state) if changes else state.frames[-1].sp + state.frames[-1].size
        return True

    def _frame_end(self, state: _State) -> int | None:
        """Return where the frame of a caller ends, from the prologue up to the call."""
        start = self._code.start(state.pc - 4)
        if start is None:
            return None
        before = prologue(self._words(start, (state.pc - start) // 4))
        return None if before.record is None else state.x29 + before.record

    def _sp_at(self, state: _State) -> int:
        """Return SP where the stack was changed, from the record that was current then."""
        regs = self._exception(state)
        return state.x29 if regs is None else regs

    # -- exceptions -------------------------------------------------------------------------------

    def _exception(self, state: _State) -> int | None:
        """Return the address of pt_regs if the frame at x29 is that of an exception."""
        regs = state.x29 - self._layout.stackframe
        return regs if self._label(state.pc - 4) is not None and self._plausible(regs) else None

    def _plausible(self, regs: int) -> bool:
        stack = self._stack(regs)
        if regs % 16 or (stack is not None and regs + self._layout.size > stack.top):
            return False
        if stack is None and self._stacks:
            return False
        try:
            pc, pstate = self._word(regs + self._layout.pc), self._word(regs + self._layout.pstate)
        except PtinspectError:
            return False
        return pc % 4 == 0 and pstate >> 32 == 0 and (pstate & 0xF in (0, *KERNEL_MODES))

    def _through(self, state: _State, regs: int) -> bool:
        """Add an exception frame and go on to what was interrupted."""
        layout = self._layout
        user = self._word(regs + layout.pstate) & 0xF == 0
        end = regs + layout.size
        if self._stack(state.sp) is not self._stack(regs):
            state.sp = regs
        self._add(state, end, regs + layout.stackframe, "user" if user else "exception")
        state.pc, state.sp = self._word(regs + layout.pc), self._word(regs + layout.sp)
        state.x29, state.x30 = self._word(regs + FRAME_POINTER), self._word(regs + LINK_REGISTER)
        if user:
            state.sp = end
            return self._finish(state, "the entry from user mode", complete=True, framed=True)
        state.interrupted, state.returns = True, False
        self._unwritten(state)
        return True

    def _unwritten(self, state: _State) -> None:
        """Add exceptions of the entry itself, whose frames were never stored.

        Between SP and the last frame record lie nothing but room for such frames.
        """
        stack = self._stack(state.x29)
        if stack is None or not self._entering(state.pc) or not stack.base <= state.sp < state.x29:
            return
        count = (state.x29 - state.sp) // self._layout.size
        if count:
            size = count * self._layout.size
            exact = state.sp + size == state.x29
            found = Frame(state.pc, state.sp, size, "unwritten", stack.kind, None, exact, count)
            state.frames.append(found)
            state.sp += size
        state.pc = self._plain(state.x30)

    # -- small things -----------------------------------------------------------------------------

    def _add(self, state: _State, end: int, record: int | None, kind: FrameKind, exact: bool = True) -> None:
        stack = self._stack(state.sp)
        name = "" if stack is None else stack.kind
        size = max(end - state.sp, 0)
        state.frames.append(Frame(state.pc, state.sp, size, kind, name, record, exact, returns=state.returns))

    def _finish(self, state: _State, why: str, *, complete: bool = False, framed: bool = False) -> bool:
        state.ended, state.complete, state.unframed = why, complete, not framed
        return False

    def _rest(self, state: _State) -> None:
        """Add what lies between the last frame and the top of its stack."""
        stack = self._stack(state.sp) or self._stack(state.sp - 1)
        if stack is not None and state.sp < stack.top:
            size = stack.top - state.sp
            state.frames.append(Frame(state.pc, state.sp, size, "end", stack.kind, returns=state.returns))

    def _stack(self, address: int) -> Stack | None:
        return next((stack for stack in self._stacks if stack.contains(address)), None)

    def _words(self, va: int, count: int) -> Sequence[int]:
        return self._code.words(va, min(max(count, 0), MAX_WORDS))

    def _word(self, address: int) -> int:
        return int.from_bytes(self._read(address, 8), "little")

    def _plain(self, address: int) -> int:
        return strip_pac(address, *self._va_bits)
