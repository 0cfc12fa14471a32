"""How deep kernel stacks are, what is on them, and what happened to one that was lost."""
