"""Child process: recover the symbols of an arm64 Image (standard input) from its kallsyms, as JSON.

It runs on its own because the finder logs and prints as it likes, may take long or much memory on a
damaged file, and must be stoppable. Run as a file, never imported by ptinspect.
"""

import json
import logging
import os
import sys

logging.disable(logging.CRITICAL)
RESULT = os.dup(1)
os.dup2(2, 1)


def main() -> None:
    """Read the Image, find the table, write names, addresses and nm letters."""
    from vmlinux_to_elf.core.kallsyms import KallsymsFinder

    finder = KallsymsFinder(sys.stdin.buffer.read(), 64)
    names, addresses, kinds = [], [], []
    for symbol in finder.symbols:
        names.append(symbol.name)
        addresses.append(symbol.virtual_address)
        letter = symbol.symbol_type.value
        kinds.append(letter.upper() if symbol.is_global else letter.lower())
    with os.fdopen(RESULT, "w", encoding="utf-8") as out:
        json.dump({"names": names, "addresses": addresses, "kinds": "".join(kinds)}, out)


if __name__ == "__main__":
    main()
