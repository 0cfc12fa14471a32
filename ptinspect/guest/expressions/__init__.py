"""What C's users type: expressions with the kernel's types, evaluated here or put into GDB's words."""
