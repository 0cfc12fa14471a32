"""Our dataclasses are what the standard library makes of the same declarations."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from ptinspect import dataclass as ours


def classes(of: Any) -> SimpleNamespace:
    """Declare the same classes with one library or the other."""

    @of.dataclass(frozen=True)
    class Point:
        x: int
        y: int = 2
        origin: ClassVar[int] = 7
        names: list[str] = of.field(default_factory=list, repr=False)

    @of.dataclass(frozen=True)
    class Named(Point):
        name: str = ""
        y: int = 5

        def __repr__(self) -> str:
            return self.name

    @of.dataclass(frozen=True, kw_only=True)
    class Keyword(Point):
        height: int
        colour: str = "red"

    @of.dataclass
    class Counter:
        count: int = 0
        seen: set[int] = of.field(default_factory=set)

        def __post_init__(self) -> None:
            self.count += 1

    @of.dataclass(eq=False)
    class Own:
        values: int
        name: str = "a"
        default: int = 1

    @of.dataclass(frozen=True)
    class Empty:
        pass

    @of.dataclass(frozen=True)
    class Heir(Empty):
        pass

    class Plain(Named):
        pass

    return SimpleNamespace(**{name: found for name, found in locals().items() if isinstance(found, type)})


OURS, THEIRS = classes(ours), classes(dataclasses)


def outcome(work: Callable[[SimpleNamespace], object], of: SimpleNamespace) -> object:
    try:
        return work(of)
    except (TypeError, AttributeError) as error:
        return type(error)


@pytest.mark.parametrize(
    "work",
    [
        lambda of: repr(of.Point(1)),
        lambda of: repr([of.Named(1, name="n"), of.Counter(), of.Empty(), of.Heir()]),
        lambda of: repr(of.Keyword(1, height=3)),
        lambda of: of.Point(1) == of.Point(1, 2) != of.Point(1, 3),
        lambda of: of.Point(1) == of.Named(1, 2),
        lambda of: (of.Own(1) == of.Own(1), of.Empty() == of.Empty(), of.Empty() == of.Heir()),
        lambda of: of.Counter(1) == of.Counter(1),
        lambda of: hash(of.Named(1, names=(), name="n")) == hash(of.Named(1, names=(), name="n")),
        lambda of: hash(of.Point(1)),
        lambda of: hash(of.Counter()),
        lambda of: len({of.Empty(), of.Empty()}),
        lambda of: of.Point(),
        lambda of: of.Point(1, 2, [], 3),
        lambda of: of.Point(1, wrong=2),
        lambda of: of.Keyword(1, 2, [], 3),
        lambda of: of.Keyword(1, colour="blue", height=1).colour,
        lambda of: setattr(of.Point(1), "x", 2),
        lambda of: setattr(of.Plain(1), "x", 2),
        lambda of: delattr(of.Point(1), "x"),
        lambda of: vars(of.Counter()) | {"seen": of.Counter().seen is of.Counter().seen},
        lambda of: (of.Named.y, of.Point.y, of.Point.origin),
        lambda of: [hasattr(of.Point, name) for name in ("x", "names")],
        lambda of: [of.__dict__[name].__match_args__ for name in sorted(vars(of))],
        lambda of: vars(of.Plain(4, name="n")),
        lambda of: vars(copy.deepcopy(of.Named(4, names=["a"]))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("few", [0, 1, 1000])
def test_objects_behave_as_those_of_the_standard_library(
    work: Callable[[SimpleNamespace], object], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "FEW", few)
    assert outcome(work, classes(ours)) == outcome(work, THEIRS)


@pytest.mark.parametrize("name", sorted(vars(OURS)))
def test_the_standard_library_sees_the_same_fields(name: str) -> None:
    mine, theirs = vars(OURS)[name], vars(THEIRS)[name]
    assert is_dataclass(mine)

    def facts(cls: Any) -> list[tuple[object, ...]]:
        return [(f.name, f.type, f.default, f.default_factory, f.repr, f.kw_only) for f in fields(cls)]

    assert facts(mine) == facts(theirs)


def test_the_standard_library_works_on_objects() -> None:
    one = OURS.Keyword(1, names=["a"], height=2)
    assert asdict(one) == asdict(THEIRS.Keyword(1, names=["a"], height=2))
    assert dataclasses.replace(one, x=5) == ours.replace(one, x=5) == OURS.Keyword(5, 2, ["a"], height=2)
    with pytest.raises(FrozenInstanceError):
        one.x = 3
    with pytest.raises(TypeError, match="wrong"):
        ours.replace(one, wrong=1)

    @dataclasses.dataclass(frozen=True)
    class Further(OURS.Point):  # type: ignore[misc,name-defined]
        z: int = 0

    assert Further(1, z=3) == Further(1, 2, [], 3) != Further(1)


def test_a_subclass_is_made_before_its_parent() -> None:
    fresh = classes(ours)
    child, parent = fresh.Plain(1, name="n"), fresh.Point(2)
    assert (child.x, child.y, parent.x, parent.y) == (1, 5, 2, 2)


def test_objects_are_pickled() -> None:
    from ptinspect.memory.source import RamBlock

    block = RamBlock("ram", 0x40000000, 0x1000)
    assert pickle.loads(pickle.dumps(block)) == block


def test_no_object_needs_the_standard_librarys_module() -> None:
    code = (
        "import sys; from ptinspect.output.model import Column, Note, Table; from ptinspect import dataclass;"
        "one = dataclass.replace(Note('a'), text='b'); assert one == Note('b') and hash(one) and repr(one);"
        "sys.exit(' '.join({'dataclasses', 'inspect'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_standard_library_is_asked_by_several_threads_at_once() -> None:
    """While one thread has a class gone through, the others wait for that."""
    wrong: list[BaseException] = []

    def ask(cls: type, ready: threading.Barrier) -> None:
        ready.wait(60)
        try:
            assert [each.name for each in dataclasses.fields(cls)] == ["value"]
        except (AssertionError, AttributeError, TypeError) as error:
            wrong.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            ready = threading.Barrier(4)
            made = ours.dataclass(type("Made", (), {"__annotations__": {"value": "int"}}))
            threads = [threading.Thread(target=ask, args=(made, ready)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []
