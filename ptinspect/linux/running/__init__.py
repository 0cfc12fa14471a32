"""The kernel in memory: where it lies, its roots, tasks, stacks and address spaces."""
