"""What members learn from: pure functions of (seed, step, member), whoever reads them."""

import numpy as np
import pytest

from research.data import Batches, LabeledArrays, Members, read_rows
from research.errors import UserError

N = 97
SOURCE = LabeledArrays(np.arange(N * 2, dtype=np.float32).reshape(N, 2), np.arange(N) % 7)


def examples(members: Members, member: int, steps: int) -> np.ndarray:
    """Numbers of the examples of a member's first batches, told by their inputs."""
    read = [members.rows(step, [member])["inputs"][0, :, 0] for step in range(steps)]
    return (np.concatenate(read) / 2).astype(int)


def test_member_0_has_the_batches_of_a_single_model() -> None:
    members, alone = Members(SOURCE, 3, 8, seed=5), Batches(SOURCE, 8, seed=5)
    for step in (0, 3, 40):
        mine = members.rows(step, [0])
        for name, leaf in alone.rows(step, np.arange(8)).items():
            np.testing.assert_array_equal(mine[name][0], leaf)


def test_every_member_goes_through_everything_in_an_order_of_its_own() -> None:
    members = Members(SOURCE, 3, 8, seed=5)
    orders = [examples(members, member, 13)[:N] for member in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(N))
    # Two random orders agree in one place on average, and hardly ever in 8.
    assert all((orders[a] == orders[b]).sum() < 8 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_what_a_process_reads_does_not_depend_on_who_reads_the_rest() -> None:
    members = Members(SOURCE, 4, 8, seed=5, share="bagging")
    whole = members.rows(7, np.arange(4))
    assert whole["inputs"].shape == (4, 8, 2) and whole["targets"].shape == (4, 8)
    part = members.rows(7, [3, 1])
    np.testing.assert_array_equal(part["inputs"], whole["inputs"][[3, 1]])
    read = read_rows(SOURCE, members.indexes(7))
    np.testing.assert_array_equal(read["targets"], whole["targets"].reshape(-1))
    stream = members.iterate(6, [2])
    next(stream)
    np.testing.assert_array_equal(next(stream)["inputs"][0], whole["inputs"][2])
    stream.close()


def test_disjoint_parts_have_every_example_once() -> None:
    members = Members(SOURCE, 4, 8, seed=5, share="disjoint")
    parts = [members.examples_of(member) for member in range(4)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(N))
    assert {len(part) for part in parts} == {24, 25}
    for member, part in enumerate(parts):
        assert set(examples(members, member, 20)) == set(part)


def test_a_bootstrap_sample_leaves_out_what_chance_does() -> None:
    members = Members(SOURCE, 8, 8, seed=5, share="bagging")
    kinds = [len(set(members.examples_of(member))) for member in range(8)]
    # An example is in a sample with probability 1 - (1 - 1/n)^n; the deviation of a mean of 8 is 1.
    assert np.mean(kinds) == pytest.approx(N * (1 - (1 - 1 / N) ** N), abs=4)
    seen = examples(members, 2, 13)[:N]
    np.testing.assert_array_equal(np.sort(seen), members.examples_of(2))


def test_parts_that_are_smaller_than_a_batch_are_named() -> None:
    with pytest.raises(UserError, match="have 10 or more each: set --data.batch 10 or less"):
        Members(SOURCE, 9, 16, seed=0, share="disjoint")
