"""Type layouts from DWARF, as a compiler writes it; the answers that are kept."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ptinspect.errors import KernelFileError
from ptinspect.linux.image import dwarf
from ptinspect.linux.image.dwarf import DwarfTypes

SOURCE = """
struct later;
struct cpu_context { unsigned long fp, sp, pc; };
typedef struct { unsigned long flags; struct cpu_context cpu_context; } thread_t;
enum zone { ZONE_A = 3, ZONE_B = -1 };
union either { int number; char bytes[4]; };
struct task_struct {
    void *stack;
    char comm[16];
    const volatile thread_t thread;
    union { unsigned long uid; unsigned long kuid; };
    struct { unsigned long gid; enum zone zone; };
    unsigned before : 3, width : 7;
    long grid[3][4];
    struct later *pointer;
    union either either;
    int flexible[];
};
struct xtask_struct { int not_this_one; };
struct later { struct task_struct *task; int number; };
struct loop { struct loop *next; };
struct task_struct task;
struct xtask_struct other;
struct later last;
struct loop loops;
struct rq { long a, idle; } runqueue;
struct abc { long a, b; } alphabet;
int stack, comm;
"""


TWO_BYTES = """
    .globl _start
_start: nop
    .section .debug_abbrev,"",%progbits
    .byte 3, 0x11, 1, 0, 0                                       // a unit
    .byte 1, 0x13, 0, 0x03, 0x0e, 0x0b, 0x0b, 0, 0               // a struct of nothing: name, size
    .byte 0x81, 0x01, 0x13, 1, 0x03, 0x0e, 0x0b, 0x0b, 0, 0      // a struct
    .byte 2, 0x0d, 0, 0x03, 0x0e, 0x38, 0x0b, 0, 0               // a member: name, place
    .byte 0
    .section .debug_info,"",%progbits
    .4byte 2f - 1f
1:  .2byte 4
    .4byte 0
    .byte 8
    .byte 3
    .byte 0x81, 0x01
    .4byte name
    .byte 48
    .byte 2
    .4byte member
    .byte 40
    .byte 0
    .byte 1
    .4byte nothing
    .byte 0
    .byte 0
2:
    .section .debug_str,"MS",%progbits,1
name: .string "task_struct"
member: .string "stack"
nothing: .string "lock_class_key"
"""
"""The code of a struct's abbreviation, 129, whose second byte is the code of another one."""


def compiler() -> str:
    for name in ("aarch64-linux-gnu-gcc", "gcc", "cc"):
        if shutil.which(name):
            return name
    pytest.skip("no C compiler")


