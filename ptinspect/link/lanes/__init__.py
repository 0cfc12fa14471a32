"""Ways to guest-physical memory, and the choice among them."""
