"""Clients with models of their own, against the papers' equations in NumPy; softmax regression."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from research.data import Clients, HeldOut, LabeledArrays
from research.errors import UserError
from research.learning import FederatedConfig, Synchronous
from research.models import MLPConfig, Specification
from research.parallel.mesh import MeshConfig
from research.training.checkpoints import Checkpoints
from research.training.evaluation_of_clients import evaluate_personal
from tests.learning.federated.test_federated import (
    CLASSES,
    CLIENTS,
    CLOSE,
    CONFIG,
    FEATURES,
    INPUTS,
    LABELS,
    LOCAL,
    OWNERS,
    RATE,
    Reference,
    clients,
    cohorts,
    flat,
    learner,
    run,
)

BIAS = slice(0, CLASSES)
"""What clients keep in these tests: a linear model has no body beside its head."""
FEDPER = replace(CONFIG, rule="fedper", own=("output/bias",))
FEDREP = replace(FEDPER, rule="fedrep", weighting="uniform")
DITTO = replace(CONFIG, rule="ditto", pull=0.7)
PFEDME = replace(CONFIG, rule="pfedme", pull=2.0, search=3, share=0.4)
IFCA = replace(CONFIG, rule="ifca", clusters=3)
Q_FEDAVG = replace(CONFIG, rule="q_fedavg", q=2.0, weighting="uniform")
ALL = [FEDPER, FEDREP, DITTO, PFEDME, IFCA, Q_FEDAVG]
AGNOSTIC = replace(CONFIG, rule="agnostic", ascent=0.15, weighting="uniform")


def loss(w: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> float:
    logits = rows @ w[CLASSES:].reshape(FEATURES, CLASSES) + w[BIAS]
    chosen = logits[np.arange(len(rows)), labels]
    return float(np.mean(np.log(np.exp(logits).sum(1)) - chosen))


def data(client: int) -> tuple[np.ndarray, np.ndarray]:
    mine = np.flatnonzero(np.equal(OWNERS, client))
    return INPUTS[mine], LABELS[mine]


def best(models: np.ndarray, client: int) -> int:
    """The model of least loss, of equal ones the first from the client's number on."""
    losses = np.array([loss(w, *data(client)) for w in models])
    order = (client + np.arange(len(models))) % len(models)
    return int(order[np.argmin(losses[order].round(6))])


