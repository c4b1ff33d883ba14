"""The table of clients on the host: rounds are the same, and devices hold a cohort's rows."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.learning import FederatedConfig
from research.learning.federated.federated import Federated
from research.learning.federated.host_table import OnHost, fits, zeros
from research.training.checkpoints import Checkpoints
from research.training.snapshots import Snapshots, restore
from tests.learning.federated.test_federated import (
    CLASSES,
    CLIENTS,
    CLOSE,
    CONFIG,
    FEATURES,
    LOCAL,
    cohorts,
    learner,
    run,
)
from tests.learning.federated.test_personalization import DITTO, FEDPER, PFEDME, evaluated

SCAFFOLD = replace(CONFIG, rule="scaffold", weighting="uniform")


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def on_host(config: FederatedConfig) -> FederatedConfig:
    return replace(config, table="host")


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize(
    "config", [SCAFFOLD, FEDPER, DITTO, PFEDME], ids=lambda config: config.rule
)
def test_a_round_is_the_same_with_the_table_on_the_host(
    config: FederatedConfig, devices: int
) -> None:
    """Law 3, and of the clients' own models; the table is NumPy's."""
    expected, told = evaluated(config, devices) if config != SCAFFOLD else (run(config)[0], {})
    state, its = evaluated(on_host(config), devices) if told else (run(on_host(config))[0], {})
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state.clients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), state, expected)
    assert its == pytest.approx(told, rel=1e-5)


@pytest.mark.parametrize("config", [SCAFFOLD, DITTO], ids=lambda config: config.rule)
@pytest.mark.parametrize("later", ["host", "device"])
def test_rounds_are_resumed_bit_for_bit(
    config: FederatedConfig, later: Any, tmp_path: Path
) -> None:
    """Law 2, also with the table elsewhere; what is saved is the table of that moment, although the
    next rounds change it while it is written."""
    here, then, made = learner(on_host(config)), learner(replace(config, table=later)), cohorts()
    with jax.set_mesh(here.mesh), contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        state = here.init()
        for step in range(4):
            if step == 2:
                checkpoints.save(2, state)
            state, _ = here.step(state, made.rows(step, range(config.cohort)))
        checkpoints.wait()
        _, again = checkpoints.restore(then.abstract_state)
        for step in (2, 3):
            again, _ = then.step(again, made.rows(step, range(config.cohort)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))


def test_a_snapshot_in_memory_holds_the_table(tmp_path: Path) -> None:
    here, made = learner(on_host(DITTO)), cohorts()
    with jax.set_mesh(here.mesh):
        state, _ = here.step(here.init(), made.rows(0, range(CONFIG.cohort)))
        Snapshots(tmp_path, "run", 1).save(1, state)
        before = jax.device_get(jax.tree.map(np.array, state))
        here.step(state, made.rows(1, range(CONFIG.cohort)))
        again = restore(tmp_path, "run", 1, here.abstract_state)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(again.clients))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), before)


@pytest.mark.parametrize("table", ["host", "device"])
def test_devices_hold_no_more_of_a_larger_population_than_the_table(table: Any) -> None:
    """By the compiled round's plan: nothing for it beside the rows themselves, on the host not even
    those."""
    plans = []
    for population in (100, 100_000):
        config = replace(SCAFFOLD, table=table)
        one = learner(SCAFFOLD).one
        here = config.build(one, LOCAL, 10, population)
        rows = cohorts().rows(0, range(config.cohort))
        with jax.set_mesh(here.mesh):
            plans.append(here.step.lower(here.abstract_state, rows).compile().memory_analysis())
    row = 4 * sum(leaf.size for leaf in jax.tree.leaves(one.abstract_state.parameters))
    more = plans[1].argument_size_in_bytes - plans[0].argument_size_in_bytes
    assert more == (0 if table == "host" else row * (100_000 - 100))
    assert plans[1].temp_size_in_bytes - plans[0].temp_size_in_bytes < 1024


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells memory by Linux's /proc")
def test_a_table_that_begins_with_zeros_is_not_touched() -> None:
    """A row takes memory when its client has been in a cohort."""
    here = on_host(SCAFFOLD).build(learner(SCAFFOLD).one, LOCAL, 10, 10**7)
    with jax.set_mesh(here.mesh):
        before = resident()
        state = here.init()
        table = jax.tree.leaves(state.clients)
        assert sum(leaf.nbytes for leaf in table) == 10**7 * 4 * (FEATURES + 1) * CLASSES
        assert resident() - before < 3 * 10**8
        rows = cohorts().rows(0, range(CONFIG.cohort))
        state, _ = here.step(state, rows)
        assert resident() - before < 3 * 10**8
    moved = np.flatnonzero(table[0].reshape(10**7, -1)[:CLIENTS].any(axis=1))
    np.testing.assert_array_equal(moved, np.sort(rows["client"]))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells memory by Linux's /proc")
def test_a_row_takes_no_more_memory_than_it_has() -> None:
    """Not a page of 2 MB, wherever a client's row is."""
    before = resident()
    table = zeros((4000, 128, 128), np.float32)
    table[::100] = 1
    assert 40 * 2**16 <= resident() - before < 40 * 2**19
    assert table.sum() == 40 * 128 * 128


def test_what_clients_keep_begins_with_given_parameters() -> None:
    here = learner(on_host(DITTO))
    with jax.set_mesh(here.mesh):
        state = here.init()
        other = jax.tree.map(lambda leaf: leaf + 1, state.parameters)
        changed = here.with_parameters(state, other)
    for rows, leaf in zip(jax.tree.leaves(changed.clients), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(rows, np.broadcast_to(leaf, (CLIENTS, *leaf.shape)))


def test_where_a_table_lies_follows_from_the_memory_of_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = learner(SCAFFOLD).abstract_state.clients
    size = CLIENTS * 4 * 18
    assert fits(table)  # nobody knows
    for limit, kind in ((4 * size, Federated), (4 * size - 4, OnHost)):
        monkeypatch.setattr(
            "research.learning.federated.host_table.memory_of", lambda device, limit=limit: limit
        )
        made = replace(SCAFFOLD, table="auto").build(learner(SCAFFOLD).one, LOCAL, 10, CLIENTS)
        assert type(made) is kind


def test_a_mistake_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="use --federated.table device"):
        replace(CONFIG, rule="fedbuff", table="host").check()
    monkeypatch.setattr("research.learning.federated.federated_config.count", lambda: 4)
    with pytest.raises(UserError, match="one process, and there are 4: use --federated.table devi"):
        on_host(SCAFFOLD).build(learner(SCAFFOLD).one, LOCAL, 10, CLIENTS)
