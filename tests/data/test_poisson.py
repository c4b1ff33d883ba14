"""Poisson batches: the distribution that is accounted, on as many places as it asks for."""

import numpy as np
import pytest
from scipy.stats import binom

from research.data import BatchesInTurn, LabeledArrays, PoissonBatches
from research.data.poisson import TAIL, drawn, places_for

COUNT = 50
SOURCE = LabeledArrays(np.arange(COUNT)[:, None].astype(np.float32), np.arange(COUNT))


def batches(seed: int = 3, probability: float = 0.25) -> PoissonBatches:
    return PoissonBatches(SOURCE, probability, rows=48, microbatches=6, seed=seed)


@pytest.mark.parametrize(("count", "q"), [(60_000, 256 / 60_000), (1_437, 0.2), (40, 0.5)])
def test_places_are_as_many_as_the_tail_allows(count: int, q: float) -> None:
    places = places_for(count, q)
    assert binom.logsf(places, count, q) <= np.log(TAIL)
    assert places <= min(count, count * q + 12 * np.sqrt(count * q * (1 - q)))


def test_in_turn_every_example_comes_once_a_pass_in_a_group_of_its_own_draw() -> None:
    made = BatchesInTurn(SOURCE, 5, rows=48, microbatches=6, seed=3)
    first = [made.indexes(step) for step in range(5)]
    np.testing.assert_array_equal(np.sort(np.concatenate(first)), np.arange(COUNT))
    for step in range(5):
        np.testing.assert_array_equal(made.indexes(step + 10), first[step])
    assert made.rows(7, range(48))["weights"].sum() == len(first[2])
    # With one example less, all others stay where they were.
    fewer = LabeledArrays(SOURCE.inputs[:-1], SOURCE.targets[:-1])
    others = BatchesInTurn(fewer, 5, rows=48, microbatches=6, seed=3)
    for step in range(5):
        np.testing.assert_array_equal(others.indexes(step), np.setdiff1d(first[step], [COUNT - 1]))


def test_everything_may_be_drawn() -> None:
    assert places_for(100, 1.0) == 100
    np.testing.assert_array_equal(drawn(100, 1.0, 0, 0, 100), np.arange(100))


def test_every_example_is_drawn_by_a_coin_of_its_own() -> None:
    steps, q = 4_000, 0.3
    taken = np.zeros((steps, COUNT))
    for step in range(steps):
        taken[step, drawn(COUNT, q, 7, step, COUNT)] = 1
    deviation = np.sqrt(q * (1 - q) / steps)
    assert np.abs(taken.mean(axis=0) - q).max() < 5 * deviation
    sizes = taken.sum(axis=1)
    assert sizes.var() == pytest.approx(COUNT * q * (1 - q), rel=0.15)
    pairs = np.corrcoef(taken, rowvar=False) - np.eye(COUNT)
    assert np.abs(pairs).max() < 5.5 / np.sqrt(steps)


def test_a_step_is_a_function_of_seed_and_step() -> None:
    one, again, other = batches(), batches(), batches(seed=4)
    assert [one.indexes(s).tolist() for s in range(5)] == [
        again.indexes(s).tolist() for s in reversed(range(5))
    ][::-1]
    assert one.indexes(2).tolist() != one.indexes(3).tolist()
    assert one.indexes(2).tolist() != other.indexes(2).tolist()


def test_microbatches_fill_up_one_after_another() -> None:
    made = batches()
    for step in range(20):
        rows = made.rows(step, range(48))
        weights = rows["weights"].reshape(8, 6).T  # row i is in microbatch i mod 6
        counts = weights.sum(axis=1)
        full = len(made.indexes(step)) // 8
        assert (counts[:full] == 8).all() and (counts[full + 1 :] == 0).all()
        chosen = rows["targets"][rows["weights"] > 0]
        assert sorted(chosen) == made.indexes(step).tolist()


def test_each_reader_reads_its_rows() -> None:
    whole = batches().rows(5, range(48))
    part = batches().rows(5, [3, 40, 7])
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][[3, 40, 7]])
    ahead = next(batches().iterate(5, range(48)))
    np.testing.assert_array_equal(ahead["inputs"], whole["inputs"])


def test_what_has_no_place_is_left_out_at_random() -> None:
    few = [drawn(COUNT, 0.5, 0, step, 10) for step in range(300)]
    assert {len(each) for each in few} == {10}
    assert np.bincount(np.concatenate(few), minlength=COUNT).min() > 30
