"""A server of real pushes, in the order of virtual time: the same parameters, bit for bit."""

from typing import Any

import jax
import numpy as np
import pytest

from research.learning import AsynchronousConfig

RULES = {
    "plain": AsynchronousConfig("plain", workers=3, durations="exponential"),
    "staleness_aware": AsynchronousConfig("staleness_aware", workers=3, slow_factor=2.5),
    "dc_asgd": AsynchronousConfig(
        "dc_asgd", workers=3, compensation=0.5, compensation_decay=0.9, durations="exponential"
    ),
    "hogwild": AsynchronousConfig("hogwild", workers=3, share=0.5, durations="exponential"),
    "easgd": AsynchronousConfig("easgd", workers=3, period=2, alpha=0.2, durations="exponential"),
    "buffered": AsynchronousConfig("buffered", workers=3, period=2, slow_factor=2.5),
    "diloco": AsynchronousConfig(
        "diloco", workers=3, period=2, quorum=1, grace=1.2, durations="exponential"
    ),
}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])


def simulated(bench: Any, config: AsynchronousConfig) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The server's parameters after every step of virtual time, and what is told at the end."""
    made, history = bench.learner(config), []
    with jax.set_mesh(bench.mesh):
        state = made.init()
        for step, batch in enumerate(bench.batches):
            state, _ = made.step(state, batch | made.events(step))
            history.append(flat(state.parameters))
    return history, made.observe(len(history), state)


@pytest.mark.parametrize("name", RULES)
def test_virtual_time_and_the_server_of_real_pushes_are_equal_bit_for_bit(
    name: str, bench: Any, foreseen: Any
) -> None:
    config = RULES[name]
    made = bench.learner(config)
    wanted, told = simulated(bench, config)
    steps = len(wanted)
    if config.local:
        events = [(e.worker, e.seconds, e.moves) for e in made.turns.before(steps)]
        deck = foreseen([worker for worker, *_ in events], config.period, config.workers)
        size = 2 * made.one.size
    else:
        arrivals = made.arrivals.before(steps)
        seconds = arrivals.seconds.tolist()
        events = [(w, s, True) for w, s in zip(arrivals.worker.tolist(), seconds, strict=True)]
        deck = foreseen(arrivals.worker.tolist(), 1, config.workers)
        size = made.rule.bytes_sent(made.one.size)
    workers = [bench.worker(config) for _ in range(config.workers)]
    with jax.set_mesh(bench.mesh):
        server = bench.server(config, deck, size=size)
        for worker in range(config.workers):
            server.pull(worker, 0.0)
        for step, (worker, now, pushes) in enumerate(events):
            server.tick(now)
            if step:
                np.testing.assert_array_equal(flat(server.method.parameters), wanted[step - 1])
            if pushes:
                lease = server.pull(worker, now).lease
                assert lease is not None and lease.steps[-1] == step
                pushed = workers[worker].work(lease)
                answer = server.push(worker, lease.epoch, lease.sequence, pushed, now)
                assert answer.outcome == "taken"
        server.tick(now + 1e9)
        np.testing.assert_array_equal(flat(server.method.parameters), wanted[-1])
    assert np.abs(wanted[-1] - wanted[0]).max() > 0.02
    seen = server.observe()
    told.pop("virtual_seconds"), told.pop("bytes_sent")  # by the last step; and by a push
    assert {name: seen[name] for name in told} == told
