"""Rules that average, against their equations in NumPy and optax: 4 replicas on one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.errors import UserError
from research.exchange import Replicas
from research.exchange.exchange import Moment
from research.exchange.replicas import SEAT
from research.learning import ExchangeConfig
from research.learning.replicated.local_updates import (
    diloco,
    easgd,
    every_step,
    local_sgd,
    post_local_sgd,
)
from research.learning.replicated.rule import Rule, bytes_at, bytes_before
from research.parallel.mesh import MeshConfig

COUNT = 4
START = {"w": np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)}
STEPS = np.random.default_rng(1).normal(size=(12, COUNT, 3, 2)).astype(np.float32)
"""What each replica adds to its parameters in each step."""


def stacked(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (COUNT, *jnp.shape(leaf))), tree)


def run(rule: Rule, steps: int = len(STEPS)) -> list[tuple[np.ndarray, Any]]:
    """[replicas, ...] parameters and the rule's state after every step, by plain SGD of rate 1
    with gradients -STEPS."""

    def one(number: jax.Array, w: Any, state: Any, move: jax.Array, step: jax.Array) -> Any:
        moment = Moment(Replicas(1, COUNT), step, number, jax.random.key(0))
        gradients, state = rule.on_gradients({"w": -move}, state, moment)
        w = jax.tree.map(jnp.subtract, w, gradients)
        return rule.on_parameters(w, state, moment)

    update = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None), axis_name=SEAT))
    w, state = stacked(START), stacked(rule.init(jax.tree.map(jnp.asarray, START)))
    after = []
    for step in range(steps):
        w, state = update(jnp.arange(COUNT), w, state, STEPS[step], step)
        after.append((np.asarray(w["w"]), jax.device_get(state)))
    return after


def everywhere(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, (COUNT, *x.shape))


CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}  # sums of a dozen float32 near 1


def test_every_step_keeps_replicas_equal_and_follows_the_mean() -> None:
    for step, (w, _) in enumerate(run(every_step())):
        expected = START["w"] + STEPS[: step + 1].mean(1).sum(0)
        np.testing.assert_allclose(w, everywhere(expected), **CLOSE)


def test_local_sgd_averages_where_the_period_divides_and_nowhere_else() -> None:
    w = np.array(everywhere(START["w"]))
    for step, (got, _) in enumerate(run(local_sgd(5))):
        w = w + STEPS[step]
        if (step + 1) % 5 == 0:
            w = np.array(everywhere(w.mean(0)))
        np.testing.assert_allclose(got, w, **CLOSE)


def test_local_sgd_of_period_1_is_every_step() -> None:
    for (mine, _), (its, _) in zip(run(local_sgd(1)), run(every_step()), strict=True):
        np.testing.assert_allclose(mine, its, **CLOSE)


def test_post_local_sgd_is_synchronous_and_then_local() -> None:
    synchronous, later = run(every_step()), run(post_local_sgd(3, first=4))
    for step in range(4):
        np.testing.assert_allclose(later[step][0], synchronous[step][0], **CLOSE)
    w = later[3][0]
    for step in range(4, 12):
        w = w + STEPS[step]
        if (step - 4 + 1) % 3 == 0:
            w = np.array(everywhere(w.mean(0)))
        np.testing.assert_allclose(later[step][0], w, **CLOSE)


def test_diloco_is_the_outer_nesterov_of_optax_on_the_mean_move() -> None:
    outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    start = jnp.asarray(START["w"])
    memory = outer.init(start)
    w = np.array(everywhere(START["w"]))
    for step, (got, state) in enumerate(run(diloco(3, 0.7, 0.9))):
        w = w + STEPS[step]
        if (step + 1) % 3 == 0:
            moved = start - w.mean(0)
            updates, memory = outer.update(moved, memory)
            start = optax.apply_updates(start, updates)
            w = np.array(everywhere(np.asarray(start)))
        np.testing.assert_allclose(got, w, **CLOSE)
        np.testing.assert_allclose(state.start["w"], everywhere(np.asarray(start)), **CLOSE)


def test_diloco_may_begin_synchronously() -> None:
    """Up to t' = 4, and from there as it would from those parameters."""
    synchronous, later = run(every_step()), run(diloco(3, 0.7, 0.9, first=4))
    for step in range(4):
        np.testing.assert_allclose(later[step][0], synchronous[step][0], **CLOSE)
    start, velocity = later[3][0][0], np.zeros_like(START["w"])
    w = later[3][0]
    for step in range(4, 12):
        w = w + STEPS[step]
        if (step - 4 + 1) % 3 == 0:
            moved = start - w.mean(0)
            velocity = 0.9 * velocity + moved
            start = start - 0.7 * (moved + 0.9 * velocity)
            w = np.array(everywhere(start))
        np.testing.assert_allclose(later[step][0], w, **CLOSE)


def test_diloco_of_rate_1_without_momentum_is_local_averaging() -> None:
    for (mine, _), (its, _) in zip(run(diloco(3, 1.0, 0.0)), run(local_sgd(3)), strict=True):
        np.testing.assert_allclose(mine, its, **CLOSE)


