"""Mistakes that a user can mend, told apart from faults of the program."""


class UserError(Exception):
    """What was asked for cannot be done; the message is one sentence that says what to change.

    The `research` command prints it without a traceback and exits with status 2.
    """


class RunError(Exception):
    """A run that was asked for rightly and had to stop; the message says why and how to go on.

    The `research` command prints it without a traceback and exits with status 1.
    """


class Diverged(RunError):
    """A run that stopped because its loss, gradient or parameters were no longer finite."""
