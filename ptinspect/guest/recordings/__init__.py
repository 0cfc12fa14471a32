"""A recorded boot: moving in it, and who wrote a descriptor."""
