"""The table of guests is whole and says what it means."""

from __future__ import annotations

import re

import pytest

from ptinspect.errors import UserError
from ptinspect.reference import pins

TABLE = pins.load()


def test_the_default_comes_first_and_is_small() -> None:
    assert TABLE.guests[0].name == pins.DEFAULT_GUEST == "5.10-cloud"
    assert not TABLE.guests[0].large


@pytest.mark.parametrize("spec", TABLE.guests, ids=lambda s: s.name)
def test_each_guest_is_whole(spec: pins.GuestSpec) -> None:
    assert spec.suites
    assert re.fullmatch(spec.image.nearest, spec.image.package)
    for pin in (spec.image, *([spec.debug] if spec.debug else [])):
        assert re.fullmatch(r"[0-9a-f]{64}", pin.sha256)
        assert pin.files
    if spec.debug:
        assert spec.debug.package == spec.image.package.removesuffix("-unsigned") + "-dbg"
    assert {b.suite for b in TABLE.busybox} & {suite.removesuffix("-backports") for suite in spec.suites}
    for name in spec.next:
        assert name != spec.name
        assert not TABLE.guest(name).large


@pytest.mark.parametrize(
    ("guest", "package", "matches"),
    [
        ("5.10-cloud", "linux-image-5.10.0-30-cloud-arm64", True),
        ("5.10-cloud", "linux-image-5.10.0-30-arm64-unsigned", False),
        ("5.10-cloud", "linux-image-5.10.0-30-cloud-arm64-dbg", False),
        ("5.10", "linux-image-5.10.0-30-arm64-unsigned", True),
        ("5.10", "linux-image-5.10.0-30-cloud-arm64-unsigned", False),
        ("5.10", "linux-image-5.10.0-30-rt-arm64-unsigned", False),
        ("6.1-cloud", "linux-image-6.1.0-47-cloud-arm64-unsigned", True),
        ("6.1-cloud", "linux-image-6.10.0-47-cloud-arm64-unsigned", False),
        ("6.12-cloud", "linux-image-6.12.107+deb13-cloud-arm64-unsigned", True),
        ("6.12-16k", "linux-image-6.12.107+deb13-arm64-16k-unsigned", True),
        ("6.12-16k", "linux-image-6.12.107+deb13-arm64-unsigned", False),
        ("6.12-16k", "linux-image-6.12.107+deb13-arm64-16k-dbg", False),
        ("6.18-cloud", "linux-image-6.16.12+deb13-cloud-arm64", True),
        ("6.18-cloud", "linux-binary-6.19.14+deb13-cloud-arm64", True),
        ("6.18-cloud", "linux-image-6.19.14+deb13-cloud-arm64", False),
        ("6.18-cloud", "linux-image-6.12.107+deb13-cloud-arm64", False),
        ("7.3-cloud", "linux-binary-7.0.13+deb13-cloud-arm64", True),
        ("7.3-cloud", "linux-binary-unsigned-7.10.2+deb14-cloud-arm64", True),
        ("7.3-cloud", "linux-image-7.3.4+deb13-cloud-arm64", False),
        ("7.3-cloud", "linux-modules-7.3.4+deb13-cloud-arm64", False),
        ("7.3-cloud", "linux-binary-7.3.4+deb13-arm64", False),
    ],
)
def test_only_the_same_flavour_is_near(guest: str, package: str, matches: bool) -> None:
    assert bool(re.fullmatch(TABLE.guest(guest).image.nearest, package)) is matches


def test_an_unknown_guest_is_refused_with_the_list() -> None:
    with pytest.raises(UserError) as caught:
        TABLE.guest("4.9")
    assert "5.10-cloud" in caught.value.hint
