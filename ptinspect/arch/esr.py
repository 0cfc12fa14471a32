"""The syndrome of an exception taken to EL1: ESR_EL1 (Arm ARM D24.2.40)."""

from __future__ import annotations

from ptinspect.arch.bits import bit, bits
from ptinspect.dataclass import dataclass

UNRECOGNIZED = "UNRECOGNIZED EC"
"""What Linux prints for a class that it does not name."""

CLASSES: dict[int, tuple[str, str]] = {
    0x00: ("Unknown/Uncategorized", "unknown reason"),
    0x01: ("WFI/WFE", "trapped WFI or WFE"),
    0x03: ("CP15 MCR/MRC", "trapped AArch32 MCR or MRC, coproc 15"),
    0x04: ("CP15 MCRR/MRRC", "trapped AArch32 MCRR or MRRC, coproc 15"),
    0x05: ("CP14 MCR/MRC", "trapped AArch32 MCR or MRC, coproc 14"),
    0x06: ("CP14 LDC/STC", "trapped AArch32 LDC or STC"),
    0x07: ("ASIMD", "access to SVE, SIMD or floating point"),
    0x08: ("CP10 MRC/VMRS", "trapped AArch32 VMRS"),
    0x09: ("PAC", "trapped pointer authentication"),
    0x0A: (UNRECOGNIZED, "trapped LD64B, ST64B or other instruction"),
    0x0C: ("CP14 MCRR/MRRC", "trapped AArch32 MRRC, coproc 14"),
    0x0D: ("BTI", "branch target exception"),
    0x0E: ("PSTATE.IL", "illegal execution state"),
    0x11: ("SVC (AArch32)", "SVC from AArch32"),
    0x12: ("HVC (AArch32)", "HVC from AArch32"),
    0x13: ("SMC (AArch32)", "SMC from AArch32"),
    0x14: (UNRECOGNIZED, "trapped MSRR, MRRS or 128-bit system instruction"),
    0x15: ("SVC (AArch64)", "SVC from AArch64"),
    0x16: ("HVC (AArch64)", "HVC from AArch64"),
    0x17: ("SMC (AArch64)", "SMC from AArch64"),
    0x18: ("MSR/MRS (AArch64)", "trapped MSR, MRS or system instruction"),
    0x19: ("SVE", "access to SVE"),
    0x1A: ("ERET/ERETAA/ERETAB", "trapped ERET"),
    0x1B: (UNRECOGNIZED, "trapped TSTART"),
    0x1C: ("FPAC", "pointer authentication failure"),
    0x1D: ("SME", "access to SME"),
    0x1E: (UNRECOGNIZED, "granule protection check"),
    0x1F: ("EL3 IMP DEF", "IMPLEMENTATION DEFINED exception to EL3"),
    0x20: ("IABT (lower EL)", "instruction abort from a lower exception level"),
    0x21: ("IABT (current EL)", "instruction abort from the current exception level"),
    0x22: ("PC Alignment", "PC alignment fault"),
    0x24: ("DABT (lower EL)", "data abort from a lower exception level"),
    0x25: ("DABT (current EL)", "data abort from the current exception level"),
    0x26: ("SP Alignment", "SP alignment fault"),
    0x27: ("MOPS", "memory copy or set exception"),
    0x28: ("FP (AArch32)", "trapped floating-point exception, AArch32"),
    0x2C: ("FP (AArch64)", "trapped floating-point exception, AArch64"),
    0x2D: ("Guarded Control Stack", "guarded control stack exception"),
    0x2F: ("SError", "SError interrupt"),
    0x30: ("Breakpoint (lower EL)", "breakpoint from a lower exception level"),
    0x31: ("Breakpoint (current EL)", "breakpoint from the current exception level"),
    0x32: ("Software Step (lower EL)", "software step from a lower exception level"),
    0x33: ("Software Step (current EL)", "software step from the current exception level"),
    0x34: ("Watchpoint (lower EL)", "watchpoint from a lower exception level"),
    0x35: ("Watchpoint (current EL)", "watchpoint from the current exception level"),
    0x38: ("BKPT (AArch32)", "BKPT from AArch32"),
    0x3A: ("Vector catch (AArch32)", "AArch32 vector catch"),
    0x3C: ("BRK (AArch64)", "BRK from AArch64"),
    0x3D: (UNRECOGNIZED, "profiling exception"),
}
"""EC -> the name Linux prints and what the Arm ARM calls it.

Source: Linux arch/arm64/kernel/traps.c (esr_class_str); Arm ARM ESR_EL1.EC.
"""

