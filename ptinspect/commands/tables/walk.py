"""`walk`: follow one address through the tables."""

from __future__ import annotations

import argparse

from ptinspect.arch.bits import VirtAddr
from ptinspect.commands.framework import argtypes
from ptinspect.commands.framework.context import Context
from ptinspect.commands.framework.names import names
from ptinspect.commands.framework.regions import name_of
from ptinspect.commands.framework.registry import Needs, Registry
from ptinspect.commands.framework.sources import add_root_options, source
from ptinspect.errors import UserError
from ptinspect.output.model import Report


def register(registry: Registry[Context]) -> None:
    """Add `walk`."""
    registry.command(
        "walk",
        summary="Show each level of the translation of an address",
        example="walk $pc",
        configure=_configure,
        details=(
            "Works with the MMU off and at any exception level. The root is printed with the reason for "
            "it; --root chooses another. --snap walks a snapshot, with no guest."
        ),
    )(walk)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("va", type=argtypes.address, metavar="VA", help=argtypes.ADDRESS_HELP)
    add_root_options(parser)


def walk(ctx: Context, args: argparse.Namespace) -> Report:
    """Walk to one virtual address."""
    from ptinspect.output.views.walk import walked
    from ptinspect.tables.walk import walk as walk_tables

    if args.va.physical:
        raise UserError(f"{args.va.text} is a physical address", "find PA lists the addresses that map it")
    if not args.snap:
        ctx.check(Needs.STOPPED, "walk")
    va = args.va.value(names(ctx, args))
    where = source(ctx, args, "walk", va)
    return walked(
        walk_tables(where.memory, VirtAddr(va), where.root.pa, where.regime),
        where.root,
        where.regime,
        where.label,
        (ctx.place(va, snapshot=where.snapshot), name_of(ctx, where, va)),
    )
