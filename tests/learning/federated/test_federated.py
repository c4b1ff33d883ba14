"""Federated algorithms against their equations in NumPy, and their limits; softmax regression."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from research.data import Clients, Cohorts, LabeledArrays
from research.errors import UserError
from research.learning import Federated, FederatedConfig, OptimizerConfig, Synchronous
from research.learning.attack_config import NOBODY
from research.models import LinearConfig, MLPConfig, Specification
from research.parallel.collectives import KINDS
from research.parallel.hlo import parse
from research.parallel.mesh import MeshConfig

FEATURES, CLASSES, CLIENTS, EXAMPLES = 5, 3, 6, 61
RATE, BATCH = 0.3, 4
CLOSE: dict[str, float] = {"rtol": 2e-5, "atol": 2e-6}
draw = np.random.default_rng(0)
INPUTS = draw.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
LABELS = draw.integers(0, CLASSES, EXAMPLES)
OWNERS = np.concatenate([np.arange(CLIENTS), draw.integers(0, CLIENTS, EXAMPLES - CLIENTS)])
LOCAL = OptimizerConfig(name="sgd", learning_rate=RATE, schedule="constant", clip=None)
CONFIG = FederatedConfig("fedavg", cohort=3, epochs=2)


def clients() -> Clients:
    return Clients.of(OWNERS, LABELS, CLASSES, tuple(map(str, range(CLIENTS))))


def cohorts(config: FederatedConfig = CONFIG, **words: Any) -> Cohorts:
    data = LabeledArrays(INPUTS, LABELS)
    at_once = config.rule == "fedsgd"
    batch, epochs = (None, 1) if at_once else (BATCH, config.epochs)
    return Cohorts(data, clients(), config.cohort, batch, epochs, seed=1, **words)


learners: dict[str, Federated] = {}


def learner(
    config: FederatedConfig, local: Any = LOCAL, devices: int = 1, attack: Any = NOBODY
) -> Federated:
    key = f"{config} {local} {devices} {attack}"
    if key not in learners:
        learners[key] = build(config, local, devices, attack)
    return learners[key]


def build(config: FederatedConfig, local: Any, devices: int, attack: Any = NOBODY) -> Federated:
    mesh = MeshConfig(replica=devices, data=1).build(jax.devices()[:devices])
    one = Synchronous(
        LinearConfig(),
        Specification((FEATURES,), CLASSES),
        local.build(10),
        local.learning_rate_schedule(10),
        mesh,
        outside=("replica",),
    )
    return config.build(one, local, 10, CLIENTS, attack)


def run(
    config: FederatedConfig,
    rounds: int = 4,
    local: Any = LOCAL,
    devices: int = 1,
    attack: Any = NOBODY,
    **words: Any,
) -> tuple[Any, list[dict[str, float]]]:
    """The state after so many rounds, and the metrics of each."""
    here = learner(config, local, devices, attack)
    batches = cohorts(config, devices=devices, **words)
    metrics = []
    with jax.set_mesh(here.mesh):
        state = here.init()
        for step in range(rounds):
            state, each = here.step(state, batches.rows(step, range(config.cohort)))
            metrics.append({name: float(value) for name, value in each.items()})
    return jax.device_get(state), metrics


# The same in NumPy ------------------------------------------------------------------------------


class Reference(NamedTuple):
    """w as a vector; gradients of the mean cross-entropy."""

    config: FederatedConfig
    momentum: float = 0.0

    def start(self) -> np.ndarray:
        return flat(learner(self.config).one.init().parameters)

    def gradient(self, w: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        bias, kernel = w[:CLASSES], w[CLASSES:].reshape(FEATURES, CLASSES)
        logits = rows @ kernel + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p = p / p.sum(1, keepdims=True) - np.eye(CLASSES)[labels]
        return np.concatenate([p.mean(0), (rows.T @ p / len(rows)).ravel()])

    def batches(self, round: dict[str, np.ndarray], row: int) -> list[tuple[np.ndarray, ...]]:
        """Of a client, its steps without what only fills up."""
        made = []
        for step in range(round["steps"][row]):
            real = round["weights"][row, step] > 0
            made.append((round["inputs"][row, step][real], round["targets"][row, step][real]))
        return made


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def by_hand(config: FederatedConfig, rounds: int = 4, momentum: float = 0.0) -> np.ndarray:
    """w after so many rounds, as the papers' algorithms are written."""
    it = Reference(config)
    w = it.start()
    c, controls, m = np.zeros_like(w), np.zeros((CLIENTS, len(w))), np.zeros_like(w)
    reader = cohorts(config)
    for number in range(rounds):
        round = reader.rows(number, range(config.cohort))
        moves, changes, sizes, steps, gradients = [], [], [], [], []
        for row, client in enumerate(round["client"]):
            end, velocity = w.copy(), np.zeros_like(w)
            batches = it.batches(round, row)
            for rows, labels in batches:
                g = it.gradient(end, rows, labels)
                if config.rule == "fedprox":
                    g = g + config.mu * (end - w)
                if config.rule == "scaffold":
                    g = g - controls[client] + c
                if config.rule == "mimelite":
                    end = end - RATE * ((1 - momentum) * g + momentum * m)
                    continue
                velocity = momentum * velocity + g
                end = end - RATE * velocity
            moves.append(end - w)
            sizes.append(round["examples"][row])
            steps.append(len(batches))
            own = round["weights"][row] > 0
            gradients.append(it.gradient(w, round["inputs"][row][own], round["targets"][row][own]))
            if config.rule == "scaffold":
                after = controls[client] - c + (w - end) / (len(batches) * RATE)
                changes.append(after - controls[client])
                controls[client] = after
        weights = np.array(sizes if config.weighting == "examples" else [1.0] * len(sizes))
        weights = weights / weights.sum()
        if config.rule == "fednova":
            lengths = [
                (k - momentum * (1 - momentum**k) / (1 - momentum)) / (1 - momentum) for k in steps
            ]
            w = w + (weights @ lengths) * sum(
                p * move / length for p, move, length in zip(weights, moves, lengths, strict=True)
            )
        else:
            w = w + weights @ np.array(moves)
        if config.rule == "scaffold":
            c = c + np.sum(changes, axis=0) / CLIENTS
        if config.rule == "mimelite":
            m = (1 - momentum) * (weights @ np.array(gradients)) + momentum * m
    return w


