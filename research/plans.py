"""Which plan computes replicas of one device faster, or clients: all are tried, on the run's step.

Side by side (`vmap`), products are larger and keep an accelerator busier; one after another
(`scan`), replicas need the memory of one, and what they work on may stay in a processor's cache;
clients may also come in groups (`chunk`). Which counts for more depends on model, batch and
machine: `--exchange.plan auto` and `--federated.plan auto` measure. The plan is then written down
with the run, so that all of it, resumed or not, is computed alike.
"""

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from research.experiment import Experiment
from research.parallel.compilation import compile_together
from research.parallel.processes import shared
from research.prepared import Prepared

ROUNDS = 5
"""Steps of each plan that are timed, in turns, after one that is not,"""
PATIENCE = 60.0
"""or as many as take about so many seconds, but one."""

Step = Callable[[Any, Any], tuple[Any, Any]]


def settled(
    prepared: Prepared, say: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
) -> Prepared:
    """`prepared` by the fastest plan, where its plan is `auto` and a device has several replicas
    or clients; else as it is.

    `say` is told the median times; `clock` tells seconds. Of several processes, all take the choice
    of process 0. What was learned meanwhile is thrown away.
    """
    plans = plans_of(prepared)
    if not plans:
        return prepared
    tried = {plan: prepared.with_experiment(each) for plan, each in plans.items()}
    lines: list[str] = []
    while len(tried) > 1:
        try:
            with jax.set_mesh(prepared.mesh):
                steps = {plan: each.compile() for plan, each in tried.items()}
                times = timed(steps, prepared, clock)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            widest, _ = tried.popitem()
            lines.append(f"{widest} needs more memory than there is")
            continue
        medians = {plan: statistics.median(seconds) for plan, seconds in times.items()}
        fastest = min(medians, key=lambda plan: medians[plan])
        tried = {fastest: tried[fastest]}
        lines += [f"{1e3 * seconds:.1f} ms by {plan}" for plan, seconds in medians.items()]
    plan = shared("plan", next(iter(tried)))
    experiment = prepared.experiment
    what, way = "a step of {} replicas", "exchange"
    if experiment.federated.rule != "none":
        what, way = "a round of {} clients", "federated"
    if experiment.ensemble.rule != "none":
        what, way = "a step of {} members", "ensemble"
    flag = f"--{way}.plan"
    say(f"{what.format(prepared.seats)} a device: {', '.join(lines)}; {flag} {plan} is taken")
    return tried.get(plan) or prepared.with_experiment(plans[plan])


def plans_of(prepared: Prepared) -> dict[str, Experiment]:
    """What can be chosen from, that first which needs the least memory; nothing where the plan is
    given, or there is one on a device."""
    experiment, seats = prepared.experiment, prepared.seats
    exchange, federated = experiment.exchange, experiment.federated
    if seats == 1:
        return {}
    if federated.rule != "none":
        plans = federated.plans(seats)
        return {name: replace(experiment, federated=each) for name, each in plans.items()}
    if (ensemble := experiment.ensemble).rule != "none":
        return {name: replace(experiment, ensemble=each) for name, each in ensemble.plans().items()}
    return {name: replace(experiment, exchange=each) for name, each in exchange.plans().items()}


def timed(
    steps: dict[str, Step], prepared: Prepared, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every timed step, by plan; all on the batch of the first step."""
    state: Any = compile_together(prepared.learner.init.lower())()
    first = jnp.copy(state.step)
    times: dict[str, list[float]] = {plan: [] for plan in steps}
    with contextlib.closing(prepared.feed(0)) as feed:  # type: ignore[type-var]
        batch = next(feed)

        def turn() -> None:
            nonlocal state
            for plan, step in steps.items():
                # As if it were the first: else parameters might meet in steps of one plan only.
                state = jax.block_until_ready(state._replace(step=jnp.copy(first)))
                began = clock()
                state, _ = jax.block_until_ready(step(state, batch))
                times[plan].append(clock() - began)

        turn()
        longest = sum(seconds.pop() for seconds in times.values())
        # Of several processes, all have to make as many.
        for _ in range(int(shared(f"turns of {len(steps)} plans", str(turns(longest))))):
            turn()
    return times


def turns(seconds: float) -> int:
    """How many of so many seconds each are timed."""
    return min(ROUNDS, max(1, int(PATIENCE / max(seconds, 1e-9))))
