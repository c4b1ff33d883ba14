"""DP-FedAvg: rounds of Poisson cohorts beside McMahan 2018's equations, on any mesh."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from research.exchange.privacy import Event, ledger
from research.exchange.privacy.release import Release
from research.learning import Federated, Synchronous
from research.models import LinearConfig, Specification
from research.parallel.mesh import MeshConfig
from tests.learning.federated.test_federated import (
    CLASSES,
    CLIENTS,
    CLOSE,
    CONFIG,
    FEATURES,
    LOCAL,
    cohorts,
    flat,
    learner,
)

PRIVATE = replace(CONFIG, sampling="poisson", weighting="uniform")
Q = PRIVATE.cohort / CLIENTS
BOUND = 0.05


def private(devices: int = 1, noise: float = 0.0, secret: int = 5) -> Federated:
    mesh = MeshConfig(replica=devices, data=1).build(jax.devices()[:devices])
    schedule = LOCAL.learning_rate_schedule(10)
    specification = Specification((FEATURES,), CLASSES)
    outside = ("replica",)
    one = Synchronous(
        LinearConfig(), specification, LOCAL.build(10), schedule, mesh, outside=outside
    )
    release = Release(BOUND, Event(noise, Q), float(PRIVATE.cohort))
    return PRIVATE.build(one, LOCAL, 10, CLIENTS, release=release, secret=secret)


def readers(devices: int = 1) -> Any:
    places = PRIVATE.places(CLIENTS, devices)
    return cohorts(PRIVATE, sampling="poisson", devices=devices, places=places, secret=9)


def run(here: Federated, rounds: int, devices: int = 1) -> tuple[Any, dict[str, Any]]:
    reader = readers(devices)
    with jax.set_mesh(here.mesh):
        state = here.init()
        for step in range(rounds):
            rows = reader.rows(step, range(reader.cohort)) | here.events(step)
            state, metrics = here.step(state, rows)
        return jax.device_get((state, metrics))


def test_every_client_is_drawn_by_a_coin_of_its_own() -> None:
    reader, rounds = readers(), 3_000
    taken = np.zeros((rounds, CLIENTS))
    for step in range(rounds):
        members = reader.members(step)
        taken[step, members[members >= 0]] = 1
    deviation = np.sqrt(Q * (1 - Q) / rounds)
    assert np.abs(taken.mean(axis=0) - Q).max() < 5 * deviation
    assert taken.sum(axis=1).var() == pytest.approx(CLIENTS * Q * (1 - Q), rel=0.15)
    rows = reader.rows(0, range(reader.cohort))
    assert rows["drawn"].sum() == taken[0].sum() == rows["present"].sum()
    assert rows["weights"][~rows["drawn"]].sum() == 0 and not rows["steps"][~rows["drawn"]].any()


def test_a_round_is_that_of_mcmahan_2018() -> None:
    """Without noise: w + Σ clip(Δ_k)/(q·K), by how many are expected, not by how many came."""
    alone, reader = learner(replace(PRIVATE, sampling="uniform", cohort=1)), readers()
    rows = reader.rows(0, range(reader.cohort))
    moves = []
    with jax.set_mesh(alone.mesh):
        start = flat(alone.init().parameters)
        for row in np.flatnonzero(rows["drawn"]):
            one = {name: leaf[[row]] for name, leaf in rows.items() if name != "drawn"}
            moves.append(flat(alone.step(alone.init(), one)[0].parameters) - start)
    norms = np.linalg.norm(moves, axis=1)
    assert norms.max() > BOUND
    cut = np.array(moves) * np.minimum(1, BOUND / norms)[:, None]
    state, metrics = run(private(), 1)
    np.testing.assert_allclose(
        flat(state.parameters) - start, cut.sum(axis=0) / PRIVATE.cohort, **CLOSE
    )
    assert metrics["clients"] == len(moves) and metrics["clients_dropped"] == 0
    assert ledger.spent(state.stages["noise"]) == [(Event(0.0, np.float32(Q)), 1)]


def test_rounds_are_the_same_on_any_number_of_devices() -> None:
    """Cohorts and noise are; the order in which devices add up is not."""
    alone, _ = run(private(noise=0.5), 4)
    together, _ = run(private(2, noise=0.5), 4, devices=2)
    np.testing.assert_allclose(flat(alone.parameters), flat(together.parameters), **CLOSE)
    quiet, _ = run(private(), 4)
    other, _ = run(private(noise=0.5, secret=5 + 2**40), 4)
    for noisy in (alone, other):
        noise = flat(noisy.parameters) - flat(quiet.parameters)
        assert 0.3 < noise.std() / (0.5 * BOUND / PRIVATE.cohort * np.sqrt(4)) < 2
    assert np.abs(flat(alone.parameters) - flat(other.parameters)).max() > 1e-4


def test_a_round_in_which_nobody_comes_is_noise_alone() -> None:
    here, reader = private(noise=1.0), readers()
    rows = reader.rows(0, range(reader.cohort)) | here.events(0)
    nobody = np.zeros(reader.cohort, bool)
    with jax.set_mesh(here.mesh):
        state, metrics = here.step(here.init(), rows | {"drawn": nobody, "present": nobody})
        assert np.isfinite(flat(state.parameters)).all() and flat(state.parameters).std() > 0
        assert metrics["loss"] == 0 and metrics["clients"] == 0
    assert here.complaint({name: float(value) for name, value in metrics.items()}) is None
