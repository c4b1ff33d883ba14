"""Schedules, decay and names of the optimizers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.errors import UserError
from research.learning import OptimizerConfig
from research.learning.optimizer import decayed, optimizer_names


def test_warmup_and_cosine_are_those_of_nanogpt() -> None:
    """`get_lr` of nanoGPT's train.py, as it reads there."""
    config = OptimizerConfig(
        learning_rate=6e-4, warmup_steps=20, decay_steps=300, final_learning_rate=6e-5
    )
    rate = config.learning_rate_schedule(1000)

    def nanogpt(step: int) -> float:
        if step < 20:
            return 6e-4 * (step + 1) / (20 + 1)
        if step > 300:
            return 6e-5
        ratio = (step - 20) / (300 - 20)
        return 6e-5 + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (6e-4 - 6e-5)

    for step in (0, 1, 19, 20, 21, 160, 299, 300, 301, 999):
        assert float(rate(step)) == pytest.approx(nanogpt(step), rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_final_rate_is_reached_with_the_last_step(schedule: str) -> None:
    config = OptimizerConfig(
        schedule=schedule, learning_rate=1.0, final_learning_rate=0.25, warmup_steps=5
    )
    rate = config.learning_rate_schedule(50)
    assert float(rate(50)) == pytest.approx(0.25)
    assert float(rate(5)) == pytest.approx(1.0)
    assert all(float(rate(s)) > float(rate(s + 1)) for s in range(5, 49))


def test_a_rate_of_zero_is_no_division_by_it() -> None:
    rate = OptimizerConfig(learning_rate=0.0).learning_rate_schedule(10)
    assert float(rate(3)) == 0.0


def test_matrices_decay_and_vectors_do_not_stacked_or_not() -> None:
    parameters = {
        "embedding": jnp.ones((3, 2)),
        "blocks": {
            "norm": {"scale": jnp.ones((4, 2)), "bias": jnp.ones((4, 2))},
            "query": {"kernel": jnp.ones((4, 2, 2, 2)), "bias": jnp.ones((4, 2, 2))},
        },
        "final_norm": {"scale": jnp.ones(2)},
    }
    mask = jax.tree_util.tree_leaves_with_path(decayed(parameters))
    names = ["".join(key.key + "." for key in path) for path, yes in mask if yes]
    assert names == ["blocks.query.kernel.", "embedding."]

    optimizer = OptimizerConfig(
        learning_rate=0.1, schedule="constant", weight_decay=0.5, clip=None
    ).build(10)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = optimizer.update(zeros, optimizer.init(parameters), parameters)
    for (_, update), (_, yes) in zip(
        jax.tree_util.tree_leaves_with_path(updates), mask, strict=True
    ):
        np.testing.assert_allclose(update, -0.1 * 0.5 if yes else 0.0)


def test_clipping_comes_before_the_optimizer() -> None:
    config = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="constant", clip=1.0)
    optimizer = config.build(10)
    parameters = {"w": jnp.zeros(2)}
    updates, _ = optimizer.update({"w": jnp.array([30.0, 40.0])}, optimizer.init(parameters))
    np.testing.assert_allclose(updates["w"], [-0.6, -0.8], rtol=1e-6)


def test_beta1_is_the_momentum_of_sgd() -> None:
    config = OptimizerConfig(
        name="sgd", learning_rate=1.0, schedule="constant", beta1=0.5, clip=None
    )
    optimizer = config.build(10)
    state = optimizer.init({"w": jnp.zeros(1)})
    for wanted in (-1.0, -1.5, -1.75):
        updates, state = optimizer.update({"w": jnp.ones(1)}, state)
        assert float(updates["w"][0]) == pytest.approx(wanted)


def test_every_name_that_is_offered_makes_a_step() -> None:
    parameters = {"w": jnp.ones((4, 3))}
    names = optimizer_names()
    assert {"adamw", "adam", "sgd", "lion", "lamb", "adafactor"} <= set(names)
    for name in names:
        optimizer = OptimizerConfig(name=name, schedule="constant").build(10)
        state = optimizer.init(parameters)
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, parameters), state, parameters)
        applied = optax.apply_updates(parameters, updates)
        assert np.isfinite(applied["w"]).all(), name


def test_what_optax_does_not_have_is_named() -> None:
    with pytest.raises(UserError, match=r"no optimizer `adamx`: did you mean .*adam"):
        OptimizerConfig(name="adamx").build(10)
    with pytest.raises(UserError, match=r"optax.sgd takes no argument `b3`: it takes .*momentum"):
        OptimizerConfig(name="sgd", arguments={"b3": 1.0}).build(10)
