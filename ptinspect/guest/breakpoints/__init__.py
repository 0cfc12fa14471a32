"""Breakpoints that wait until it is known where the kernel runs."""
