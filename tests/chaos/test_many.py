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

RELATIVE = 1e-2
"""Over thousands of steps sums in other orders drift apart."""


@pytest.mark.timeout(0)
def test_many_faults_at_random_moments(elastic: Any) -> None:
    """SIGKILL of workers, those that stand by and the coordination service; SIGSTOP. All steps are
    those of a run that nothing befalls, bit for bit, as long as all generations have its mesh."""
    draws = random.Random(SEED)
    steps = 400 + 150 * FAULTS
    calm = elastic("--no-standby", run="undisturbed", more=["--run.steps", steps])
    assert "1 generation, no step was lost" in calm.end(patience=3600)
    undisturbed = calm.losses()
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
    assert faults == FAULTS, said[-1000:]
    losses, generations = run.losses(), run.generations()
    assert len(losses) == steps
    smaller = [g["number"] for g in generations if g["processes"] < 3]
    if not smaller:
        assert losses == undisturbed
    assert losses == pytest.approx(undisturbed, rel=RELATIVE)
    lost = sum(g["lost"] for g in generations)
    assert all(g["lost"] <= 10 for g in generations)
    recoveries = sorted(g["recovery"] for g in generations if g["recovery"] is not None)
    median = recoveries[len(recoveries) // 2]
    trained = run.metrics()[-1]["seconds"]
    print(
        f"\nseed {SEED}: {faults} faults, {len(generations)} generations ({len(smaller)} of a "
        f"smaller mesh), {steps} steps in {seconds:.0f} s, {lost} done again, goodput "
        f"{trained / seconds:.2f}; {median:.1f} s to the next step in the median, "
        f"{recoveries[-1]:.1f} s at worst\n{said[-300:]}"
    )
