"""Commands that look at memory, code and values."""
