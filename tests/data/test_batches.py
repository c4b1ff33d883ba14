"""Data order: a pure function of (seed, step), whoever reads it and from wherever it starts."""

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from research.data.batches import Batches, evaluation_batches, shuffled
from research.data.dataset import LabeledArrays
from research.errors import UserError


def numbered(examples: int) -> LabeledArrays:
    """A source whose example `i` has the input `[i, i]` and the label `i`."""
    numbers = np.arange(examples)
    return LabeledArrays(np.stack([numbers, numbers], axis=1), numbers)


class OneByOne:
    """A source with no `rows` of its own."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"inputs": np.full(3, index), "targets": np.array(index, np.int32)}


@pytest.mark.parametrize("examples", [1, 2, 3, 5, 16, 17, 399, 1437, 100_003])
def test_every_epoch_holds_every_example_once(examples):
    for epoch in range(3):
        order = shuffled(np.arange(examples), examples, seed=7, epoch=epoch)
        np.testing.assert_array_equal(np.sort(order), np.arange(examples))


def test_each_place_is_as_likely_for_each_example():
    epochs, examples = 4000, 17
    counts = np.zeros((examples, examples))
    for epoch in range(epochs):
        order = shuffled(np.arange(examples), examples, seed=0, epoch=epoch)
        counts[np.arange(examples), order] += 1
    expected = epochs / examples
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # (17 - 1)^2 = 256 degrees of freedom, standard deviation sqrt(512) = 23: five of them.
    assert abs(chi_square - 256) < 5 * 23


def test_neighboring_seeds_and_epochs_share_no_order():
    places = np.arange(1000)
    orders = [shuffled(places, 1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    for one, other in itertools.combinations(orders, 2):
        # Two random permutations agree in one place on average; 10 are beyond chance (1e-7).
        assert (one == other).sum() < 10


def test_steps_walk_the_epochs_without_a_gap_where_the_batch_does_not_divide_them():
    batches = Batches(numbered(10), batch=4, seed=3)
    seen = np.concatenate([batches.indexes(step) for step in range(5)])  # two epochs
    np.testing.assert_array_equal(np.sort(seen[:10]), np.arange(10))
    np.testing.assert_array_equal(np.sort(seen[10:]), np.arange(10))
    assert (seen[:10] != seen[10:]).any()


def test_a_late_step_is_the_same_asked_for_directly_and_reached_by_iterating():
    batches = Batches(numbered(1437), batch=64, seed=5)
    direct = batches.rows(1000, range(64))
    reached = next(itertools.islice(batches.iterate(0, range(64)), 1000, None))
    resumed = next(batches.iterate(1000, range(64)))
    for name in ("inputs", "targets"):
        np.testing.assert_array_equal(reached[name], direct[name])
        np.testing.assert_array_equal(resumed[name], direct[name])


def test_four_hosts_read_together_what_one_reads_alone():
    batches = Batches(numbered(500), batch=32, seed=1)
    whole = batches.rows(40, range(32))  # the batch holds the end of one epoch and a new one
    hosts = [batches.rows(40, range(8 * host, 8 * host + 8)) for host in range(4)]
    for name in whole:
        together = np.concatenate([host[name] for host in hosts])
        np.testing.assert_array_equal(together, whole[name])
    np.testing.assert_array_equal(whole["targets"], batches.indexes(40))


def test_a_source_without_rows_is_read_one_by_one():
    batch = Batches(OneByOne(), batch=4, seed=0).rows(2, [3, 0])
    indexes = Batches(OneByOne(), batch=4, seed=0).indexes(2)
    assert batch["inputs"].shape == (2, 3)
    np.testing.assert_array_equal(batch["targets"], indexes[[3, 0]])


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"batch 512 is more than the 399 training examples"):
        Batches(numbered(399), batch=512, seed=0)
    with pytest.raises(UserError, match="batch of 0"):
        Batches(numbered(399), batch=0, seed=0)


def test_evaluation_reads_all_in_order_and_weighs_the_padding_nothing():
    batches = list(evaluation_batches(numbered(10), batch=4, rows=range(4)))
    targets = np.concatenate([batch["targets"] for batch in batches])
    weights = np.concatenate([batch["weights"] for batch in batches])
    assert weights.dtype == np.float32 and len(weights) == 12
    np.testing.assert_array_equal(targets[weights == 1], np.arange(10))
    assert {batch["inputs"].shape for batch in batches} == {(4, 2)}


def test_a_host_whose_rows_are_all_padding_still_gets_a_batch():
    batches = list(evaluation_batches(numbered(9), batch=4, rows=[2, 3]))
    assert [batch["weights"].tolist() for batch in batches] == [[1, 1], [1, 1], [0, 0]]


def test_limited_evaluation_is_spread_over_the_source():
    batches = evaluation_batches(numbered(1000), batch=5, rows=range(5), limit=2)
    targets = np.concatenate([batch["targets"] for batch in batches])
    np.testing.assert_array_equal(targets, np.arange(0, 1000, 100))


def wait_for_prefetching():
    """Until threads that were told to end have ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join(timeout=5)


def test_closing_the_iterator_ends_its_thread():
    wait_for_prefetching()  # those of the tests before, which are not to be counted
    before = threading.active_count()
    iterator = Batches(numbered(100), batch=4, seed=0).iterate(0, range(4))
    next(iterator)
    assert threading.active_count() > before
    iterator.close()
    wait_for_prefetching()
    assert threading.active_count() == before


def test_a_process_that_fails_and_forgets_to_close_still_ends():
    program = (
        "import numpy as np\n"
        "from research.data.batches import Batches\n"
        "from research.data.dataset import LabeledArrays\n"
        "source = LabeledArrays(np.zeros((50, 2)), np.arange(50))\n"
        "iterator = Batches(source, 4, 0).iterate(0, range(4))\n"
        "next(iterator)\n"
        "raise SystemExit(3)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=90, check=False)
    assert ended.returncode == 3
