"""Stand-ins for modules: nobody who uses one notices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

POSTPONED = """
import sys
from ptinspect.imports import postpone
postpone("pickle", "sys")
import pickle
assert "_pickle" not in sys.modules
assert sys.modules["sys"] is sys
{use}
import pickle as again
assert "_pickle" in sys.modules and again.__file__ and again.loads(again.dumps([1])) == [1]
"""


@pytest.mark.parametrize(
    "use",
    [
        *("assert pickle.dumps(1)", "from pickle import Pickler", "assert pickle.HIGHEST_PROTOCOL > 3"),
        *("assert pickle.__file__", "from pickle import *; Pickler"),
    ],
)
def test_a_postponed_module_is_imported_when_it_is_used(use: str) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", POSTPONED.format(use=use)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert not done.returncode, done.stderr


def test_a_stand_in_is_there_for_a_while() -> None:
    from ptinspect.imports import standing_in

    assert "wave" not in sys.modules
    with standing_in({"wave": None, "sys": None}):
        with pytest.raises(ImportError):
            import wave
        assert sys.modules["sys"] is sys
    import wave

    assert wave.open
    del sys.modules["wave"]
