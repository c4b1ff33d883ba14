"""Learning by replicas: its limits, which are other learners, and what it does with bad luck."""

from typing import Any

import jax
import numpy as np
import pytest

from research.learning import ExchangeConfig, OptimizerConfig, Replicated, Synchronous
from research.models import MLPConfig, Specification
from research.parallel.layout import batch_sharding, place
from research.parallel.mesh import MeshConfig

TABLE = Specification(shape=(6,), classes=3)
SGD = OptimizerConfig(name="sgd", learning_rate=0.2, schedule="constant", clip=None)
ADAM = OptimizerConfig(name="adamw", learning_rate=0.01, warmup_steps=2)
# Sums over the batch are taken in another order; Adam makes the most of it where a gradient is
# near zero.
CLOSE: dict[str, float] = {"rtol": 2e-5, "atol": 2e-5}


def learner(
    exchange: ExchangeConfig | None, mesh: Any, optimizer: OptimizerConfig = SGD
) -> Synchronous | Replicated:
    model = MLPConfig(widths=(8,), activation="tanh")
    rate = optimizer.learning_rate_schedule(20)
    outside = () if exchange is None else ("replica",)
    one = Synchronous(model, TABLE, optimizer.build(20), rate, mesh, outside=outside)
    if exchange is None:
        return one
    exchange = exchange.on(mesh)
    return Replicated(
        one,
        exchange.build(20),
        exchange.replicas or 1,
        exchange.plan,
        exchange.not_finite == "drop",
    )


def batches(steps: int, rows: int = 8) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {
            "inputs": generator.normal(size=(rows, 6)).astype(np.float32),
            "targets": generator.integers(3, size=rows, dtype=np.int32),
        }
        for _ in range(steps)
    ]


def trained(
    exchange: ExchangeConfig | None,
    mesh: MeshConfig,
    optimizer: OptimizerConfig = SGD,
    data: list[dict[str, np.ndarray]] | None = None,
) -> tuple[list[dict[str, float]], Any, Any]:
    """Metrics of every step, the last state, and the learner; on as few devices as it takes."""
    built = mesh.build(jax.devices()[: mesh.replica * max(mesh.data, 1)])
    made: Any = learner(exchange, built, optimizer)
    metrics = []
    with jax.set_mesh(built):
        state = made.init()
        for rows in data or batches(6):
            state, values = made.step(state, place(rows, batch_sharding(built, 8), 8))
            metrics.append({name: float(value) for name, value in values.items()})
    return metrics, jax.device_get(state), made


def assert_same_learning(mine: Any, its: Any) -> None:
    """Of replicas and of one model: losses, and the mean of the parameters."""
    for here, there in zip(mine[0], its[0], strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=2e-5)
        assert here["learning_rate"] == there["learning_rate"]
    ours = jax.tree.map(lambda leaf: leaf.mean(0), mine[1].parameters)
    for leaf, other in zip(*map(jax.tree.leaves, (ours, its[1].parameters)), strict=True):
        np.testing.assert_allclose(leaf, other, **CLOSE)


@pytest.mark.parametrize(
    "exchange",
    [
        ExchangeConfig("every_step"),
        ExchangeConfig("local_sgd", period=2),
        ExchangeConfig("diloco", period=2, outer_learning_rate=1.0, outer_momentum=0.0),
    ],
    ids=lambda exchange: exchange.rule,
)
def test_one_replica_is_plain_optax(exchange: ExchangeConfig) -> None:
    mine = trained(exchange, MeshConfig(), ADAM)
    its = trained(None, MeshConfig(), ADAM)
    assert_same_learning(mine, its)
    for name in ("accuracy", "gradient_norm", "parameter_norm"):
        assert mine[0][-1][name] == pytest.approx(its[0][-1][name], rel=1e-4)


@pytest.mark.parametrize(
    ("exchange", "optimizer"),
    [
        (ExchangeConfig("every_step"), ADAM),
        (ExchangeConfig("every_step", groups=2), ADAM),
        (ExchangeConfig("local_sgd", period=1), SGD),
        (ExchangeConfig("diloco", period=1, outer_learning_rate=1.0, outer_momentum=0.0), SGD),
        (ExchangeConfig("post_local_sgd", period=9, first_local_step=6), ADAM),
    ],
    ids=lambda value: getattr(value, "rule", getattr(value, "name", "")),
)
def test_exchanging_at_every_step_is_synchronous(
    exchange: ExchangeConfig, optimizer: OptimizerConfig
) -> None:
    mine = trained(exchange, MeshConfig(replica=4, data=1), optimizer)
    assert_same_learning(mine, trained(None, MeshConfig(data=4), optimizer))


