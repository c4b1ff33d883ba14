"""DP-SGD beside its equations in NumPy, and the quick way to clip beside the plain one."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.exchange.privacy import Event, Quantile
from research.learning import OptimizerConfig, Private, Synchronous
from research.learning.private.private import Clipping, Method
from research.models import (
    CNNConfig,
    LinearConfig,
    MLPConfig,
    ResNetConfig,
    Specification,
    TransformerConfig,
)
from research.parallel.layout import batch_sharding, place
from research.parallel.mesh import MeshConfig

TABLE = Specification((5,), 3)
RATE, EXPECTED = 0.5, 20.0
ROWS, DRAWN = 8, 6
LINEAR, ONE, PLAIN = LinearConfig(), MeshConfig(data=1), Clipping(1.0)


@pytest.fixture(autouse=True)
def quick_compiling() -> Any:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@cache
def alone(model: Any, specification: Specification, mesh: MeshConfig) -> Synchronous:
    optimizer = OptimizerConfig("sgd", learning_rate=RATE, schedule="constant", clip=None)
    built = mesh.build(jax.devices("cpu")[: mesh.named_devices])
    schedule = optimizer.learning_rate_schedule(10)
    return Synchronous(model, specification, optimizer.build(10), schedule, built, seed=3)


def private(
    model: Any = LINEAR,
    specification: Specification = TABLE,
    mesh: MeshConfig = ONE,
    noise: float = 0.0,
    clipping: Clipping = PLAIN,
    method: Method = "auto",
    seed: int = 2**63 + 5,
    microbatches: int = 2,
    bands: int = 1,
) -> Private:
    one = alone(model, specification, mesh)
    event = Event(noise, 0.125)
    return Private(one, event, EXPECTED, microbatches, clipping, method, seed, bands)


def batch_for(specification: Specification, drawn: int = DRAWN) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    weights = (np.arange(ROWS) // 2 < drawn / 2).astype(np.float32)  # a full microbatch comes first
    if specification.shape == (8,):
        tokens = generator.integers(specification.classes, size=(ROWS, 9), dtype=np.int32)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    inputs = generator.normal(size=(ROWS, *specification.shape)).astype(np.float32)
    inputs *= np.exp(generator.normal(size=(ROWS, *(1,) * len(specification.shape))))
    targets = generator.integers(specification.classes, size=ROWS, dtype=np.int32)
    return {"inputs": inputs.astype(np.float32), "targets": targets, "weights": weights}


def step(learner: Private, rows: dict[str, np.ndarray], steps: int = 1) -> tuple[Any, Any]:
    """The state and the metrics after some steps by one batch, in NumPy."""
    with jax.set_mesh(learner.mesh):
        state = learner.init()
        for number in range(steps):
            batch = place(rows, batch_sharding(learner.mesh, ROWS // 2), ROWS)
            state, metrics = learner.step(state, batch | learner.events(number))
        return jax.device_get((state, metrics))


def clipped_sum(learner: Private, rows: dict[str, np.ndarray]) -> Any:
    with jax.set_mesh(learner.mesh):
        state = learner.init()
        batch = place(rows, batch_sharding(learner.mesh, ROWS // 2), ROWS)
        summed = jax.jit(learner.clipped_sum)
        return jax.device_get(summed(state.parameters, state.bounds, batch, state.step))


def by_hand(rows: dict[str, np.ndarray], bound: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Σ clip(g_i) of softmax regression that begins at zero, and the norms: g = x·(p - y)ᵀ, 1·…"""
    errors = 1 / 3 - np.eye(3)[rows["targets"]]
    inputs = rows["inputs"].astype(np.float64)
    norms = np.sqrt((np.sum(inputs**2, axis=1) + 1) * np.sum(errors**2, axis=1))
    factors = rows["weights"] * np.minimum(1, bound / norms)
    return (inputs.T * factors) @ errors, factors @ errors, norms[rows["weights"] > 0]


