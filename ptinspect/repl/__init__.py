"""The terminal: printing answers, scripts, and the interactive loop."""
