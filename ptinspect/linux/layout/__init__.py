"""The kernel's half of the address space: its geometry, and the names of its parts."""