def test_replicas_apart_differ_by_their_consensus_distance() -> None:
    _, state, made = trained(ExchangeConfig("local_sgd", period=4), MeshConfig(replica=4, data=1))
    flat = np.concatenate([leaf.reshape(4, -1) for leaf in jax.tree.leaves(state.parameters)], 1)
    expected = np.sqrt(np.mean(np.sum((flat - flat.mean(0)) ** 2, axis=1)))
    assert expected > 1e-2  # two steps after the last average
    seen = made.observe(6, state)
    assert float(seen["consensus_distance"]) == pytest.approx(expected, rel=1e-5)
    assert (seen["bytes_sent"], seen["bytes_sent_total"] > 0) == (0, True)


def test_evaluation_is_of_the_mean_of_the_replicas() -> None:
    mesh = MeshConfig(replica=4, data=1)
    _, state, made = trained(ExchangeConfig("local_sgd", period=4), mesh)
    rows = batches(1)[0] | {"weights": np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)}
    one: Any = learner(None, MeshConfig().build(jax.devices()[:1]))
    with jax.set_mesh(made.mesh):
        totals = made.evaluate(state, place(rows, batch_sharding(made.mesh, 8), 8))
    with jax.set_mesh(one.mesh):
        alone = one.init()
        mean = jax.tree.map(lambda leaf: leaf.mean(0), state.parameters)
        wanted = one.evaluate(alone._replace(parameters=mean), rows)
    assert float(totals.targets) == 6
    assert float(totals.loss) == pytest.approx(float(wanted.loss), rel=1e-5)


def test_other_initial_parameters_are_also_where_an_outer_optimizer_begins() -> None:
    built = MeshConfig(replica=4, data=1).build(jax.devices()[:4])
    made: Any = learner(ExchangeConfig("diloco"), built)
    with jax.set_mesh(built):
        state = made.init()
        one = jax.tree.map(lambda leaf: np.full(leaf.shape[1:], 3.0), state.parameters)
        parameters = jax.device_put(made.in_rounds(one), made.shardings.replicas.parameters)
        state = made.with_parameters(state, parameters)
    for tree in (state.parameters, state.replicas.exchange.start):
        for leaf in jax.tree.leaves(tree):
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, 3.0))
    for leaf in jax.tree.leaves(state.replicas.exchange.velocity):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


# Gradients that are not finite ----------------------------------------------------------------


def spoiled(step: int, replica: int) -> list[dict[str, np.ndarray]]:
    data = batches(6)
    data[step]["inputs"][2 * replica] = np.inf
    return data


def test_without_a_word_a_gradient_that_is_not_finite_is_seen_in_the_loss() -> None:
    """By which the loop stops the run."""
    exchange = ExchangeConfig("every_step")
    metrics, _, _ = trained(exchange, MeshConfig(replica=4, data=1), data=spoiled(3, 1))
    assert np.isfinite(metrics[2]["loss"]) and not np.isfinite(metrics[3]["loss"])


@pytest.mark.parametrize("replicas_on", [MeshConfig(replica=4, data=1), MeshConfig(replica=2)])
@pytest.mark.parametrize(
    "exchange",
    [
        ExchangeConfig("every_step", replicas=4, not_finite="drop"),
        ExchangeConfig("local_sgd", replicas=4, period=2, not_finite="drop"),
        ExchangeConfig("easgd", replicas=4, period=2, not_finite="drop"),
    ],
    ids=lambda exchange: exchange.rule,
)
def test_a_dropped_replica_is_left_out_and_counted(
    exchange: ExchangeConfig, replicas_on: MeshConfig
) -> None:
    metrics, state, _ = trained(exchange, replicas_on, ADAM, spoiled(3, 1))
    clean, _, _ = trained(exchange, replicas_on, ADAM)
    for values in metrics:
        assert all(np.isfinite(value) for value in values.values())
    assert [values["replicas_dropped"] for values in metrics] == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(state.replicas.dropped, [0, 1, 0, 0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert metrics[2]["loss"] == clean[2]["loss"] and metrics[3]["loss"] != clean[3]["loss"]
    assert all(values["replicas_dropped"] == 0 for values in clean)


def test_the_others_average_without_the_dropped_one() -> None:
    """In the first step, by plain SGD: w - 0.2 · mean of the gradients of replicas 0, 2 and 3."""
    exchange = ExchangeConfig("every_step", not_finite="drop")
    mesh = MeshConfig(replica=4, data=1)
    data = spoiled(0, 1)[:1]
    _, state, _ = trained(exchange, mesh, data=data)
    keep = np.array([0, 1, 4, 5, 6, 7])
    six = {name: leaf[keep] for name, leaf in data[0].items()}
    one: Any = learner(None, MeshConfig().build(jax.devices()[:1]))
    with jax.set_mesh(one.mesh):
        wanted, _ = one.step(one.init(), six)
    for leaf, other in zip(
        *map(jax.tree.leaves, (state.parameters, wanted.parameters)), strict=True
    ):
        for replica in leaf:
            np.testing.assert_allclose(replica, other, **CLOSE)
