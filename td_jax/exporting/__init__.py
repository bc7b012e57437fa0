"""The student alone, as others read it: its formats, its size and its speed."""
