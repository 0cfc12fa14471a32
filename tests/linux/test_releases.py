"""What a release alone tells, and how it is read: each value as the release's own sources have it."""

from __future__ import annotations

import pytest

from ptinspect.linux.releases import (
    Release,
    exception_frames,
    has_bpf_region,
    has_data_slot,
    has_early_page,
    image_in_upper_half,
    mair_el1,
    parse,
    releases_with_frame,
    text_form,
)

DEBIAN = "Linux version 5.10.0-32-cloud-arm64 (debian-kernel@lists.debian.org) (gcc-10 (Debian 10.2.1-6) "
DEBIAN += "10.2.1 20210110, GNU ld (GNU Binutils for Debian) 2.35.2) #1 SMP Debian 5.10.223-1 (2024-08-10)"
UBUNTU = "Linux version 5.15.0-91-generic (buildd@bos) (gcc (Ubuntu 11.4.0-1ubuntu1) 11.4.0, GNU ld 2.38) "
UBUNTU += "#101-Ubuntu SMP Tue Nov 14 13:29:11 UTC 2023 (Ubuntu 5.15.0-91.101-generic 5.15.131)"


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("4.17.0", (4, 17, 0)),
        ("4.17", (4, 17, 0)),
        ("v6.9", (6, 9, 0)),
        ("7.3.1-arm64", (7, 3, 1)),
        ("5.9.0-rc3+", (5, 9, 0)),
        ("6.12.117+deb13-cloud-arm64", (6, 12, 117)),
        ("5.10.0-32-cloud-arm64", (5, 10, None)),
        ("5.14.0-362.8.1.el9_3.aarch64", (5, 14, None)),
        (DEBIAN, (5, 10, 223)),
        (UBUNTU, (5, 15, 131)),
        ("Linux version 5.10.223 (root@vm) (gcc (Debian 12.2.0-14) 12.2.0) #1 SMP Mon Nov 23", (5, 10, 223)),
        ("Linux version 6.18.2-200.fc43.aarch64 (mockbuild@x) (gcc 15.2.1) #1 SMP PREEMPT", (6, 18, 2)),
        ("[    0.000000] Linux version 6.1.55 (x)", (6, 1, 55)),
    ],
)
def test_a_release_is_read_from_a_name_or_a_banner(text: str, release: tuple[int, int, int | None]) -> None:
    found = parse(text)
    assert found is not None and (found.major, found.minor, found.patch) == release


@pytest.mark.parametrize("text", ["", "Linux", "generic 5.10", "Linux version", "1234.5", "10"])
def test_what_is_no_release_is_none(text: str) -> None:
    assert parse(text) is None


def test_a_release_is_written_as_uname_begins() -> None:
    assert [str(Release(5, 10, patch)) for patch in (None, 0, 223)] == ["5.10", "5.10", "5.10.223"]


