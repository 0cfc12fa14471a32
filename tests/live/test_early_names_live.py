"""Names of code and symbols from the first instruction on, on the first CPU and on another."""

from __future__ import annotations

import re

import pytest
from session import KASLR_BOOT, launched

UNTIL = "--timeout 300"


@pytest.mark.parametrize("guest", ["6.12-cloud", "7.3-cloud"])
def test_from_reset_to_the_second_cpu(guest: str) -> None:
    """7.x is linked at 0: until it has mapped itself, its symbols have physical addresses only."""
    with launched(guest, f'--smp 2 --append "{KASLR_BOOT}"') as live:
        session = live.ctx.guest.stopped
        lies = int(live("print pa:start_kernel")["value"], 16)
        assert live("symbol start_kernel")["as_linked"]
        entry = live("disassemble primary_entry -n 4")
        assert entry["physical"] and entry["function"] == "primary_entry"
        first = entry["instructions"][0]
        assert session.gdb_command(f"x/1i {first['address']}").split(":")[1].split() == first["text"].split()
        moves = live(f"until pa:__pi_relocate_kernel {UNTIL}")
        assert moves["place"] == f"{moves['pc']} (__pi_relocate_kernel+0x0)", "the MMU is on"
        names = [re.findall(r"\((\w+)\+", frame["place"] + "(none+0)")[0] for frame in live("bt")["frames"]]
        assert names[:3] == ["__pi_relocate_kernel", "__pi_early_map_kernel", "__primary_switch"]
        assert live("symbol start_kernel")["as_linked"], "nor is it mapped where it will run"
        other = live(f"until pa:secondary_entry {UNTIL}")
        assert other["cpu"] == 1
        assert other["place"] == f"pa:{other['pc']} (secondary_entry+0x0)", "its MMU is off"
        found = live("symbol start_kernel")
        assert "as_linked" not in found
        assert session.gva2gpa(int(found["address"], 16), cpu=0) == lies == int(found["pa"], 16)
