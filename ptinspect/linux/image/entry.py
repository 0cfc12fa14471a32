"""The exception entry of a kernel, recognised from its instructions: frame, stack sizes, per-CPU stacks.

`vectors` (arch/arm64/kernel/entry.S, kernel_ventry) makes room for the registers, tests whether the
stack is used up, and branches to the label that stores them:

    sub sp, sp, #FRAME; add sp, sp, x0; sub x0, sp, x0; tbnz x0, #THREAD_SHIFT, 0f; …; b label
    0: …; adrp x0, …; add sp, x0, #…; mrs x0, tpidr_el1; …; tst x0, #~(SIZE - 1); b.ne __bad_stack

So sizes and the places of per-CPU stacks are known even where kallsyms names no data (a kernel
without CONFIG_KALLSYMS_ALL). Source: Linux commit 872d8327ce89 ("arm64: add VMAP_STACK overflow
detection") (in v4.14).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from ptinspect.arch import a64
from ptinspect.arch.bits import MASK64, bit
from ptinspect.arch.sysregs import CpuState
from ptinspect.dataclass import dataclass, field
from ptinspect.errors import GuestError, KernelFileError
from ptinspect.linux.image.btf import Offsets
from ptinspect.linux.image.image import KernelImage

Read = Callable[[int, int], bytes]
"""Returns code by address. Raises KernelFileError or GuestError where there is none."""

SLOT = 0x80
"""Bytes of one vector (Arm ARM D1.3.1.2, VBAR_EL1)."""
EL1H = 0x200
"""Offset of the vectors of an exception from EL1 with SP_EL1."""
EL0 = 0x400
"""Offset of the vectors of an exception from EL0, AArch64."""
KINDS = ("sync", "irq", "fiq", "error")
"""The four vectors of a group, in their order."""
ENTRY_BYTES = 0x140
"""How far past a label its code is searched: for a switch to the IRQ stack, the load of current."""
SWITCH = "call_on_irq_stack"
"""Switches to the IRQ stack. Source: Linux commit f8049488e7d3 (in v5.14); before, el1_irq does."""
SDEI_HANDLER = "__sdei_asm_handler"
"""Switches to a stack for SDEI events (arch/arm64/kernel/entry.S)."""
PER_CPU = (a64.TPIDR_EL1, a64.TPIDR_EL2)
"""Hold the kernel's per-CPU offset, the second under VHE (asm/percpu.h)."""


@dataclass(frozen=True)
class Vector:
    """One vector of the group for exceptions in the kernel."""

    kind: str
    """One of KINDS."""
    va: int
    """Address of its first instruction."""
    label: int
    """Where it goes on to store the registers: `el1_sync`, `el1h_64_sync`, …"""
    overflow: int | None
    """Where it goes when the stack is used up; None if it does not test for that."""


@dataclass(frozen=True)
class EntryCode:
    """What was read from the entry code. Addresses are of the space that it was read from."""

    frame_size: int
    """Bytes of an exception frame: sizeof(struct pt_regs)."""
    thread_size: int | None
    """Bytes of a task's stack; None if the entry does not test for overflow (no VMAP_STACK)."""
    vectors: tuple[Vector, ...]
    """The vectors for exceptions from the kernel: sync, irq, fiq, error."""
    labels: tuple[int, ...] = ()
    """Labels of all vectors that could be followed, those from user mode too."""
    bad_stack: int | None = None
    """`__bad_stack`, where an overflow is reported."""
    overflow_stack: tuple[int, int] | None = None
    """Address (to which the per-CPU offset is added) and size of the overflow stack."""
    pointers: Mapping[str, int] = field(default_factory=dict)
    """Per-CPU pointers by name: irq_stack_ptr, __entry_task, sdei_stack_normal_ptr, …_critical_ptr."""
    irq_stack_size: int | None = None
    """Bytes of the IRQ stack; None if it was not found."""

    @property
    def sync(self) -> Vector:
        """The vector of synchronous exceptions."""
        return self.vectors[0]


class RunningKernel(Protocol):
    """A running kernel with its file: what of both is read here."""

    @property
    def image(self) -> KernelImage | None:
        """Its file."""
        ...

    @property
    def states(self) -> Sequence[CpuState]:
        """The registers of the CPUs."""
        ...

    @property
    def kaslr_offset(self) -> int:
        """Run-time minus link-time address, modulo 2^64. Raises GuestError if unknown."""
        ...

    @property
    def types(self) -> Offsets:
        """Where its types keep what. Raises GuestError without a kernel file."""
        ...

    def symbol(self, name: str) -> int:
        """Return the run-time address of a symbol. Raises KernelFileError or GuestError."""
        ...

    def read_virt(self, va: int, length: int) -> bytes:
        """Read memory by virtual address. Raises GuestError, MemoryReadError."""
        ...

    def read_u64(self, va: int) -> int:
        """Read eight bytes at a virtual address as a number."""
        ...


