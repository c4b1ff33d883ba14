"""The signals that ask a host to leave: its supervisor hears them, and nobody else does."""

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """What is started inside never gets SIGNALS; what it is to do about them, it is told.

    Schedulers signal every process of a job (SLURM its steps, a terminal its foreground): the
    coordination service would die of it, and the workers with that, in the middle of their save.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
