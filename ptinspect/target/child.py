"""What every program that ptinspect starts has in common."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this new process a signal when the thread that started it ends.

    Runs between fork and exec, so it does nothing but one system call.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
