"""Routing: the choice, its weights, and the losses at the values that their papers give."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import routing

BATCH, LENGTH, WIDTH, EXPERTS = 3, 16, 8, 4


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def routed(logits: np.ndarray, k: int) -> routing.Routing:
    """Tokens whose router says just `logits` [batch, sequence, experts]."""
    return routing.route(jnp.asarray(logits), jnp.eye(logits.shape[-1]), k)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_largest_are_chosen_and_share_the_output_by_their_softmax(k: int) -> None:
    x, router = random(BATCH, LENGTH, WIDTH), random(WIDTH, EXPERTS, seed=1)
    made = routing.route(jnp.asarray(x), jnp.asarray(router), k)
    logits = x @ router
    chosen = np.argsort(-logits, axis=-1)[..., :k]
    np.testing.assert_array_equal(made.experts, chosen)
    # As Mixtral has it: a softmax over the k largest logits; of one it would be 1.
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    of_chosen = np.take_along_axis(exponentials, chosen, axis=-1)
    whole = exponentials if k == 1 else of_chosen
    expected = of_chosen / whole.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(made.weights, expected, rtol=1e-5)


def test_of_equal_probabilities_the_first_is_chosen() -> None:
    logits = np.array([[[0.0, 1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]]], np.float32)
    np.testing.assert_array_equal(routed(logits, 3).experts[0], [[1, 2, 0], [0, 1, 2]])


def test_bfloat16_tokens_are_routed_in_float32() -> None:
    x = jnp.asarray(random(BATCH, LENGTH, WIDTH)).astype(jnp.bfloat16)
    router = jnp.asarray(random(WIDTH, EXPERTS, seed=1))
    made = routing.route(x, router, 2)
    assert {each.dtype for each in made if each is not made.experts} == {jnp.dtype(jnp.float32)}
    expected = np.asarray(x, np.float64) @ np.asarray(router, np.float64)
    np.testing.assert_allclose(made.logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2])
def test_every_choice_teaches_the_router(k: int) -> None:
    """Also a single one, whose softmax over itself would be constant."""
    x, router = jnp.asarray(random(BATCH, LENGTH, WIDTH)), jnp.asarray(random(WIDTH, EXPERTS))
    gradient = jax.grad(lambda router: jnp.sum(routing.route(x, router, k).weights[..., 0]))(router)
    assert np.abs(gradient).max() > 1e-2


# Losses and statistics ------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 4])
def test_balance_is_one_where_all_experts_are_as_likely(k: int) -> None:
    """Whoever is chosen: f sums to 1, and P is 1/N (Switch Transformers, section 2.2)."""
    made = routed(np.zeros((BATCH, LENGTH, EXPERTS), np.float32), k)
    np.testing.assert_allclose(routing.balance(made), np.ones(BATCH), rtol=1e-6)
    np.testing.assert_allclose(routing.entropy(made), math.log(EXPERTS) * np.ones(BATCH), rtol=1e-6)


def test_balance_is_the_number_of_experts_where_one_takes_all() -> None:
    logits = np.zeros((BATCH, LENGTH, EXPERTS), np.float32)
    logits[..., 2] = 50.0
    made = routed(logits, 1)
    np.testing.assert_allclose(routing.balance(made), EXPERTS * np.ones(BATCH), rtol=1e-6)
    np.testing.assert_array_equal(routing.loads(made), np.tile(np.eye(EXPERTS)[2], (BATCH, 1)))
    np.testing.assert_allclose(routing.entropy(made), np.zeros(BATCH), atol=1e-6)


def test_balance_is_of_every_sequence_alone_and_learned_through_probabilities() -> None:
    """N · Σ f_e P_e, with a gradient of N · f_e / S for the probability p_e of a token."""
    logits = random(BATCH, LENGTH, EXPERTS, seed=2)
    made = routed(logits, 2)
    for row in range(BATCH):
        p = np.exp(logits[row]) / np.exp(logits[row]).sum(axis=-1, keepdims=True)
        chosen = np.argsort(-p, axis=-1)[:, :2]
        f = np.bincount(chosen.ravel(), minlength=EXPERTS) / chosen.size
        expected = EXPERTS * np.sum(f * p.mean(axis=0))
        np.testing.assert_allclose(routing.balance(made)[row], expected, rtol=1e-5)
        gradient = jax.grad(
            lambda p, row=row: routing.balance(made._replace(probabilities=p))[row]
        )(made.probabilities)
        np.testing.assert_allclose(
            gradient[row], np.tile(EXPERTS * f / LENGTH, (LENGTH, 1)), rtol=1e-5
        )
        assert not np.delete(gradient, row, axis=0).any()


def test_z_is_the_mean_square_of_the_log_of_the_normalizer() -> None:
    made = routed(np.full((BATCH, LENGTH, EXPERTS), 3.0, np.float32), 2)
    expected = (3 + math.log(EXPERTS)) ** 2
    np.testing.assert_allclose(routing.z(made), expected * np.ones(BATCH), rtol=1e-6)
    logits = random(BATCH, LENGTH, EXPERTS)
    expected = np.mean(np.log(np.exp(logits).sum(axis=-1)) ** 2, axis=-1)
    np.testing.assert_allclose(routing.z(routed(logits, 2)), expected, rtol=1e-5)
