"""Cross-entropy as sums and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.learning import Totals, cross_entropy


def reference(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log softmax(logits)[target], in float64."""
    logits = logits.astype(np.float64)
    normalizer = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
    chosen = np.take_along_axis(logits - logits.max(-1, keepdims=True), targets[..., None], -1)
    return normalizer - chosen[..., 0]


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    logits = 5 * generator.normal(size=(6, 7, 11)).astype(np.float32)
    return logits, generator.integers(11, size=(6, 7))


def test_the_sum_is_that_of_the_definition(batch: tuple[np.ndarray, np.ndarray]) -> None:
    logits, targets = batch
    totals = cross_entropy(jnp.array(logits), jnp.array(targets))
    # 42 float32 losses of size 10, each rounded at 2^-24 of itself.
    assert float(totals.loss) == pytest.approx(reference(logits, targets).sum(), rel=1e-6)
    assert float(totals.correct) == (logits.argmax(-1) == targets).sum()
    assert float(totals.targets) == 42


def test_weights_count_examples_and_all_their_tokens(
    batch: tuple[np.ndarray, np.ndarray],
) -> None:
    logits, targets = batch
    weights = np.array([1, 0, 1, 1, 0, 1], np.float32)
    totals = cross_entropy(jnp.array(logits), jnp.array(targets), jnp.array(weights))
    kept = weights.astype(bool)
    wanted = reference(logits[kept], targets[kept]).sum()
    assert float(totals.loss) == pytest.approx(wanted, rel=1e-6)
    assert float(totals.targets) == 4 * 7


def test_parts_of_unequal_size_add_up_to_the_whole(batch: tuple[np.ndarray, np.ndarray]) -> None:
    logits, targets = batch
    whole = cross_entropy(jnp.array(logits), jnp.array(targets))
    parts = [
        cross_entropy(jnp.array(logits[p]), jnp.array(targets[p])) for p in (slice(1), slice(1, 6))
    ]
    total: Totals = parts[0].add(parts[1])
    for here, there in zip(total, whole, strict=True):
        assert float(here) == pytest.approx(float(there), rel=1e-6)


def test_the_gradient_is_softmax_minus_target(batch: tuple[np.ndarray, np.ndarray]) -> None:
    logits, targets = batch
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.array(targets)).loss)(jnp.array(logits))
    wanted = np.exp(logits - logits.max(-1, keepdims=True))
    wanted = wanted / wanted.sum(-1, keepdims=True) - np.eye(11)[targets]
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_logits_that_exp_cannot_hold_are_no_overflow() -> None:
    logits = jnp.array([[1e4, 0.0], [-1e30, 1e30]])
    totals = cross_entropy(logits, jnp.array([1, 1]))
    assert float(totals.loss) == 1e4
