"""Type layouts from BTF: members, nested and anonymous, arrays, bit fields; damaged and hostile input."""

from __future__ import annotations

import struct

import pytest
from kernels import BtfBuilder

from ptinspect.errors import KernelFileError
from ptinspect.linux.image.btf import BtfTypes, find_btf
from ptinspect.linux.image.c_types import CTypes


def sample() -> BtfBuilder:
    b = BtfBuilder()
    long, char = b.integer("long", 8), b.integer("char", 1)
    pointer = b.pointer(0)
    context = b.struct("cpu_context", 24, [("fp", long, 0), ("sp", long, 64), ("pc", long, 128)])
    thread = b.struct("thread_struct", 32, [("flags", long, 0), ("cpu_context", context, 64)])
    comm = b.array(char, 16)
    typed = b.typedef("thread_t", b.typedef("", thread, kind=10))
    inner = b.struct("", 8, [("uid", long, 0), ("kuid", long, 0)], union=True)
    anonymous = b.struct("", 16, [("", inner, 0), ("gid", long, 64)])
    bits = b.struct(
        "", 4, [("lazy", long, 1 << 24 | 3), ("width", long, 7 << 24 | 4), ("word", long, 8)], flag=True
    )
    regs = b.array(b.array(long, 4), 3)
    b.struct(
        "task_struct", 256,
        [("stack", pointer, 0), ("comm", comm, 64), ("thread", typed, 192), ("", anonymous, 512),
         ("", bits, 640), ("grid", regs, 704)],
    )  # fmt: skip
    b.add(
        6, "zone", 4, struct.pack("<IiIi", b.string("ZONE_A"), 3, b.string("ZONE_B"), -1), vlen=2, flag=True
    )
    b.add(19, "wide", 8, struct.pack("<III", b.string("WIDE"), 5, 1), vlen=1)
    return b


@pytest.fixture(scope="module")
def types() -> BtfTypes:
    return BtfTypes(sample().blob())


@pytest.mark.parametrize(
    ("path", "offset", "size"),
    [
        ("task_struct.stack", 0, 8),
        ("task_struct.comm", 8, 16),
        ("task_struct.comm[3]", 11, 1),
        ("task_struct.thread", 24, 32),
        ("task_struct.thread.cpu_context.sp", 24 + 8 + 8, 8),
        ("thread_t.cpu_context.pc", 24, 8),
        ("task_struct.uid", 64, 8),
        ("task_struct.kuid", 64, 8),
        ("task_struct.gid", 72, 8),
        ("task_struct.grid[2][1]", 88 + 64 + 8, 8),
        ("task_struct.grid[1]", 88 + 32, 32),
        ("task_struct.word", 81, 8),
    ],
)
def test_members(types: BtfTypes, path: str, offset: int, size: int) -> None:
    assert types.field(path) == (offset, size)
    assert types.offset(path) == offset


def test_bit_fields(types: BtfTypes) -> None:
    for name in ("lazy", "width"):
        with pytest.raises(KernelFileError, match="bit field"):
            types.offset(f"task_struct.{name}")


def test_sizes(types: BtfTypes) -> None:
    assert (types.size("task_struct"), types.size("thread_t"), types.size("long")) == (256, 32, 8)


@pytest.mark.parametrize(
    "path",
    ["nothing", "task_struct.nothing", "task_struct.comm[16]", "task_struct.stack[0]", "task_struct.comm[x]",
     "task_struct.comm[-1]", "task_struct.thread.cpu_context.sp.x", "task_struct.", ""],
)  # fmt: skip
def test_what_is_not_there(types: BtfTypes, path: str) -> None:
    with pytest.raises(KernelFileError):
        types.offset(path)


def test_the_blob_is_found_in_an_image() -> None:
    blob = sample().blob()
    decoy = blob[:24] + b"\xff" * 100 + bytes(len(blob))
    found = find_btf(b"abc" * 100 + decoy + b"x" + blob + bytes(50))
    assert found is not None
    assert found.offset("task_struct.gid") == 72
    assert find_btf(b"abc" * 1000 + decoy) is None
    assert find_btf(blob[:-1]) is None
    assert find_btf(b"abc") is None


