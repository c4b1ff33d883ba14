"""The state machine: what comes twice, late, out of order or never, and who is waited for."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from research.deployment.actors import InTurn, Pushed
from research.learning import AsynchronousConfig
from research.learning.asynchronous.turns import Meeting

EACH = Meeting("each")
NOTHING = Pushed(1.0, (), {})


def push(server: Any, worker: int, lease: Any, now: float = 0.0, update: float = 1.0) -> Any:
    return server.push(worker, lease.epoch, lease.sequence, Pushed(update, (), {}), now)


def test_a_push_counts_once(counting: Callable[..., Any]) -> None:
    method, server = counting(10, 2, EACH)
    first = server.pull(0, 0.0).lease
    assert server.pull(0, 1.0).lease == first  # a pull may come twice, too
    answer = push(server, 0, first)
    assert (answer.outcome, answer.lease.steps) == ("taken", (1,))
    again = push(server, 0, first)
    assert (again.outcome, again.lease) == ("duplicate", answer.lease)
    assert method.taken == [(0, (0,))] and server.step == 1
    assert push(server, 0, answer.lease).outcome == "taken"
    assert push(server, 0, first).outcome == "duplicate"
    assert server.observe()["pushes_duplicate"] == 2


def test_what_a_lost_worker_had_is_done_by_the_next(counting: Callable[..., Any]) -> None:
    method, server = counting(3, 2, EACH)
    lost, other = server.pull(0, 0.0).lease, server.pull(1, 0.0).lease
    server.lost(0, 1.0)
    answer = push(server, 1, other)
    assert answer.lease.steps == (0,)
    late = push(server, 0, lost)  # it was only asleep
    assert (late.outcome, late.lease) == ("revoked", None)
    back = server.pull(0, 2.0).lease
    assert back.steps == (2,) and back.sequence > lost.sequence
    assert push(server, 1, answer.lease).lease is None  # nothing is left, and not all is done
    assert push(server, 0, back).finished and server.finished
    assert sorted(steps for _, steps in method.taken) == [(0,), (1,), (2,)]
    assert server.observe()["workers_lost"] == 1


def test_what_is_too_stale_is_refused_and_done_again(counting: Callable[..., Any]) -> None:
    _, server = counting(6, 2, EACH, bound=1)
    slow = server.pull(0, 0.0).lease
    lease = server.pull(1, 0.0).lease
    for _ in range(2):
        lease = push(server, 1, lease).lease
    answer = push(server, 0, slow)
    assert answer.outcome == "stale" and answer.lease.steps == slow.steps
    assert answer.lease.version == 2
    assert push(server, 0, slow).outcome == "duplicate"
    assert push(server, 0, answer.lease).outcome == "taken"
    seen = server.observe()
    assert seen["pushes_refused"] == 1 and seen["staleness_maximum"] == 0
    assert (seen["staleness_0"], server.step) == (3, 3)


def test_who_has_a_lease_for_too_long_is_overdue(counting: Callable[..., Any]) -> None:
    _, server = counting(100, 2, EACH)
    server.pull(0, 0.0)
    now, lease = 0.0, server.pull(1, 0.0).lease
    assert server.tick(29.0, least=30.0) == []
    assert server.tick(31.0, least=30.0) == [0, 1]
    for _ in range(10):  # turns of 2 s: 20 times that is longer
        now += 2.0
        lease = push(server, 1, lease, now).lease
    assert server.tick(39.0, least=30.0) == []
    assert server.tick(41.0, least=30.0) == [0]


def test_a_quorum_waits_for_its_grace_and_not_for_the_dead(counting: Callable[..., Any]) -> None:
    method, server = counting(100, 4, Meeting("quorum", 2, 5.0), period=2)
    leases = [server.pull(worker, 0.0).lease for worker in range(4)]
    assert push(server, 0, leases[0], 1.0).lease is None
    assert push(server, 1, leases[1], 2.0).lease is None
    assert server.pull(0, 7.0).lease is None and not method.merged  # at 2 + 5 it is not over
    assert push(server, 2, leases[2], 7.0).lease is None
    assert server.pull(0, 7.1).lease.version == 1 and method.merged == [3]
    late = push(server, 3, leases[3], 8.0)  # one merge late: it is in the next
    assert (late.outcome, late.lease) == ("taken", None)
    again = [server.pull(worker, 8.0).lease for worker in (0, 1, 2)]
    push(server, 0, again[0], 9.0)
    server.lost(1, 9.0)
    server.lost(2, 9.5)  # those who are there have all moved
    assert method.merged == [3, 2]
    assert server.observe()["staleness_maximum"] == 1
    lease = server.pull(0, 10.0).lease
    server.lost(3, 10.0)
    assert push(server, 0, lease, 11.0).lease is not None  # alone, it is the quorum
    assert method.merged == [3, 2, 1]


def test_a_restored_server_is_told_who_is_away(counting: Callable[..., Any]) -> None:
    """Of a quorum of all, or nobody would ever meet."""
    method, server = counting(100, 3, Meeting("quorum", 3))
    server.absent(2, 0.0)
    for worker in (0, 1):
        push(server, worker, server.pull(worker, 0.0).lease, 1.0)
    assert method.merged == [2] and server.heard == {0, 1}
    assert server.observe()["workers_lost"] == 0


def test_the_last_moves_are_merged_when_no_more_come(counting: Callable[..., Any]) -> None:
    for meeting in (Meeting("quorum", 3), Meeting("buffer", 2)):
        method, server = counting(6, 4, meeting, period=2)
        leases = [server.pull(worker, 0.0).lease for worker in range(3)]
        for worker, lease in enumerate(leases):
            push(server, worker, lease, 1.0)
        assert server.pull(3, 1.0).lease is None and server.finished
        assert sum(method.merged) == 3


def test_a_restored_server_takes_nothing_in_that_it_lent_before(
    counting: Callable[..., Any],
) -> None:
    _, before = counting(20, 3, EACH, period=2)
    leases = [before.pull(worker, 0.0).lease for worker in range(3)]
    later = push(before, 0, leases[0]).lease
    record = before.record()
    after_it = push(before, 0, later).lease  # is forgotten
    assert record["deck"] == {"first": 8, "returned": [(2, 3), (4, 5), (6, 7)]}

    method, server = counting(20, 3, EACH, epoch=2, deck=InTurn(20, 2, **record["deck"]))
    server.recall(record)
    assert server.step == 2
    for worker, lease in [(0, leases[0]), (0, later), (0, after_it), (1, leases[1])]:
        assert push(server, worker, lease).outcome == "revoked"
    lease = server.pull(0, 0.0).lease
    assert (lease.sequence, lease.epoch) == (after_it.sequence, 2)
    assert push(server, 0, after_it).outcome == "revoked"  # of the same number, of another epoch
    while not server.finished:
        for worker in range(3):
            if (lease := server.pull(worker, 0.0).lease) is not None:
                push(server, worker, lease)
    done = sorted(step for _, steps in method.taken for step in steps)
    assert done == list(range(2, 20))
    assert server.observe()["staleness_0"] >= 1 and server.observe()["pushes_revoked"] == 5


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["pull", "push", "push", "push", "again", "older", "lose", "restart"]),
        st.integers(0, 3),
        st.integers(0, 30),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(
    actions=ACTIONS,
    period=st.integers(1, 3),
    bound=st.sampled_from([None, 0, 2]),
    meeting=st.sampled_from([EACH, Meeting("buffer", 3), Meeting("quorum", 2, 3.0)]),
)
def test_whatever_is_delivered_twice_late_or_never_all_steps_are_made_once(
    actions: Any, period: int, bound: int | None, meeting: Meeting
) -> None:
    """Messages in any order, with losses and restarts from a checkpoint in between; and then an
    undisturbed end. Each step is in the server's sum once: step s adds 2^s."""
    from research.deployment.actors import Server
    from tests.deployment.actors.conftest import Counting

    total = 25
    words: dict[str, Any] = {"total": total, "workers": 4, "meeting": meeting, "bound": bound}
    server = Server(Counting(), InTurn(total, period), **words)
    saved: Any = (server.record(), 0.0, [])
    sent: list[Any] = []
    now, epoch = 0.0, 1

    def send(worker: int, lease: Any) -> None:
        made = float(sum(2.0**step for step in lease.steps))
        server.push(worker, lease.epoch, lease.sequence, Pushed(made, (), {}), now)

    for action, worker, number in actions:
        now += number / 10
        if action == "pull":
            server.pull(worker, now)
        elif action == "push":
            if (lease := server.pull(worker, now).lease) is not None:
                sent.append((worker, lease))
                send(worker, lease)
                if number % 3 == 0:
                    method = server.method
                    saved = (server.record(), method.parameters, list(method.merged))
        elif action == "again" and sent:
            send(*sent[-1])
        elif action == "older" and sent:
            send(*sent[number % len(sent)])
        elif action == "lose":
            server.lost(worker, now)
        elif action == "restart":
            epoch += 1
            record, parameters, merged = saved
            deck = record["deck"]
            method = Counting()
            method.parameters, method.merged = parameters, list(merged)
            server = Server(method, InTurn(total, period, **deck), epoch=epoch, **words)
            server.recall(record)
    for _ in range(20 * total):
        if server.finished:
            break
        now += 1.0
        for worker in range(4):
            if (lease := server.pull(worker, now).lease) is not None:
                send(worker, lease)
    assert server.finished and server.step == total
    assert server.method.parameters == 2.0**total - 1
    if meeting != EACH:  # and each move was in one merge
        assert sum(server.method.merged) == server.counts["taken"]