def test_easgd_pulls_both_ways_and_keeps_the_sum() -> None:
    before_w, before_c = np.array(everywhere(START["w"])), START["w"]
    for step, (w, center) in enumerate(run(easgd(2, alpha=0.2))):
        np.testing.assert_array_equal(center["w"], everywhere(center["w"][0]))
        moved, c = before_w + STEPS[step], center["w"][0]
        np.testing.assert_allclose(w.sum(0) + c, moved.sum(0) + before_c, **CLOSE)
        if (step + 1) % 2 == 0:
            np.testing.assert_allclose(w, moved - 0.2 * (moved - before_c), **CLOSE)
            np.testing.assert_allclose(c, before_c + 0.2 * (moved - before_c).sum(0), **CLOSE)
        else:
            np.testing.assert_allclose(w, moved, **CLOSE)
        before_w, before_c = w, c


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        (every_step(), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (local_sgd(3), [3, 6, 9]),
        (post_local_sgd(3, 2), [1, 2, 5, 8]),
        (diloco(3, first=2), [1, 2, 5, 8]),
        (diloco(4), [4, 8]),
        (easgd(4, 0.1), [4, 8]),
    ],
)
def test_bytes_are_counted_in_the_steps_that_send_them(rule: Rule, steps: list[int]) -> None:
    """6 float32 on 4 devices: 2 · 3/4 · 24 = 36 bytes."""
    sendings = rule.sendings({"w": jax.ShapeDtypeStruct((3, 2), jnp.float32)}, Replicas(COUNT))
    assert [n + 1 for n in range(9) if bytes_at(sendings, n) == 36] == steps
    assert all(bytes_at(sendings, n) in (0, 36) for n in range(9))
    assert bytes_before(sendings, 9) == 36 * len(steps)
    assert bytes_before(sendings, 0) == 0


# What a config may ask --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "mesh", "sentence"),
    [
        (ExchangeConfig(), MeshConfig(replica=4), "--mesh.replica 4 asks for replicas that differ"),
        (ExchangeConfig(), MeshConfig(replica=4), "or --mesh.data 4 for one model"),
        (ExchangeConfig(replicas=2), MeshConfig(), "--exchange.replicas 2 asks for replicas"),
        (ExchangeConfig("diloco", period=0), MeshConfig(), "--exchange.period 0 must be 1 or more"),
        (ExchangeConfig("diloco", replicas=0), MeshConfig(), "--exchange.replicas 0 must be 1"),
        (ExchangeConfig("diloco", outer_learning_rate=0.0), MeshConfig(), "rate 0.0 must be"),
        (ExchangeConfig("diloco", outer_momentum=1.0), MeshConfig(), "momentum 1.0 must be 0"),
        (
            ExchangeConfig("easgd", alpha=1.5),
            MeshConfig(),
            "alpha 1.5 must be more than 0",
        ),
        (ExchangeConfig("local_sgd", groups=0), MeshConfig(), "--exchange.groups 0 must be 1"),
        (ExchangeConfig("every_step", rank=0), MeshConfig(), "--exchange.rank 0 must be 1 or more"),
        (
            ExchangeConfig("every_step", ratio=0.0),
            MeshConfig(),
            "ratio 0.0 must be more",
        ),
        (
            ExchangeConfig("easgd", compression="int8"),
            MeshConfig(),
            "--exchange.compression int8 is not for --exchange.rule easgd: use every_step, local",
        ),
        (
            ExchangeConfig("every_step", compression="int8", groups=2),
            MeshConfig(),
            "--exchange.groups 2 is for plain means",
        ),
        (
            ExchangeConfig("post_local_sgd", first_local_step=-1),
            MeshConfig(),
            "--exchange.first-local-step -1 must be 0 or more",
        ),
        (
            ExchangeConfig("streaming_diloco", fragments=0),
            MeshConfig(),
            "--exchange.fragments 0 must be 1 or more",
        ),
        (
            ExchangeConfig("streaming_diloco", mixing=1.5),
            MeshConfig(),
            "--exchange.mixing 1.5 must be 0 or more, at most 1",
        ),
        (
            ExchangeConfig("streaming_diloco", overlap=-1),
            MeshConfig(),
            "--exchange.overlap -1 must be 0 or more",
        ),
        (
            ExchangeConfig("streaming_diloco", period=3, fragments=4),
            MeshConfig(),
            "fragments 4 do not fit into --exchange.period 3, one a step: use --exchange.fragments "
            "3 or fewer",
        ),
        (
            ExchangeConfig("streaming_diloco", period=20, fragments=4, overlap=20),
            MeshConfig(),
            "overlap 20 must be below --exchange.period 20, after which a fragment is sent again",
        ),
    ],
)
def test_a_mistake_is_named_with_the_way_out(
    config: ExchangeConfig, mesh: MeshConfig, sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        config.check(mesh)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("replicas", "groups", "sentence"),
    [
        (6, 1, "6 replicas do not divide over --mesh.replica 4: use --exchange.replicas 4 or 8"),
        (2, 1, "2 replicas do not divide over --mesh.replica 4: use --exchange.replicas 4, or"),
        (4, 3, "4 replicas, 1 a device, do not make 3 groups of equal size: use .* 1 or 2 or 4"),
        (24, 6, "24 replicas, 6 a device, do not make 6 groups"),
    ],
)
def test_replicas_that_do_not_divide_are_named(replicas: int, groups: int, sentence: str) -> None:
    mesh = MeshConfig(replica=4, data=1).build(jax.devices()[:4])
    with pytest.raises(UserError, match=sentence):
        ExchangeConfig("local_sgd", replicas=replicas, groups=groups).on(mesh)


def test_as_many_replicas_as_the_mesh_has_unless_more_are_asked_for() -> None:
    mesh = MeshConfig(replica=4, data=1).build(jax.devices()[:4])
    assert ExchangeConfig("diloco").on(mesh).replicas == 4
    assert ExchangeConfig("diloco", replicas=8).on(mesh).replicas == 8
    assert ExchangeConfig().on(MeshConfig().build()).replicas is None
