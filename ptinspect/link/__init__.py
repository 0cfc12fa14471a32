"""Adapters to what runs: GDB, QEMU, the ways to memory, and the session that joins them."""