def test_a_restored_server_has_the_arrays_that_were_saved(bench: Any) -> None:
    """Two halves with a checkpoint between, beside one run of the same leases in turn."""
    config = AsynchronousConfig("dc_asgd", workers=2, compensation_decay=0.9)
    worker = bench.worker(config)

    def go_on(server: Any, end: int) -> None:
        while server.step < end:
            lease = server.pull(server.step % 2, 0.0).lease
            answer = server.push(
                server.step % 2, lease.epoch, lease.sequence, worker.work(lease), 0.0
            )
            assert answer.outcome == "taken"

    with jax.set_mesh(bench.mesh):
        server = bench.server(config)
        go_on(server, 11)
        server.lost(0, 0.0), server.lost(1, 0.0)
        record, state = server.record(), jax.device_get(server.method.state(11))
        go_on(server, 24)
        learner = bench.learner(config)
        again = bench.server(
            config,
            InTurn(24, 1, **record["deck"]),
            state=jax.device_put(state, learner.shardings),
            epoch=2,
        )
        again.recall(record)
        go_on(again, 24)
        here, there = jax.device_get((server.method.state(24), again.method.state(24)))
    for leaf, its in zip(*map(jax.tree.leaves, (here, there)), strict=True):
        np.testing.assert_array_equal(leaf, its)
