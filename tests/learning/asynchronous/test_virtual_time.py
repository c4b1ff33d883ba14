"""The event queue of a virtual server, beside one that is simulated event by event."""

import heapq
import math

import numpy as np
import pytest

from research.learning.asynchronous.virtual_time import (
    BLOCK,
    Arrivals,
    Durations,
    Rounds,
    histogram,
)

DURATIONS = {
    "constant": Durations(),
    "uniform": Durations("uniform", 2.0, 0.3),
    "exponential": Durations("exponential"),
    "log_normal": Durations("log_normal", 0.1, 1.0),
    "slow": Durations("log_normal", 1.0, 0.2, slow_factor=10.0),
}


def simulated(
    durations: Durations, workers: int, seed: int, way: float, updates: int
) -> list[tuple[int, int, float]]:
    """Worker, staleness and seconds of every update: a server that takes what comes next."""
    drawn = [
        np.concatenate([durations.draw(seed, workers, w, block) for block in range(5)])
        for w in range(workers)
    ]
    queue = [(drawn[w][0] + way, w) for w in range(workers)]
    heapq.heapify(queue)
    turns, fetched, made = [1] * workers, [0] * workers, []
    for version in range(updates):
        now, worker = heapq.heappop(queue)
        made.append((worker, version - fetched[worker], now))
        fetched[worker] = version + 1
        heapq.heappush(queue, (now + drawn[worker][turns[worker]] + way, worker))
        turns[worker] += 1
    return made


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_events_are_those_of_a_simulated_queue(name: str, workers: int) -> None:
    updates = 3 * BLOCK
    events = Arrivals(DURATIONS[name], workers, seed=7, way=0.25).before(updates)
    wanted = simulated(DURATIONS[name], workers, 7, 0.25, updates)
    worker, staleness, seconds = zip(*wanted, strict=True)
    np.testing.assert_array_equal(events.worker, worker)
    np.testing.assert_array_equal(events.staleness, staleness)
    # Sums of up to 1,280 float64 in another order.
    np.testing.assert_allclose(events.seconds, seconds, rtol=1e-12)


@pytest.mark.parametrize("name", DURATIONS)
def test_the_events_of_a_step_do_not_depend_on_what_was_asked_before(name: str) -> None:
    """So a resumed run, which begins with a late step, meets the same ones."""
    little_by_little, at_once = (Arrivals(DURATIONS[name], 4, seed=1) for _ in range(2))
    for step in (1, 2, 300, 301, 2000):
        little_by_little.before(step)
    for here, there in zip(little_by_little.before(1500), at_once.before(1500), strict=True):
        np.testing.assert_array_equal(here, there)
    other = Arrivals(DURATIONS[name], 4, seed=2).before(1500)
    assert (other.worker.tolist() != at_once.before(1500).worker.tolist()) == (name != "constant")


def test_workers_of_one_speed_take_turns() -> None:
    """n of them: after the first round every gradient is n - 1 updates old."""
    events = Arrivals(Durations(seconds=0.5), 5, seed=0).before(40)
    np.testing.assert_array_equal(events.worker, np.arange(40) % 5)
    np.testing.assert_array_equal(events.staleness, np.minimum(np.arange(40), 4))
    np.testing.assert_array_equal(events.seconds, 0.5 * (np.arange(40) // 5 + 1))


def test_a_worker_alone_is_never_stale() -> None:
    assert not Arrivals(Durations("exponential"), 1, seed=0).before(500).staleness.any()


def test_a_slow_worker_is_the_stalest() -> None:
    """3 of speed 1 and one of 1/10: in ten seconds 30 updates of theirs come between two of its."""
    events = Arrivals(Durations(slow_factor=10.0), 4, seed=0).before(310)
    slow = events.staleness[events.worker == 3]
    assert (events.worker == 3).sum() == 10 and set(slow) == {30}
    assert set(events.staleness[(events.worker < 3) & (np.arange(310) > 3)]) == {2, 3}


@pytest.mark.parametrize("name", ["uniform", "exponential", "log_normal"])
def test_gradients_take_their_mean_time(name: str) -> None:
    durations = DURATIONS[name]
    drawn = np.concatenate([durations.draw(3, 2, 0, block) for block in range(80)])
    deviation = {"uniform": 0.3 / math.sqrt(3), "exponential": 1, "log_normal": math.sqrt(math.e)}
    # Of 20,480 draws; five standard deviations of their mean.
    within = 5 * deviation[name] * durations.seconds / math.sqrt(len(drawn))
    assert drawn.mean() == pytest.approx(durations.seconds, abs=within)
    if name == "uniform":
        assert 1.4 <= drawn.min() < 1.41 and 2.59 < drawn.max() <= 2.6


def test_a_step_with_backup_ends_with_the_last_of_the_first() -> None:
    durations, workers, backup = Durations("exponential"), 5, 2
    rounds = Rounds(durations, workers, backup, seed=3, way=0.5)
    drawn = np.stack([durations.draw(3, workers, worker, 0) for worker in range(workers)])
    end = 0.0
    for step in range(BLOCK):
        first = sorted(range(workers), key=lambda w, step=step: drawn[w, step])[:3]
        assert set(np.flatnonzero(rounds.arrived(step))) == set(first)
        end += drawn[first[-1], step] + 0.5
        assert rounds.seconds(step + 1) == pytest.approx(end, rel=1e-12)
    again = Rounds(durations, workers, backup, seed=3, way=0.5)
    np.testing.assert_array_equal(again.arrived(700), rounds.arrived(700))
    assert again.seconds(700) == rounds.seconds(700)


def test_backup_is_worth_its_price_where_one_is_slow() -> None:
    slow = Durations(slow_factor=10.0)
    assert Rounds(slow, 4, 0, seed=0).seconds(20) == 200
    assert Rounds(slow, 4, 1, seed=0).seconds(20) == 20


def test_a_histogram_counts_every_update() -> None:
    staleness = np.array([0, 0, 3, 7, 8, 90])
    assert histogram(staleness, workers=4) == {0: 2, 1: 0, 2: 0, 3: 1, 4: 0, 5: 0, 6: 0, 7: 3}
    wide = histogram(staleness, workers=100)  # 200 in 16 buckets
    assert list(wide)[:3] == [0, 13, 26] and len(wide) == 16
    assert (wide[0], wide[78], sum(wide.values())) == (5, 1, 6)