def test_a_step_is_that_of_abadi_2016() -> None:
    """Without noise: w - η/(q·N)·Σ clip(g_i), by the expected size of the batch."""
    rows = batch_for(TABLE)
    bound = 1.5
    state, metrics = step(private(clipping=Clipping(bound)), rows)
    kernel, bias, norms = by_hand(rows, bound)
    assert 0 < np.sum(norms > bound) < len(norms)
    output = state.parameters["output"]
    np.testing.assert_allclose(output["kernel"], -RATE / EXPECTED * kernel, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(output["bias"], -RATE / EXPECTED * bias, rtol=1e-5, atol=1e-8)
    assert metrics["examples_drawn"] == len(norms) == DRAWN
    assert metrics["share_cut"] == pytest.approx(np.mean(norms > bound))
    assert metrics["loss"] == pytest.approx(np.log(3), rel=1e-6)
    assert metrics["bound"] == bound
    assert state.ledger.counts.tolist() == [1] + 15 * [0]
    assert state.ledger.events[0].tolist() == [0.0, 0.125, 0.0]


def test_noise_has_the_deviation_of_the_event() -> None:
    """z·C/(q·N) of each number, and no correlation between steps, arrays or seeds."""
    model, specification, bound, noise = MLPConfig(widths=(64,)), Specification((200,), 3), 0.5, 4.0

    def moved(seed: int, steps: int) -> np.ndarray:
        learner = private(model, specification, noise=noise, clipping=Clipping(bound), seed=seed)
        nothing = batch_for(specification, drawn=0)
        states = [step(learner, nothing, n)[0].parameters for n in (steps, steps + 1)]
        leaves = [np.concatenate([x.ravel() for x in jax.tree.leaves(s)]) for s in states]
        return (leaves[0] - leaves[1]) / RATE

    first, second, other = moved(1, 1), moved(1, 2), moved(2, 1)
    few = 4 / np.sqrt(len(first))
    for made in (first, second, other):
        assert made.std() == pytest.approx(noise * bound / EXPECTED, rel=few)
        assert abs(made.mean()) < few * made.std()
    assert abs(np.corrcoef([first, second, other]) - np.eye(3)).max() < few


def test_noise_of_dp_ftrl_has_the_covariance_of_the_matrix() -> None:
    """(z·L/(q·N))²·(CᵀC)⁻¹ over steps, of each number."""
    model, specification, bound, noise = MLPConfig(widths=(64,)), Specification((200,), 3), 0.5, 4.0
    steps, bands = 5, 3
    learner = private(model, specification, ONE, noise, Clipping(bound), bands=bands)
    nothing = batch_for(specification, drawn=0)
    states = [learner.init().parameters]
    states += [step(learner, nothing, n)[0].parameters for n in range(1, steps + 1)]
    leaves = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(s)]) for s in states]
    moves = np.diff(np.array(leaves, np.float64), axis=0) * -EXPECTED / (RATE * noise * bound)
    c = np.array([1, 1 / 2, 3 / 8]) / np.sqrt(1 + 1 / 4 + 9 / 64)
    matrix = sum(c[i] * np.eye(steps, k=-i) for i in range(bands))
    wanted = np.linalg.inv(matrix.T @ matrix)
    few = 5 / np.sqrt(moves.shape[1])
    np.testing.assert_allclose(moves @ moves.T / moves.shape[1], wanted, atol=few * wanted.max())
    assert wanted[1, 0] < -0.5  # much of it is taken back


def test_correlated_noise_is_the_same_on_every_mesh() -> None:
    model, specification = MLPConfig(widths=(16,)), Specification((10,), 4)
    rows = batch_for(specification)
    meshes = (ONE, MeshConfig(data=2, fsdp=2, tensor=2))
    states = [step(private(model, specification, m, 1.0, bands=3), rows, 4)[0] for m in meshes]
    alone, spread = (jax.tree.leaves((s.parameters, s.past)) for s in states)
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(states[0].past))
    for one, other in zip(alone, spread, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_upper_half_of_a_seed_counts() -> None:
    rows = batch_for(TABLE, drawn=0)
    kernels = [
        step(private(noise=1.0, seed=seed), rows)[0].parameters["output"]["kernel"]
        for seed in (7, 7 + 2**32, 7 + 2**63)
    ]
    assert len({kernel.tobytes() for kernel in kernels}) == 3


def test_an_empty_batch_is_noise_alone_and_no_error() -> None:
    state, metrics = step(private(noise=1.0), batch_for(TABLE, drawn=0))
    assert metrics["loss"] == 0 and metrics["examples_drawn"] == 0
    assert np.isfinite(state.parameters["output"]["kernel"]).all()
    assert np.std(state.parameters["output"]["kernel"]) > 0
    assert state.ledger.counts[0] == 1


def test_bounds_of_layers_are_a_share_of_all() -> None:
    model = MLPConfig(widths=(4, 4), activation="tanh")
    rows = batch_for(TABLE)
    together = clipped_sum(private(model, clipping=Clipping(1e9)), rows)
    apart = private(model, clipping=Clipping(0.3, by_layer=True))
    assert apart.groups.many == 3
    # One example alone: each layer is cut to C / √3 or left as it is.
    rows["weights"] = np.eye(ROWS, dtype=np.float32)[0]
    whole = clipped_sum(private(model, clipping=Clipping(1e9)), rows).gradients
    cut = clipped_sum(apart, rows).gradients
    assert together.cut == 0
    for layer in (("hidden", "layer_0"), ("hidden", "layer_1"), ("output",)):
        mine, its = cut, whole
        for name in layer:
            mine, its = mine[name], its[name]
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in its.values()))
        factor = min(1.0, 0.3 / np.sqrt(3) / norm)
        np.testing.assert_allclose(mine["kernel"], factor * its["kernel"], rtol=1e-4, atol=1e-7)


