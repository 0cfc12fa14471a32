"""Commands that open, show and leave a guest."""
