"""Workers that take steps of their own, beside the papers' equations in NumPy."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

from research.learning import AsynchronousConfig, OptimizerConfig, Synchronous
from research.learning.asynchronous.local_workers import LocalWorkers
from research.models import MLPConfig, Specification
from research.parallel.layout import batch_sharding, place
from research.parallel.mesh import MeshConfig

TABLE = Specification(shape=(6,), classes=3)
STEPS = 26
RATE = optax.linear_schedule(0.2, 0.1, STEPS)
ONE = OptimizerConfig("sgd", 1.0, "constant", beta1=0.5, clip=None)

RULES = {
    "easgd": AsynchronousConfig("easgd", workers=3, period=2, alpha=0.2, slow_factor=1.5),
    "buffered": AsynchronousConfig(
        "buffered", workers=3, period=2, buffer=2, outer_learning_rate=0.8, slow_factor=2.5
    ),
    "diloco": AsynchronousConfig("diloco", workers=3, period=2, quorum=2, slow_factor=2.5),
    "diloco-grace": AsynchronousConfig(
        "diloco", workers=3, period=2, quorum=1, grace=1.2, durations="exponential"
    ),
    "bounded": AsynchronousConfig(
        "easgd", workers=3, period=2, alpha=0.2, slow_factor=2.5, maximum_staleness=3
    ),
}


def batches() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {
            "inputs": generator.normal(size=(4, 6)).astype(np.float32),
            "targets": generator.integers(3, size=4, dtype=np.int32),
        }
        for _ in range(STEPS)
    ]


@pytest.fixture(scope="module")
def one() -> Synchronous:
    mesh = MeshConfig(data=1).build(jax.devices()[:1])
    model = MLPConfig(widths=(8,), activation="tanh")
    return Synchronous(model, TABLE, ONE.build(STEPS), RATE, mesh, outside=("replica",))


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])


def by_hand(name: str, made: LocalWorkers, gradient: Any, start: np.ndarray) -> np.ndarray:
    """The center after every step, in float64, from who moves when and the papers' equations."""
    config = RULES[name]
    center, velocity, total = start.copy(), np.zeros_like(start), np.zeros_like(start)
    own, fetched = [start.copy() for _ in range(3)], [start.copy() for _ in range(3)]
    momentum = [np.zeros_like(start) for _ in range(3)]
    history = []
    for step, event in enumerate(made.turns.before(STEPS)):
        k = event.worker
        momentum[k] = 0.5 * momentum[k] + gradient(own[k], step)
        own[k] = own[k] - (0.2 - 0.1 * step / STEPS) * momentum[k]
        if event.moves and config.rule == "easgd":
            e = 0.2 * (own[k] - center)
            own[k], center = own[k] - e, center + e
        elif event.moves:
            s = 1 / np.sqrt(1 + event.staleness) if config.rule == "buffered" else 1
            total += s * (fetched[k] - own[k])
        if event.merges and config.rule == "buffered":
            center = center - 0.8 * total / event.merges
        elif event.merges:
            velocity = 0.9 * velocity + total / event.merges
            center = center - 0.7 * (total / event.merges + 0.9 * velocity)
        if event.merges:
            total = np.zeros_like(start)
        for k in event.begins:
            own[k], fetched[k] = center.copy(), center.copy()
        history.append(center)
    return np.array(history)


@pytest.mark.parametrize("name", RULES)
def test_moves_are_used_as_papers_say(name: str, one: Synchronous) -> None:
    made = RULES[name].build(one, RATE)
    assert isinstance(made, LocalWorkers)
    sharding = batch_sharding(one.mesh, 4)
    rows = [place(each, sharding, 4) for each in batches()]
    with jax.set_mesh(one.mesh):
        state = made.init()
        start = state.parameters
        _, unflatten = jax.flatten_util.ravel_pytree(start)
        compiled = jax.jit(lambda w, b: one.gradients(w, {}, b, jax.random.key(0))[0])

        def gradient(w: np.ndarray, step: int) -> np.ndarray:
            tree = unflatten(np.asarray(w, np.float32))
            return flat(compiled(tree, batches()[step])).astype(np.float64)

        wanted = by_hand(name, made, gradient, flat(start).astype(np.float64))
        centers, rates = [], []
        for step, batch in enumerate(rows):
            state, metrics = made.step(state, batch | made.events(step))
            centers.append(flat(state.parameters))
            rates.append(float(metrics["learning_rate"]))
    # 26 steps in float32 beside float64.
    np.testing.assert_allclose(np.array(centers), wanted, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(rates, [0.2 - 0.1 * step / STEPS for step in range(STEPS)], 1e-5)
    assert np.abs(wanted[-1] - wanted[0]).max() > 0.02
    seen = made.observe(STEPS, state)
    events = made.turns.before(STEPS)
    moves, refused = sum(e.moves for e in events), sum(e.refused for e in events)
    assert seen["pushes_refused"] == refused
    assert ("merges" in seen) == (RULES[name].rule != "easgd")
    assert (refused > 0) == (name == "bounded")
    assert seen["bytes_sent_total"] == (moves + refused) * 2 * 4 * start_size(one)
    assert sum(seen[f"staleness_{s}"] for s in range(6)) == moves


def start_size(one: Synchronous) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(one.abstract_state.parameters))
