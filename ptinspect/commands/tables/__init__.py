"""Commands on translation tables and their snapshots."""