def by_hand(config: FederatedConfig, rounds: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """w (of ifca one a cluster) and what every client keeps, after so many rounds."""
    it = Reference(config)
    w = it.start()
    own = np.tile(w, (CLIENTS, 1))
    models = np.tile(w, (config.clusters, 1))
    reader = cohorts(config)
    for number in range(rounds):
        round = reader.rows(number, range(config.cohort))
        ends, weights, lipschitz, choices = [], [], [], []
        for row, client in enumerate(round["client"]):
            batches = it.batches(round, row)
            end = w.copy()
            if config.rule == "ifca":
                choices.append(best(models, client))
                end = models[choices[-1]].copy()
            elif config.rule == "fedper":
                end[BIAS] = own[client][BIAS]
            elif config.rule == "fedrep":
                own[client][CLASSES:] = w[CLASSES:]
                for each in batches:
                    own[client][BIAS] -= RATE * it.gradient(own[client], *each)[BIAS]
                end[BIAS] = own[client][BIAS]
                for each in batches[: len(batches) // config.epochs]:
                    end[CLASSES:] -= RATE * it.gradient(end, *each)[CLASSES:]
                batches = []
            for each in batches:
                if config.rule == "pfedme":
                    theta = end.copy()
                    for _ in range(config.search):
                        pull = config.pull * (theta - end)
                        theta = theta - RATE * (it.gradient(theta, *each) + pull)
                    end = end - config.share * (end - theta)
                    own[client] = theta
                    continue
                end = end - RATE * it.gradient(end, *each)
                if config.rule == "ditto":
                    v = own[client]
                    own[client] = v - RATE * (it.gradient(v, *each) + config.pull * (v - w))
            if config.rule == "fedper":
                own[client] = end
            if config.rule == "q_fedavg":
                f, step = loss(w, *data(client)), (w - end) / RATE
                q = config.q
                lipschitz.append(q * f ** (q - 1) * step @ step + f**q / RATE)
                end = w - f**q * step  # so that w - end is Δ_k
            ends.append(end)
            weights.append(round["examples"][row] if config.weighting == "examples" else 1.0)
        moves, shares = np.array(ends), np.array(weights)
        if config.rule == "ifca":
            for j in set(choices):
                mine = np.array(choices) == j
                models[j] = shares[mine] @ moves[mine] / shares[mine].sum()
        elif config.rule == "q_fedavg":
            w = w - (w - moves).sum(0) / sum(lipschitz)
        else:
            after = shares @ moves / shares.sum()
            w = np.concatenate([w[BIAS], after[CLASSES:]]) if config.own == FEDPER.own else after
    return (models if config.rule == "ifca" else w), own


def rows(tree: Any, count: int) -> np.ndarray:
    """[count, parameters] of trees whose leaves are [count, ...]."""
    return np.concatenate([np.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(tree)], axis=1)


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.rule)
def test_each_follows_its_paper(config: FederatedConfig) -> None:
    state, _ = run(config)
    w, own = by_hand(config)
    if config.rule == "ifca":
        np.testing.assert_allclose(rows(state.parameters, config.clusters), w, **CLOSE)
        return
    np.testing.assert_allclose(flat(state.parameters), w, **CLOSE)
    if config.rule != "q_fedavg":
        kept = rows(state.clients, CLIENTS)
        np.testing.assert_allclose(kept, own[:, : kept.shape[1]], **CLOSE)


# Limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "local", "like"),
    [
        (replace(FEDPER, own=()), LOCAL, CONFIG),
        (replace(DITTO, pull=0.0), LOCAL, CONFIG),
        (DITTO, LOCAL, CONFIG),
        (replace(IFCA, clusters=1), LOCAL, CONFIG),
        (replace(Q_FEDAVG, q=0.0), LOCAL, replace(CONFIG, weighting="uniform")),
        # One step of a rate that is larger by as much as the copy goes less far.
        (
            replace(PFEDME, search=1, share=0.5),
            replace(LOCAL, learning_rate=2 * RATE),
            CONFIG,
        ),
    ],
    ids=["no own head", "ditto without λ", "ditto", "one cluster", "q = 0", "pfedme of one step"],
)
def test_in_the_limit_the_server_s_model_is_that_of_fedavg(
    config: FederatedConfig, local: Any, like: FederatedConfig
) -> None:
    state, _ = run(config, local=local)
    expected, _ = run(like)
    np.testing.assert_allclose(flat(state.parameters), flat(expected.parameters), **CLOSE)


def test_ditto_without_a_pull_learns_alone() -> None:
    """And who was in no cohort has what all began with."""
    config = replace(DITTO, pull=0.0, sampling="fixed")
    state, _ = run(config, sampling="fixed")
    it, reader = Reference(config), cohorts(config, sampling="fixed")
    own = np.tile(it.start(), (CLIENTS, 1))
    for number in range(4):
        round = reader.rows(number, range(config.cohort))
        for row, client in enumerate(round["client"]):
            for each in it.batches(round, row):
                own[client] -= RATE * it.gradient(own[client], *each)
    np.testing.assert_allclose(rows(state.clients, CLIENTS), own, **CLOSE)
    np.testing.assert_array_equal(rows(state.clients, CLIENTS)[3:], np.tile(it.start(), (3, 1)))


