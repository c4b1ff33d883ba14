"""Cohorts: who takes part in a round, and with which batches."""

from typing import Any

import numpy as np
import pytest

from research.data import Clients, Cohorts, LabeledArrays
from research.errors import UserError

SIZES = [3, 8, 1, 12, 5, 4]
OWNERS = np.repeat(np.arange(6), SIZES)
LABELS = np.arange(33) % 2


def cohorts(cohort: int = 3, batch: int | None = 4, epochs: int = 1, **words: Any) -> Cohorts:
    data = LabeledArrays(np.arange(33, dtype=np.float32)[:, None], LABELS)
    clients = Clients.of(OWNERS, LABELS, 2, tuple("abcdef"))
    return Cohorts(data, clients, cohort, batch, epochs, words.pop("seed", 0), **words)


def seen(rows: Any, row: int) -> list[int]:
    """The examples that count in a client's row, in order."""
    return rows["inputs"][row, ..., 0][rows["weights"][row] > 0].astype(int).tolist()


def test_a_client_goes_through_its_examples_once_an_epoch() -> None:
    reader = cohorts(cohort=6, epochs=2)
    rows = reader.rows(5, range(6))
    assert rows["inputs"].shape == (6, 2 * 3, 4, 1) and reader.steps == 6
    for row, client in enumerate(rows["client"]):
        examples = seen(rows, row)
        own = np.flatnonzero(client == OWNERS).tolist()
        first, second = examples[: len(own)], examples[len(own) :]
        assert sorted(first) == sorted(second) == own
        assert rows["steps"][row] == 2 * -(-len(own) // 4)
        assert rows["examples"][row] == len(own)
        assert rows["weights"][row, rows["steps"][row] :].sum() == 0  # only fills up
    assert any(seen(rows, row) != sorted(seen(rows, row)) for row in range(6))


def test_a_client_may_stop_before_the_end_of_an_epoch() -> None:
    """2 steps of 4: 3, 8, 1, 8, 5 and 4 examples, other ones in every round."""
    reader = cohorts(cohort=6, most=2)
    rows = [reader.rows(step, range(6)) for step in (0, 1)]
    assert rows[0]["inputs"].shape == (6, 2, 4, 1) and reader.steps == 2
    for row, client in enumerate(rows[0]["client"]):
        examples = seen(rows[0], row)
        assert len(set(examples)) == min(SIZES[client], 8) == rows[0]["weights"][row].sum()
        assert (client == OWNERS[examples]).all()
        assert rows[0]["steps"][row] == min(-(-SIZES[client] // 4), 2)
        assert rows[0]["examples"][row] == SIZES[client]
    largest = rows[0]["client"].tolist().index(3)
    assert seen(rows[0], largest) != seen(rows[1], largest)
    assert reader.examples == 29 and reader.mean_steps == 9 / 6
    np.testing.assert_array_equal(
        reader.once(np.array([3]))["inputs"], cohorts(6).once(np.array([3]))["inputs"]
    )


def test_without_a_batch_all_examples_are_one() -> None:
    rows = cohorts(cohort=6, batch=None).rows(0, range(6))
    assert rows["inputs"].shape == (6, 1, 12, 1)
    assert rows["weights"].sum(axis=(1, 2)).tolist() == rows["examples"].tolist()


def test_a_clients_draws_do_not_depend_on_who_else_is_there() -> None:
    few, all_ = cohorts(failing=0.5, epochs=3), cohorts(6, epochs=3)
    for step in range(4):
        some, everyone = few.rows(step, range(3)), all_.rows(step, range(6))
        for row, client in enumerate(some["client"]):
            other = everyone["client"].tolist().index(client)
            assert seen(some, row) == seen(everyone, other)


def test_rows_are_a_function_of_seed_and_round() -> None:
    one, again, other = cohorts(), cohorts(), cohorts(seed=1)
    for step in (7, 3, 3):
        for name, leaf in one.rows(step, [0, 2]).items():
            np.testing.assert_array_equal(leaf, again.rows(step, range(3))[name][[0, 2]])
    drawn = [tuple(one.members(step)) for step in range(20)]
    assert len(set(drawn)) > 10
    assert drawn != [tuple(other.members(step)) for step in range(20)]


def test_cohorts_are_drawn_as_asked() -> None:
    rounds = range(4000)
    uniform = np.bincount(np.concatenate([cohorts(2).members(step) for step in rounds]))
    np.testing.assert_allclose(uniform / 8000, np.full(6, 1 / 6), atol=0.015)
    weighted = cohorts(1, sampling="weighted")
    often = np.bincount(np.concatenate([weighted.members(step) for step in rounds]), minlength=6)
    np.testing.assert_allclose(often / 4000, np.array(SIZES) / 33, atol=0.025)
    cyclic = cohorts(4, sampling="cyclic")
    assert [sorted(cyclic.members(step)) for step in range(3)] == [
        [0, 1, 2, 3],
        [0, 1, 4, 5],
        [2, 3, 4, 5],
    ]
    assert [sorted(cohorts(sampling="fixed").members(step)) for step in (0, 9)] == [[0, 1, 2]] * 2


def test_devices_are_about_equally_busy() -> None:
    """Steps 1, 2, 1, 3, 2, 1 on two devices of three places: 3 + 1 + 1 and 2 + 2 + 1."""
    reader = cohorts(6, devices=2)
    assert sorted(map(sorted, reader.members(0).reshape(2, 3).tolist())) in (
        [[0, 3, 5], [1, 2, 4]],
        [[0, 2, 3], [1, 4, 5]],
        [[0, 1, 4], [2, 3, 5]],
    )
    assert reader.imbalance(0) == 1.0


def test_failing_and_straggling_have_their_shares() -> None:
    reader = cohorts(6, epochs=4, failing=0.25, stragglers=0.5)
    rounds = [reader.rows(step, range(6)) for step in range(300)]
    present = np.mean([rows["present"] for rows in rounds])
    np.testing.assert_allclose(present, 0.75, atol=0.04)
    most = np.array([reader._per_epoch[rows["client"]] * 4 for rows in rounds])
    steps = np.array([rows["steps"] for rows in rounds])
    np.testing.assert_allclose(np.mean(steps < most), 0.5 * 3 / 4, atol=0.04)
    assert steps.min() >= 1


def test_so_many_of_a_round_straggle_and_none_of_them_answers_who_is_not_waited_for() -> None:
    partial = cohorts(5, epochs=50, stragglers=0.4)
    drop = cohorts(5, epochs=50, stragglers=0.4, waiting=False)
    for step in range(20):
        waited, left = partial.rows(step, range(5)), drop.rows(step, range(5))
        assert waited["present"].all() and left["present"].sum() == 5 - 2
        np.testing.assert_array_equal(waited["steps"], left["steps"])
        epochs = waited["steps"] / partial._per_epoch[waited["client"]]
        # Whoever does less than all its epochs is dropped (1 of 50 times a straggler does all).
        assert not left["present"][epochs < 50].any()
        # A row by itself is as in its round.
        assert drop.rows(step, [3])["present"] == left["present"][[3]]


def test_what_only_fills_up_is_told() -> None:
    """33 examples on 6 clients' places for 3 steps of 4."""
    assert cohorts().filling == pytest.approx(1 - 33 / (6 * 12))
    assert cohorts().in_words().startswith("6 clients of 1 to 12 examples, heterogeneity 0.")


def test_a_cohort_that_cannot_be_is_named() -> None:
    with pytest.raises(UserError, match="cohort 7 is not possible with 6 clients: use 1 to 6"):
        cohorts(7)
