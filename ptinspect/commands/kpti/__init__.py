"""Commands on the rewrite of the kernel's own tables."""