_ENTRIES: WeakKeyDictionary[KernelImage, EntryCode] = WeakKeyDictionary()
"""What was recognised, as long as the kernel file is in use."""


def entry_of(view: RunningKernel) -> EntryCode:
    """Return the entry code of the running kernel, at link-time addresses; kept for each kernel file.

    From the file by the symbol `vectors`; else from memory at VBAR_EL1. Raises GuestError, KernelFileError.
    """
    image = view.image
    if image is None:
        raise GuestError("the kernel's stacks are found through its file", "--kernel FILE")
    if image in _ENTRIES:
        return _ENTRIES[image]
    if "vectors" in image.symbols:
        code = recognise_entry(image)
    else:
        vbar = next(
            (s.system.get("VBAR_EL1", 0) for s in view.states if bit(s.system.get("VBAR_EL1", 0), 55)), 0
        )
        if not vbar:
            raise GuestError(
                "no CPU has its exception vectors in the kernel yet", "let the guest run further"
            )
        offset = view.kaslr_offset
        code = recognise_code(lambda va, n: view.read_virt((va + offset) & MASK64, n), vbar - offset, {})
    _ENTRIES[image] = code
    return code


def recognise_entry(image: KernelImage) -> EntryCode:
    """Recognise the entry in a kernel file; addresses are link-time ones. Raises KernelFileError."""
    places = {name: image.lookup(name) for name in (SWITCH, SDEI_HANDLER) if name in image.symbols}
    try:
        return recognise_code(image.text_at, image.lookup("vectors"), places)
    except GuestError as error:
        raise KernelFileError(f"{image.path.name}: {error.message}") from error


def recognise_code(read: Read, vectors: int, places: Mapping[str, int]) -> EntryCode:
    """Recognise the entry at `vectors`; `places` are addresses of SWITCH and SDEI_HANDLER if known.

    Raises GuestError if the code is not as expected, and what `read` raises.
    """
    found = [_vector(read, vectors + EL1H + SLOT * i, kind) for i, kind in enumerate(KINDS)]
    _, frame, shift, _ = found[0]
    if frame is None:
        raise GuestError("the exception vector makes no room for a frame: unknown entry code")
    bad, overflow = next((rest for *_, rest in found if rest[1] is not None), (None, None))
    pointers: dict[str, int] = {}
    size = None
    switch = places.get(SWITCH, found[1][0].label)
    words = _code(read, switch)
    for at, address, register in _pointer_loads(words, switch):
        size = _stack_size(words, at, register)
        if size is not None:
            pointers["irq_stack_ptr"] = address
            break
    task = _entry_task(read, vectors)
    if task is not None:
        pointers["__entry_task"] = task
    if SDEI_HANDLER in places:
        words = _code(read, places[SDEI_HANDLER])
        until = next((i for i, word in enumerate(words) if _sets_sp(word)), len(words))
        stacks = [address for at, address, _ in _pointer_loads(words, places[SDEI_HANDLER]) if at < until]
        for name, address in zip(("normal", "critical"), stacks, strict=False):
            pointers[f"sdei_stack_{name}_ptr"] = address
    return EntryCode(
        frame_size=frame,
        thread_size=None if shift is None else 1 << shift,
        vectors=tuple(vector for vector, *_ in found),
        labels=tuple(dict.fromkeys([v.label for v, *_ in found] + _user_labels(read, vectors))),
        bad_stack=bad,
        overflow_stack=overflow,
        pointers={name: address & MASK64 for name, address in pointers.items()},
        irq_stack_size=size,
    )


Rest = tuple[int | None, tuple[int, int] | None]


def _vector(read: Read, va: int, kind: str) -> tuple[Vector, int | None, int | None, Rest]:
    """Return a vector, the frame's size, log2 of the stack's size, and (bad_stack, overflow stack)."""
    words = a64.words(read(va, SLOT))
    frame = shift = branch = None
    for i, word in enumerate(words):
        if frame is None and (lowered := a64.lowers_sp(word)):
            frame = lowered
        tested = a64.bit_branch(word, 4 * i)
        if tested is not None and tested[0] == "tbnz" and branch is None:
            shift, branch = tested[2], tested[3]
        if frame and (target := a64.branch(word, 4 * i)) is not None:
            vector = Vector(kind, va, va + target, None if branch is None else va + branch)
            return vector, frame, shift, _overflow(words, va, branch)
    raise GuestError(f"the exception vector at {va:#x} does not branch to a label: unknown entry code")


