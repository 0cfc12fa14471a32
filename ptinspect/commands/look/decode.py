"""`decode`: explain one descriptor, with or without a guest."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ptinspect.arch.regime import Regime, regime_from_registers
from ptinspect.arch.sysregs import regime_at_el2
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.command import command
from ptinspect.commands.framework.context import Context
from ptinspect.errors import UserError
from ptinspect.output.model import Report
from ptinspect.output.views.descriptor import decoded

BY_DIRECT_BITS = "permissions by the direct bits; --pir reads them as an index (FEAT_S1PIE)"
_GRANULES = {4096: 12, 16384: 14, 65536: 16}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("value", type=argtypes.number, help="raw descriptor: 0x…, or 16 hex digits")
    parser.add_argument(
        "--level", "-l", type=argtypes.level, required=True, help="-1 to 3, or pgd, p4d, pud, pmd, pte"
    )
    parser.add_argument("--granule", type=argtypes.size, help="4K (default), 16K or 64K")
    parser.add_argument("--va-bits", type=argtypes.whole(16, 55), help="width of virtual addresses: 48")
    parser.add_argument("--pa-bits", type=argtypes.whole(32, 52), help="width of physical addresses: 48")
    parser.add_argument("--ds", action="store_true", help="TCR_EL1.DS is set (LPA2: 52-bit addresses)")
    parser.add_argument("--regime", choices=("el1", "el2"), help="el2: a table of EL2's own regime")
    parser.add_argument("--pir", type=argtypes.number, help="PIR_EL1 or PIR_EL2: permissions are indirect")
    parser.add_argument("--pire0", type=argtypes.number, help="PIRE0_EL1: what EL0 may do then (0)")
    parser.add_argument("--mair", type=argtypes.number, help="MAIR_EL1, which gives memory types their names")


@command(
    "decode",
    group="Tables",
    summary="Explain one descriptor, field by field",
    example="decode 0x00680000411f7f03 --level 3",
    configure=_configure,
    details="Without options the regime is the attached guest's if it is stopped, else 4K granule, 48-bit "
    "addresses. Memory types have names only if MAIR is known. Permissions are those of the "
    "descriptor alone, read as an index (FEAT_S1PIE) where the guest does so, or with --pir, "
    "--pire0.",
)
def decode(ctx: Context, args: argparse.Namespace) -> Report:
    """Explain one descriptor."""
    from ptinspect.arch.descriptor import decode as decode_descriptor

    regime, source = _regime(ctx, args)
    level = argtypes.level_number(args.level, regime.start_level)
    if not regime.start_level <= level:
        raise UserError(
            f"level {level} does not exist: with {regime.va_bits}-bit addresses the root is at level "
            f"{regime.start_level}",
            "--va-bits gives another width",
        )
    return decoded(decode_descriptor(args.value, level, regime), regime, source, mair_known=bool(regime.mair))


def _regime(ctx: Context, args: argparse.Namespace) -> tuple[Regime, str]:
    chosen = args.granule or args.va_bits or args.pa_bits or args.ds
    live = None if chosen else _guest_regime(ctx, args.regime)
    if live is not None:
        regime, source = live, "the guest's registers"
    else:
        granule = args.granule or 4096
        if granule not in _GRANULES:
            raise UserError(f"granule of {granule} bytes", "use 4K, 16K or 64K")
        wide = 52 if args.ds else 48
        regime = Regime(
            _GRANULES[granule],
            args.va_bits or wide,
            args.pa_bits or wide,
            args.regime != "el2",
            ds=args.ds,
            name="EL2" if args.regime == "el2" else "EL1&0",
            doubt=BY_DIRECT_BITS,
        )
        source = "options and defaults"
    if args.pir is not None or args.pire0 is not None:
        regime = replace(regime, pie=True, hpd=True, pir=args.pir or 0, pire0=args.pire0 or 0, doubt="")
    return (regime if args.mair is None else replace(regime, mair=args.mair)), source


def _guest_regime(ctx: Context, rules: str | None) -> Regime | None:
    if ctx.session is None or ctx.session.state.name != "STOPPED":
        return None

    state = ctx.session.cpu_state(ctx.session.current_cpu)
    if rules == "el2":
        name = regime_at_el2(state)
        return regime_from_registers(state, name != "EL2", name)
    return regime_from_registers(state, True, None if rules is None else "EL1&0")
