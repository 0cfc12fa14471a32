"""The kernel's rewrite of its own tables: its code, how far it is, and where the guest stands."""
