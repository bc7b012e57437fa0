"""What a user can mend: reported as one line, without a traceback."""


class UserError(Exception):
    """A mistake in a config, a file or a folder; its message names it and the way out."""
