"""A mixture of experts against the definition: every expert evaluated on every token."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from research.learning import Synchronous, TrainState
from research.models import Specification, TransformerConfig
from research.models.mixture import Mixture
from research.parallel.layout import batch_sharding, place
from research.parallel.mesh import MeshConfig

BATCH, LENGTH, WIDTH, EXPERTS = 8, 16, 32, 8
SPECIFICATION = Specification((LENGTH,), 50)
# A wide start: logits of order one, so that no choice hangs on rounding.
CONFIG = TransformerConfig(
    layers=2,
    width=WIDTH,
    heads=4,
    hidden=40,
    experts=EXPERTS,
    initial_deviation=0.2,
    balance_loss=0.1,
    router_z_loss=0.01,
)
MESHES = {
    "one": None,
    "data2-expert4": MeshConfig(data=2, expert=4),
    "expert2-fsdp2-tensor2": MeshConfig(data=1, expert=2, fsdp=2, tensor=2),
}
# Sums of up to 128 float32 terms of order one, in another order.
TOLERANCE = 2e-5

Weights = dict[str, jax.Array]


def dense(
    config: TransformerConfig, weights: Weights, x: jax.Array, capacity: int | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mixture of `x`, and what its router adds to the metrics, all by their definitions.

    Places are counted by a cumulative sum, as in algorithm 1 of GShard.
    """
    count, k = config.experts, config.experts_per_token
    logits = x @ weights["router"]
    p = jax.nn.softmax(logits)
    chosen, experts = jax.lax.top_k(p, k)
    shares = chosen if k == 1 else chosen / chosen.sum(axis=-1, keepdims=True)
    hot = jax.nn.one_hot(experts, count)  # [batch, token, k, expert]
    kept = hot
    if capacity is not None:
        in_turn = hot.swapaxes(1, 2).reshape(len(x), -1, count)  # first choices first
        in_turn = in_turn * (jnp.cumsum(in_turn, axis=1) <= capacity)
        kept = in_turn.reshape(len(x), k, -1, count).swapaxes(1, 2)
    up = jnp.einsum("bsd,edh->bseh", x, weights["up"])
    if config.activation == "swiglu":
        hidden = up * jax.nn.silu(jnp.einsum("bsd,edh->bseh", x, weights["gate"]))
    else:
        hidden = jax.nn.gelu(up)
    every = jnp.einsum("bseh,ehd->bsed", hidden, weights["down"])
    mixed = jnp.einsum("bske,bsk,bsed->bsd", kept, shares, every)
    loads = hot.mean(axis=(1, 2))  # [batch, expert]
    return mixed, {
        "balance_loss": config.balance_loss * count * (loads * p.mean(axis=1)).sum(-1).mean(),
        "router_z_loss": config.router_z_loss * jnp.mean(jnp.log(jnp.exp(logits).sum(-1)) ** 2),
        "router_entropy": -jnp.mean((p * jnp.log(p)).sum(-1)),
        "expert_load_max": count * loads.max(axis=-1).mean(),
        "dropped_share": 1 - kept.sum() / hot.sum(),
    }


def capacity(config: TransformerConfig) -> int | None:
    if config.capacity_factor is None:
        return None
    share = config.capacity_factor * LENGTH * config.experts_per_token / EXPERTS
    return int(np.ceil(share))


def mixture(config: TransformerConfig) -> tuple[Callable[..., jax.Array], Weights]:
    """A function of weights and tokens, and its weights."""
    graph, state = nnx.split(Mixture(config, nnx.Rngs(0)))

    def function(weights: Weights, x: jax.Array, training: bool = True) -> jax.Array:
        return nnx.merge(graph, weights)(x, training)[0]

    return function, nnx.to_pure_dict(state)


def inputs(seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (BATCH, LENGTH, WIDTH))


def compiled(mesh: MeshConfig | None, function: Callable[..., Any], *arguments: Any) -> Any:
    if mesh is None:
        return jax.jit(function)(*arguments)
    with jax.set_mesh(mesh.build(jax.devices("cpu")[:8])):
        return jax.device_get(jax.jit(function)(*jax.device_get(arguments)))


