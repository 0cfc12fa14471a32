"""The kernel's half of the address space: its geometry, and the names of its parts; no guest is needed.

`geometry` is the arithmetic of each release, `choice` finds the one of a snapshot, `sections` the image's
parts; they make a layout of `regions`.
"""