_BRK: tuple[tuple[int, int, str], ...] = (
    (0x004, 0x004, "kprobe"),
    (0x005, 0x005, "uprobe"),
    (0x006, 0x006, "kprobe single-step"),
    (0x007, 0x007, "kretprobe"),
    (0x100, 0x100, "fault on purpose"),
    (0x400, 0x7FF, "kgdb"),
    (0x800, 0x800, "BUG() or WARN()"),
    (0x900, 0x9FF, "KASAN"),
    (0x5500, 0x55FF, "UBSAN"),
    (0x8000, 0x83FF, "CFI"),
)
"""First and last immediate of BRK, and what Linux uses them for: arch/arm64/include/asm/brk-imm.h."""

_IMMEDIATES = frozenset({0x11, 0x12, 0x15, 0x16, 0x17, 0x38, 0x3C})
"""Classes whose ISS[15:0] is the instruction's immediate; SMC from AArch32 has none."""

ABORTS = frozenset({0x20, 0x21, 0x24, 0x25})
"""Instruction and data aborts; bit 2 of EC tells data from instruction."""

EC_IABT, EC_DABT = 0x21, 0x25
"""ESR_ELx.EC of an instruction and of a data abort from the current exception level."""
EC_SP_ALIGNMENT = 0x26
EC_BRK = 0x3C
"""BRK from AArch64."""
EC_SERROR = 0x2F
"""SError interrupt."""
_SERROR_STATES = {
    0: "uncontainable",
    1: "unrecoverable",
    2: "restartable",
    3: "recoverable",
    6: "corrected",
}
"""AET, bits 12:10 (Arm ARM ESR_EL1, ISS encoding for an SError interrupt)."""


_LEVELLED = {
    0b0000: "address size fault",
    0b0001: "translation fault",
    0b0010: "access flag fault",
    0b0011: "permission fault",
}
_TABLE_WALK = {
    "synchronous external abort on a table walk": 0x14,
    "synchronous parity or ECC error on a table walk": 0x1C,
    "granule protection fault on a table walk": 0x24,
}
"""Fault -> the status at level 0; those of levels -1 to 3 are consecutive."""
_STATUS: dict[int, tuple[str, int | None]] = {
    0x10: ("synchronous external abort", None),
    0x11: ("synchronous tag check fault", None),
    0x18: ("synchronous parity or ECC error", None),
    0x21: ("alignment fault", None),
    0x28: ("granule protection fault", None),
    0x29: ("address size fault", -1),
    0x2A: ("translation fault", -2),
    0x2B: ("translation fault", -1),
    0x2C: ("address size fault", -2),
    0x30: ("TLB conflict abort", None),
    0x31: ("unsupported atomic hardware update fault", None),
    0x34: ("implementation defined fault (lockdown)", None),
    0x35: ("implementation defined fault (unsupported exclusive or atomic access)", None),
    0x12: ("synchronous external abort on a table walk", -2),
    0x22: ("granule protection fault on a table walk", -2),
    **{base + level: (name, level) for name, base in _TABLE_WALK.items() for level in range(-1, 4)},
}


