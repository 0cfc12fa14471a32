"""GDB over MI: its process, run control, and the Python that runs inside it."""