def test_the_bound_follows_the_quantile_of_andrew_2021() -> None:
    """C·exp(-η·(b̃ - γ)) with b̃ = Σ(b_i - ½)/(q·N) + ½ where counts have next to no noise, and
    z_Δ = (z⁻² - (2σ_b)⁻²)^-½ for the sum."""
    rows = batch_for(TABLE)
    bound, target, rate = 1.5, 0.9, 0.4
    norms = by_hand(rows, bound)[2]
    quiet = Clipping(bound, quantile=Quantile(target, rate, 1e-6))
    state, _ = step(private(noise=0.0, clipping=quiet), rows)
    share = np.sum((norms <= bound) - 0.5) / EXPECTED + 0.5
    assert state.bounds[0] == pytest.approx(bound * np.exp(-rate * (share - target)), rel=1e-5)

    loud = Clipping(bound, quantile=Quantile(target, rate, 2.0))
    learner = private(noise=2.0, clipping=loud)
    assert learner._noise == pytest.approx((2.0**-2 - 4.0**-2) ** -0.5)
    with pytest.raises(UserError, match="--privacy.quantile-noise for more than 1 units"):
        private(noise=2.0, clipping=loud._replace(quantile=Quantile(target, rate, 0.9)))


TEXT = Specification((8,), 11)
IMAGE = Specification((12, 12, 2), 3)


@pytest.mark.parametrize(
    ("model", "specification"),
    [
        (MLPConfig(widths=(7, 6), activation="tanh", dropout=0.2), TABLE),
        (CNNConfig("lenet"), IMAGE),
    ],
    ids=["mlp", "cnn"],
)
@pytest.mark.parametrize("by_layer", [False, True], ids=["together", "apart"])
def test_the_quick_way_is_the_plain_one(
    model: Any, specification: Specification, by_layer: bool
) -> None:
    rows = batch_for(specification)
    rows["inputs"][3] = np.nan  # drawn, and dropped by both
    clipping = Clipping(2.0, by_layer)
    ways = ("ghost", "per_example")
    quick, plain = (
        clipped_sum(private(model, specification, clipping=clipping, method=way), rows)
        for way in ways
    )
    assert quick.dropped == 1 and 0 < quick.cut < quick.examples
    # Norms by other products: float32's rounding, and that of sums of cut and uncut examples.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), quick, plain)


def test_what_has_no_quick_way_is_named() -> None:
    small = TransformerConfig(layers=1, width=8, heads=2)
    with pytest.raises(UserError, match="is no linear map or convolution; use --privacy.method"):
        private(small, TEXT, method="ghost")


def test_models_and_meshes_that_mix_examples_are_refused() -> None:
    batch = ResNetConfig(width=8, normalization="batch")
    with pytest.raises(UserError, match="BatchNorm mixes .* use --model.normalization group"):
        private(batch, Specification((8, 8, 3), 3))
    text = TransformerConfig(layers=2, width=8, heads=2)
    with pytest.raises(UserError, match="--mesh.context 2 cannot: use --mesh.context 1, and"):
        private(text, TEXT, MeshConfig(data=1, context=2))