def _overflow(words: tuple[int, ...], va: int, start: int | None) -> Rest:
    """Return where an overflow is reported, and the overflow stack's address and size."""
    if start is None:
        return None, None
    top = size = bad = page = None
    for i in range(start // 4, len(words)):
        built = a64.address_built(words, i, va)
        if built is not None:
            page = built[1]
        added = a64.add_immediate(words[i])
        if added is not None and added[0] == a64.SP and page is not None and top is None:
            top = page + added[2]
        size = a64.tested_size(words[i]) or size
        target = a64.branch_ne(words[i], 4 * i)
        if target is not None:
            bad = (va + target) & MASK64
            break
    if top is None or size is None:
        return bad, None
    return bad, ((top - size) & MASK64, size)


def _entry_task(read: Read, vectors: int) -> int | None:
    """Return the address of `__entry_task`, which the entry from user mode loads into SP_EL0."""
    for label in _user_labels(read, vectors)[:1]:
        try:
            code = _code(read, label)
        except (GuestError, KernelFileError):
            return None
        for at, address, register in _pointer_loads(code, label):
            if any(a64.system_write(word) == (a64.SP_EL0, register) for word in code[at:]):
                return address
    return None


def _user_labels(read: Read, vectors: int) -> list[int]:
    """Return where the vectors of exceptions from user mode go on."""
    found = []
    for i in range(len(KINDS)):
        slot = vectors + EL0 + SLOT * i
        try:
            words = a64.words(read(slot, SLOT))
        except (GuestError, KernelFileError):
            break
        targets = [t for n, word in enumerate(words) if (t := a64.branch(word, 4 * n)) is not None]
        found += [(slot + targets[-1]) & MASK64] if targets else []
    return found


def _code(read: Read, va: int) -> tuple[int, ...]:
    return a64.words(read(va, ENTRY_BYTES))


def _pointer_loads(words: tuple[int, ...], va: int) -> list[tuple[int, int, int]]:
    """Find loads of per-CPU pointers (ldr_this_cpu): (index past the load, address, register).

    `adrp Xd; add Xd, Xd, #…; mrs Xt, tpidr_el1; ldr Xd, [Xd, Xt]`.
    """
    found = []
    for i in range(len(words) - 3):
        built = a64.address_built(words, i, va)
        if built is None or not words[i] >> 31 or a64.add_immediate(words[i + 1]) is None:
            continue
        mrs = a64.system_read(words[i + 2])
        loaded = a64.load_indexed(words[i + 3])
        if mrs is None or mrs[0] not in PER_CPU or loaded is None or loaded[1:] != (built[0], mrs[1]):
            continue
        found.append((i + 4, built[1], loaded[0]))
    return found


def _stack_size(words: tuple[int, ...], at: int, register: int) -> int | None:
    """Return the size that is added to a stack's base, loaded into `register`, to get its top."""
    size = None
    for word in words[at : at + 4]:
        added = a64.add_immediate(word)
        if added is not None and added[:2] == (a64.SP, register):
            return added[2]
        moved = a64.moved_constant(word)
        size = (moved[1] if moved else 0) or size
        if _sets_sp(word) and size:
            return size
    return None


def _sets_sp(word: int) -> bool:
    """Tell whether an instruction is `mov sp, Xn`, or `add sp, Xn, #…` of another register."""
    added = a64.add_immediate(word)
    return added is not None and added[0] == a64.SP and added[1] != a64.SP


def code_length(words: Sequence[int]) -> int:
    """Return how many of a vector's instructions are its code; what follows only fills the slot.

    What fills it depends on the assembler and on how the slot is ended: zeros (`.org`, from Linux commit
    4330e2c5c04c on, in v5.17), NOPs (`.align` of GNU as), other hints or traps. It fills only after a
    branch that is always taken, and where no branch of the vector leads; else all words are code.
    Source: Arm ARM C4.1.66 (hints), C6.2 (UDF, BRK).
    """
    length = len(words)
    while length and a64.fills(words[length - 1]):
        length -= 1
    if not length or a64.branch(words[length - 1], 0) is None:
        return len(words)
    targets = (target // 4 for i, word in enumerate(words) for target in a64.targets(word, 4 * i))
    return len(words) if any(length <= target < len(words) for target in targets) else length
