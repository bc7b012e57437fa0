"""Exports a student alone, in formats of other libraries, with its size and speed."""
