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
    run = elastic(*("--return-seconds", 0, "--hang-seconds", 3), more=["--run.steps", "1_000_000"])
    began, faults = time.monotonic(), 0
    while faults < FAULTS:
        run.wait(lambda: run.process.poll() is not None or len(run.children()) > 3)
        time.sleep(draws.uniform(0, 6))
        children = run.children()
        assert children, run.end()
        try:
            os.kill(draws.choice(children), draws.choice([signal.SIGKILL] * 3 + [signal.SIGSTOP]))
            faults += 1
        except ProcessLookupError:
            continue
    done = len(run.metrics())
    run.wait(lambda: len(run.metrics()) > done + 50)
    seconds = time.monotonic() - began
    run.process.send_signal(signal.SIGTERM)
    run.end(status=75)
    generations, trained = run.generations(), run.metrics()[-1]["seconds"]
    steps = len(run.losses()) + 50
    more = ["--run.steps", steps]
    elastic(resume=True, more=more).end()
    calm = elastic("--no-standby", run="undisturbed", more=more)
    assert "1 generation, no step was lost" in calm.end(patience=3600)

    smaller = [g["number"] for g in generations if g["processes"] < 3]
    assert run.losses() == pytest.approx(calm.losses(), rel=RELATIVE)
    assert smaller or run.losses() == calm.losses()
    assert all(g["lost"] <= 10 for g in generations)
    recoveries = sorted(g["recovery"] for g in generations if g["recovery"] is not None)
    median, lost = recoveries[len(recoveries) // 2], sum(g["lost"] for g in generations)
    print(
        f"\nseed {SEED}: {faults} faults, {len(generations)} generations ({len(smaller)} of a "
        f"smaller mesh), {steps - 50} steps in {seconds:.0f} s, {lost} done again, goodput "
        f"{trained / seconds:.2f}; {median:.1f} s to the next step in the median, "
        f"{recoveries[-1]:.1f} s at worst"
    )
