"""The layers of the package, read from its source: who may import whom, and the house rules on modules."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest
import tabulate

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ptinspect"

BELOW = {
    "errors": set(),
    "dataclass": set(),
    "typed": set(),
    "text": set(),
    "imports": set(),
    "numpy_parts": {"imports"},
    "files": {"errors"},
    "packing": set(),
    "debfile": {"errors", "packing"},
    "processes": set(),
    "arch": {"errors"},
    "memory": {"errors", "arch"},
    "tables": {"errors", "files", "arch", "memory"},
    "snapshot": {"errors", "files", "text", "arch", "memory", "tables"},
    "analysis": {"errors", "text", "arch", "memory", "tables", "snapshot"},
    "linux": {
        "errors",
        "files",
        "packing",
        "debfile",
        "processes",
        "text",
        "arch",
        "memory",
        "tables",
        "snapshot",
        "analysis",
    },
    "linux/image": set(),
    "linux/layout": {"linux/image"},
    "linux/ptdump": {"linux/layout"},
    "linux/running": {"linux/image", "linux/layout"},
    "linux/kpti": {"linux/image", "linux/layout", "linux/running"},
    "linux/oops": set(),
    "stack": {"errors", "files", "text", "arch", "memory", "tables", "snapshot", "analysis", "linux"},
    "link": {"errors", "files", "processes", "text", "arch", "memory"},
    "output": {"errors", "files", "imports", "text", "arch", "tables", "snapshot", "analysis"},
    "guest": {
        "errors",
        "files",
        "text",
        "arch",
        "memory",
        "tables",
        "snapshot",
        "analysis",
        "linux",
        "stack",
        "link",
        "reference",
    },
    "commands": {
        "errors",
        "files",
        "processes",
        "text",
        "config",
        "arch",
        "memory",
        "tables",
        "snapshot",
        "analysis",
        "linux",
        "stack",
        "link",
        "output",
        "guest",
        "reference",
        "script",
        "campaign",
    },
    "commands/framework": set(),
    "commands/look": {"commands/framework"},
    "commands/stack": {"commands/framework"},
    "commands/run": {"commands/framework", "commands/stack"},
    "commands/kpti": {"commands/framework"},
    "commands/session": {"commands/framework"},
    "commands/tables": {"commands/framework", "commands/stack"},
    "commands/pages": {"commands/framework", "commands/session", "commands/stack", "commands/tables"},
    "commands/target": {
        "commands/framework",
        "commands/kpti",
        "commands/run",
        "commands/stack",
        "commands/tables",
    },
    "reference": {"errors", "files", "processes", "debfile", "output"},
    "script": {"errors", "files", "text"},
    "campaign": {"errors", "files", "processes", "script"},
    "repl": {"errors", "files", "processes", "text", "output", "commands", "guest", "script"},
    "config": {"errors", "files"},
}
"""Package -> packages that it may import, besides itself, `dataclass` and `typed`; others may import all.

