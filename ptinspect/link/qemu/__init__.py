"""QEMU: started here, or found behind a gdbstub."""