def test_a_code_of_two_bytes_that_ends_like_another(tmp_path: Path) -> None:
    (tmp_path / "a.s").write_text(TWO_BYTES.replace("//", "//" if "aarch64" in compiler() else "#"))
    command = [compiler(), "-nostdlib", "-static", "a.s", "-o", "vmlinux"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    types = DwarfTypes(tmp_path / "vmlinux")
    assert (types.size("task_struct"), types.offset("task_struct.stack")) == (48, 40)
    assert types.size("lock_class_key") == 0


@pytest.fixture(
    scope="module", params=["-gdwarf-4", "-gdwarf-5", "-gdwarf-4 -gstrict-dwarf", "-gdwarf-5 -Wl,-O2"]
)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dwarf")
    (folder / "a.c").write_text(SOURCE)
    (folder / "b.c").write_text("struct task_struct; struct task_struct *far; int number_of_tasks;")
    flags = [*request.param.split(), "-nostdlib", "-static", "-Wl,-e0"]
    command = [compiler(), *flags, str(folder / "b.c"), str(folder / "a.c"), "-o", str(folder / "vmlinux")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "vmlinux"


@pytest.mark.parametrize(
    ("path", "offset", "size"),
    [
        ("task_struct.stack", 0, 8),
        ("task_struct.comm", 8, 16),
        ("task_struct.comm[3]", 11, 1),
        ("task_struct.thread", 24, 32),
        ("task_struct.thread.cpu_context.sp", 40, 8),
        ("thread_t.cpu_context.pc", 24, 8),
        ("task_struct.kuid", 56, 8),
        ("task_struct.gid", 64, 8),
        ("task_struct.zone", 72, 4),
        ("task_struct.grid", 88, 96),
        ("task_struct.grid[2][1]", 88 + 64 + 8, 8),
        ("task_struct.grid[1]", 88 + 32, 32),
        ("task_struct.pointer", 184, 8),
        ("task_struct.either.bytes[2]", 194, 1),
        ("task_struct.flexible", 196, 0),
        ("later.number", 8, 4),
        ("loop.next", 0, 8),
        ("rq.idle", 8, 8),
        ("abc.b", 8, 8),
    ],
)
def test_members(file: Path, path: str, offset: int, size: int) -> None:
    types = DwarfTypes(file)
    assert types.field(path) == (offset, size)
    assert types.has(path)


def test_the_rest(file: Path) -> None:
    types = DwarfTypes(file)
    assert types.bit_field("task_struct.width") == (8 * 80 + 3, 7)
    assert types.size("task_struct") == 200
    assert types.size("thread_t") == 32
    for path in (
        "nothing",
        "task_struct.nothing",
        "task_struct.grid[3]",
        "task_struct.stack[0]",
        "stack",
        "",
        "later.task.x",
    ):
        assert not types.has(path)
    with pytest.raises(KernelFileError):
        types.offset("task_struct.width")


def test_files_without_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no ELF")
    for path in (tmp_path / "x", tmp_path / "nothing"):
        with pytest.raises(KernelFileError):
            DwarfTypes(path).offset("task_struct.stack")


def test_damaged_sections(file: Path, tmp_path: Path) -> None:
    """Whatever is overwritten is refused or survived, never a crash."""
    from elftools.elf.elffile import ELFFile

    with file.open("rb") as opened:
        elf = ELFFile(opened)
        places = [
            (s["sh_offset"], s["sh_size"])
            for s in elf.iter_sections()
            if s.name in (".debug_info", ".debug_abbrev")
        ]
    data = file.read_bytes()
    for i in range(60):
        start, size = places[i % 2]
        broken = bytearray(data)
        broken[start + i * 37 % size] ^= 1 << i % 8
        (tmp_path / "broken").write_bytes(broken)
        types = DwarfTypes(tmp_path / "broken")
        for path in ("task_struct.thread.cpu_context.sp", "task_struct.grid[2][1]", "later.number"):
            types.has(path)


def test_answers_are_kept(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTINSPECT_CACHE", str(tmp_path))
    first = DwarfTypes(file, "key")
    assert first.field("task_struct.comm") == (8, 16)
    assert first.size("loop") == 8
    with pytest.raises(KernelFileError):
        first.offset("task_struct.nothing")
    gone = DwarfTypes(tmp_path / "no such file", "key")
    assert (gone.offset("task_struct.comm"), gone.size("loop")) == (8, 8)
    for path in ("task_struct.stack", "task_struct.nothing"):
        with pytest.raises(KernelFileError):
            gone.offset(path)
    (kept,) = (tmp_path / "types").iterdir()
    stored = json.loads(kept.read_text())
    for damage in (
        b"",
        b"[]",
        b'{"version": 1, "answers": 5}',
        json.dumps(stored | {"version": 99}).encode(),
    ):
        kept.write_bytes(damage)
        with pytest.raises(KernelFileError):
            DwarfTypes(tmp_path / "no such file", "key").offset("task_struct.comm")
    kept.write_text(json.dumps({"version": dwarf.VERSION, "answers": {"field task_struct.comm": [1]}}))
    assert DwarfTypes(file, "key").offset("task_struct.comm") == 8, (
        "an answer of the wrong length is asked anew"
    )
