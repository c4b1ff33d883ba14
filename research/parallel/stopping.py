"""Stopping several processes at one and the same step, whichever of them was asked to."""

import itertools
import os
import signal
import threading
from types import FrameType
from typing import Any

from research.parallel import processes

AGREEMENT_SECONDS = 60
"""How long the processes may take to agree on the step at which they stop."""


class StopRequest:
    """A request to save and stop (SIGTERM or SIGINT at any process), met by all at the same step.

        with StopRequest() as stop:
            for step in range(start, steps):
                state = train_step(state, step)
                if stop.reached(step):
                    save(state, step)
                    break

    The first signal asks for a stop, at the end of the current step where possible; SIGINT after
    that raises KeyboardInterrupt at once. Every process enters and leaves together and calls
    `reached` with the same rising steps. With one process this is a flag. With several:

    1. In each process a thread waits in one call to the coordination service for the key `reason`
       to be written, which costs a step nothing: `reached` takes a lock and compares two numbers.
    2. A process with a signal writes `reason` in its next call of `reached`.
    3. All threads wake, *hold the lock*, and publish the last step for which their process was
       told to go on. Process 0 publishes the largest of these + 1 as the step to stop at. They
       release the lock.

    So no process can pass the step while it is being agreed on, and none has passed it before.
    Only threads wait for each other in 3, never the loops: hosts that dispatched a few steps more
    than others can be blocked on these for as long as they like.

    A process that leaves without a stop writes `over` to `reason`: from then on the run ends of
    itself, and later signals change nothing.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        """The request's reason, such as "SIGTERM", on every process as soon as it knows."""
        self._asked: str | None = None  # here, not at another process
        self._announced = False
        self._agreement: _Agreement | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        if processes.count() > 1:
            self._agreement = _Agreement(self)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._agreement is not None:
            self._agreement.close()

    def ask(self, reason: str) -> None:
        """Asks for a stop without a signal, for instance because the time is up. Does not wait."""
        if self._asked is None:
            self._asked = reason
            self.announce(reason)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; true at the same step on every process.

        Raises:
            RuntimeError: a process did not take part in the agreement in time.
        """
        if self._agreement is None:
            return self._asked is not None
        return self._agreement.reached(step, self._asked)

    def announce(self, reason: str) -> None:
        """Notes the reason, and lets process 0 print one line about it."""
        self.signal_name = reason
        if not self._announced and processes.is_first():
            self._announced = True
            # Not print(): the signal may have come in the middle of one.
            os.write(2, f"{reason}: stopping after this step\n".encode())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.ask(signal.Signals(number).name)


class _Agreement:
    """The protocol of `StopRequest` between several processes."""

    _numbers = itertools.count()  # all processes enter equally often

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.client = processes.rendezvous().client
        self.prefix = f"research/stop/{next(self._numbers)}"
        self.published = False
        self.lock = threading.Lock()
        self.passed = -1  # last step for which this process was told to go on
        self.stop_at: int | None = None
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._wait, name="stop request", daemon=True)
        self.thread.start()

    def reached(self, step: int, asked: str | None) -> bool:
        if asked is not None and not self.published:
            self._publish(asked)
            self.thread.join(AGREEMENT_SECONDS)  # else this very step would be one too early
        with self.lock:
            if self.failure is not None:
                raise RuntimeError(
                    f"the processes could not agree on a step to stop at: {self.failure}"
                ) from self.failure
            if self.stop_at is not None and step >= self.stop_at:
                return True
            self.passed = step
            return False

    def close(self) -> None:
        if self.thread.is_alive():
            self._publish("over")
            self.thread.join(AGREEMENT_SECONDS)

    def _publish(self, reason: str) -> None:
        self.published = True
        try:
            self.client.key_value_set(f"{self.prefix}/reason", reason)
        except RuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):  # another process was first: as good
                self.failure = error

    def _get(self, key: str, seconds: float = AGREEMENT_SECONDS) -> str:
        return self.client.blocking_key_value_get(f"{self.prefix}/{key}", round(seconds * 1000))

    def _wait(self) -> None:
        try:
            reason = self._get("reason", seconds=10 * 365 * 86400)
            if reason == "over":
                return
            self.request.announce(reason)
            with self.lock:
                self.client.key_value_set(
                    f"{self.prefix}/passed/{processes.index()}", str(self.passed)
                )
                if processes.is_first():
                    furthest = max(
                        int(self._get(f"passed/{other}")) for other in range(processes.count())
                    )
                    self.client.key_value_set(f"{self.prefix}/stop_at", str(furthest + 1))
                self.stop_at = int(self._get("stop_at"))
        except Exception as error:
            self.failure = error