def assert_equal(made: Any, expected: Any) -> None:
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    for leaf, other in zip(*map(jax.tree.leaves, (made, expected)), strict=True):
        largest = float(np.abs(other).max())
        np.testing.assert_allclose(leaf, other, rtol=0, atol=TOLERANCE * max(largest, 1.0))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("factor", [None, EXPERTS / 2, 1.0], ids=["dropless", "large", "dropping"])
@pytest.mark.parametrize(("activation", "k"), [("gelu", 2), ("swiglu", 2), ("gelu", 1)])
def test_outputs_and_gradients_are_those_of_every_expert_on_every_token(
    activation: Any, k: int, factor: float | None, mesh: str
) -> None:
    """With large capacity nothing is dropped: a factor of N/k seats every token everywhere."""
    config = replace(CONFIG, activation=activation, experts_per_token=k, capacity_factor=factor)
    function, weights = mixture(config)
    cotangent = inputs(seed=2)

    def with_gradients(mix: Callable[..., jax.Array]) -> Callable[..., Any]:
        def run(weights: Weights, x: jax.Array) -> Any:
            made, back = jax.vjp(mix, weights, x)
            return made, back(cotangent)

        return run

    places = None if factor == EXPERTS / 2 and k == 2 else capacity(config)
    expected = with_gradients(lambda w, x: dense(config, w, x, places)[0])(weights, inputs())
    assert_equal(compiled(MESHES[mesh], with_gradients(function), weights, inputs()), expected)


# Capacity -------------------------------------------------------------------------------------


def test_who_is_dropped_by_all_goes_on_with_the_residual_stream_alone() -> None:
    """One expert is wanted by all, and has two seats: the first two tokens take them."""
    config = replace(CONFIG, experts_per_token=1, capacity_factor=1.0)
    function, weights = mixture(config)
    weights["router"] = jnp.zeros_like(weights["router"]).at[0, 3].set(100.0)
    x = inputs().at[..., 0].set(1.0)
    made = function(weights, x)
    assert np.abs(made[:, :2]).min(axis=-1).all()
    np.testing.assert_array_equal(made[:, 2:], np.zeros((BATCH, LENGTH - 2, WIDTH)))

    model = replace(config, layers=1, positions="rotary").build(SPECIFICATION, jax.random.key(0))
    blocks = nnx.state(model.blocks)
    blocks["mlp"]["router"][...] = jnp.zeros((1, WIDTH, EXPERTS))  # all to the first expert
    nnx.update(model.blocks, blocks)
    x, keys = model.embed(tokens()), jax.random.split(jax.random.key(0), BATCH)
    block = jax.tree.map(lambda leaf: leaf[0], model.blocks)
    attended = x + block.attention(block.attention_norm(x))
    after, _ = model.run(x, keys)
    np.testing.assert_allclose(after[:, 2:], attended[:, 2:], rtol=0, atol=1e-6)
    assert not np.allclose(after[:, :2], attended[:, :2])


@pytest.mark.parametrize("mesh", MESHES)
def test_evaluation_drops_nothing(mesh: str) -> None:
    config = replace(CONFIG, capacity_factor=0.25)
    function, weights = mixture(config)
    made = compiled(MESHES[mesh], lambda w, x: function(w, x, training=False), weights, inputs())
    assert_equal(made, dense(config, weights, inputs())[0])
    assert np.abs(made - function(weights, inputs())).max() > 0.1


@pytest.mark.parametrize("factor", [None, 1.0])
def test_in_evaluation_a_token_sees_nothing_after_itself(factor: float | None) -> None:
    """In training a seat may go to a later token's first choice."""
    model = replace(CONFIG, capacity_factor=factor).build(SPECIFICATION, jax.random.key(0))
    first, second = tokens(), tokens()
    second[:, 9:] = (second[:, 9:] + 1) % 50
    before, after = (jax.jit(model)(rows) for rows in (first, second))
    # The rows of an expert are multiplied in blocks, and come to stand at other places in them.
    np.testing.assert_allclose(before[:, :9], after[:, :9], rtol=0, atol=1e-5)
    assert not np.allclose(before[:, 9:], after[:, 9:], rtol=0, atol=1e-2)