@pytest.mark.parametrize(
    ("config", "momentum"),
    [
        (CONFIG, 0.0),
        (CONFIG, 0.5),
        (replace(CONFIG, weighting="uniform"), 0.0),
        (replace(CONFIG, rule="fedprox", mu=0.7), 0.0),
        (replace(CONFIG, rule="scaffold", weighting="uniform"), 0.0),
        (replace(CONFIG, rule="fednova"), 0.0),
        (replace(CONFIG, rule="fednova"), 0.5),
        (replace(CONFIG, rule="mimelite"), 0.5),
    ],
    ids=lambda value: f"{value.rule}-{value.weighting}" if hasattr(value, "rule") else f"{value}",
)
def test_each_follows_its_paper(config: FederatedConfig, momentum: float) -> None:
    local = replace(LOCAL, beta1=momentum or None)
    state, _ = run(config, local=local)
    np.testing.assert_allclose(flat(state.parameters), by_hand(config, momentum=momentum), **CLOSE)


# Limits -----------------------------------------------------------------------------------------


def test_fedsgd_of_everybody_is_gradient_descent() -> None:
    """The mean of the clients' gradients by their examples is that of all examples."""
    state, _ = run(FederatedConfig("fedsgd", cohort=CLIENTS), rounds=3)
    it = Reference(CONFIG)
    w = it.start()
    for _ in range(3):
        w = w - RATE * it.gradient(w, INPUTS, LABELS)
    np.testing.assert_allclose(flat(state.parameters), w, **CLOSE)


def test_fedprox_without_mu_is_fedavg() -> None:
    same, _ = run(replace(CONFIG, rule="fedprox", mu=0.0))
    jax.tree.map(np.testing.assert_array_equal, same, run(CONFIG)[0])


def test_the_server_may_have_any_optimizer() -> None:
    """FedAdam's first step is its rate in the direction of the mean move (Reddi 2021)."""
    server = OptimizerConfig(name="adam", learning_rate=0.01, schedule="constant", clip=None)
    state, _ = run(replace(CONFIG, server=server), rounds=1)
    averaged, _ = run(CONFIG, rounds=1)
    before = flat(learner(CONFIG).one.init().parameters)
    moved = flat(state.parameters) - before
    np.testing.assert_allclose(moved, 0.01 * np.sign(flat(averaged.parameters) - before), rtol=1e-2)


# Who is left out --------------------------------------------------------------------------------


def poisoned(step: int, row: int) -> dict[str, np.ndarray]:
    rows = cohorts().rows(step, range(CONFIG.cohort))
    rows["inputs"][row] = np.nan
    return rows


def test_a_client_that_is_not_finite_weighs_nothing_and_is_counted() -> None:
    here = learner(CONFIG)
    with jax.set_mesh(here.mesh):
        state, metrics = here.step(here.init(), poisoned(0, 1))
        good = {name: leaf[[0, 2]] for name, leaf in cohorts().rows(0, range(3)).items()}
        two = learner(replace(CONFIG, cohort=2))
        expected, _ = two.step(two.init(), good)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **CLOSE),
        state.parameters,
        expected.parameters,
    )
    assert (metrics["clients"], metrics["clients_dropped"]) == (2, 1)
    assert np.isfinite(metrics["loss"])


