"""Run by GDB when the ptinspect that had started it has died: leave the guest as it was found.

`python -m ptinspect.link.heir ADDRESS running|stopped|unknown`
"""

from __future__ import annotations

import sys

from ptinspect.link.address import StubAddress
from ptinspect.link.changes import leave_as_found
from ptinspect.link.live import LiveSession


def main(address: str, how: str) -> None:
    """Leave the guest of that stub."""
    running = {"running": True, "stopped": False}.get(how)
    leave_as_found(
        StubAddress.parse(address), running, lambda resume: LiveSession.attach(address).detach(resume)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
