"""What a command is made of: its declaration, its arguments, and the state that it works on."""
