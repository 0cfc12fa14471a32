"""The errors that ptinspect reports, each with the kind that JSON output names and its exit code.

Everything that can go wrong outside ptinspect itself is one of these. Any other exception is a bug
in ptinspect (exit code 70).
"""

from __future__ import annotations

from ptinspect.typed import ClassVar

EXIT_OK = 0
EXIT_CHECK = 1
EXIT_USAGE = 2
EXIT_TARGET = 3
EXIT_CONNECT = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C, as a shell counts it."""


class PtinspectError(Exception):
    """Hold in one line what went wrong, and in `hint` what to do about it."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = EXIT_TARGET

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(PtinspectError):
    """Report a command, argument or input file that cannot be used as given."""

    kind = "usage"
    exit_code = EXIT_USAGE


class SnapshotError(UserError):
    """Report a snapshot file that is truncated, too large, of an unknown version or no snapshot."""

    kind = "snapshot"


class KernelFileError(UserError):
    """Report a kernel file that cannot be read, or does not match the running kernel."""

    kind = "kernel-file"


class TargetError(PtinspectError):
    """Report a failure of GDB, QEMU or the link between them."""

    kind = "target"


class ConnectError(TargetError):
    """Report that no session with a gdbstub could be opened."""

    kind = "connect"
    exit_code = EXIT_CONNECT


class TargetTimeout(TargetError):
    """Report that GDB or the guest did not answer within the time given to it."""

    kind = "timeout"


class TargetLost(TargetError):
    """Report that GDB or QEMU has ended; nothing can be read from it any more."""

    kind = "lost"


class MiError(TargetError):
    """Report an error that GDB answered to a command."""

    kind = "gdb"


class OutOfSlots(TargetError):
    """Report that the CPU has no hardware breakpoint or watchpoint left, or none that fits (KVM)."""

    kind = "slots"


class TargetRunning(TargetError):
    """Report that a command needs a stopped guest."""

    kind = "running"


class GuestError(PtinspectError):
    """Report that the guest holds something that cannot be read or makes no sense."""

    kind = "guest"


class ReplayStands(TargetError):
    """Report a replay that does not go on, as QEMU's may where a debugger stopped the recorded guest."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message, "timeline goto another position, and try it again: it may pass this one then"
        )


class NothingRuns(GuestError):
    """Report a guest no CPU of which will ever do anything; `pc` is where the first one stays."""

    kind = "nothing-runs"

    def __init__(self, pc: int, message: str) -> None:
        super().__init__(
            message,
            "is it an arm64 kernel that this machine, its CPU and its memory can run? See console, regs",
        )
        self.pc = pc


class MemoryReadError(GuestError):
    """Report guest-physical memory that could not be read.

    `pa` is the first address of the failing read and `length` its size in bytes.
    """

    kind = "memory"

    def __init__(self, pa: int, length: int, reason: str, hint: str = "") -> None:
        super().__init__(f"cannot read {length} bytes at pa:{pa:#x}: {reason}", hint)
        self.pa = pa
        self.length = length
        self.reason = reason


class RegimeError(GuestError):
    """Report registers that describe no usable translation regime."""

    kind = "regime"
