"""The one error that ends a script with a single line instead of a traceback."""


class RunError(Exception):
    """A run cannot start, continue or be written. The message is one line for the user."""
