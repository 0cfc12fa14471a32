"""Tables of kernel symbols: by name, by address, and which of several with one name is meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ptinspect.errors import KernelFileError

_ENTRY_LABELS = (
    "el1_sync", "el1_irq", "el1_fiq", "el1_error", "el0_sync", "el0_irq", "el0_fiq", "el0_error",
    "el1_sync_invalid", "el1_irq_invalid", "el1_error_invalid",
)  # fmt: skip
ANCHORS: Mapping[str, str] = dict.fromkeys(_ENTRY_LABELS, "vectors")
"""Local labels that several assembly files have, and the symbol next to which the kernel's own lies.

Source: arch/arm64/kernel/entry.S defines them shortly after `vectors`; those of the same name in
arch/arm64/kvm/hyp/ and arch/arm64/kernel/hyp-stub.S are vectors of EL2.
"""
NEAR = 0x8000
"""Bytes within which .entry.text holds its labels; one further away is not the kernel's own."""
_SUFFIX = re.compile(r"\.(?:cfi|isra\.\d+|constprop\.\d+|part\.\d+|llvm\.\d+)(?:\.(?:isra|constprop)\.\d+)*$")
"""What compilers append to the name of a function that they changed (GCC -fipa-sra, LLVM LTO and CFI)."""


LAST_INIT = 0x100
"""Bytes that the last function for initialization is taken to have where kallsyms alone names functions.

The EFI stub follows it (drivers/firmware/efi/libstub/lib.a), whose names kallsyms leaves out: __efistub_…
(scripts/kallsyms.c)."""
LONGEST_FUNCTION = 0x1_0000
"""Bytes: what lies this far past the beginning of a function does not belong to it."""
ENDS = frozenset(
    (
        "_etext", "_einittext", "_edata", "_end", "__init_end", "__end_rodata", "__bss_stop",
        "__inittext_end", "__initdata_end", "__entry_text_end", "__irqentry_text_end",
        "__softirqentry_text_end", "__hyp_text_end", "__hyp_idmap_text_end", "__idmap_text_end",
        "__entry_tramp_text_end", "__kprobes_text_end", "__sched_text_end", "__cpuidle_text_end",
        "__lock_text_end", "__exittext_end", "__noinstr_text_end", "__mmuoff_data_end", "__per_cpu_end",
        "relr_end", "__rela_end", "__alt_instructions_end", "__stop_notes",
        "idmap_pg_end", "init_pg_end", "init_idmap_pg_end", "swapper_pg_end",
    )
)  # fmt: skip
"""Symbols that end a part of the image: no address after them belongs to them. With a prefix (COPIES) too.

Source: arch/arm64/kernel/vmlinux.lds.S, include/asm-generic/vmlinux.lds.h."""


COPIES = re.compile(r"^(?:__pi_|__kvm_nvhe_)+")
"""Prefixes of what is linked a second time: for code that runs before relocation, and for EL2."""


