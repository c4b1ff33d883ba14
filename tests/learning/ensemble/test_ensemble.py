"""Members against models that learn alone: by optax, and by NumPy where answers are combined."""

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.errors import UserError
from research.learning import EnsembleConfig, OptimizerConfig, Synchronous
from research.learning.ensemble.combination import Rule, combination
from research.models import CNNConfig, MLPConfig, Specification
from research.parallel.mesh import MeshConfig

TABLE = Specification(shape=(6,), classes=3)
MODEL = MLPConfig(widths=(8, 8), activation="tanh")
ADAM = OptimizerConfig(
    name="adamw", learning_rate=0.02, warmup_steps=2, weight_decay=0.01, clip=0.3
)
# Sums are taken in another order; Adam makes the most of it where a gradient is near zero.
CLOSE: dict[str, float] = {"rtol": 2e-5, "atol": 2e-5}
STEPS, BATCH, M = 6, 8, 3


@pytest.fixture(autouse=True)
def quick_compiling() -> Iterator[None]:
    """As for the laws."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@cache
def alone(model: Any = MODEL, rate: float = 0.02, decay: float = 0.01) -> Synchronous:
    optimizer = replace(ADAM, learning_rate=rate, weight_decay=decay)
    mesh = MeshConfig(data=1).build(jax.devices()[:1])
    schedule, build = optimizer.learning_rate_schedule(STEPS), optimizer.build(STEPS)
    return Synchronous(model, TABLE, build, schedule, mesh, outside=("replica",))


@cache
def batches(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """[members, batch, ...] each."""
    generator = np.random.default_rng(seed)
    return [
        {
            "inputs": generator.normal(size=(M, BATCH, 6)).astype(np.float32),
            "targets": generator.integers(3, size=(M, BATCH), dtype=np.int32),
        }
        for _ in range(STEPS)
    ]


@cache
def ensemble(config: EnsembleConfig, model: Any = MODEL) -> Any:
    return replace(config, members=M).build(alone(model), ADAM, STEPS, model)


def trained(
    config: EnsembleConfig,
    data: list[dict[str, np.ndarray]],
    model: Any = MODEL,
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Learner, last state and what was told of every step."""
    made, told = ensemble(config, model), []
    with jax.set_mesh(made.mesh):
        state = made.init()
        for rows in data:
            state, metrics = made.step(state, rows)
            told.append({name: float(each) for name, each in made.told(metrics).items()})
    return made, state, told


def of_member(state: Any, member: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[member], state.members)


def by_hand(start: Any, member: int, one: Synchronous | None = None) -> tuple[Any, list[float]]:
    """Parameters and losses of a model that learns from a member's data alone."""
    one = one or alone()
    losses = []
    with jax.set_mesh(one.mesh):
        state = one.init()._replace(parameters=start, optimizer=one.optimizer.init(start))
        for rows in batches():
            state, metrics = one.step(state, {n: leaf[member] for n, leaf in rows.items()})
            losses.append(float(metrics["loss"]))
    return state.parameters, losses


def assert_same(mine: Any, its: Any) -> None:
    for leaf, other in zip(*map(jax.tree.leaves, (mine, its)), strict=True):
        np.testing.assert_allclose(leaf, other, **CLOSE)


@pytest.mark.parametrize("plan", ["scan", "unroll", "vmap"])
def test_every_member_learns_what_it_would_alone(plan: Any) -> None:
    """Clipped by its own gradient's norm, which all of these are."""
    made, state, told = trained(EnsembleConfig("deep", plan=plan), batches())
    with jax.set_mesh(made.mesh):
        start = made.init()
    losses = []
    for member in range(M):
        wanted, its = by_hand(of_member(start, member).parameters, member)
        assert_same(of_member(state, member).parameters, wanted)
        losses.append(its)
    assert min(each["gradient_norm"] for each in told) > ADAM.clip
    for step, each in enumerate(told):
        its = [of_one[step] for of_one in losses]
        assert each["loss"] == pytest.approx(np.mean(its), rel=2e-5)
        assert each["loss_lowest"] == pytest.approx(min(its), rel=2e-5)
        assert each["loss_highest"] == pytest.approx(max(its), rel=2e-5)


