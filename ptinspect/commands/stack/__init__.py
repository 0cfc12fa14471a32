"""Commands on kernel stacks, faults and console logs."""
