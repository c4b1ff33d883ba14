"""Many faults at random moments in one run: it ends, with every step done once.

`CHAOS_FAULTS=200 make chaos ARGS='-k many -s'` is the long form; the seed is printed.
"""

import os
import random
import signal
import time
from typing import Any

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.long]

FAULTS = int(os.environ.get("CHAOS_FAULTS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))


@pytest.mark.timeout(0)
def test_many_faults_at_random_moments(elastic: Any, undisturbed: list[float]) -> None:
    """SIGKILL of workers, those that stand by and the coordination service; SIGSTOP."""
    draws = random.Random(SEED)
    steps = 400 + 60 * FAULTS
    run = elastic("--return-seconds", 0, "--hang-seconds", 3, more=["--run.steps", steps])
    began, faults = time.monotonic(), 0
    while faults < FAULTS and run.process.poll() is None:
        run.wait(lambda: run.process.poll() is not None or len(run.children()) > 3)
        time.sleep(draws.uniform(0, 6))
        children = run.children()
        if not children:
            continue
        victim = draws.choice(children)
        try:
            os.kill(victim, draws.choice([signal.SIGKILL] * 3 + [signal.SIGSTOP]))
            faults += 1
        except ProcessLookupError:
            continue
    said = run.end(patience=3600)
    seconds = time.monotonic() - began
    losses = run.losses()
    assert losses[: len(undisturbed)] == undisturbed
    assert len(losses) == steps
    lost = sum(g["lost"] for g in run.generations())
    assert all(g["lost"] <= 10 for g in run.generations())
    trained = run.metrics()[-1]["seconds"]
    print(
        f"\nseed {SEED}: {faults} faults, {len(run.generations())} generations, {steps} steps in "
        f"{seconds:.0f} s, {lost} done again, goodput {trained / seconds:.2f}\n{said[-300:]}"
    )
