"""Code of idmap_kpti_install_ng_mappings, as tests/data/kpti/README.md tells."""

from __future__ import annotations

import struct
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "kpti"


def code(name: str) -> bytes:
    """Return the instructions of a kernel as bytes: "6.12", "5.10-toggled"."""
    words = (DATA / f"{name}.hex").read_text().split()
    return b"".join(struct.pack("<I", int(word, 16)) for word in words)
