"""Which symbol is meant: by name, by address, of several with one name."""

from __future__ import annotations

import pytest
from kernels import table

from ptinspect.errors import KernelFileError
from ptinspect.linux.image.symbols import NO_SYMBOLS

BASE = 0xFFFF_8000_1001_0000


def test_what_ends_a_part_of_the_image_and_functions_far_away_name_nothing() -> None:
    """As in Debian's 5.10, whose kallsyms names no data: its data was `_einittext+0x37bf68`."""
    rows = [
        ("_stext", BASE, "T"), ("last", BASE + 0x100, "t"), ("_etext", BASE + 0x1000, "T"),
        ("begin", BASE + 0x1000, "D"), ("table", BASE + 0x2000, "d"),
        ("_sinittext", BASE + 0x10_0000, "T"), ("_einittext", BASE + 0x11_0000, "T"),
    ]  # fmt: skip
    found = table(rows).nearest
    assert found(BASE + 0x110) == ("last", 0x10)
    assert found(BASE + 0x1008) == ("begin", 8), "what begins where another ends"
    assert found(BASE + 0x8_0000) == ("table", 0x7_E000), "data may be large"
    assert found(BASE + 0x10_FFFF) == ("_sinittext", 0xFFFF)
    assert found(BASE + 0x11_0000) == ("_einittext", 0)
    assert found(BASE + 0x11_0001) is None and found(BASE + 0x11_0000 + 0x37_BF68) is None
    ends = ("__kvm_nvhe___hyp_text_end", BASE, "T"), ("__pi_relr_end", BASE + 0x1000, "R")
    copies = table([*ends]).nearest
    assert copies(BASE) is not None and copies(BASE + 4) is None and copies(BASE + 0x1004) is None
    far = table([("f", BASE, "t"), ("g", BASE + 0x40_0000, "T")]).nearest
    assert far(BASE + 0xFFFF) == ("f", 0xFFFF) and far(BASE + 0x1_0000) is None


def test_nearest() -> None:
    symbols = table([("b", BASE + 0x20, "t"), ("a", BASE, "T"), ("abs", 5, "A"), ("c", BASE + 0x100, "d")])
    assert symbols.nearest(BASE) == ("a", 0)
    assert symbols.nearest(BASE + 0x1F) == ("a", 0x1F)
    assert symbols.nearest(BASE + 0x20) == ("b", 0)
    assert symbols.nearest(BASE + 0x5000) == ("c", 0x4F00)
    assert symbols.nearest(BASE - 1) is None
    assert NO_SYMBOLS.nearest(BASE) is None


def test_of_several_at_one_address_a_global_one_is_named_then_the_first() -> None:
    symbols = table([("local", BASE, "t"), ("global", BASE, "T"), ("other", BASE, "T")])
    assert symbols.nearest(BASE + 4) == ("global", 4)
    assert table([("x", BASE, "t"), ("y", BASE, "t")]).nearest(BASE) == ("x", 0)


def test_names_that_stand_for_one_address_twice() -> None:
    symbols = table([("x", BASE, "t"), ("x", BASE, "T"), ("x", BASE + 8, "t")])
    assert symbols.by_name["x"] == [BASE, BASE + 8]


def test_entry_labels_are_taken_next_to_the_vectors() -> None:
    """5.10 has four el1_sync; on kernels where all are KVM's none is the one that is meant."""
    kvm = [("el1_sync", BASE + 0x7_0000, "t"), ("el1_sync", BASE + 0xA7_0000, "t")]
    own = [("el1_sync", BASE + 0x1AC0, "t")]
    vectors = [("vectors", BASE + 0x800, "T")]
    assert table([*kvm, *vectors, *own]).lookup("el1_sync") == BASE + 0x1AC0
    with pytest.raises(KernelFileError, match="2 symbols"):
        table([*kvm, *vectors]).lookup("el1_sync")


def test_of_namesakes_the_global_one_is_meant() -> None:
    symbols = table([("x", BASE, "t"), ("x", BASE + 8, "T"), ("y", BASE, "t"), ("y", BASE + 8, "t")])
    assert symbols.lookup("x") == BASE + 8
    with pytest.raises(
        KernelFileError, match=r"2 symbols are named 'y': 0xffff800010010000, 0xffff800010010008"
    ):
        symbols.lookup("y")


@pytest.mark.parametrize("suffix", [".isra.0", ".constprop.12", ".cfi", ".llvm.123456", ".part.0.isra.0"])
def test_what_the_compiler_appends(suffix: str) -> None:
    assert table([("kpti_install" + suffix, BASE, "t")]).lookup("kpti_install") == BASE


@pytest.mark.parametrize("suffix", [".cold", ".cfi_jt", "_more", ".isra"])
def test_other_suffixes_are_other_symbols(suffix: str) -> None:
    with pytest.raises(KernelFileError, match="no symbol 'kpti_install'"):
        table([("kpti_install" + suffix, BASE, "t")]).lookup("kpti_install")


def test_what_follows_the_last_function_for_initialization_may_be_the_efi_stub() -> None:
    """Whose names kallsyms leaves out; a vmlinux has them."""
    rows = [("_sinittext", BASE, "T"), ("last_init", BASE + 0x100, "t"), ("_einittext", BASE + 0x8000, "T")]
    assert table(rows).nearest(BASE + 0x1FC) == ("last_init", 0xFC)
    assert table(rows).nearest(BASE + 0x4000) is None
    named = table([*rows, ("__efistub_efi_entry", BASE + 0x200, "t")])
    assert named.nearest(BASE + 0x4000) == ("__efistub_efi_entry", 0x3E00)
