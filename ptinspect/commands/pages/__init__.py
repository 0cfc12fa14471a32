"""Commands that write an HTML page."""
