"""A kernel whose own rewrite of the tables loses the entry that maps the stack it runs on.

It is made of a kernel file by a few instructions, found by what they do (`code.recognise`). The walk is led
away where it has just marked an entry that points to a table of the last level, to code that stands where
the other CPUs would wait for it: a machine with one CPU never gets there. That code compares where the walk
stands with the indices of SP, level by level, and clears the entry if it is the one that maps the stack.
"""

from __future__ import annotations

from ptinspect.arch import a64
from ptinspect.arch.regime import LEVEL_LAST
from ptinspect.dataclass import dataclass
from ptinspect.errors import KernelFileError
from ptinspect.linux.image.container import parse_header
from ptinspect.linux.image.image import KernelImage
from ptinspect.linux.kpti.code import POST_ORDER, KptiCode, LevelCode, recognise

LOST_LEVEL = LEVEL_LAST - 1
"""Level of the tables (pmd) whose entry is cleared."""
SCRATCH, STACK = 16, 17
"""IP0 and IP1: the walk keeps nothing in them while it is between two entries of that level."""


@dataclass(frozen=True)
class Losing:
    """What makes a kernel lose its entry. Offsets are from the entry of the rewrite."""

    code: KptiCode
    words: dict[int, int]
    """The instructions that are others now, by offset."""
    hook: int
    store: int


def losing(image: KernelImage, data: bytes) -> tuple[bytes, Losing]:
    """Return the bytes of an Image, made such that it loses the entry, and what was changed.

    `image` has its symbols; it may be the vmlinux that the Image was made of. Raises KernelFileError where
    the kernel has no rewrite that is known, or it leaves no room.
    """
    code, header = recognise(image), parse_header(data)
    if header is None or not header.page_size:
        raise KernelFileError(f"{image.path.name} does not tell the size of its pages")
    old = image.text_at(code.entry_va, code.size)
    at = data.find(old)
    if at < 0 or data.find(old, at + 1) >= 0:
        raise KernelFileError(f"{image.path.name} has its rewrite elsewhere than the Image that is booted")
    made = losing_code(code, old, header.page_size)
    new = bytearray(data)
    for offset, word in made.words.items():
        new[at + offset : at + offset + 4] = word.to_bytes(4, "little")
    return bytes(new), made


def losing_code(code: KptiCode, raw: bytes, page: int) -> Losing:
    """Return what makes a rewrite, given as its instructions, lose the entry of its own stack."""
    level = next((level for level in code.levels if level.level == LOST_LEVEL), None)
    if level is None or level.store is None or "secondary" not in code.points:
        raise KernelFileError("the rewrite has no store of a pmd entry, or does not part the CPUs")
    words = a64.words(raw)
    hook, kept, back = _way_out(code, level, words)
    cave = code.points["secondary"]
    at, made = cave, {hook: a64.branch_to(hook, cave)}
    body = [a64.add(STACK, a64.SP, 0)]
    compared = [each for each in code.levels if 0 <= each.level <= LOST_LEVEL]
    skips = []
    for each in compared:
        body += _compare(each, words, page)
        skips.append(len(body))
        body.append(0)
    store = cave + 4 * len(body)
    body.append(a64.store_zero(level.cursor, level.displacement))
    for skip in skips:
        body[skip] = a64.branch_ne_to(cave + 4 * skip, store + 4)
    body += kept
    body.append(a64.branch_to(cave + 4 * len(body), back))
    if cave + 4 * len(body) > code.size - 4:
        raise KernelFileError("there is no room for it where the other CPUs wait")
    for word in body:
        made[at] = word
        at += 4
    return Losing(code, made, hook, store)


def _way_out(code: KptiCode, level: LevelCode, words: tuple[int, ...]) -> tuple[int, list[int], int]:
    """Return the instruction to replace, what is to be done in its place, and where to go on."""
    if code.algorithm == POST_ORDER:
        assert level.store is not None
        hook = level.store + 4
        if not a64.is_hint(words[hook // 4]):
            raise KernelFileError("no barrier follows the store of a pmd entry")
        return hook, [words[hook // 4]], hook + 4
    hook = code.levels[-1].closing + 4
    back = a64.branch(words[hook // 4], hook)
    if back is None:
        raise KernelFileError("no branch leads back from the tables of the last level")
    return hook, [], back


def _compare(level: LevelCode, words: tuple[int, ...], page: int) -> list[int]:
    """Return code that compares the place in a table with SP's index: unequal, if that is another entry."""
    bits = page.bit_length() - 1
    shift = bits + (LEVEL_LAST - level.level) * (bits - 3)
    size = next(
        (
            found[2]
            for word in words[: level.load // 4][::-1]
            if (found := a64.add_immediate(word)) is not None and found[:2] == (level.end, level.cursor)
        ),
        0,
    )
    if not size:
        raise KernelFileError("the rewrite does not tell where its tables end")
    cursor = [] if not level.displacement else [a64.subtract(SCRATCH, level.cursor, -level.displacement)]
    place = SCRATCH if cursor else level.cursor
    return [
        *cursor,
        a64.xor_shifted_right(SCRATCH, place, STACK, shift - 3),
        a64.test_bits(SCRATCH, 3, size.bit_length() - 1),
    ]
