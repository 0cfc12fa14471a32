"""numpy in parts: what is used here is there, what is not is when it is asked for, and nothing differs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import REGIMES, TreeBuilder

from ptinspect import numpy_parts
from ptinspect.snapshot.store import save

ROOT = Path(__file__).parents[1]
TRIED = np.__version__.rpartition(".")[0] in numpy_parts.TRIED
START = """
import sys
sys.path[:0] = {path!r}
from ptinspect import numpy_parts
numpy_parts.use_parts_of_numpy()
def in_parts():
    return type(sys.modules["numpy"]) is numpy_parts._Parts
"""


def run(code: str) -> None:
    """Run code in a process that uses parts of numpy."""
    start = START.format(path=[str(ROOT), str(Path(np.__file__).parents[1])])
    words = [sys.executable, "-c", start + code]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert not done.returncode, done.stdout + done.stderr


def used() -> set[str]:
    """What ptinspect takes from numpy by its name: `np.uint64`."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "ptinspect").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names = {ast.unparse(node) for node in nodes}
    return {name for name in names if name.startswith("np.") and name.replace(".", "").isidentifier()}


needs_tried = pytest.mark.skipif(not TRIED, reason="this numpy is imported as it is")


@needs_tried
def test_all_that_is_used_is_in_the_parts() -> None:
    run(f"import numpy as np\nfor name in {sorted(used())}:\n eval(name)\n assert in_parts(), name")


@needs_tried
def test_commands_use_the_parts_alone(tmp_path: Path) -> None:
    tree = TreeBuilder(REGIMES["4k-48"], tables_at=0x4100_0000)
    low = int(REGIMES["4k-48"].va_min)
    tree.map(low, 0x8000_0000, size=0x40_0000)
    before, after = str(tmp_path / "before.npz"), str(tmp_path / "after.npz")
    save(tree.snapshot("before"), Path(before))
    tree.map(low + 0x80_0000, 0x9000_0000, size=0x40_0000)
    save(tree.snapshot("after"), Path(after))
    lines = [
        *(["diff", before, after], ["map", "--snap", after], ["summary", "--snap", after]),
        *(["walk", hex(low), "--snap", after], ["check", "--snap", after, "--against", before]),
        *(["find", "pa:0x80001000", "--snap", after], ["map", "--bar", "--snap", after, "--against", before]),
        *(["map", "--mixed", "--snap", after], ["kpti", "verdict", "--before", before, "--after", after]),
    ]
    run(
        "from ptinspect.app import main\n"
        f"for words in {lines}:\n assert main(words) < 2, words\n assert in_parts(), words"
    )


@pytest.mark.parametrize(
    "use",
    [
        "import numpy as np; assert np.linalg.inv(np.eye(2))[0, 0] == 1",
        "from numpy import linalg; assert linalg.det([[2]]) == 2",
        "import numpy.linalg as linalg; assert linalg.det([[2]]) == 2",
        "import numpy as np; assert np.fft.fft([1])[0] == 1 and np.random.default_rng(1).random() < 1",
        "import numpy as np; assert np.ravel(np.matrix('1 2')).ndim == 1",
        "import numpy as np; assert np.unique(np.ma.array([1, 1, 2], mask=[0, 0, 1])).size == 2",
        "import numpy as np; assert np.r_[1:3].sum() == np.poly1d([1, 2])(1) == 3",
        "from numpy.typing import ArrayLike, NDArray; import numpy as np; assert NDArray[np.uint64]",
        "from numpy.lib import format, stride_tricks; assert format.write_array and stride_tricks.as_strided",
        "from numpy.lib.format import write_array; from numpy.lib import NumpyVersion; assert NumpyVersion",
        "from numpy import *; assert eye(2)[0, 0] == 1",
        "import numpy as np; assert np.__version__ and 'eye' in np.__all__ and np.__doc__",
        "import numpy as np, inspect; assert inspect.__file__ and inspect.signature(np.linalg.inv)",
        "import io, numpy as np; f = io.BytesIO(); np.save(f, [7]); f.seek(0); assert np.load(f) == 7",
        "import pickle, numpy as np; a = np.arange(3); assert (pickle.loads(pickle.dumps(a)) == a).all()",
        "import ctypes, numpy as np; assert np.zeros(1).ctypes.data_as(ctypes.c_void_p).value",
        "import numpy as np; assert repr(np.arange(2)) == 'array([0, 1])' and str(np.eye(1)) == '[[1.]]'",
        "import numpy as np\ntry: np.zeros(2) + np.zeros(3)\nexcept ValueError as e: assert '(2,)' in str(e)",
        "import numpy as np\ntry: np.nothing\nexcept AttributeError: pass\nelse: assert False",
        "import numpy as np\ntry: np.zeros(-1)\nexcept ValueError: pass\nelse: assert False",
    ],
)
@pytest.mark.parametrize("tried", [True, False])
def test_whatever_numpy_has_is_there(use: str, tried: bool) -> None:
    """The same holds of a version that was not tried, which is imported as it is."""
    run(use if tried else f"numpy_parts.TRIED = ()\n{use}\nassert not in_parts()")


def test_all_names_of_numpy_are_there() -> None:
    kinds = {name: type(getattr(np, name)).__name__ for name in np.__all__}
    run(
        f"import numpy as np\nfor name, kind in {kinds}.items():\n"
        " assert type(getattr(np, name)).__name__ in (kind, '_Parts'), name\n"
        "np.eye(1)\nassert not in_parts()"
    )


def test_two_threads_may_be_the_first_to_use_it() -> None:
    run(
        "import threading\nimport numpy as np\nfound = []\n"
        "names = ['uint64', 'unique', 'diff', 'split', 'load', 'isin'] * 3\n"
        "threads = [threading.Thread(target=lambda n=n: found.append(getattr(np, n))) for n in names]\n"
        "[thread.start() for thread in threads]\n[thread.join(60) for thread in threads]\n"
        "assert len(found) == len(names), found"
    )


def test_a_missing_numpy_is_said_to_be_missing() -> None:
    code = "import os; sys.path = [p for p in sys.path if not os.path.isdir(p + '/numpy')]\n"
    run(
        f"{code}import numpy\ntry: numpy.uint64\nexcept ModuleNotFoundError as e: assert e.name == 'numpy'\n"
        "else: assert False"
    )


def test_one_that_was_imported_before_is_left_alone() -> None:
    code = (
        "import numpy; from ptinspect.numpy_parts import use_parts_of_numpy; use_parts_of_numpy();"
        "numpy.eye(1); import numpy.lib.format, numpy.ma; assert numpy.linalg and numpy.__doc__"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
