"""Chains of stages in rounds of clients: the same wherever clients are, and by hand in NumPy."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from research.errors import UserError
from research.exchange.stages import Round, Stage
from research.learning import AttackConfig, Federated, FederatedConfig, OptimizerConfig
from research.learning.federated.aggregation import Aggregation
from research.learning.federated.aggregation_config import AggregationConfig
from tests.learning.federated.test_federated import (
    CLIENTS,
    CLOSE,
    CONFIG,
    LOCAL,
    build,
    cohorts,
    flat,
    learner,
    poisoned,
    run,
)

UNIFORM = replace(CONFIG, weighting="uniform")


def aggregated(config: FederatedConfig, **words: Any) -> FederatedConfig:
    return replace(config, aggregation=replace(config.aggregation, **words))


def moves(config: FederatedConfig = UNIFORM) -> np.ndarray:
    """[cohort, parameters]: what each client of the first round does, by rounds of it alone."""
    alone = replace(config, cohort=1, aggregation=AggregationConfig())
    here, rows = learner(alone), cohorts(config).rows(0, range(config.cohort))
    made = []
    with jax.set_mesh(here.mesh):
        start = flat(here.init().parameters)
        for row in range(config.cohort):
            one = {name: leaf[[row]] for name, leaf in rows.items()}
            made.append(start - flat(here.step(here.init(), one)[0].parameters))
    return np.array(made)


def moved(config: FederatedConfig, devices: int = 1, **words: Any) -> np.ndarray:
    """[parameters]: what the server does in the first round."""
    state, _ = run(config, rounds=1, devices=devices, **words)
    return flat(learner(config).one.init().parameters) - flat(state.parameters)


def test_updates_are_clipped_before_they_are_averaged() -> None:
    """By the norm of all of an update; weights stay those of the examples."""
    own = moves()
    norms = np.linalg.norm(own, axis=1)
    bound = float(np.median(norms))
    for weighting, weights in (
        ("uniform", np.ones(len(own))),
        ("examples", cohorts().rows(0, range(len(own)))["examples"]),
    ):
        expected = weights / weights.sum() @ (own * np.minimum(1, bound / norms)[:, None])
        config = aggregated(replace(CONFIG, weighting=weighting), clip=bound)  # type: ignore
        np.testing.assert_allclose(moved(config), expected, **CLOSE)


def test_compressed_updates_move_the_server_and_are_counted() -> None:
    config = aggregated(UNIFORM, compression="top_k", ratio=0.25)
    kept = np.zeros_like(own := moves())
    for row, move in enumerate(own):  # 3 biases: the largest; 15 weights: the largest 4
        for array in (slice(0, 3), slice(3, 18)):
            places = np.argsort(-np.abs(move[array]))[: max(1, round(0.25 * len(move[array])))]
            kept[row, places + array.start] = move[array][places]
    np.testing.assert_allclose(moved(config), kept.mean(0), **CLOSE)
    with jax.set_mesh(learner(config).mesh):
        seen = learner(config).observe(5, learner(config).init())
    assert seen["bytes_sent"] == 3 * (4 * 18 + 8 * (1 + 4))
    assert seen["bytes_sent_total"] == 5 * seen["bytes_sent"]


def side_by_side(weights: Any, config: FederatedConfig, devices: int) -> Federated:
    """A learner whose aggregation sees all updates, and weighs them by `weights(alive)`."""

    def apply(x: Any, state: Any, round: Round) -> Any:
        p = weights(x.alive)
        return jax.tree.map(lambda leaf: jnp.tensordot(p / p.sum(), leaf, 1), x.updates), state + 1

    made = build(config, LOCAL, devices)
    stage = Stage("weighted", "all", "result", apply, init=lambda like: jnp.zeros(()))
    return Federated(
        *(made.one, made.algorithm, made._server),
        *(made.cohort.optimizer, made.cohort.rate, made.cohort.peak),
        *(made.population, config.width or 1, True),
        aggregation=Aggregation((stage,)),
    )


@pytest.mark.parametrize(("rule", "devices", "width"), [("scaffold", 1, 3), ("fedavg", 2, 1)])
def test_what_sees_all_updates_may_be_their_mean(rule: Any, devices: int, width: int) -> None:
    config = replace(UNIFORM, rule=rule, cohort=CLIENTS, width=width)
    expected, _ = run(replace(config, width=1), rounds=2)
    here = side_by_side(lambda alive: alive.astype(jnp.float32), config, devices)
    with jax.set_mesh(here.mesh):
        state = here.init()
        for step in range(2):
            state, _ = here.step(state, cohorts(config, devices=devices).rows(step, range(CLIENTS)))
    assert state.stages == {"weighted": 2.0}
    same = jax.device_get(state)._replace(stages=expected.stages)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), same, expected)


def test_who_is_not_finite_is_told_to_what_sees_all() -> None:
    here = side_by_side(lambda alive: alive.astype(jnp.float32), UNIFORM, 1)
    with jax.set_mesh(here.mesh):
        state, metrics = here.step(here.init(), poisoned(0, 1))
    start = flat(here.one.init().parameters)
    np.testing.assert_allclose(start - flat(state.parameters), moves()[[0, 2]].mean(0), **CLOSE)
    assert (metrics["clients"], metrics["clients_dropped"]) == (2, 1)


def test_who_is_not_finite_is_found_before_a_code_would_hide_it() -> None:
    config = aggregated(UNIFORM, compression="int8")
    here = learner(config)
    with jax.set_mesh(here.mesh):
        state, metrics = here.step(here.init(), poisoned(0, 1))
    assert metrics["clients_dropped"] == 1
    start, own = flat(here.one.init().parameters), moves()[[0, 2]]
    step = np.abs(own).max() / 127
    assert np.abs(start - flat(state.parameters) - own.mean(0)).max() <= step / 2 + 1e-6


# Robust rules, and attacks ------------------------------------------------------------------------

EVERYBODY = replace(UNIFORM, cohort=CLIENTS)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_server_moves_by_the_rule(devices: int) -> None:
    own = moves(EVERYBODY)
    config = aggregated(EVERYBODY, rule="trimmed_mean", byzantine=1)
    expected = np.sort(own, axis=0)[1:-1].mean(0)
    np.testing.assert_allclose(moved(config, devices), expected, **CLOSE)


def test_a_chain_of_everything_is_that_by_hand() -> None:
    """Clipped, attacked, mixed, and the median of it."""
    own, attack = moves(EVERYBODY), AttackConfig("sign_flip", count=2, strength=3.0)
    bound = float(np.median(np.linalg.norm(own, axis=1)))
    sent = own * np.minimum(1, bound / np.linalg.norm(own, axis=1))[:, None]
    bad = attack.members(CLIENTS, learner(EVERYBODY).one.seed)
    assert bad.sum() == 2
    order = cohorts(EVERYBODY).rows(0, range(CLIENTS))["client"]
    sent[bad[order]] *= -3
    distance = ((sent[:, None] - sent[None]) ** 2).sum(-1)
    mixed = sent[np.argsort(distance, axis=1)[:, :4]].mean(1)
    words = {"rule": "median", "byzantine": 2, "mixing": "nearest_neighbors", "clip": bound}
    config = aggregated(EVERYBODY, **words)
    np.testing.assert_allclose(moved(config, 2, attack=attack), np.median(mixed, 0), **CLOSE)
    assert run(config, rounds=1, devices=2, attack=attack)[1][0]["byzantine"] == 2


def test_clients_send_the_momentum_of_their_own_moves() -> None:
    """m_k ← β·m_k + (1 - β)·Δ_k of those in the cohort, and the server goes by their median."""
    beta, config = 0.6, replace(UNIFORM, cohort=4)
    alone, reader = learner(replace(config, cohort=1)), cohorts(config)
    with jax.set_mesh(alone.mesh):
        start, as_tree = ravel_pytree(alone.init().parameters)
        w, m = np.asarray(start, np.float64), np.zeros((CLIENTS, len(start)))
        for number in range(4):
            rows = reader.rows(number, range(config.cohort))
            for row, client in enumerate(rows["client"]):
                one = {name: leaf[[row]] for name, leaf in rows.items()}
                state = alone.with_parameters(alone.init(), as_tree(w.astype(np.float32)))
                move = w - flat(alone.step(state, one)[0].parameters)
                m[client] = beta * m[client] + (1 - beta) * move
            w = w - np.median(m[rows["client"]], axis=0)
    state, _ = run(aggregated(config, rule="median", momentum=beta), devices=2)
    np.testing.assert_allclose(flat(state.parameters), w, **CLOSE)


def test_an_attack_on_a_mean_keeps_its_weights() -> None:
    config, attack = replace(CONFIG, cohort=CLIENTS), AttackConfig("ipm", count=2, strength=2.0)
    own = moves(replace(EVERYBODY, weighting="examples"))
    rows = cohorts(config).rows(0, range(CLIENTS))
    bad = attack.members(CLIENTS, 0)[rows["client"]]
    sent = np.where(bad[:, None], -2 * own[~bad].mean(0), own)
    expected = rows["examples"] @ sent / rows["examples"].sum()
    np.testing.assert_allclose(moved(config, attack=attack), expected, **CLOSE)


def test_a_rule_across_secret_groups_sees_their_means() -> None:
    """Of 6 clients 2 groups of 3: the mean of both is that of all, to half a step of each."""
    config = aggregated(EVERYBODY, secure=True, groups=2, rule="median", clip=10.0)
    own, step = moves(EVERYBODY), 2.0**-15  # 19 bits and a sign for ±10: 2^15 steps in 1.0
    np.testing.assert_allclose(moved(config, 2), own.mean(0), atol=step / 2 + 1e-6)
    state, metrics = run(config, rounds=1, devices=2)
    assert metrics[0]["groups"] == 2
    with jax.set_mesh(learner(config, devices=2).mesh):
        seen = learner(config, devices=2).observe(1, state)
    assert seen["bytes_sent"] == CLIENTS * 2 * 4 * 18


def test_a_secret_group_that_is_too_small_is_told() -> None:
    config = aggregated(EVERYBODY, secure=True, groups=2, rule="median", clip=10.0)
    config = aggregated(config, byzantine=0)
    here, rows = learner(config), cohorts(config).rows(0, range(CLIENTS))
    rows["inputs"][:4] = np.nan  # 2 are left
    with jax.set_mesh(here.mesh):
        before = jax.device_get(here.init().parameters)
        state, metrics = here.step(here.init(), rows)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.parameters), before)
    told = here.complaint({name: float(value) for name, value in metrics.items()})
    assert told is not None and told.startswith("0 groups of clients have enough of them left")


def test_a_round_with_too_few_for_its_rule_changes_nothing_and_is_told() -> None:
    config = aggregated(EVERYBODY, rule="krum", byzantine=1)
    here, rows = learner(config), cohorts(config).rows(0, range(CLIENTS))
    rows["inputs"][:2] = np.nan
    with jax.set_mesh(here.mesh):
        before = jax.device_get(here.init().parameters)
        state, metrics = here.step(here.init(), rows)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.parameters), before)
    told = here.complaint({name: float(value) for name, value in metrics.items()})
    assert told is not None and told.startswith(
        "4 of 6 clients answered, and --federated.aggregation.rule with its byzantine ones asks "
        "for 5: use a larger --federated.cohort"
    )


def test_who_is_byzantine_is_drawn_once_and_never_all() -> None:
    attack = AttackConfig("alie", share=0.3)
    assert attack.members(10, 5).sum() == 3
    np.testing.assert_array_equal(attack.members(10, 5), attack.members(10, 5))
    assert any((attack.members(10, 5) != attack.members(10, seed)).any() for seed in range(5))
    with pytest.raises(UserError, match="count 10 leaves nobody honest of 10: use 9 or less"):
        AttackConfig("alie", count=10).number(10)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rule": "krum", "byzantine": 1}, "byzantine 0, or --federated.cohort 5"),
        ({"secure": True}, "nothing bounds these: use --federated.aggregation.clip 1.0"),
        (
            {"secure": True, "clip": 1.0, "groups": 2},
            "2 groups of 3 clients have 1: use --federated",
        ),
        ({"secure": True, "clip": 1.0, "rule": "median"}, "median sees single updates"),
        ({"secure": True, "clip": 1.0, "bits": 31}, "does not fit into 32 bits"),
        ({"groups": 4}, "--federated.aggregation.groups 4 must be 1 to 3, the cohort"),
        ({"groups": 2, "rule": "median", "byzantine": 1}, "2 groups are fewer than the 3"),
        ({"clip": 0.0}, "--federated.aggregation.clip 0.0 must be more than 0, or None"),
        ({"momentum": 0.9}, "and --federated.aggregation.rule is mean: use 0, or rule median"),
        ({"ratio": 2.0}, "--federated.aggregation.ratio 2.0 must be more than 0, at most 1"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        aggregated(UNIFORM, **change).check()
    assert sentence in str(caught.value)


def test_what_only_a_mean_makes_sense_of_is_refused() -> None:
    with pytest.raises(UserError, match="clients of fednova send numbers beside their moves"):
        aggregated(replace(CONFIG, rule="fednova"), clip=1.0).check()
    replace(CONFIG, rule="fednova").check()


def test_statistics_of_batches_are_seen_by_no_stage() -> None:
    from research.learning import Synchronous
    from research.models import ResNetConfig, Specification
    from research.parallel.mesh import MeshConfig

    mesh, local = MeshConfig().build(jax.devices()[:1]), OptimizerConfig(name="sgd")
    one = Synchronous(
        ResNetConfig(width=8, normalization="batch"),
        Specification((8, 8, 3), 10),
        local.build(1),
        local.learning_rate_schedule(1),
        mesh,
    )
    with pytest.raises(UserError, match="averaged over clients as they are"):
        aggregated(CONFIG, clip=1.0).build(one, local, 1, 5)
