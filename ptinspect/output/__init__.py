"""Reports and their forms: text, JSON, CSV, Markdown."""
