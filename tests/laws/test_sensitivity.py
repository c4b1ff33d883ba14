"""Law 5: one example moves the clipped sum by no more than the bound, wherever it lies.

The bound is C where an example is added or removed, and 2·C where it is replaced, on 1, 2 and 8
devices, in every sharding mode and plan of computation; NaN and huge examples included.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.data import BatchesInTurn, LabeledArrays
from research.exchange.privacy import Event
from research.exchange.privacy.correlated import coefficients
from research.exchange.privacy.release import Release
from research.learning import FederatedConfig, OptimizerConfig, Private, Synchronous
from research.learning.private.private import Clipping, Method
from research.models import CNNConfig, MLPConfig, Specification, TransformerConfig
from research.parallel.layout import batch_sharding, place
from research.parallel.mesh import MeshConfig

C = 0.5
# Factors and sums are float32: some of its roundings, of numbers that add up to ROWS · C.
ROUNDING = 1 + 1e-5
ROWS = 16

TABLE, IMAGES, TEXT = Specification((30,), 3), Specification((8, 8, 3), 10), Specification((8,), 16)
MODELS: dict[str, tuple[Any, Specification]] = {
    "mlp": (MLPConfig(widths=(16,), activation="tanh", dropout=0.1), TABLE),
    "cnn": (CNNConfig("lenet"), IMAGES),
    "text": (TransformerConfig(layers=2, width=16, heads=2, hidden=32, dropout=0.1), TEXT),
}


class Place(NamedTuple):
    """A model, a way to clip, and where and how it is computed."""

    model: str
    method: Method
    mesh: MeshConfig
    microbatches: int = 1
    by_layer: bool = False


PLACES = {
    "one-plain": Place("mlp", "per_example", MeshConfig(data=1), 2),
    "one-ghost-cnn": Place("cnn", "ghost", MeshConfig(data=1), 2, by_layer=True),
    "data2-plain": Place("mlp", "per_example", MeshConfig(data=2), 2),
    "data2-ghost": Place("mlp", "ghost", MeshConfig(data=2)),
    "fsdp2-plain": Place("mlp", "per_example", MeshConfig(data=1, fsdp=2), 2),
    "tensor2-text": Place("text", "per_example", MeshConfig(data=1, tensor=2), 2),
    "data8-plain": Place("mlp", "per_example", MeshConfig(data=8)),
    "data8-ghost-cnn": Place("cnn", "ghost", MeshConfig(data=8), 2),
    "all-ghost": Place("mlp", "ghost", MeshConfig(data=2, fsdp=2, tensor=2), 2, by_layer=True),
    "all-text": Place("text", "per_example", MeshConfig(data=2, fsdp=2, tensor=2)),
}

Sums = Callable[[dict[str, np.ndarray]], np.ndarray]


@pytest.fixture(params=PLACES)
def sums(request: pytest.FixtureRequest) -> tuple[Sums, dict[str, np.ndarray]]:
    """The clipped sum of a batch, as one vector; and a batch of which 13 rows are taken."""
    where = PLACES[request.param]
    model, specification = MODELS[where.model]
    mesh = where.mesh.build(jax.devices("cpu")[: where.mesh.named_devices])
    optimizer = OptimizerConfig("sgd", schedule="constant")
    schedule = optimizer.learning_rate_schedule(1)
    one = Synchronous(model, specification, optimizer.build(1), schedule, mesh)
    clipping = Clipping(C, where.by_layer)
    learner = Private(one, Event(1.0, 0.5), 8.0, where.microbatches, clipping, where.method)
    with jax.set_mesh(mesh):
        state = learner.init()
    compiled = jax.jit(learner.clipped_sum)

    def summed(rows: dict[str, np.ndarray]) -> np.ndarray:
        with jax.set_mesh(mesh):
            sharding = batch_sharding(mesh, ROWS // where.microbatches)
            batch = place(rows, sharding, ROWS)
            made = compiled(state.parameters, state.bounds, batch, state.step).gradients
            return np.concatenate([x.ravel() for x in jax.tree.leaves(jax.device_get(made))])

    return summed, batch_for(specification)


def batch_for(specification: Specification) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    weights = (np.arange(ROWS) < 13).astype(np.float32)
    if specification is TEXT:
        tokens = generator.integers(16, size=(ROWS, 9), dtype=np.int32)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    inputs = generator.normal(size=(ROWS, *specification.shape)).astype(np.float32)
    targets = generator.integers(specification.classes, size=ROWS, dtype=np.int32)
    return {"inputs": inputs, "targets": targets, "weights": weights}


def changed(rows: dict[str, np.ndarray], row: int, **to: Any) -> dict[str, np.ndarray]:
    made = {name: leaf.copy() for name, leaf in rows.items()}
    for name, value in to.items():
        made[name][row] = value
    return made


def test_one_example_moves_the_sum_by_no_more_than_the_bound(
    sums: tuple[Sums, dict[str, np.ndarray]],
) -> None:
    summed, rows = sums
    whole = summed(rows)
    assert np.isfinite(whole).all()

    def moved(row: int, **to: Any) -> float:
        other = summed(changed(rows, row, **to))
        assert np.isfinite(other).all()
        return float(np.linalg.norm(other.astype(np.float64) - whole))

    removed = [moved(row, weights=0.0) for row in (0, 7, 12)]
    added = [moved(row, weights=1.0) for row in (13, 15)]
    for each in (*removed, *added):
        # All of these are cut: they move it by the bound itself.
        assert 0.9 * C < each <= C * ROUNDING
    other = rows["inputs"][14]
    label = (rows["targets"][5] + 1) % 3
    replaced = [
        moved(5, inputs=other, targets=rows["targets"][14]),
        moved(5, targets=label),
        moved(5, weights=0.0),
    ]
    assert max(replaced) > C  # else the next line could not fail
    assert max(replaced) <= 2 * C * ROUNDING
    assert moved(14, inputs=1) == 0  # a row that is not taken

    if rows["inputs"].dtype == np.float32:
        for value in (np.nan, np.inf, 1e30, -1e10, 1e-30):
            assert moved(5, inputs=value) <= 2 * C * ROUNDING
            everywhere = {"inputs": np.full_like(other, value), "weights": 1.0}
            assert moved(13, **everywhere) <= C * ROUNDING
            assert moved(14, inputs=value) == 0


def test_one_example_moves_all_sums_in_turn_by_no_more_than_its_passes() -> None:
    """DP-FTRL: C times the sums of 11 steps, in groups of 4, by √3 bounds at most, as it comes 3
    times; and by more if it came before the noise of its last time has run out."""
    mesh = MeshConfig(data=2).build(jax.devices("cpu")[:2])
    model, specification = MODELS["mlp"]
    optimizer = OptimizerConfig("sgd", schedule="constant")
    schedule = optimizer.learning_rate_schedule(1)
    one = Synchronous(model, specification, optimizer.build(1), schedule, mesh)
    batch, steps, groups = batch_for(specification), 11, 4
    source = LabeledArrays(batch["inputs"], batch["targets"])
    batches = BatchesInTurn(source, groups, ROWS, 2, seed=0)
    learner = Private(one, Event(1.0, 0.25, groups), 4.0, 2, Clipping(C), bands=groups)
    summed = jax.jit(learner.clipped_sum)
    with jax.set_mesh(mesh):
        state = learner.init()

    def sums_without(example: int | None) -> np.ndarray:
        """[steps, parameters]"""
        made = []
        for step in range(steps):
            rows = batches.rows(step, range(ROWS))
            if example is not None:
                there = (rows["inputs"] == source.rows(np.array([example]))["inputs"]).all(axis=1)
                rows["weights"][there] = 0
            with jax.set_mesh(mesh):
                placed = place(rows, batch_sharding(mesh, ROWS // 2), ROWS)
                given = summed(state.parameters, state.bounds, placed, jnp.int32(0)).gradients
            made.append([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(given)])
        return np.array([np.concatenate(leaves) for leaves in made])

    def matrix(bands: int) -> np.ndarray:
        c = coefficients(bands)
        return np.asarray(sum(c[i] * np.eye(steps, k=-i) for i in range(bands)))

    whole, example = sums_without(None), int(batches.indexes(0)[0])
    moved = whole - sums_without(example)
    assert np.flatnonzero(np.abs(moved).max(axis=1) > 0).tolist() == [0, 4, 8]
    assert 0.9 * 3**0.5 * C < np.linalg.norm(matrix(groups) @ moved) <= 3**0.5 * C * ROUNDING
    assert np.linalg.norm(matrix(groups + 4) @ moved) > 3**0.5 * C * ROUNDING


ROUNDS = {
    "one-device": MeshConfig(data=1),
    "replica2": MeshConfig(replica=2, data=1),
    "replica4-tensor2": MeshConfig(replica=4, data=1, tensor=2),
}


@pytest.mark.parametrize("where", ROUNDS)
def test_one_client_moves_a_round_by_no_more_than_the_bound(where: str) -> None:
    """With all its examples, of which it may have as many as it likes."""
    mesh = ROUNDS[where].build(jax.devices("cpu")[: ROUNDS[where].named_devices])
    local = OptimizerConfig("sgd", learning_rate=1.0, schedule="constant", clip=None)
    schedule = local.learning_rate_schedule(1)
    model, specification = MODELS["mlp"]
    one = Synchronous(model, specification, local.build(1), schedule, mesh, outside=("replica",))
    clients, expected = 12, 4.0
    config = FederatedConfig("fedavg", cohort=4, sampling="poisson", weighting="uniform")
    release = Release(C, Event(0.0, 1 / 3), expected)
    learner = config.build(one, local, 1, clients, release=release)
    places = config.places(clients, mesh.shape["replica"])
    batch = batch_for(specification)
    rows: dict[str, np.ndarray] = {
        name: np.stack(
            [leaf[row : row + 4].reshape(2, 2, *leaf.shape[1:]) for row in range(places)]
        )
        for name, leaf in batch.items()
    }
    drawn = np.arange(places) % 4 > 0
    rows["weights"] = np.ones_like(rows["weights"])
    rows |= {
        "client": np.arange(places, dtype=np.int32) % clients,
        "steps": np.full(places, 2, np.int32),
        "examples": np.full(places, 4, np.float32),
        "drawn": drawn,
        "present": drawn,
    }
    sharding = jax.sharding.NamedSharding(mesh, P("replica"))

    def moved(rows: dict[str, np.ndarray]) -> np.ndarray:
        with jax.set_mesh(mesh):
            start = learner.init()
            before = jax.device_get(start.parameters)
            after, _ = learner.step(start, place(rows, sharding, places) | learner.events(0))
            moves = jax.tree.map(np.subtract, jax.device_get(after.parameters), before)
        return expected * np.concatenate([x.ravel() for x in jax.tree.leaves(moves)])

    whole = moved(rows)

    def by(row: int, **to: Any) -> float:
        other = moved(changed(rows, row, **to))
        assert np.isfinite(other).all()
        return float(np.linalg.norm(other - whole))

    # The sum is read from parameters, whose rounding it has.
    rounding = 1 + 1e-4
    assert 0.9 * C < by(1, drawn=False, present=False) <= C * rounding
    assert 0.9 * C < by(4, drawn=True, present=True) <= C * rounding
    assert C < by(2, targets=(rows["targets"][2] + 1) % 3) <= 2 * C * rounding
    for value in (np.nan, np.inf, 1e30):
        assert by(3, inputs=value) <= 2 * C * rounding
        assert by(4, inputs=value, drawn=True, present=True) <= C * rounding
    assert by(4, inputs=1) == 0


@pytest.mark.parametrize("broken", [True, False])
def test_a_replicated_parameter_must_vary_before_gradients_are_clipped(broken: bool) -> None:
    """Why `over_microbatches` does not check what varies: by default `shard_map` adds up, over the
    devices, the gradients of a parameter that is the same on all, *before* they are clipped."""
    mesh = MeshConfig(data=2).build(jax.devices("cpu")[:2])
    inputs = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32) * 3

    def on_device(w: jax.Array, rows: jax.Array) -> jax.Array:
        if not broken:
            w = jax.lax.pcast(w, "data", to="varying")
        gradients = jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.tanh(x * w))), (None, 0))(w, rows)
        norms = jnp.linalg.norm(gradients, axis=1)
        cut = gradients * jnp.minimum(1, C / norms)[:, None]
        return jax.lax.psum(jnp.sum(cut, axis=0), "data")

    summed = jax.jit(
        jax.shard_map(
            on_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), axis_names={"data"}
        )
    )
    w = jnp.full(5, 0.1)
    whole = summed(w, inputs)
    moves = []
    for row in range(8):
        other = inputs.copy()
        other[row] = -2 * other[row, ::-1]
        moves.append(float(jnp.linalg.norm(summed(w, other) - whole)))
    assert (max(moves) > 2 * C * ROUNDING) == broken
