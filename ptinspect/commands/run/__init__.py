"""Commands that make the guest run and stop."""
