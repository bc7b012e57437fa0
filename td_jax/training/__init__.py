"""One run: what is refused before it, what it is made of, its loop, and how a finished one is read."""