class SymbolTable:
    """Hold symbols in the order of their source, which prefers the earlier of two at one address."""

    def __init__(self, names: Sequence[str], addresses: NDArray[np.uint64], kinds: str) -> None:
        """Take names, addresses and one letter each as nm prints them (upper case: global)."""
        self.names = names
        self.addresses = addresses
        self.kinds = kinds

    def __len__(self) -> int:
        """Return the number of symbols."""
        return len(self.names)

    def placed(self) -> SymbolTable:
        """Return the table, as offsets from _text if its addresses are none of the kernel's half.

        This happens where kallsyms has no base (7.2 and 7.3): its reader then takes some other number.
        """
        first = self.by_name.get("_text", [1 << 63])[0]
        if first >> 63:
            return self
        return SymbolTable(self.names, self.addresses - np.uint64(first), self.kinds)

    @cached_property
    def by_name(self) -> dict[str, list[int]]:
        """Name -> the addresses that it stands for, in the order of the table, each once."""
        found: dict[str, list[int]] = {}
        for name, address in zip(self.names, self.addresses.tolist(), strict=True):
            known = found.setdefault(name, [])
            if address not in known:
                known.append(address)
        return found

    @cached_property
    def _globals(self) -> dict[str, int]:
        rows = zip(self.names, self.addresses.tolist(), self.kinds, strict=True)
        return {name: address for name, address, kind in rows if kind.isupper()}

    @cached_property
    def kind_of(self) -> dict[str, str]:
        """Name -> its letter, that of the last symbol of this name."""
        return dict(zip(self.names, self.kinds, strict=True))

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        rows = np.flatnonzero(np.frombuffer(self.kinds.lower().encode(), np.uint8) != ord("a"))
        order = rows[np.argsort(self.addresses[rows], kind="stable")]
        return self.addresses[order], order

    @cached_property
    def _last_init(self) -> int:
        """The row of the last function for initialization, if the EFI stub may follow it unnamed; else -1."""
        end = self.by_name.get("_einittext")
        if not end or any(name.startswith("__efistub_") for name in self.names):
            return -1
        return int(np.searchsorted(self._sorted[0], np.uint64(end[0]), side="left")) - 1

    def nearest(self, address: int) -> tuple[str, int] | None:
        """Return the symbol that an address belongs to, as far as is known, and the offset in it.

        It is the last one at or below the address. None below the first one, after one that ends a part
        of the image, and further past the beginning of a function than any is long: where a kernel file
        names no data, data would have the name of some function far away.
        """
        addresses, order = self._sorted
        slot = int(np.searchsorted(addresses, np.uint64(address), side="right")) - 1
        if slot < 0:
            return None
        at = addresses[slot]
        first = int(np.searchsorted(addresses, at, side="left"))
        group = [int(i) for i in order[first : slot + 1]]
        best = min(group, key=lambda i: (_ends(self.names[i]), not self.kinds[i].isupper(), i))
        offset = address - int(at)
        ended = offset > 0 and _ends(self.names[best])
        at_stub = slot == self._last_init and self.names[best] != "_sinittext"
        ended = ended or (at_stub and offset >= LAST_INIT)
        if ended or (offset >= LONGEST_FUNCTION and self.kinds[best] in "tTwW"):
            return None
        return self.names[best], offset

    def end(self, address: int) -> int | None:
        """Return where what an address belongs to ends, as the next symbol tells; None if there is none."""
        addresses, _ = self._sorted
        slot = int(np.searchsorted(addresses, np.uint64(address), side="right"))
        return int(addresses[slot]) if slot < len(addresses) else None

    def lookup(self, name: str) -> int:
        """Return the address of `name`; of several with that name the one that is meant.

        The labels of the exception entry are taken next to `vectors` (ANCHORS); of other namesakes a
        global one is taken before local ones. Where the compiler changed a function and appended to
        its name, the plain name finds it. Raises KernelFileError if there is none, or no rule decides.
        """
        found = self.by_name.get(name) or self._suffixed(name)
        if not found:
            raise KernelFileError(f"the kernel file has no symbol {name!r}")
        if len(found) == 1:
            return found[0]
        anchor = self.by_name.get(ANCHORS.get(name, ""))
        if anchor:
            nearest = min(found, key=lambda address: abs(address - anchor[0]))
            if abs(nearest - anchor[0]) <= NEAR:
                return nearest
        if name in self._globals:
            return self._globals[name]
        places = ", ".join(f"{address:#x}" for address in found)
        raise KernelFileError(f"{len(found)} symbols are named {name!r}: {places}", "give the address")

    def _suffixed(self, name: str) -> list[int]:
        return [
            address
            for other, addresses in self.by_name.items()
            if other.startswith(name) and _SUFFIX.fullmatch(other, len(name))
            for address in addresses
        ]


def _ends(name: str) -> bool:
    """Tell whether a symbol ends a part of the image."""
    return COPIES.sub("", name) in ENDS


NO_SYMBOLS = SymbolTable((), np.zeros(0, np.uint64), "")
"""A table with nothing in it."""
