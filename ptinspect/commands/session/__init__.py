"""Commands of the session itself: help, options, scripts, campaigns."""
