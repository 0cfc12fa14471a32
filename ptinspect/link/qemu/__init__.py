"""QEMU: its process, its monitor and its gdbstub."""