OLDEST, MTE, TODAY = 0xBBFF_440C_0400, 0x000C_0400_BB44_FFFF, 0x0000_0004_0044_FFFF
BY_RELEASE = [
    # release, MAIR_EL1 without MTE, bytes of an exception frame, image in the upper half, form of the text
    ("4.16", OLDEST, 0x140, False, "4.16"),
    ("4.17", OLDEST, 0x140, False, "4.16"),
    ("4.19", OLDEST, 0x140, False, "4.16"),
    ("5.0", OLDEST, 0x140, False, "5.0"),
    ("5.3", OLDEST, 0x140, False, "5.0"),
    ("5.4", OLDEST, 0x140, True, "5.4"),
    ("5.5", OLDEST, 0x140, True, "5.4"),
    ("5.6", OLDEST, 0x140, True, "5.6"),
    ("5.7", OLDEST, 0x140, True, "5.6"),
    ("5.8", OLDEST, 0x140, True, "5.8"),
    ("5.9", OLDEST, 0x140, True, "5.8"),
    ("5.10", MTE, 0x150, True, "5.10"),
    ("5.11", MTE, 0x150, True, "5.11"),
    ("5.12", MTE, 0x150, True, "5.12"),
    ("5.13", MTE, 0x150, True, "5.12"),
    ("5.14", TODAY, 0x150, True, "5.12"),
    ("5.15", TODAY, 0x150, True, "5.12"),
    ("5.16", TODAY, 0x150, True, "5.12"),
    ("5.17", TODAY, 0x150, True, "5.17"),
    ("6.1", TODAY, 0x150, True, "5.17"),
    ("6.4", TODAY, 0x150, True, "6.4"),
    ("6.5", TODAY, 0x150, True, "6.5"),
    ("6.8", TODAY, 0x150, True, "6.5"),
    ("6.9", TODAY, 0x150, True, "6.9"),
    ("6.12", TODAY, 0x150, True, "6.9"),
    ("6.14", TODAY, 0x150, True, "6.13"),
    ("6.15", TODAY, 0x150, True, "6.15"),
    ("6.17", TODAY, 0x150, True, "6.15"),
    ("6.18", TODAY, 0x140, True, "6.15"),
    ("7.0", TODAY, 0x140, True, "6.15"),
    ("7.3", TODAY, 0x140, True, "6.15"),
]


@pytest.mark.parametrize(("name", "mair", "frame", "upper", "form"), BY_RELEASE)
def test_facts_of_each_release(name: str, mair: int, frame: int, upper: bool, form: str) -> None:
    release = parse(name)
    assert release is not None
    assert mair_el1(release) == mair
    assert exception_frames(release) == (frame,)
    assert image_in_upper_half(release) is upper
    found = text_form(release)
    assert found is not None and found.name == form


def test_what_is_older_or_not_known_is_not_guessed() -> None:
    assert mair_el1(None) is None and mair_el1(Release(3, 18, 0)) is None
    assert exception_frames(None) == exception_frames(Release(4, 4, 0)) == (0x130, 0x140, 0x150)
    assert text_form(Release(4, 15, 0)) is None


def test_releases_of_a_frame_have_names() -> None:
    assert releases_with_frame(0x130) == "4.8 to 4.13"
    assert releases_with_frame(0x140) == "4.14 to 5.9, 6.18 and later"
    assert releases_with_frame(0x150) == "5.10 to 6.17"


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("5.10.105", True),
        ("5.10.104", False),
        (DEBIAN, True),
        (DEBIAN.replace("223", "46"), False),
        ("5.10.0-32-arm64", False),
        ("5.17.0", True),
        ("5.18.0-1-arm64", True),
        ("5.19.17", True),
        ("6.0.0", False),
        ("4.16.3", False),
    ],
)
def test_the_fixmaps_slot_for_data_depends_on_the_stable_version(text: str, slot: bool) -> None:
    release = parse(text)
    assert release is not None and has_data_slot(release) is slot


def test_early_mappings_have_a_page_more_from_7_2_and_6_12_111_on() -> None:
    found = {str(Release(*r)): has_early_page(Release(*r)) for r in (
        (6, 1, 200), (6, 11, 9), (6, 12, 110), (6, 12, 111), (6, 18, 40), (7, 1, 3), (7, 2, 0), (7, 3, 1),
    )}  # fmt: skip
    assert list(found.values()) == [False, False, False, True, None, None, True, True]
    assert has_early_page(Release(6, 12, None)) is None


@pytest.mark.parametrize(
    ("text", "bpf"),
    [
        ("4.20.1", False), ("5.0", True), ("5.3.18", True), ("5.10.223", True), ("5.15.16", True),
        ("5.15.17", False), ("5.15.0-91-generic", True), ("5.16.3", False), ("5.17", False), ("6.12", False),
    ],
)  # fmt: skip
def test_bpf_programs_have_a_part_of_their_own_from_5_0_to_5_16(text: str, bpf: bool) -> None:
    release = parse(text)
    assert release is not None and has_bpf_region(release) is bpf