# Learning -------------------------------------------------------------------------------------


def tokens(seed: int = 0, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, (BATCH, length)).astype(np.int32)


def learner(config: TransformerConfig, mesh: MeshConfig, rate: float = 1e-2) -> Synchronous:
    size = int(np.prod([mesh.data, mesh.fsdp, mesh.expert, mesh.tensor]))
    built = mesh.build(jax.devices("cpu")[:size])
    optimizer, schedule = optax.adam(rate), optax.constant_schedule(rate)
    return Synchronous(config, SPECIFICATION, optimizer, schedule, built)


def steps(here: Synchronous, count: int) -> tuple[TrainState, list[dict[str, float]]]:
    """The initial state, and the metrics of `count` steps on one batch."""
    rows = tokens(length=LENGTH + 1)
    with jax.set_mesh(here.mesh):
        initial = jax.device_get(here.init())
        state = jax.device_put(initial, here.shardings)
        sharding, made = batch_sharding(here.mesh, BATCH), []
        batch = place({"inputs": rows[:, :-1], "targets": rows[:, 1:]}, sharding, BATCH)
        for _ in range(count):
            state, metrics = here.step(state, batch)
            made.append({name: float(value) for name, value in metrics.items()})
    return initial, made


def by_definition(
    config: TransformerConfig, model: Any, rows: np.ndarray
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss with penalties, and what the router adds to the metrics, layer by layer."""
    x, added = model.embed(rows[:, :-1]), []
    for layer in range(config.layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], model.blocks)
        x = x + block.attention(block.attention_norm(x))
        weights = nnx.to_pure_dict(nnx.state(block.mlp))
        mixed, more = dense(config, weights, block.mlp_norm(x), capacity(config))
        x = x + mixed
        added.append(more)
    losses = {"balance_loss", "router_z_loss"}  # are added up over layers
    metrics = {
        name: sum(each[name] for each in added) / (1 if name in losses else config.layers)
        for name in added[0]
    }
    logits = jax.nn.log_softmax(model.read(x))
    metrics["loss"] = -jnp.mean(jnp.take_along_axis(logits, rows[:, 1:, None], axis=-1))
    return metrics["loss"] + metrics["balance_loss"] + metrics["router_z_loss"], metrics


@pytest.mark.parametrize("mesh", [MeshConfig(data=1), MeshConfig(data=2, expert=4)], ids=str)
@pytest.mark.parametrize("factor", [None, 1.0])
def test_a_step_reports_the_router_and_learns_its_losses(
    factor: float | None, mesh: MeshConfig
) -> None:
    config = replace(CONFIG, capacity_factor=factor)
    here = learner(config, mesh)
    initial, (reported,) = steps(here, 1)

    def objective(parameters: Any) -> Any:
        model = nnx.merge(here.graph, parameters, initial.buffers)
        return by_definition(config, model, tokens(length=LENGTH + 1))

    gradients, metrics = jax.jit(jax.grad(objective, has_aux=True))(initial.parameters)
    for name, value in metrics.items():
        assert reported[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert (reported["dropped_share"] > 0.05) == (factor is not None)
    assert reported["gradient_norm"] == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-4)
    plain = jax.jit(jax.grad(lambda p: objective(p)[1]["loss"]))(initial.parameters)
    assert reported["gradient_norm"] != pytest.approx(float(optax.tree.norm(plain)), rel=1e-3)


@pytest.mark.parametrize(("k", "factor"), [(2, None), (2, 1.25), (1, 1.25)])
def test_it_learns(k: int, factor: float | None) -> None:
    """A batch by heart, from ln 50 = 3.9 nats, by experts that stay busy."""
    config = replace(CONFIG, experts_per_token=k, capacity_factor=factor, initial_deviation=0.1)
    _, metrics = steps(learner(config, MeshConfig(data=2, expert=4)), 30)
    assert metrics[0]["loss"] > 3.5 and metrics[-1]["loss"] < 1.0
    assert metrics[-1]["expert_load_max"] < EXPERTS / 2
