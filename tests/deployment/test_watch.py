"""When a step has taken too long, who is the slowest, and which failure is the cause of others."""

import signal

from research.deployment.elastic.blame import Ended, cause
from research.deployment.elastic.history import History
from research.deployment.elastic.identity import difference
from research.deployment.elastic.watch import SLOW_PHASE_SECONDS, Watch


def trained(seconds: float, floor: float = 30.0) -> Watch:
    """Two workers that have done steps 1 to 50 in so many seconds each."""
    watch = Watch(floor, 0.0)
    for rank in (0, 1):
        watch.tell(rank, 0.0, phase="training")
        for step in range(1, 51):
            watch.tell(rank, step * seconds, step=step)
    return watch


def test_a_step_may_take_thirty_seconds_or_twenty_times_the_median() -> None:
    fast, slow = trained(0.1), trained(4.0)
    assert fast.hung(5.0 + 29.0) is None
    assert fast.hung(5.0 + 31.0) is not None
    assert slow.hung(200.0 + 79.0) is None  # 20 × 4 s
    assert slow.hung(200.0 + 81.0) is not None


def test_the_slowest_is_the_one_that_is_furthest_behind() -> None:
    watch = trained(0.1)
    watch.tell(0, 5.1, step=51)
    assert (watch.step(), watch.hung(40.0)) == (50, (1, 35.0))


def test_a_phase_without_steps_may_take_longer() -> None:
    watch = trained(0.1)
    for rank in (0, 1):
        watch.tell(rank, 6.0, phase="evaluating")
    assert watch.hung(6.0 + SLOW_PHASE_SECONDS - 1) is None
    assert watch.hung(6.0 + SLOW_PHASE_SECONDS + 1) == (0, SLOW_PHASE_SECONDS + 1)


def ended(rank: int, status: int, **facts: object) -> Ended:
    return Ended("b", rank, 100 + rank, status, dict(facts), ["ValueError: broken pipe"])


def test_a_kill_from_outside_is_the_cause_of_what_follows() -> None:
    """Also where the consequence was heard of first; and JAX's own abort is never a cause."""
    failures = [ended(0, 1), ended(1, -signal.SIGABRT), ended(2, -signal.SIGKILL)]
    culprit, text, final = cause(failures, several=True)
    assert (culprit.rank, final) == (2, False)
    assert text == "process 2 on host b (pid 102) was killed by SIGKILL"
    _, text, final = cause(failures[:1], several=False)
    assert text == "process 0 (pid 100) ended with status 1: ValueError: broken pipe"


def test_a_mistake_that_would_come_again_ends_the_run() -> None:
    failures = [ended(1, -signal.SIGKILL), ended(0, 2, failed="no such file")]
    culprit, text, final = cause(failures, several=False)
    assert (culprit.status, text, final) == (2, "no such file", True)


def test_history_counts_what_was_done_again() -> None:
    history = History()
    history.start(1, 4, "data 4", ["a"])
    for step in range(1, 38):
        history.stepped(step)
    history.end("a fault")
    history.start(2, 3, "data 3", ["a"])
    history.restored(30, "snapshot")
    history.stepped(31)
    assert [g.lost for g in history.generations] == [0, 7]
    assert history.summary(10).startswith(
        "2 generations, 7 steps lost and done again (a failure costs at most 10 steps)"
    )


def test_hosts_that_differ_are_told_apart() -> None:
    one = {"jax": "0.10.2", "code": "abc", "command": "train x.py"}
    assert difference("b", one, "a", one) is None
    assert difference("b", one | {"code": "def"}, "a", one) == (
        "host b has another code of research/ than host a (def and abc): make them the same on "
        "every host"
    )
    assert "host b has another jax than host a (0.9 and 0.10.2)" in str(
        difference("b", one | {"jax": "0.9"}, "a", one)
    )


def test_a_step_that_is_done_again_is_no_progress() -> None:
    history = History()
    history.start(1, 2, "data 2", ["a"])
    assert history.stepped(3) and history.stepped(4)
    history.end("process 1 was killed")
    history.start(2, 2, "data 2", ["a"])
    history.restored(2, "snapshot")
    assert not history.stepped(3) and not history.stepped(4)
    assert history.stepped(5)
