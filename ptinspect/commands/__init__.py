"""The commands, one file per noun, registered in one registry."""
