"""`bt`, and the return address that `finish` runs to: frame records read through our own walk."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ptinspect.arch.bits import MASK64, bit
from ptinspect.commands import argtypes
from ptinspect.commands.context import Context
from ptinspect.commands.registry import Needs, Registry
from ptinspect.commands.sources import add_cpu_option, cpu_state, need_registers
from ptinspect.errors import GuestError, UserError
from ptinspect.output.model import Report
from ptinspect.output.views import run as views

if TYPE_CHECKING:
    from ptinspect.arch.sysregs import CpuState

_RET = (0xD65F03C0).to_bytes(4, "little")
_PROLOGUE_BYTES = 64
"""How far into a function its frame record is looked for."""


def register(registry: Registry) -> None:
    """Add `bt`."""
    registry.command(
        "bt",
        summary="Show the chain of callers",
        example="bt -n 10",
        needs=Needs.STOPPED,
        configure=_configure,
        details="Frame records (x29) are read through the kernel's tables, so it works with the MMU off.",
        aliases=("backtrace", "where"),
    )(backtrace)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n",
        dest="limit",
        type=argtypes.whole(1, 10_000),
        default=64,
        metavar="N",
        help="at most N frames (64)",
    )
    add_cpu_option(parser)


def backtrace(ctx: Context, args: argparse.Namespace) -> Report:
    """Show the callers of the current function."""
    state = cpu_state(ctx, args.cpu)
    need_registers(ctx)
    rows, ended = chain(ctx, state, args.limit)
    return views.frames(rows, ctx.place, ended)


def chain(ctx: Context, state: CpuState, limit: int) -> tuple[list[tuple[int, int | None]], str]:
    """Return (pc, frame record) from the innermost frame on, and why the chain ends.

    A frame record is x29 and x30 of the caller, stored as a pair (AAPCS64 6.4.6); the kernel ends
    the chain with a record of zeros or with its last one (arch/arm64/kernel/stacktrace.c).
    """
    rows: list[tuple[int, int | None]] = [(state.pc, None)]
    if not has_record(ctx, state.pc):
        rows.append((strip_pac(state.x[30]), None))
    record = state.x[29]
    while len(rows) < limit:
        if record == 0:
            return rows, "a frame record of zero"
        if record & 0x7:
            return rows, f"x29 = {record:#x} is not aligned"
        try:
            pair = ctx.view().read_virt(record, 16)
        except GuestError as error:
            return rows, error.message
        older, back = int.from_bytes(pair[:8], "little"), int.from_bytes(pair[8:], "little")
        if back == 0:
            return rows, "the return address is zero"
        rows.append((strip_pac(back), record))
        if older <= record and older != 0:
            return rows, f"the next record, {older:#x}, lies below this one: another stack, or damage"
        record = older
    return rows, f"limit of {limit} frames"


def strip_pac(address: int) -> int:
    """Remove a pointer authentication code: bits above 55 take bit 55's value, or with it bits 55:48.

    Source: Arm ARM D8.10 (PAC in bits 63:56 and below bit 55 down to the VA size).
    """
    if bit(address, 55):
        return address | (MASK64 << 48) & MASK64
    return address & ((1 << 48) - 1)


def return_address(ctx: Context, state: CpuState) -> int:
    """Return where the function at the program counter returns to. Raises UserError if nothing tells."""
    if not has_record(ctx, state.pc):
        back = strip_pac(state.x[30])
    else:
        pair = ctx.view().read_virt(state.x[29], 16)
        back = strip_pac(int.from_bytes(pair[8:], "little"))
    if back == 0:
        raise UserError("finish: there is no caller", "bt shows the chain")
    return back


def has_record(ctx: Context, pc: int) -> bool:
    """Tell whether the function at `pc` has stored its frame record already; without symbols, assume so.

    Looks for `mov x29, sp` or `add x29, sp, #…` between the symbol and `pc`; before it, and at a
    `ret`, x30 still holds, or holds again, the return address.
    """
    kernel = ctx.kernel
    near = None
    if kernel is not None:
        near = ctx.nearest(pc)
    if near is None:
        return True
    offset = near[1]
    if offset == 0:
        return False
    try:
        code = ctx.code_at(pc - offset, min(offset, _PROLOGUE_BYTES))
        here = ctx.code_at(pc, 4)
    except GuestError:
        return True
    if here == _RET:  # the record is popped already
        return False
    words = [int.from_bytes(code[i : i + 4], "little") for i in range(0, len(code) & ~3, 4)]
    return any(word & 0xFFC0_03FF == 0x9100_03FD for word in words)
