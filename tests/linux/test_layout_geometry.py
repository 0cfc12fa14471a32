"""Where everything lies, against the macros of the kernels' own headers, compiled for each size of pages."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
from builders import REGIMES

from ptinspect.arch.regime import Regime
from ptinspect.linux.layout.geometry import (
    GENERIC,
    SW_TAGS,
    VARIANTS,
    Geometry,
    by_name,
    geometries,
    geometry,
    variant_of,
)
from ptinspect.linux.releases import parse

LINES = (Path(__file__).parents[1] / "data" / "geometry.txt").read_text().splitlines()
COLUMNS, *ROWS = [line.split() for line in LINES if not line.startswith("#")]
SCALES = {"-": 0, "hw": 0, "generic": GENERIC, "sw": SW_TAGS}


def regime_of(page: int, bits: int) -> Regime:
    return Regime(page, bits, 52 if bits > 48 else 48, True, ds=bits > 48 and page != 16)


def values(made: Geometry) -> dict[str, int]:
    """Return what the columns of the file say, of one geometry."""
    flipped, bpf, shadow = made.variant.flipped, made.variant.bpf, made.shadow
    return {
        "MODULES_VADDR": made.modules.start,
        "MODULES_END": made.modules.end,
        "VMALLOC_START": made.vmalloc.start,
        "VMALLOC_END": made.vmalloc.end,
        "FIXADDR_TOP": made.fixmap.end,
        "PCI_IO_START": made.pci.start,
        "VMEMMAP_START": made.vmemmap.start,
        "VMEMMAP_END": made.vmemmap.end,
        "LINEAR": made.linear.end if flipped else made.linear.start,
        **({"BPF": made.bpf.start} if bpf else {}),
        **({"SHADOW_START": shadow.start, "SHADOW_END": shadow.end} if made.scale else {}),
    }


@pytest.mark.parametrize("name", [name for name, _ in groupby(row[0] for row in ROWS)])
def test_everything_lies_where_the_kernels_headers_put_it(name: str) -> None:
    release = parse(name)
    assert release is not None
    for row in (row for row in ROWS if row[0] == name):
        built, page, actual = (int(field) for field in row[1:4])
        said = {key: int(value, 16) for key, value in zip(COLUMNS[5:], row[5:], strict=True) if value != "-"}
        wider = built if release.series < (6, 9) else None
        made = geometry(variant_of(release), regime_of(page, actual), kernel_bits=wider, scale=SCALES[row[4]])
        assert values(made) == said, row[:5]
        assert made.pci.end - made.pci.start == 16 << 20


def test_a_large_fixmap_is_inside_its_region() -> None:
    """Of v6.18 with CONFIG_KVM, 64K pages and 512 CPUs: 513 slots for these alone."""
    made = geometry(VARIANTS[-1], regime_of(16, 52))
    slots = 513 + (2 << 20 >> 16) + 2 + 7 * 5 + 5 + 12
    assert made.fixmap.start <= made.fixmap.end - slots * 0x1_0000 and made.fixmap.start > made.pci.end


def test_each_variant_is_in_the_headers() -> None:
    found = {variant_of(release) for row in ROWS if (release := parse(row[0])) is not None}
    assert found == set(VARIANTS)


@pytest.mark.parametrize("name", REGIMES)
def test_a_geometry_is_found_again_by_its_name(name: str) -> None:
    regime = REGIMES[name]
    made = [one for variant in VARIANTS for one in geometries(variant, regime)]
    assert len({one.name for one in made}) == len(made)
    for one in made:
        assert by_name(one.name, regime) == one
    assert by_name("v6.9 and later, tomorrow", regime) is None and by_name("", regime) is None


def test_names_of_older_snapshots_and_of_odd_kernels() -> None:
    old = by_name("v4.16 to v5.3", REGIMES["4k-48"])
    assert old is not None and old.variant.name == "v4.16 to v4.20"
    names = [made.name for made in geometries(VARIANTS[4], regime_of(16, 48))]
    assert names[:3] == ["v5.17 to v6.4", "v5.17 to v6.4, 52-bit kernel", "v5.17 to v6.4, KASAN"]
    assert names[-1] == "v5.17 to v6.4, 52-bit kernel, KASAN tags"


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("4.14", "v4.16 to v4.20"), ("4.19.300", "v4.16 to v4.20"), ("5.2", "v5.0 to v5.3"),
        ("5.10.223", "v5.4 to v5.10"), ("5.15.16", "v5.11 to v5.16"), ("5.15.17", "v5.17 to v6.4"),
        ("5.15.0-91-generic", "v5.11 to v5.16"), ("5.16.2", "v5.11 to v5.16"), ("5.16.3", "v5.17 to v6.4"),
        ("6.4", "v5.17 to v6.4"), ("6.5", "v6.5 to v6.8"), ("7.3", "v6.9 and later"),
    ],
)  # fmt: skip
def test_the_arithmetic_of_a_release(text: str, variant: str) -> None:
    release = parse(text)
    assert release is not None and variant_of(release).name == variant
