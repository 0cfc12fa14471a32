"""Leave a guest as it was found: run by GDB when the ptinspect that had started it has died, and by a
ptinspect that has to leave a guest whose QEMU is stopped by a signal.

`python -m ptinspect.link.heir ADDRESS running|stopped|unknown`
"""

from __future__ import annotations

import sys
import time

from ptinspect.link.address import StubAddress
from ptinspect.link.changes import leave_as_found
from ptinspect.link.live import LiveSession
from ptinspect.link.qemu.listener import is_stopped

PAUSE = 0.2
"""Between two looks at QEMU's process, seconds."""


def main(address: str, how: str) -> None:
    """Leave the guest of that stub, as soon as its QEMU is not stopped by a signal any more."""
    where = StubAddress.parse(address)
    while is_stopped(where):
        time.sleep(PAUSE)
    running = {"running": True, "stopped": False}.get(how)
    leave_as_found(where, running, lambda resume: LiveSession.attach(address).detach(resume))


if __name__ == "__main__":
    main(*sys.argv[1:])
