"""Devices and processes, and what a program costs on them."""