def test_a_blob_without_types() -> None:
    with pytest.raises(KernelFileError, match="truncated"):
        BtfTypes(BtfBuilder().blob())


def test_a_name_that_is_the_end_of_another_string() -> None:
    """Strings may share their ends: LLVM's writer merges them."""
    b = BtfBuilder()
    b.struct("my_task_struct", 16, [])
    shared = b.string("my_task_struct") + 3
    b.add(4, "", 32)
    types = bytearray(b.blob())
    header = struct.unpack_from("<HBBIIIII", types)
    at = types.index(struct.pack("<II", 4 << 24, 32), 24 + header[4]) - 4
    types[at : at + 4] = struct.pack("<I", shared)
    found = BtfTypes(bytes(types))
    assert (found.size("task_struct"), found.size("my_task_struct")) == (32, 16)
    with pytest.raises(KernelFileError):
        found.size("struct")


def test_truncated_blobs() -> None:
    blob = sample().blob()
    for size in range(0, len(blob), 7):
        data = bytearray(blob[:size])
        try:
            found = BtfTypes(bytes(data))
            found.offset("task_struct.thread.cpu_context.sp")
        except KernelFileError:
            pass


def test_types_that_lead_to_themselves() -> None:
    b = BtfBuilder()
    b.typedef("loop", 1)
    b.array(2, 1 << 30)
    b.struct("a", 8, [("x", 1, 0), ("y", 2, 0)])
    types = BtfTypes(b.blob())
    for path in ("loop", "a.x.z"):
        with pytest.raises(KernelFileError):
            types.offset(path)
    with pytest.raises(KernelFileError):
        types.size("loop")
    with pytest.raises(KernelFileError):
        types.field("a.y")


def test_anonymous_types_that_fan_out_do_not_take_for_ever() -> None:
    b = BtfBuilder()
    count = 40
    for i in range(count):
        b.struct("", 8, [("", min(i + 2, count), 0)] * 8)
    b.struct("top", 8, [("", 1, 0), ("", 1, 64)])
    with pytest.raises(KernelFileError, match="nothing"):  # and not after 8^40 steps
        BtfTypes(b.blob()).offset("top.nothing")


def test_ids_that_do_not_exist() -> None:
    b = BtfBuilder()
    b.struct("a", 8, [("x", 77, 0), ("", 78, 0)])
    types = BtfTypes(b.blob())
    for path in ("a.x", "a.y", "a.x.z"):
        with pytest.raises(KernelFileError):
            types.field(path)


def test_kinds_that_are_not_known() -> None:
    b = BtfBuilder()
    b.add(25, "future", 0)
    with pytest.raises(KernelFileError, match="kind 25"):
        BtfTypes(b.blob())


@pytest.mark.parametrize("kind", [10, 3])
def test_types_of_types_of_types_end(kind: int) -> None:
    """A hundred thousand qualifiers, or arrays, around each other."""
    b = BtfBuilder()
    b.add(8, "endless", 2)
    extra = [struct.pack("<III", number + 3, 1, 2) if kind == 3 else b"" for number in range(100_000)]
    b.types += b"".join(
        struct.pack("<III", 0, kind << 24, 0 if kind == 3 else number + 3) + each
        for number, each in enumerate(extra)
    )
    b.integer("long", 8)
    types = CTypes(BtfTypes(b.blob()))
    for _ in range(2):
        with pytest.raises(KernelFileError, match=r"within one|itself"):
            types.of(2)


def test_a_type_that_is_not_known_is_told_the_same_each_time() -> None:
    b = BtfBuilder()
    b.array(77, 2)
    types = CTypes(BtfTypes(b.blob()))
    for _ in range(2):
        with pytest.raises(KernelFileError, match="type 77"):
            types.of(1)


def test_names_are_safe_to_print() -> None:
    b = BtfBuilder()
    long = b.integer("lo\x1b[31mng", 8)
    b.struct("x\x1b[2J", 8, [("m\ny", long, 0)])
    types = CTypes(BtfTypes(b.blob()))
    made = types.of(2)
    (field,) = types.fields(made)
    assert (made.name, field.name, field.type.name) == ("struct x\\x1b[2J", "m\\ny", "lo\\x1b[31mng")
