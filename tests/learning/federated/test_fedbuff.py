"""FedBuff against its algorithm, written with a queue of events in NumPy."""

import heapq
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.learning import FederatedConfig
from research.learning.asynchronous.virtual_time import Durations
from tests.learning.federated.test_federated import (
    CLIENTS,
    CLOSE,
    CONFIG,
    RATE,
    Reference,
    cohorts,
    flat,
    learner,
)

BUFF = FederatedConfig("fedbuff", cohort=3, epochs=2, weighting="uniform", concurrency=5)
ROUNDS = 6


def run(config: FederatedConfig, rounds: int = ROUNDS, devices: int = 1) -> tuple[Any, list[int]]:
    """The state after so many rounds, and the staleness of all arrivals."""
    here, made, staleness = learner(config, devices=devices), cohorts(config, devices=devices), []
    with jax.set_mesh(here.mesh):
        state = here.init()
        for step in range(rounds):
            events = here.events(step)
            staleness += events["staleness"].tolist()
            state, _ = here.step(state, made.rows(step, range(config.cohort)) | events)
    return jax.device_get(state), staleness


def by_hand(config: FederatedConfig, rounds: int = ROUNDS) -> tuple[np.ndarray, list[int]]:
    """w, and the staleness of every client in the order of their arrivals."""
    it, reader = Reference(config), cohorts(config)
    here: Any = learner(config)
    durations, seed = Durations(config.durations), here.one.seed
    turns = [
        iter(durations.draw(seed, config.concurrency, place, 0))
        for place in range(config.concurrency)
    ]
    w, version, stale, moves = it.start(), 0, [], []
    queue = [(next(turn), place, w, 0) for place, turn in enumerate(turns)]
    heapq.heapify(queue)
    while version < rounds:
        now, place, start, since = heapq.heappop(queue)
        stale.append(version - since)
        round = reader.rows(version, range(config.cohort))
        client = np.sort(round["client"])[here.order(version)[len(moves)]]
        row = int(np.flatnonzero(np.equal(round["client"], client))[0])
        end = start.copy()
        for batch in it.batches(round, row):
            end = end - RATE * it.gradient(end, *batch)
        moves.append((start - end) / np.sqrt(1 + stale[-1]))
        if len(moves) == config.cohort:
            w, version, moves = w - np.mean(moves, axis=0), version + 1, []
        heapq.heappush(queue, (now + next(turns[place]), place, w, version))
    return w, stale


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("concurrency", [2, 5, 9])
def test_it_follows_its_paper(concurrency: int, devices: int) -> None:
    """Also where a place arrives twice before the server's next step, and wherever clients are."""
    config = replace(BUFF, concurrency=concurrency)
    state, staleness = run(config, devices=devices)
    w, stale = by_hand(config)
    np.testing.assert_allclose(flat(state.parameters), w, **CLOSE)
    assert sorted(staleness) == sorted(stale)
    assert max(stale) > (0 if concurrency == 2 else 1)


def test_of_one_client_at_a_time_it_is_fedavg() -> None:
    """Nobody is overtaken."""
    state, staleness = run(replace(BUFF, cohort=1, concurrency=1))
    assert set(staleness) == {0}
    config = replace(CONFIG, cohort=1)
    here, made = learner(config), cohorts(config)
    with jax.set_mesh(here.mesh):
        expected = here.init()
        for step in range(ROUNDS):
            expected, _ = here.step(expected, made.rows(step, range(1)))
    np.testing.assert_allclose(flat(state.parameters), flat(expected.parameters), **CLOSE)


def test_it_is_resumed_from_its_state_alone() -> None:
    """What places have fetched is in it, and who comes next is a function of the round."""
    here, made = learner(BUFF), cohorts(BUFF)
    whole, _ = run(BUFF)
    half, _ = run(BUFF, rounds=2)
    with jax.set_mesh(here.mesh):
        state = jax.device_put(half, here.shardings)
        for step in range(2, ROUNDS):
            state, _ = here.step(state, made.rows(step, range(BUFF.cohort)) | here.events(step))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), whole)


def test_virtual_time_and_staleness_are_told() -> None:
    here: Any = learner(BUFF)
    told = [here.observe(step, here.abstract_state) for step in (1, 4, 40)]
    seconds = [each["virtual_seconds"] for each in told]
    assert seconds == sorted(seconds) and seconds[0] > 0
    # 5 places of mean duration 1: 40 rounds of 3 arrivals take about 24 seconds.
    assert seconds[-1] == pytest.approx(40 * 3 / 5, rel=0.3)
    assert told[0]["staleness_maximum"] == 0 < told[2]["staleness_mean"]


def test_places_that_fail_go_on() -> None:
    """A client that does not answer weighs nothing, and its place fetches like others'."""
    config = replace(BUFF, cohort=CLIENTS, concurrency=CLIENTS)
    here, made = learner(config), cohorts(config, failing=0.5)
    rows = made.rows(0, range(CLIENTS))
    assert 0 < rows["present"].sum() < CLIENTS
    with jax.set_mesh(here.mesh):
        before = flat(here.init().parameters)
        state, metrics = here.step(here.init(), rows | here.events(0))
    events = here.events(0)
    table = np.concatenate(
        [np.reshape(leaf, (CLIENTS, -1)) for leaf in jax.tree.leaves(state.clients)], axis=1
    )
    last = events["place"][-1]
    np.testing.assert_array_equal(table[last], flat(state.parameters).astype(np.float32))
    np.testing.assert_array_equal(np.delete(table, last, 0), np.tile(before, (CLIENTS - 1, 1)))
    assert metrics["clients"] == rows["present"].sum()


def test_a_mistake_is_named_with_the_way_out() -> None:
    with pytest.raises(UserError, match="--federated.concurrency 0 must be 1 or more"):
        replace(BUFF, concurrency=0).check()
