"""The one exception that users are meant to read."""


class UniViGUError(ValueError):
    """Something the user can put right. The message says what was found, what was expected, what to do, and which
    file it concerns; the command line prints it alone, without a traceback."""
