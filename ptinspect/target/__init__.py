"""Adapters: GDB, QEMU's gdbstub and QEMU itself."""