def test_a_round_with_too_few_answers_changes_nothing_and_is_told() -> None:
    here = learner(replace(CONFIG, minimum=3))
    with jax.set_mesh(here.mesh):
        before = jax.device_get(here.init().parameters)
        state, metrics = here.step(here.init(), poisoned(0, 1))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.parameters), before)
    told = here.complaint({name: float(value) for name, value in metrics.items()})
    assert told is not None and told.startswith("2 of 3 clients answered")
    assert here.complaint({"clients": 3.0}) is None


def test_clients_that_fail_keep_what_they_had() -> None:
    config = replace(CONFIG, rule="scaffold", cohort=CLIENTS)
    here, reader = learner(config), cohorts(config, failing=0.5)
    rows = reader.rows(0, range(CLIENTS))
    assert 0 < rows["present"].sum() < CLIENTS
    with jax.set_mesh(here.mesh):
        state, _ = here.step(here.init(), rows)
    kept = np.abs(jax.tree.leaves(state.clients)[0]).reshape(CLIENTS, -1).sum(axis=1)
    np.testing.assert_array_equal(kept[rows["client"]] > 0, rows["present"])


# Law 3: wherever clients are computed -----------------------------------------------------------


@pytest.mark.parametrize("rule", ["fedavg", "scaffold", "mimelite", "fednova"])
@pytest.mark.parametrize(("devices", "plan", "width"), [(1, "chunk", 3), (2, "vmap", None)])
def test_rounds_do_not_depend_on_where_clients_are(
    rule: Any, devices: int, plan: Any, width: int | None
) -> None:
    config = replace(CONFIG, rule=rule, cohort=CLIENTS)
    expected, _ = run(config)
    state, _ = run(replace(config, plan=plan, width=width), devices=devices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), state, expected)


def test_the_compiled_round_sums_what_clients_send_once() -> None:
    """Law 4: over `replica` go the moves, and single numbers."""
    config = replace(CONFIG, cohort=CLIENTS)
    here = learner(config, LOCAL, 2)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape,
            leaf.dtype,
            sharding=jax.sharding.NamedSharding(here.mesh, jax.sharding.PartitionSpec("replica")),
        ),
        cohorts(config).rows(0, range(CLIENTS)),
    )
    with jax.set_mesh(here.mesh):
        text = here.step.lower(here.abstract_state, batch).compile().as_text()
    sizes = [
        array.size
        for visit in parse(text).visits()
        if visit.instruction.opcode in KINDS
        for array in visit.computation.operands(visit.instruction)
    ]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(here.abstract_state.parameters))
    assert sum(size for size in sizes if size > 1) == parameters
    assert all(
        visit.instruction.opcode == "all-reduce"
        for visit in parse(text).visits()
        if visit.instruction.opcode in KINDS
    )


def test_a_width_that_does_not_divide_is_named_with_those_that_do() -> None:
    config = replace(CONFIG, cohort=CLIENTS, plan="chunk", width=4)
    with pytest.raises(UserError, match="does not divide the 6 clients .* use one of 1, 2, 3, 6"):
        build(config, LOCAL, 1)


def test_a_local_step_overwrites_what_it_learns() -> None:
    """By the compiled round: no matrix is copied in the loop over steps, also of those that the
    backward pass reads."""
    mesh = MeshConfig(data=1).build(jax.devices()[:1])
    one = Synchronous(
        MLPConfig(widths=(16, 16)),
        Specification((FEATURES,), CLASSES),
        LOCAL.build(10),
        LOCAL.learning_rate_schedule(10),
        mesh,
        outside=("replica",),
    )
    here = CONFIG.build(one, LOCAL, 10, CLIENTS)
    with jax.set_mesh(mesh):
        rows = cohorts().rows(0, range(CONFIG.cohort))
        text = here.step.lower(here.abstract_state, rows).compile().as_text()
    steps = [visit.instruction for visit in parse(text).visits() if visit.unknown]
    assert any(each.opcode == "dot" for each in steps)
    copied = [each.arrays[0].size for each in steps if each.opcode == "copy"]
    assert max(copied, default=0) < 16 * 16


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cohort": 0}, "--federated.cohort 0 must be 1 or more"),
        ({"epochs": 0}, "--federated.epochs 0 must be 1 or more"),
        ({"failing": 1.0}, "--federated.failing 1.0 must be 0 or more, and below 1"),
        (
            {"width": 3},
            "--federated.width 3 is of another plan than scan: use --federated.plan chunk",
        ),
        (
            {"stragglers": 0.6, "straggling": "drop", "minimum": 2},
            "2 clients cannot answer of a cohort of 3 without its 2 stragglers: use "
            "--federated.minimum 1",
        ),
        (
            {"stragglers": 1.0, "straggling": "drop"},
            "1 clients cannot answer of a cohort of 3 without its 3 stragglers: use fewer",
        ),
        ({"minimum": 4}, "4 clients cannot answer of a cohort of 3: use --federated.minimum 3"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(CONFIG, **change).check()
    assert sentence in str(caught.value)