@dataclass(frozen=True)
class Esr:
    """Hold a decoded syndrome. Fields of data and instruction aborts are None for other classes.

    Source: Arm ARM ESR_EL1, ISS encodings for an exception from a data abort and from an instruction abort.
    """

    raw: int
    """The register."""
    ec: int
    """Exception class, bits 31:26."""
    class_name: str
    """The name Linux prints, `DABT (current EL)`."""
    class_text: str
    """What the Arm ARM calls it."""
    iss: int
    """Instruction specific syndrome, bits 24:0."""
    wnr: bool | None = None
    """Data aborts: a write, bit 6."""
    s1ptw: bool | None = None
    """Aborts: on a stage 2 fault for a stage 1 table walk, bit 7."""
    cm: bool | None = None
    """Data aborts: caused by cache maintenance, bit 8."""
    status: int | None = None
    """Aborts: DFSC or IFSC, bits 5:0."""
    fault: str | None = None
    """Aborts: `translation fault`, `permission fault`, …"""
    level: int | None = None
    """Aborts: the level of the walk that faulted, -2 to 3; None for faults without one."""
    immediate: int | None = None
    """BRK, SVC, HVC, SMC: the immediate, bits 15:0."""

    @property
    def is_abort(self) -> bool:
        """True for data and instruction aborts."""
        return self.ec in ABORTS

    @property
    def brk_use(self) -> str:
        """What Linux uses the immediate of a BRK for, `BUG() or WARN()`; empty if unknown, or no BRK."""
        if self.ec != EC_BRK or self.immediate is None:
            return ""
        return next((use for low, high, use in _BRK if low <= self.immediate <= high), "")

    @property
    def serror(self) -> str:
        """The syndrome of an SError in words; empty for other classes.

        Source: Arm ARM ESR_EL1, ISS encoding for an SError interrupt: IDS bit 24, AET bits 12:10, EA bit 9,
        DFSC bits 5:0 (0x11 is an asynchronous SError; 0 has no syndrome).
        """
        if self.ec != EC_SERROR:
            return ""
        if bit(self.iss, 24):
            return f"implementation defined syndrome {bits(self.iss, 23, 0):#x}"
        status = bits(self.iss, 5, 0)
        if status != 0x11:
            return "uncategorized" if not status else f"reserved status {status:#x}"
        state = _SERROR_STATES.get(bits(self.iss, 12, 10), "reserved state")
        return f"asynchronous, {state}, external abort type {int(bit(self.iss, 9))}"

    @property
    def detail(self) -> str:
        """What the ISS of a failed check tells; empty for other classes.

        Source: Arm ARM ESR_EL1, ISS encodings for a branch target exception (BTYPE, bits 1:0), a PAC fail
        exception (bit 1: data key, bit 0: B key), a memory copy or set exception (MemInst, bit 24) and a GCS
        exception (ExType, bits 23:20).
        """
        if self.ec == 0x0D:
            return f"BTYPE {bits(self.iss, 1, 0):#04b}"
        if self.ec == 0x1C:
            return f"{'data' if bit(self.iss, 1) else 'instruction'} key {'B' if bit(self.iss, 0) else 'A'}"
        if self.ec == 0x27:
            return "memory set" if bit(self.iss, 24) else "memory copy"
        return _GCS.get(bits(self.iss, 23, 20), "reserved type") if self.ec == 0x2D else ""

    @property
    def text(self) -> str:
        """Return in one line what happened: `DABT (current EL): write, translation fault, level 2`."""
        parts = []
        if self.wnr is not None and not self.cm:
            parts.append("write" if self.wnr else "read")
        if self.cm:
            parts.append("cache maintenance")
        if self.fault:
            parts.append(self.fault if self.level is None else f"{self.fault}, level {self.level}")
        if self.s1ptw:
            parts.append("stage 2 fault on a stage 1 walk")
        parts += self.second_syndrome
        if self.immediate is not None:
            use = self.brk_use
            parts.append(f"immediate {self.immediate:#x}" + (f" ({use})" if use else ""))
        parts += filter(None, (self.serror, self.detail))
        return self.class_name + (f": {', '.join(parts)}" if parts else "")

    @property
    def second_syndrome(self) -> tuple[str, ...]:
        """ISS2 of an abort: the name of each bit that is set."""
        return tuple(name for name, at in _ISS2.items() if self.status is not None and bit(self.raw, at))


def fault_status(status: int) -> tuple[str, int | None]:
    """Return the kind of fault and its level for a DFSC or IFSC value (Arm ARM ESR_EL1.DFSC)."""
    if status >> 4 == 0:
        return _LEVELLED[status >> 2], status & 3
    return _STATUS.get(status, (f"reserved fault status {status:#04x}", None))


_GCS = {0: "data check", 1: "EXLOCK", 2: "trapped GCSSTR or GCSSTTR"}
_ISS2 = {"TnD": 42, "TagAccess": 41, "GCS": 40, "AssuredOnly": 39, "Overlay": 38, "DirtyBit": 37}
"""Bits of ISS2 of an abort (Arm ARM ESR_EL1, ISS2 of a Data Abort): of an allocation tag, not of data (TnD),
of a tag that the memory's attribute forbids to access (TagAccess), of a guarded control stack, of a
translation that has to be protected (FEAT_THE), of an overlay that takes the permission (POR_EL0, POR_EL1),
of a clean page (nDirty) that the CPU does not make dirty."""


def decode_esr(esr: int) -> Esr:
    """Decode ESR_EL1, 32 or 64 bits wide; of bits 63:32 (ISS2) those about permissions."""
    ec, iss = bits(esr, 31, 26), bits(esr, 24, 0)
    name, text = CLASSES.get(ec, (UNRECOGNIZED, f"reserved exception class {ec:#04x}"))
    if ec in ABORTS:
        return _abort(esr, ec, iss)
    immediate = iss & 0xFFFF if ec in _IMMEDIATES else None
    return Esr(esr, ec, name, text, iss, immediate=immediate)


def _abort(esr: int, ec: int, iss: int) -> Esr:
    name, text = CLASSES[ec]
    data = bit(ec, 2)
    status = bits(iss, 5, 0)
    fault, level = fault_status(status)
    return Esr(
        raw=esr,
        ec=ec,
        class_name=name,
        class_text=text,
        iss=iss,
        wnr=bit(iss, 6) if data else None,
        s1ptw=bit(iss, 7),
        cm=bit(iss, 8) if data else None,
        status=status,
        fault=fault,
        level=level,
    )
