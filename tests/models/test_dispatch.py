"""Dispatch: GShard's rule of who is seated, and moves whose gradients are moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.dispatch import capacity_of, order, seats, take


def choices(batch: int, tokens: int, k: int, experts: int, seed: int = 0) -> np.ndarray:
    """Random experts [batch, tokens, k], no token's twice, expert 0 the most wanted."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(batch, tokens, experts))
    scores[..., 0] += 1
    return np.argsort(-scores, axis=-1)[..., :k].astype(np.int32)


def gshard(experts: np.ndarray, count: int, capacity: int) -> dict[tuple[int, int], int]:
    """Algorithm 1 of arXiv:2006.16668 for one sequence [tokens, k], one assignment after another:
    the seat of every (token, choice) that gets one."""
    taken, seated = [0] * count, {}
    for choice in range(experts.shape[1]):
        for token in range(experts.shape[0]):
            expert = int(experts[token, choice])
            if taken[expert] < capacity:
                seated[token, choice] = expert * capacity + taken[expert]
                taken[expert] += 1
    return seated


@pytest.mark.parametrize("capacity", [1, 3, 5, 12])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_first_choices_sit_before_second_ones_and_earlier_tokens_before_later(
    k: int, capacity: int
) -> None:
    batch, tokens, count = 3, 12, 4
    experts = choices(batch, tokens, k, count)
    made = seats(jnp.asarray(experts), count, capacity)
    dropped = 0
    for row in range(batch):
        seated = gshard(experts[row], count, capacity)
        dropped += tokens * k - len(seated)
        seat = np.full((tokens, k), count * capacity)
        taken = np.full(count * capacity, tokens)
        assignment = np.full(count * capacity, tokens * k)
        for (token, choice), place in seated.items():
            seat[token, choice] = place
            taken[place], assignment[place] = token, token * k + choice
        np.testing.assert_array_equal(made.seat[row], seat)
        np.testing.assert_array_equal(made.taken[row].ravel(), taken)
        np.testing.assert_array_equal(made.assignment[row].ravel(), assignment)
    assert (dropped > 0) == (capacity < 12)


def test_a_second_choice_waits_for_the_first_choices_of_later_tokens() -> None:
    """Three tokens, two experts of two seats: the last token's first choice takes the seat."""
    experts = jnp.array([[[1, 0], [0, 1], [0, 1]]])
    made = seats(experts, 2, 2)
    np.testing.assert_array_equal(made.seat[0], [[2, 4], [0, 3], [1, 4]])


@pytest.mark.parametrize(
    ("factor", "capacity"), [(1.0, 4), (1.25, 5), (1.01, 5), (0.01, 1), (3.9, 16), (100.0, 16)]
)
def test_capacity_is_rounded_up_and_at_most_the_tokens(factor: float, capacity: int) -> None:
    """16 tokens with 2 choices of 8 experts: an even share is 4."""
    assert capacity_of(factor, tokens=16, k=2, experts=8) == capacity


def test_order_is_a_stable_sort() -> None:
    experts = np.random.default_rng(0).integers(0, 4, 40).astype(np.int32)  # 3: of nobody
    made = order(jnp.asarray(experts), 3)
    expected = np.argsort(experts, kind="stable")
    np.testing.assert_array_equal(made.sorted, expected)
    np.testing.assert_array_equal(made.place[expected], np.arange(40))
    np.testing.assert_array_equal(made.counts, np.bincount(experts, minlength=4)[:3])
    np.testing.assert_array_equal(made.starts, np.searchsorted(experts[expected], range(3)))


@pytest.mark.parametrize("k", [1, 2])
def test_rows_that_are_taken_give_their_gradients_back(k: int) -> None:
    batch, tokens, count, capacity, width = 2, 12, 4, 4, 5
    made = seats(jnp.asarray(choices(batch, tokens, k, count)), count, capacity)
    index = np.asarray(made.taken).reshape(batch, -1)
    rows = np.random.default_rng(1).normal(size=(batch, tokens, width)).astype(np.float32)
    padded = np.concatenate([rows, np.zeros((batch, 1, width), np.float32)], axis=1)
    there, back = jax.vjp(lambda rows: take(rows, jnp.asarray(index), made.seat), rows)
    np.testing.assert_array_equal(there, padded[np.arange(batch)[:, None], index])
    gradient = np.random.default_rng(2).normal(size=there.shape).astype(np.float32)
    expected = np.zeros_like(padded)
    np.add.at(expected, (np.arange(batch)[:, None], index), gradient)
    # Sums of at most k numbers.
    np.testing.assert_allclose(back(jnp.asarray(gradient))[0], expected[:, :-1], rtol=1e-6)
