"""The kernel stacks of a guest: how deep they are, guarded, followed, and what a CPU on one stands at."""
