"""Which plan computes several replicas of one device faster: both are tried, on the run's own step.

Side by side (`vmap`), products are larger and keep an accelerator busier; one after another
(`scan`), replicas need the memory of one, and what they work on may stay in a processor's cache.
Which counts for more depends on model, batch and machine: `--exchange.plan auto` measures. The plan
is then written down with the run, so that all of it, resumed or not, is computed alike.
"""

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.learning.replicated.replicated import Plan
from research.parallel.processes import compile_together, shared
from research.prepared import Prepared

PLANS: tuple[Plan, ...] = ("scan", "vmap")
ROUNDS = 5
"""Steps of each plan that are timed, in turns, after one that is not."""

Step = Callable[[Any, Any], tuple[Any, Any]]


def settled(
    prepared: Prepared, say: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
) -> Prepared:
    """`prepared` by the faster plan, where its plan is `auto` and a device has several replicas;
    else as it is.

    `say` is told the median times; `clock` tells seconds. Of several processes, all take the choice
    of process 0. What was learned meanwhile is thrown away.
    """
    seats = prepared.seats
    if prepared.experiment.exchange.plan != "auto" or seats == 1:
        return prepared
    tried = {plan: prepared.with_plan(plan) for plan in PLANS}
    try:
        with jax.set_mesh(prepared.mesh):
            times = timed({plan: each.compile() for plan, each in tried.items()}, prepared, clock)
        medians = {plan: statistics.median(seconds) for plan, seconds in times.items()}
        best = min(PLANS, key=lambda plan: medians[plan])
        told = ", ".join(f"{1e3 * medians[plan]:.1f} ms by {plan}" for plan in PLANS)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        best, told = "scan", "vmap needs more memory than there is"
    plan = shared("exchange plan", best)
    say(f"a step of {seats} replicas a device: {told}; --exchange.plan {plan} is taken")
    return next(tried[each] for each in PLANS if each == plan)


def timed(
    steps: dict[Plan, Step], prepared: Prepared, clock: Callable[[], float]
) -> dict[Plan, list[float]]:
    """Seconds of every timed step, by plan; all on the batch of the first step."""
    state: Any = compile_together(prepared.learner.init.lower())()
    first = jnp.copy(state.step)
    times: dict[Plan, list[float]] = {plan: [] for plan in steps}
    with contextlib.closing(prepared.feed(0)) as feed:  # type: ignore[type-var]
        batch = next(feed)
        for number in range(1 + ROUNDS):
            for plan, step in steps.items():
                # As if it were the first: else parameters might meet in steps of one plan only.
                state = jax.block_until_ready(state._replace(step=jnp.copy(first)))
                began = clock()
                state, _ = jax.block_until_ready(step(state, batch))
                seconds = clock() - began
                if number > 0:
                    times[plan].append(seconds)
    return times
