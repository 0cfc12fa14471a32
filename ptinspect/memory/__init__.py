"""Sources of guest-physical memory."""
