"""The kernel in memory: where it lies, its roots, tasks, stacks and address spaces.

`guest_view` is what all else reads through; its `locator` finds the image (`placement`) and the kernel's own
root (`swapper`). `other_roots` and `ttbr` know all other roots.
"""
