"""Who moves when, beside what is counted by hand, and beside `Arrivals` where both know it."""

import numpy as np
import pytest

from research.learning.asynchronous.turns import Meeting, Turns
from research.learning.asynchronous.virtual_time import Arrivals, Durations

SLOW = Durations(slow_factor=4.0)


@pytest.mark.parametrize("bound", [None, 2])
@pytest.mark.parametrize("name", ["exponential", "log_normal", "constant"])
def test_turns_of_one_gradient_are_arrivals(name: str, bound: int | None) -> None:
    durations = Durations(name, spread=1.0)  # type: ignore[arg-type]
    arrivals = Arrivals(durations, 4, 3, 0.25, bound).before(600)
    events = Turns(durations, 4, 3, 1, Meeting("each"), 0.25, bound).before(900)
    taken = [event for event in events if event.moves][:600]
    np.testing.assert_array_equal([event.worker for event in taken], arrivals.worker)
    np.testing.assert_array_equal([event.staleness for event in taken], arrivals.staleness)
    np.testing.assert_allclose([event.seconds for event in taken], arrivals.seconds)
    if bound is not None and name != "constant":
        late = [event for event in events if event.refused]
        assert late and all(event.staleness > bound for event in late)
        assert arrivals.staleness.max() == bound and arrivals.refused[-1] > 10


def test_every_so_many_gradients_of_a_worker_are_a_move() -> None:
    events = Turns(Durations("exponential"), 3, 0, 5, Meeting("each")).before(300)
    for worker in range(3):
        own = [event.moves for event in events if event.worker == worker]
        assert own == [(number + 1) % 5 == 0 for number in range(len(own))]


def test_a_buffer_is_merged_with_every_kth_move_and_who_moved_fetches() -> None:
    """Three workers of one speed, turns of 2 gradients, K = 2: of moves 1, 2, 3, 4, ... the even
    ones merge; worker 2 of the first round fetched before the first merge."""
    events = Turns(Durations(), 3, 0, 2, Meeting("buffer", 2)).before(18)
    moves = [event for event in events if event.moves]
    assert [event.worker for event in moves] == [0, 1, 2] * 3
    assert [event.merges for event in moves] == [0, 2, 0, 2, 0, 2, 0, 2, 0]
    assert [event.begins for event in moves] == [(0,), (1,), (2,)] * 3
    # Merges before a move: 0 0 1, 1 2 2, 3 3 4; before its worker fetched: 0 0 0, 0 1 1, 2 2 3.
    assert [event.staleness for event in moves] == [0, 0, 1, 1, 1, 1, 1, 1, 1]


def test_who_is_late_is_in_the_next_merge() -> None:
    """Four workers, turns of 2 s, the last 8 s; a quorum of 3 meets every 2 s. The move of the last
    comes at the moment of the 4th merge, and so is in it, three merges late."""
    events = Turns(SLOW, 4, 0, 2, Meeting("quorum", 3)).before(60)
    merges = [event for event in events if event.merges]
    assert [event.merges for event in merges][:8] == [3, 3, 3, 4, 3, 3, 3, 4]
    assert [event.begins for event in merges][:4] == [(0, 1, 2)] * 3 + [(0, 1, 2, 3)]
    assert [event.seconds for event in merges][:4] == [2.0, 4.0, 6.0, 8.0]
    late = [event for event in events if event.moves and event.worker == 3]
    assert [event.staleness for event in late][:2] == [3, 3]


@pytest.mark.parametrize(("grace", "waits"), [(5.9, False), (6.1, True)])
def test_a_grace_window_lets_the_late_come(grace: float, waits: bool) -> None:
    """The quorum is there after 2 s, the last after 8 s; when all are there nobody waits longer."""
    events = Turns(SLOW, 4, 0, 2, Meeting("quorum", 3, grace)).before(60)
    merges = [event for event in events if event.merges]
    assert merges[0].merges == (4 if waits else 3)
    if waits:
        assert {event.merges for event in merges} == {4}
        assert [event.seconds for event in merges][:3] == [8.0, 16.0, 24.0]
    else:  # they begin again at 7.9 s; the move that came at 8 s waits for them
        assert [event.merges for event in merges][1] == 4


def test_events_do_not_depend_on_how_many_are_asked_for() -> None:
    for meeting in (Meeting("each"), Meeting("buffer", 3), Meeting("quorum", 2, 0.5)):
        little, much = (Turns(Durations("exponential"), 4, 1, 3, meeting) for _ in range(2))
        parts = [little.before(step) for step in range(0, 700, 7)]
        whole = much.before(700)
        for number, part in enumerate(parts):
            assert part == whole[: 7 * number]
