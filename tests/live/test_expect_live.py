"""Expectations on a real kernel."""

from __future__ import annotations

import pytest
from session import launched

pytestmark = pytest.mark.live


def test_what_the_rewrite_left_is_as_expected() -> None:
    with launched("5.10-cloud") as live:
        assert live.exit_code("expect status.state == stopped") == 0
        live("kpti run")
        assert live.exit_code("expect kpti.run.reached == true") == 0
        assert live.exit_code("expect stack free >= 4096") == 0
        assert live.exit_code("expect stack.free > 1M") == 1
        assert live.exit_code("expect summary.level3.leaves_ng == summary.level3.leaves") == 0
        assert live.exit_code("expect summary --snap before leaves_ng == 0") == 0
        assert live.exit_code("expect walk $sp --snap after outcome == mapped") == 0
