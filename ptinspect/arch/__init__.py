"""Arm architecture facts as pure functions: numbers in, frozen values out."""