def test_member_0_is_the_run_without_an_ensemble() -> None:
    """Its start and its dropout, too; the others' are their own."""
    model = replace(MODEL, dropout=0.3)
    _, state, _ = trained(EnsembleConfig("deep"), batches(), model)
    one = alone(model)
    with jax.set_mesh(one.mesh):
        start = one.init().parameters
    wanted, _ = by_hand(start, 0, one=one)
    assert_same(of_member(state, 0).parameters, wanted)
    kernel = jax.tree.leaves(state.members.parameters)[1]
    assert min(np.abs(kernel[a] - kernel[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_a_member_that_diverges_is_frozen_and_left_out() -> None:
    """The others do as without it, and it keeps what it had before."""
    bad = [{name: leaf.copy() for name, leaf in rows.items()} for rows in batches()]
    bad[3]["inputs"][1] = np.inf
    made, state, told = trained(EnsembleConfig("deep"), bad)
    _, before, _ = trained(EnsembleConfig("deep"), batches()[:3])
    _, sound, wanted = trained(EnsembleConfig("deep"), batches())
    assert_same(of_member(state, 1)._replace(frozen=0), of_member(before, 1)._replace(frozen=0))
    for member in (0, 2):
        assert_same(of_member(state, member), of_member(sound, member))
    assert [each["members_frozen"] for each in told] == [0, 0, 0, 1, 1, 1]
    assert told[-1]["first_frozen"] == 3 and list(state.members.frozen) == [-1, 3, -1]
    assert all(np.isfinite(list(each.values())).all() for each in told)
    assert made.complaint(told[-1]) is None and told[-1]["loss"] != wanted[-1]["loss"]
    # Its answers do not count.
    rows = {name: leaf[0] for name, leaf in batches()[0].items()}
    with jax.set_mesh(made.mesh):
        answers = made.predict(state, rows).log_probabilities
        together = jax.jit(lambda state, x: made.model(state)(x))(state, rows["inputs"])
    two = np.asarray(answers, np.float64)[[0, 2]]
    np.testing.assert_allclose(np.exp(together), np.exp(two).mean(0), rtol=1e-5)


def test_a_run_without_a_member_left_says_so() -> None:
    bad = [rows | {"inputs": np.full_like(rows["inputs"], np.nan)} for rows in batches()[:1]]
    made, _, told = trained(EnsembleConfig("deep"), bad)
    assert "all 3 members are frozen" in made.complaint(told[0])
    assert "after 0 updates" in made.complaint(told[0])


def test_a_sweep_is_an_ensemble() -> None:
    """Each member by its own rate and decay is a run of that rate and decay."""
    rates, decays = (0.02, 0.02, 0.05), (0.01, 0.01, 0.3)
    config = EnsembleConfig("deep", learning_rates=rates, weight_decays=decays)
    made, state, told = trained(config, batches())
    with jax.set_mesh(made.mesh):
        start = made.init()
    for member in (1, 2):
        rate, decay = rates[member], decays[member]
        one = alone(MODEL, rate, decay)
        wanted, _ = by_hand(of_member(start, member).parameters, member, one)
        assert_same(of_member(state, member).parameters, wanted)
    schedule = ADAM.learning_rate_schedule(STEPS)
    mean = np.mean(rates) / ADAM.learning_rate
    assert told[2]["learning_rate"] == pytest.approx(float(schedule(2)) * mean, rel=1e-5)


def test_members_drop_as_much_as_they_are_told() -> None:
    """Member 0 of rate 0.3 is a run of rate 0.3, and one of rate 0 a run without dropout."""
    config = EnsembleConfig("deep", dropouts=(0.3, 0.0, 0.6))
    made, state, _ = trained(config, batches(), MODEL)
    with jax.set_mesh(made.mesh):
        start = made.init()
    for member, rate in ((0, 0.3), (1, 0.0)):
        one = alone(replace(MODEL, dropout=rate))
        wanted, _ = by_hand(of_member(start, member).parameters, member, one=one)
        assert_same(of_member(state, member).parameters, wanted)


def test_a_narrow_member_is_a_narrow_model() -> None:
    """Its first units learn what a model of that width learns from them, the others are 0."""
    _, state, _ = trained(EnsembleConfig("deep", widths=(8, 5, 3)), batches())
    one = alone(replace(MODEL, widths=(5, 5)))
    made, _, _ = trained(EnsembleConfig("deep", widths=(8, 5, 3)), [])
    with jax.set_mesh(made.mesh):
        start = of_member(made.init(), 1).parameters
    like = jax.eval_shape(one.init).parameters

    def cut(tree: Any) -> Any:
        return jax.tree.map(lambda leaf, s: leaf[tuple(map(slice, s.shape))], tree, like)

    wanted, _ = by_hand(cut(start), 1, one=one)
    parameters = of_member(state, 1).parameters
    assert_same(cut(parameters), wanted)
    for layer in parameters["hidden"].values():
        assert not np.any(layer["kernel"][:, 5:]) and not np.any(layer["bias"][5:])
    assert not np.any(parameters["output"]["kernel"][5:])
    # As wide a spread of activations as a narrow model begins with: variance 1 / fan-in.
    wide = MLPConfig(widths=(400, 400), activation="tanh")
    big, _, _ = trained(EnsembleConfig("deep", widths=(400, 100, 25)), [], wide)
    with jax.set_mesh(big.mesh):
        kernels = big.init().members.parameters["hidden"]["layer_1"]["kernel"]
    for member, width in enumerate((400, 100, 25)):
        deviation = np.std(kernels[member][:width, :width])
        assert deviation == pytest.approx(width**-0.5, rel=0.1)


# Combinations ---------------------------------------------------------------------------------


def answers(sharp: float) -> np.ndarray:
    """Log-probabilities [members, examples, classes]; the sharper, the nearer to 0 and 1."""
    logits = sharp * np.random.default_rng(3).normal(size=(5, 40, 4))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("rule", ["mean", "product", "majority"])
def test_answers_are_combined_as_by_hand(rule: Rule) -> None:
    p = np.exp(answers(2.0))
    if rule == "mean":
        wanted = p.mean(0)
    elif rule == "product":
        wanted = np.prod(p, axis=0) ** (1 / 5)
    else:
        wanted = np.eye(4)[p.argmax(-1)].sum(0) + 1 / 4
    wanted /= wanted.sum(-1, keepdims=True)
    together = combination(rule).together(jnp.asarray(np.log(p), jnp.float32))
    np.testing.assert_allclose(np.exp(together), wanted, rtol=2e-5)


def test_certain_answers_are_not_rounded_to_nothing() -> None:
    """Probabilities of e^-400 are 0 in float32; their logarithms are not."""
    log_p = answers(200.0)
    together = np.asarray(combination("mean").together(jnp.asarray(log_p, jnp.float32)))
    wanted = np.log(np.exp(log_p.astype(np.longdouble)).mean(0))
    assert np.exp(log_p.astype(np.float32)).min() == 0 and np.isfinite(together).all()
    np.testing.assert_allclose(together, wanted.astype(float), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("rule", "replica"), [("mean", 1), ("product", 3), ("majority", 1)])
def test_an_evaluation_is_of_the_combination(rule: Rule, replica: int) -> None:
    config = EnsembleConfig("deep", members=M, combination=rule)
    mesh = MeshConfig(replica=replica, data=1).build(jax.devices()[:replica])
    rate = ADAM.learning_rate_schedule(STEPS)
    one = Synchronous(MODEL, TABLE, optax.sgd(0.1), rate, mesh, outside=("replica",))
    made = config.build(one, ADAM, STEPS, MODEL)
    rows = {name: leaf[0] for name, leaf in batches()[0].items()}
    weights = np.array([1, 1, 1, 1, 1, 0, 1, 0], np.float32)
    with jax.set_mesh(mesh):
        state = made.init()
        predictions = made.predict(state, rows)
        totals = made.evaluate(state, rows | {"weights": weights})
    log_p = combination(rule).together(predictions.log_probabilities)
    each = -np.asarray(log_p)[np.arange(BATCH), rows["targets"]]
    assert predictions.log_probabilities.shape == (M, BATCH, 3)
    assert totals.loss == pytest.approx((each * weights).sum(), rel=1e-5)
    assert totals.targets == 6


# Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "model", "sentence"),
    [
        (EnsembleConfig("deep", dropouts=(0.1,) * M), CNNConfig(), "CNNConfig has no dropout"),
        (EnsembleConfig("deep", widths=(1,) * M), CNNConfig(), "is not made narrower"),
        (EnsembleConfig("deep", widths=(9, 1, 1)), MODEL, "and at most 8, as --model.widths"),
    ],
)
def test_what_a_model_does_not_have_is_named(
    config: EnsembleConfig, model: Any, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(config, members=M).build(alone(), ADAM, STEPS, model)


def test_members_are_not_put_together_over_stages() -> None:
    mesh = MeshConfig(stage=2, data=1).build(jax.devices()[:2])
    one = copy(alone())
    one.mesh = mesh
    with pytest.raises(UserError, match="use --mesh.stage 1"):
        EnsembleConfig("deep", members=2).build(one, ADAM, STEPS, MODEL)