Room in a package -> those of the package's other rooms that it may import. The modules beside the rooms lie
below all of them.
"""

THIRD_PARTY = {
    "errors": set(),
    "dataclass": set(),
    "typed": set(),
    "text": set(),
    "imports": set(),
    "numpy_parts": set(),
    "files": set(),
    "packing": {"zstandard", "lz4", "lzallright"},
    "debfile": set(),
    "processes": set(),
    "arch": set(),
    "memory": {"numpy"},
    "snapshot": {"numpy"},
    "tables": {"numpy"},
    "analysis": {"numpy"},
    "linux": {"numpy", "elftools", "vmlinux_to_elf"},
    "stack": {"numpy"},
    "link": {"numpy", "pygdbmi"},
    "output": {"tabulate", "wcwidth", "pyarrow"},
    "guest": set(),
    "script": set(),
    "campaign": set(),
    "reference": set(),
    "commands": set(),
    "repl": {"prompt_toolkit"},
    "config": {"tomlkit"},
    "api": set(),
    "app": set(),
    "gdbhost": set(),
    "__main__": set(),
    "__init__": set(),
}
"""Package -> libraries that it may import."""

ONE_PLACE = {
    "pygdbmi": {"link/gdb/mi.py"},
    "tabulate": {"output/text.py"},
    "zstandard": {"packing.py"},
    "lz4": {"packing.py"},
    "lzallright": {"packing.py"},
    "tomlkit": {"config.py"},
    "pyarrow": {"output/rows.py"},
    "elftools": {"linux/image/*"},
    "vmlinux_to_elf": {"linux/image/*"},
}
"""Library -> the only files that may import it."""

BUG_NETS = {"app.py", "gdbhost.py", "link/escort.py", "repl/loop.py"}
"""The only files with `except Exception`: three report a bug, the escort hands it to one of them."""

MAX_LINES = 500


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def room_of(parts: Sequence[str]) -> str:
    """The room that a module, or something in it, lies in: one of a package's, or the package."""
    room = "/".join(parts[:2])
    return room if room in BELOW else parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module; `from a import b` counts as `a.b`, which names a module or something in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(path: Path, source: str) -> list[str]:
    """What a module imports against the table."""
    package = package_of(path)
    relative = path.relative_to(PACKAGE)
    found = []
    for name in imports(ast.parse(source)):
        top, _, rest = name.partition(".")
        if top == "ptinspect":
            other = rest.partition(".")[0]
            if not (PACKAGE / other).is_dir() and not (PACKAGE / f"{other}.py").is_file():
                continue  # a name in ptinspect/__init__.py: the version
            allowed = BELOW[package] | {"dataclass", "typed"} if package in BELOW else None
            if other != package and allowed is not None and other not in allowed:
                found.append(f"{relative} imports {name}")
            here, there = room_of(relative.parts), room_of(rest.split("."))
            if other == package and "/" in there and here != there and there not in BELOW[here]:
                found.append(f"{relative} imports {name}")
            if package == "reference" and other == "output" and not name.startswith("ptinspect.output.model"):
                found.append(f"{relative} imports {name}")
            if other == "reference" and package not in ("reference", "guest", "commands"):
                found.append(f"{relative} imports {name}")
        elif top not in sys.stdlib_module_names:
            places = ONE_PLACE.get(top)
            elsewhere = places and not any(relative.match(place) for place in places)
            if top not in THIRD_PARTY[package] or elsewhere:
                found.append(f"{relative} imports {top}")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_table(path: Path) -> None:
    assert wrong_imports(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("arch/bits.py", "import numpy"),
        ("arch/bits.py", "from ptinspect.memory.source import RamBlock"),
        ("tables/walk.py", "from ptinspect.link.session import Session"),
        ("repl/loop.py", "from ptinspect.link import session"),
        ("repl/loop.py", "def f():\n    import ptinspect.link.session"),
        ("link/session.py", "import pygdbmi.gdbmiparser"),
        ("output/json.py", "from tabulate import tabulate"),
        ("commands/walk.py", "import prompt_toolkit"),
        ("reference/guests.py", "from ptinspect.output.text import render"),
        ("link/qemu/machine.py", "from ptinspect.reference.guests import guest"),
        ("commands/walk.py", "import gdb"),
        ("linux/layout/choice.py", "from ptinspect.linux.running.tasks import Tasks"),
        ("linux/layout/choice.py", "def f():\n    from ptinspect.linux import running"),
        ("linux/death.py", "from ptinspect.linux.oops import messages"),
    ],
)
def test_a_wrong_import_is_found(file: str, source: str) -> None:
    assert wrong_imports(PACKAGE / file, source)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_cycle(sources: Mapping[str, str]) -> list[str]:
    """Modules of which each imports the next, from one of them back to it; none if no import leads back.

    Every import counts, those for type checkers and those inside of functions too. That of a package by
    a module in it does not, which only reaches other modules in it.
    """
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        names = set(imports(ast.parse(source)))
        names |= {name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in names & sources.keys() if not f"{module}.".startswith(f"{name}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_module_imports_itself_by_others() -> None:
    ring = import_cycle({module_name(path): path.read_text() for path in modules()})
    assert not ring, " imports ".join(ring)


@pytest.mark.parametrize(
    ("sources", "ring"),
    [
        ({"a": "import b", "b": "import c", "c": "from d import x", "d": ""}, set()),
        ({"a": "import b", "b": "import a"}, {"a", "b"}),
        ({"a": "from b import x", "b": "from c import x", "c": "from a import x", "d": ""}, {"a", "b", "c"}),
        ({"a": "import b", "b": "if TYPE_CHECKING:\n    from a import A"}, {"a", "b"}),
        ({"a": "import b", "b": "def f():\n    from a import g"}, {"a", "b"}),
        ({"p": "", "p.a": "from p import b", "p.b": "from p import a"}, {"p.a", "p.b"}),
        ({"p": "from p import a", "p.a": "from p import version"}, set()),
        ({"p": "from q import a", "q": "", "q.a": "import p"}, {"p", "q.a"}),
    ],
)
def test_a_cycle_is_found(sources: dict[str, str], ring: set[str]) -> None:
    found = import_cycle(sources)
    assert set(found) == ring
    assert all(after.rpartition(".")[2] in sources[one] for one, after in pairwise(found))


def test_dataclasses_are_the_cheap_ones() -> None:
    """Those of the standard library cost half a millisecond each at every start that declares them."""
    slots = {"linux/ptdump/kernel_text.py"}
    found = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if "dataclasses.dataclass" in imports(ast.parse(path.read_text()))
    }
    assert found - slots == {"dataclass.py"}


def test_every_package_is_in_the_table() -> None:
    packages = {package_of(path) for path in modules()}
    assert packages <= set(THIRD_PARTY)


def broad_handlers(path: Path, source: str) -> list[int]:
    """Lines that catch everything. One that only cleans up and ends in a bare `raise` catches nothing."""
    found = []
    allowed = {"Exception"} if str(path.relative_to(PACKAGE)) in BUG_NETS else set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        last = node.body[-1]
        if isinstance(last, ast.Raise) and last.exc is None and node.type is not None:
            continue
        names = (
            {"BaseException"}
            if node.type is None
            else {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
        )
        if names & {"BaseException", "Exception"} - allowed:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_bug_nets_catch_everything(path: Path) -> None:
    assert broad_handlers(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "handler", "found"),
    [
        ("arch/bits.py", "except Exception: pass", True),
        ("arch/bits.py", "except (ValueError, Exception): x = 1", True),
        ("arch/bits.py", "except: raise", True),
        ("arch/bits.py", "except BaseException:\n    clean()\n    raise", False),
        ("arch/bits.py", "except ValueError: pass", False),
        ("repl/loop.py", "except Exception: pass", False),
        ("repl/loop.py", "except BaseException: pass", True),
    ],
)
def test_a_broad_handler_is_found(file: str, handler: str, found: bool) -> None:
    assert bool(broad_handlers(PACKAGE / file, f"try:\n    x = 1\n{handler}")) == found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_do_not_print(path: Path) -> None:
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def instruction_masks(source: str) -> list[int]:
    """Lines that compare the masked bits of a 32-bit word, as decoders of instructions do."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.BinOp)
        and isinstance(node.left.op, ast.BitAnd)
        and isinstance(node.left.right, ast.Constant)
        and isinstance(node.left.right.value, int)
        and 1 << 24 <= node.left.right.value < (1 << 32) - 1
    ]


def test_only_a64_decodes_instructions() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in modules() if instruction_masks(path.read_text())}
    assert found == {"arch/a64.py"}


def test_gdbscripts_import_only_gdb_and_the_standard_library() -> None:
    for path in sorted((ROOT / "gdbscripts").rglob("*.py")):
        tops = {name.partition(".")[0] for name in imports(ast.parse(path.read_text()))}
        siblings = {p.stem for p in path.parent.glob("*.py")}
        assert tops <= set(sys.stdlib_module_names) | {"gdb"} | siblings, path


HEAVY = {
    *("numpy", "elftools", "pygdbmi", "prompt_toolkit", "vmlinux_to_elf", "tomlkit", "tomllib", "pyarrow"),
    *("dataclasses", "inspect", "pathlib", "subprocess", "json", "csv", "xml.etree", "tempfile", "shutil"),
    *("difflib", "hashlib", "importlib.metadata", "html", "platformdirs"),
    *("gettext", "locale", "threading", "typing"),
}
"""What takes a millisecond or more to import, and most commands without a guest do without."""


def imported(code: str, *, without: Set[str] = frozenset()) -> set[str]:
    """Return what of HEAVY is imported after some code has run."""
    tables = str(Path(tabulate.__file__).parents[1])
    code = f"import sys; sys.path.append({tables!r}); {code}"
    code += f"; sys.stderr.write(' '.join({HEAVY - without} & set(sys.modules)))"
    words = [sys.executable, "-S", "-c", code]
    environment = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"}
    environment.pop("PTINSPECT_CONFIG", None)
    run = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    return set(run.stderr.split())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["help", "walk"],
        ["decode", "0x3", "--level", "3"],
        ["oops", "tests/data/oops/4.17-lkml-kpti.log"],
    ],
)
def test_starting_imports_nothing_heavy(words: list[str]) -> None:
    """A command without a guest is over before these would be imported; only --help asks for a width."""
    code = f"from ptinspect.app import main; main({words})"
    assert not imported(code, without={"shutil"} if words == ["--help"] else frozenset())


def test_gdb_is_started_before_anything_heavy_is_imported() -> None:
    """It takes a tenth of a second until it answers: as long as the import of numpy."""
    code = "from ptinspect.guest import opening; from ptinspect.link.gdb import starting"
    assert not imported(code, without={"pathlib", "subprocess", "threading", "locale", "typing"})


def test_starting_imports_the_commands_and_little_else() -> None:
    """`--help` declares every command; the rooms that do the work are imported by the handlers."""
    code = (
        "import sys; sys.stdout = open('/dev/null', 'w'); from ptinspect.app import main; main(['--help']);"
        "sys.stderr.write(' '.join(name for name in sys.modules if name.startswith('ptinspect.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    rooms = [name.split(".")[1:3] for name in run.stderr.split()]
    work = {"tables", "memory", "stack", "campaign", "reference"}
    work |= {f"linux.{room}" for room in ("image", "running", "layout", "kpti", "ptdump", "oops")}
    assert not work & ({room[0] for room in rooms} | {".".join(room) for room in rooms})
    own = [room for room in rooms if room[0] not in ("commands", "guest", "arch", "output")]
    assert len(own) <= 30, "imported at every start"


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["mypy", "tests/fakes.py"]],
)
def test_linters(command: list[str]) -> None:
    pytest.importorskip(command[0])
    run = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
