"""Whether the kernel has decided for or against KPTI yet, as its patched code and one variable tell.

The kernel decides while it enables CPU features, with all CPUs up, and patches its code accordingly
(apply_alternatives_all(), arch/arm64/kernel/alternative.c), once for all; then `all_alternatives_applied`
is 1. Up to 6.6 the rewrite of the tables comes before that (enable_cpu_capabilities()), later right
behind it (setup_system_features()). Where KPTI is on, the instruction in ret_to_user that leads past
the trampoline is patched out (alternative_insn in kernel_exit, arch/arm64/kernel/entry.S).
"""

from __future__ import annotations

from typing import Literal

from ptinspect.arch import a64
from ptinspect.errors import GuestError, KernelFileError, MemoryReadError
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.running.view import GuestView

Decision = Literal["on", "off", "open", "unknown"]
"""KPTI is on; it is off; the kernel has not decided; it is not known."""
PATCHER = "__apply_alternatives_multi_stop"
EXIT = "ret_to_user"
PATCHER_BYTES, EXIT_BYTES = 0x100, 0x400
NOP = 0xD503201F
ERET = 0xD69F03E0
FAR_EL1 = 0x186000
"""`msr` operand fields of FAR_EL1, in which the way to the trampoline keeps a register."""
BACK = 2
"""Instructions between the one that is patched and that `msr`, at most."""


def decision(view: GuestView) -> Decision:
    """Say whether the kernel has decided. Raises TargetError if the link to the guest failed."""
    if view.image is None:
        return "unknown"
    try:
        variable, patched = applied_variable(view.image), exit_site(view.image)
        if variable is None or patched is None:
            return "unknown"
        if not int.from_bytes(view.memory.read(view.pa_of_link(variable), 4), "little"):
            return "open"
        site, original = patched
        word = int.from_bytes(view.memory.read(view.pa_of_link(site), 4), "little")
    except (GuestError, KernelFileError, MemoryReadError):
        return "unknown"
    if word == NOP:
        return "on"
    # a branch is the same instruction wherever the code lies
    return "off" if word == original else "unknown"


def applied_variable(image: KernelImage) -> int | None:
    """Return the link-time address of `all_alternatives_applied`; None if the code does not tell.

    The function that patches loads it to wait for it, and again to see that it is 0.
    """
    if PATCHER not in image.symbols:
        return None
    at = image.lookup(PATCHER)
    code = a64.words(image.text_at(at, PATCHER_BYTES))
    if a64.RET in code:
        code = code[: _end(code)]
    built: dict[int, int] = {}
    seen: dict[int, int] = {}
    for i, word in enumerate(code):
        address = _loaded(word, built)
        if address is not None and _tested(code[i + 1 : i + 3], word & 0x1F):
            seen[address] = seen.get(address, 0) + 1
        _follow(built, code, i, at)
    found = [address for address, times in seen.items() if times > 1]
    return found[0] if len(found) == 1 else None


def _end(code: tuple[int, ...]) -> int:
    """Return where the function ends: behind the code that is entered past its return."""
    ret = code.index(a64.RET)
    return next((i for i in range(ret + 1, len(code)) if code[i] == a64.RET), len(code))


def _loaded(word: int, built: dict[int, int]) -> int | None:
    """Return the address that `ldr Wt, [Xn, #offset]` loads from, where it is known."""
    if word & 0xFFC00000 != 0xB9400000:
        return None
    base = built.get(word >> 5 & 0x1F)
    return None if base is None else base + (word >> 10 & 0xFFF) * 4


def _tested(code: tuple[int, ...], register: int) -> bool:
    """Tell whether `cbz` or `cbnz` of this W register follows."""
    return any(word & 0xFE00001F == 0x34000000 | register for word in code)


def _follow(built: dict[int, int], code: tuple[int, ...], i: int, at: int) -> None:
    """Keep the addresses that `adrp` and `add` build; whatever else writes a register forgets it."""
    word, register = code[i], code[i] & 0x1F
    if word & 0x9F000000 == 0x90000000:
        page = a64.address_built((word,), 0, at + 4 * i)
        assert page is not None
        built[register] = page[1]
        return
    add = a64.add_immediate(word)
    if add is not None and add[1] in built:
        built[add[0]] = built[add[1]] + add[2]
        return
    stores = word & 0x0A000000 == 0x08000000 and not word >> 22 & 1
    branches = word & 0x1C000000 == 0x14000000
    if not (stores or branches):
        built.pop(register, None)


def exit_site(image: KernelImage) -> tuple[int, int] | None:
    """Return the link-time address of the instruction that KPTI patches out, and the instruction.

    It is the `eret`, or the branch to it, in front of `msr far_el1, Xt`. None if the code is another.
    """
    if EXIT not in image.symbols:
        return None
    at = image.lookup(EXIT)
    code = a64.words(image.text_at(at, EXIT_BYTES))
    for i, word in enumerate(code):
        written = a64.system_write(word)
        if written is not None and written[0] == FAR_EL1:
            for back in range(1, BACK + 1):
                before = code[i - back]
                if before == ERET or before >> 26 == 0b000101:
                    return at + 4 * (i - back), before
            return None
    return None
