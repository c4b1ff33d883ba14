"""What a run says to whoever started it: once, however many processes it has."""

import sys

from research.parallel.processes import is_first


def say(line: str) -> None:
    """One line on standard output, from process 0."""
    if is_first():
        print(line, flush=True)


def warn(line: str) -> None:
    """One line on standard error, from process 0."""
    if is_first():
        print(f"warning: {line}", file=sys.stderr, flush=True)
