"""The verdicts on a death: a small set of codes, each given only with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CODES: Mapping[str, str] = {
    "reverted-entry": "the stack lost its mapping: a table entry on its path went back to an older value",
    "lost-entry": "the stack lost its mapping: an entry on its path is empty or invalid",
    "stack-mapping-lost": "the stack lost its mapping; the log does not hold the walk that would say where",
    "deep-call-chain": "calls filled the stack: the call trace shows a recursion, or enough frames",
    "guard-page-hit": "an access below a stack, or no room above it, and no chain of calls explains it",
    "sp-corrupted": "the stack pointer itself is wrong: misaligned, or in none of the stacks",
    "stack-corruption": "data on the stack is wrong (canary, end marker, a frame of zeros), with no overflow",
    "not-a-stack-problem": "the kernel died of something else",
    "unknown": "the log does not prove any of these",
}
"""Code -> what it says. A code is never renamed."""


@dataclass(frozen=True)
class Verdict:
    """Say what a death was."""

    code: str
    """One of CODES."""
    evidence: tuple[str, ...]
    """What in the log supports it."""
    unknown: tuple[str, ...] = ()
    """What the log cannot tell."""