def test_clusters_find_clients_that_are_alike() -> None:
    """Clients whose labels mean the opposite choose other models, and each model is one kind's."""
    config = replace(IFCA, clusters=2, cohort=CLIENTS, sampling="fixed")
    labels = (INPUTS[:, 0] > 0).astype(np.int64)
    labels = np.where(OWNERS >= 3, 1 - labels, labels)
    here = learner(config)
    made = cohorts(config, sampling="fixed")
    made.source = LabeledArrays(INPUTS, labels)
    with jax.set_mesh(here.mesh):
        state = here.init()
        for step in range(20):
            state, _ = here.step(state, made.rows(step, range(CLIENTS)))
    models = rows(jax.device_get(state.parameters), 2)
    losses = [
        [loss(w, INPUTS[mine], labels[mine]) for w in models]
        for mine in (np.equal(OWNERS, client) for client in range(CLIENTS))
    ]
    chosen = np.argmin(losses, axis=1)
    assert len(set(chosen[:3])) == len(set(chosen[3:])) == 1 and chosen[0] != chosen[3]
    assert np.min(losses, axis=1).max() < 0.5 < np.max(losses, axis=1).min()


def test_q_fedavg_serves_the_worst_client_better() -> None:
    """The higher q, the lower the highest loss, and the more alike they are (table 1 there)."""
    worst, spread = [], []
    for q in (0.0, 2.0):
        config = replace(Q_FEDAVG, q=q, cohort=CLIENTS)
        state, _ = run(config, rounds=150, local=replace(LOCAL, learning_rate=0.05))
        w = flat(state.parameters)
        losses = [loss(w, *data(c)) for c in range(CLIENTS)]
        worst.append(max(losses))
        spread.append(np.std(losses))
    assert worst[1] < worst[0] and spread[1] < spread[0]


# Law 3, and what is sent ------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*ALL, AGNOSTIC], ids=lambda config: config.rule)
@pytest.mark.parametrize(("devices", "plan", "width"), [(1, "chunk", 3), (2, "vmap", None)])
def test_rounds_do_not_depend_on_where_clients_are(
    config: FederatedConfig, devices: int, plan: Any, width: int | None
) -> None:
    config = replace(config, cohort=CLIENTS)
    expected, _ = run(config, rounds=2)
    state, _ = run(replace(config, plan=plan, width=width), rounds=2, devices=devices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), state, expected)


