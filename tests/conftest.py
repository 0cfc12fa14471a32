"""Fixtures for everybody: what a live test needs, and what happens when it is missing.

With PTINSPECT_LIVE=1 (or CI=true) a missing guest or tool fails the test; otherwise it skips it.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

import pytest

os.environ["PTINSPECT_CONFIG"] = os.devnull  # the tests are not about the user's own choices

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)

LIVE = os.environ.get("PTINSPECT_LIVE") == "1" or os.environ.get("CI") == "true"


def missing(what: str) -> NoReturn:
    """Fail where live tests must run, skip elsewhere."""
    if LIVE:
        pytest.fail(f"{what} is missing; run 'ptinspect setup --yes'")
    pytest.skip(f"{what} is missing; 'ptinspect setup --yes' installs it")
