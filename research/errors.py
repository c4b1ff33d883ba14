"""Mistakes that a user can mend, told apart from faults of the program."""

import os


class UserError(Exception):
    """What was asked for cannot be done; the message is one sentence that says what to change.

    The `research` command prints it without a traceback and exits with status 2.
    """


class RunError(Exception):
    """A run that was asked for rightly and had to stop; the message says why and how to go on.

    The `research` command prints it without a traceback and exits with status 1.
    """


class Preempted(Exception):
    """A run that was told to stop, and was saved: whoever placed it here may place it again.

    The `research` command exits with status `STATUS` then, where `RESEARCH_REQUEUE` is set.
    """

    STATUS = 75
    """EX_TEMPFAIL of sysexits.h: try again."""

    @staticmethod
    def wanted() -> bool:
        """Whether the environment tells it from a run that is finished."""
        return bool(os.environ.get("RESEARCH_REQUEUE"))


class Diverged(RunError):
    """A run that stopped because its loss, gradient or parameters were no longer finite."""