@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(FEDREP, own=("head",)), DITTO, replace(IFCA, fine_tuning=3)],
    ids=lambda config: config.rule,
)
def test_a_client_s_model_may_be_split(config: FederatedConfig) -> None:
    """Over fsdp and tensor, with clients at the same place of which one takes more steps."""
    config = replace(config, cohort=CLIENTS)
    results = []
    for mesh in (MeshConfig(data=1), MeshConfig(replica=2, fsdp=2, tensor=2, data=1)):
        built = mesh.build(jax.devices()[: mesh.named_devices])
        one = Synchronous(
            MLPConfig(widths=(8,), activation="tanh"),
            Specification((FEATURES,), CLASSES),
            LOCAL.build(10),
            LOCAL.learning_rate_schedule(10),
            built,
            outside=("replica",),
        )
        here, made = config.build(one, LOCAL, 10, CLIENTS), cohorts(config, devices=mesh.replica)
        held = HeldOut(LabeledArrays(INPUTS, LABELS), clients(), np.arange(len(LABELS)))
        with jax.set_mesh(built):
            state = here.init()
            for step in range(2):
                rows = made.rows(step, range(CLIENTS))
                state, _ = here.step(state, rows)
            told = [np.zeros(3)]
            if here.personalizes:
                everybody = np.arange(CLIENTS)
                own = here.evaluate_personal(state, made.once(everybody) | held.rows(everybody))
                told = [np.asarray(each) for each in own]
        results.append((jax.device_get(state), told))
    assert len(set(rows["steps"][: CLIENTS // 2] - rows["steps"][CLIENTS // 2 :])) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.parametrize("config", [*ALL, AGNOSTIC], ids=lambda config: config.rule)
def test_rounds_are_resumed_bit_for_bit(config: FederatedConfig, tmp_path: Path) -> None:
    """Law 2: a checkpoint has heads, own models and those of clusters."""
    here, made = learner(config), cohorts(config)
    with jax.set_mesh(here.mesh), contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        state = here.init()
        for step in range(4):
            state, _ = here.step(state, made.rows(step, range(config.cohort)))
            if step == 1:
                checkpoints.save(2, state)
                checkpoints.wait()
        _, again = checkpoints.restore(here.abstract_state)
        for step in (2, 3):
            again, _ = here.step(again, made.rows(step, range(config.cohort)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))


def test_heads_and_own_models_are_not_sent() -> None:
    whole = (FEATURES + 1) * CLASSES
    for config, numbers in (
        (FEDPER, 2 * FEATURES * CLASSES),
        (DITTO, 2 * whole),
        (IFCA, (3 + 1) * whole),
        (AGNOSTIC, 2 * (whole + 1)),
    ):
        here = learner(config)
        sent = here.observe(2, here.abstract_state)
        assert sent["bytes_sent"] == config.cohort * 4 * numbers
        assert sent["bytes_sent_total"] == 2 * sent["bytes_sent"]


# Evaluation by client -----------------------------------------------------------------------------


def evaluated(config: FederatedConfig, devices: int = 1) -> tuple[Any, dict[str, float]]:
    """The state after some rounds, and what clients' own models do on what they learned from, but
    for client 2, of whom nothing is held out."""
    here = learner(config, LOCAL, devices)
    state, _ = run(config, devices=devices)
    owners = np.where(OWNERS == 2, -1, OWNERS)
    split = Clients.of(owners, LABELS, CLASSES, clients().names)
    held = HeldOut(LabeledArrays(INPUTS, LABELS), split, np.arange(len(LABELS)))
    with jax.set_mesh(here.mesh):
        placed = jax.device_put(state, here.shardings)
        told = evaluate_personal(
            here.evaluate_personal,
            placed,
            held,
            cohorts(config, devices=devices),
            np.arange(config.cohort),
            lambda batch: batch,
        )
    return state, told


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("config", [FEDPER, DITTO, PFEDME, IFCA], ids=lambda config: config.rule)
def test_every_client_is_evaluated_by_its_own_model(config: FederatedConfig, devices: int) -> None:
    config = replace(config, cohort=2 * devices)
    state, told = evaluated(config, devices)
    w, losses = flat(state.parameters), []
    for client in (0, 1, 3, 4, 5):
        if config.rule == "ifca":
            models = rows(state.parameters, config.clusters)
            mine = models[best(models, client)]
        else:
            own = rows(state.clients, CLIENTS)[client]
            mine = np.concatenate([own, w[len(own) :]])
        losses.append(loss(mine, *data(client)))
    assert told["personal_loss_mean"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert told["personal_loss_deviation"] == pytest.approx(np.std(losses), rel=1e-4)
    assert told["personal_loss_worst_tenth"] == pytest.approx(max(losses), rel=1e-5)


def test_clients_are_fine_tuned_before_they_are_evaluated() -> None:
    """12 steps, which is more than an epoch of any client: its batches come again."""
    config = replace(CONFIG, fine_tuning=12)
    state, told = evaluated(config)
    it, reader, losses = Reference(config), cohorts(config), []
    for client in (0, 1, 3, 4, 5):
        w = flat(state.parameters)
        batches = it.batches(reader.once(np.array([client])), 0)
        assert 1 < len(batches) < 12
        for step in range(12):
            w = w - RATE * it.gradient(w, *batches[step % len(batches)])
        losses.append(loss(w, *data(client)))
    assert told["personal_loss_mean"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert not learner(CONFIG).personalizes


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (replace(FEDPER, own=("head",)), "are all parameters, so that clients share none"),
        (replace(FEDPER, own=("body",)), "there are output/bias, output/kernel"),
        (replace(PFEDME, share=0.0), "--federated.share 0.0 must be above 0, at most 1"),
        (replace(IFCA, clusters=0), "--federated.clusters 0 must be 1 or more"),
        (replace(CONFIG, fine_tuning=-1), "--federated.fine-tuning -1 must be 0 or more"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(config: FederatedConfig, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        config.check()
        learner(config)
    assert sentence in str(caught.value)
