"""The ledger: what a run has released so far, in its checkpoints, and what is left of its budget.

It lies in the state, beside the parameters that it is about, and a step writes into it as it adds
noise. So it says of a checkpoint what led to it, also where a run was resumed with other noise or
other batches: what was released before stays counted. Steps that a crash threw away are not in it:
a resumed run repeats them bit for bit, and a release that is repeated tells nothing new. Whoever
changes the config, resumes from before a change and *publishes both* has to add the two up.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import UserError
from research.exchange.privacy.accounting import QUICK, Budget, Event, Spent, epsilon_of

KINDS = 16
"""Kinds of events that one ledger has room for."""

NEIGHBORS = "add or remove one"


class Ledger(NamedTuple):
    """Arrays of a state."""

    events: jax.Array  # [KINDS, 3] float32: an `Event` each
    counts: jax.Array  # [KINDS] int32: how often; those in use come first


def empty() -> Ledger:
    """Nothing was released."""
    return Ledger(
        jnp.zeros((KINDS, len(Event._fields)), jnp.float32), jnp.zeros((KINDS,), jnp.int32)
    )


def after(ledger: Ledger, event: Event) -> Ledger:
    """With one more `event`, in the row of its kind, or else in the first that is free."""
    written = jnp.array(event, jnp.float32)
    fits = (ledger.counts == 0) | jnp.all(ledger.events == written, axis=1)
    row = jnp.argmax(fits)
    return Ledger(ledger.events.at[row].set(written), ledger.counts.at[row].add(1))


def spent(ledger: Any) -> Spent:
    """What a ledger holds, on the host."""
    events, counts = map(np.asarray, jax.device_get(ledger))
    return [
        (Event(float(event[0]), float(event[1]), int(event[2])), int(count))
        for event, count in zip(events, counts, strict=True)
        if count
    ]


class Account:
    """A budget, and what a run's ledger says of it."""

    def __init__(self, budget: Budget, event: Event, ledger_of: Callable[[Any], Ledger]):
        """`event` is what each step from now on releases, `ledger_of(state)` where it is put
        down."""
        self.budget, self.event = budget, event
        self._ledger_of = ledger_of

    def observe(self, state: Any) -> dict[str, float]:
        """`epsilon` so far, by PLD, at the budget's `delta`."""
        epsilon = epsilon_of(self._spent(state), self.budget.delta, QUICK)
        return {"epsilon": epsilon, "delta": self.budget.delta}

    def last_step(self, state: Any, step: int, steps: int) -> int:
        """The last step, up to `steps`, that the budget has room for after `step`.

        Raises UserError where it has none for the next one, or the ledger no row.
        """
        before = self._spent(state)
        if other := {event.groups for event, _ in before} - {self.event.groups}:
            raise UserError(
                f"examples of this run were {_in_words(other.pop())} so far, and would be "
                f"{_in_words(self.event.groups)}: some could come twice in fewer steps than the "
                "noise is accounted for; keep --data.batch and --privacy.mechanism as they were"
            )
        if len(before) == KINDS and self.event not in [event for event, _ in before]:
            raise UserError(
                f"the ledger of this run has {KINDS} kinds of steps already, and no room for "
                f"another: use --privacy.noise-multiplier and --data.batch of one of them"
            )

        def fits(end: int) -> bool:
            after = [*before, (self.event, end - step)]
            return epsilon_of(after, self.budget.delta, QUICK) <= self.budget.epsilon

        if fits(steps):
            return steps
        if not fits(step + 1):
            raise UserError(
                f"{self.in_words(state)}: one more step of noise {self.event.noise_multiplier:.3g}"
                f" would cross the budget of ε = {self.budget.epsilon:g}: use more "
                "--privacy.noise-multiplier, or a larger --privacy.epsilon"
            )
        good, bad = step + 1, steps
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if fits(middle) else (good, middle)
        return good

    def in_words(self, state: Any) -> str:
        """ε with all that makes it mean something."""
        rows = self._spent(state)
        steps = sum(count for _, count in rows)
        noises = ", ".join(
            f"{count:,} of noise {event.noise_multiplier:.4g} and "
            + (
                f"{event.groups:,} groups"
                if event.groups
                else f"q = {event.sampling_probability:.4g}"
            )
            for event, count in rows
        )
        sampling = "batches in turn" if self.event.groups else "Poisson sampling"
        return (
            f"ε = {epsilon_of(rows, self.budget.delta):.3f} at δ = {self.budget.delta:g} for one "
            f"{self.budget.unit} ({NEIGHBORS}, {sampling}, PLD accountant) is spent by "
            f"{steps:,} steps" + (f": {noises}" if noises else "")
        )

    def _spent(self, state: Any) -> Spent:
        return spent(self._ledger_of(state))


def _in_words(groups: int) -> str:
    return f"taken in turn, in {groups:,} groups," if groups else "drawn"
