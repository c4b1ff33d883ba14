"""Robust rules and attacks against their papers' equations in NumPy, and where rules break."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.exchange import Moment, Replicas
from research.exchange.attacks import ATTACKS, Attack
from research.exchange.robust import RULES, Robust, check_breakdown, robust
from research.exchange.robust.nearest_neighbors import nearest_neighbors

COUNT, BYZANTINE, RADIUS = 13, 2, 3.0
CLOSE: dict[str, float] = {"rtol": 2e-5, "atol": 2e-5}  # sums of 30 float32 of order 1
SHAPES = {"w": (4, 5), "b": (3,), "n": ()}
draw = np.random.default_rng(0)
UPDATES = {
    name: (draw.normal(size=(COUNT, *shape)) + 1).astype(np.float32)
    for name, shape in SHAPES.items()
}
ALL = np.ones(COUNT, bool)
SOME = ALL.copy()
SOME[[3, 8]] = False
BEFORE = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}


def flat(tree: Any) -> np.ndarray:
    """[n, numbers] of arrays [n, ...]."""
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], 1
    )


def one(tree: Any) -> np.ndarray:
    return flat(jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree))[0]


def huge(size: float = 1e6) -> dict[str, np.ndarray]:
    """Where the first two are far away."""
    far = np.zeros(COUNT)
    far[:BYZANTINE] = size
    return {
        name: (leaf + far.reshape(-1, *(1,) * (leaf.ndim - 1))).astype(np.float32)
        for name, leaf in UPDATES.items()
    }


# In NumPy, of rows x [n, numbers] and f -----------------------------------------------------------


def distances(x: np.ndarray) -> np.ndarray:
    return ((x[:, None] - x[None]) ** 2).sum(-1)


def krum_order(x: np.ndarray, f: int) -> np.ndarray:
    others = [np.delete(row, i) for i, row in enumerate(distances(x))]
    score = [np.sort(row)[: len(x) - f - 2].sum() for row in others]
    return np.argsort(score, kind="stable")


def weiszfeld(x: np.ndarray) -> np.ndarray:
    """Until it stands still: no step of it is ours."""
    v = x.mean(0)
    for _ in range(3000):
        a = 1 / np.maximum(np.linalg.norm(x - v, axis=1), 1e-12)
        v = a @ x / a.sum()
    return v


def bulyan(x: np.ndarray, f: int) -> np.ndarray:
    left, chosen = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        best = left[krum_order(x[left], f)[0]]
        chosen.append(best)
        left.remove(best)
    s = x[chosen]
    beta = len(s) - 2 * f
    near = np.argsort(np.abs(s - np.median(s, axis=0)), axis=0)[:beta]
    return np.take_along_axis(s, near, 0).mean(0)


def clipped(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x - v, axis=1, keepdims=True)
    return v + ((x - v) * np.minimum(1, RADIUS / length)).mean(0)


def centered(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    for _ in range(3):
        v = clipped(x, v)
    return v


BY_HAND: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "mean": lambda x, f: x.mean(0),
    "median": lambda x, f: np.median(x, axis=0),
    "trimmed_mean": lambda x, f: np.sort(x, axis=0)[f : len(x) - f].mean(0),
    "geometric_median": lambda x, f: weiszfeld(x),
    "krum": lambda x, f: x[krum_order(x, f)[0]],
    "multi_krum": lambda x, f: x[krum_order(x, f)[: len(x) - f]].mean(0),
    "bulyan": bulyan,
    "norm_clipping": lambda x, f: clipped(x, np.zeros(x.shape[1])),
    "centered_clipping": lambda x, f: centered(x, one(BEFORE)),
}


def made(rule: Robust, x: Any, alive: np.ndarray) -> Any:
    """By the rule; those that are not alive send zeros."""
    zeroed = jax.tree.map(
        lambda leaf: np.where(alive.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0), x
    )
    before = BEFORE if RULES[rule.rule].remembers else ()
    return jax.jit(rule.apply)(zeroed, alive, before)[0]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("alive", [ALL, SOME], ids=["all", "some"])
def test_each_rule_is_that_of_its_paper(name: str, alive: np.ndarray) -> None:
    """With an even and an odd number of them; the geometric median within a hundredth."""
    rule = Robust(name, BYZANTINE, RADIUS)
    expected = BY_HAND[name](flat(UPDATES)[alive], BYZANTINE)
    close = {"atol": 1e-2} if name == "geometric_median" else CLOSE
    np.testing.assert_allclose(one(made(rule, UPDATES, alive)), expected, **close)


def test_mixed_updates_are_means_of_their_neighbors() -> None:
    x = flat(UPDATES)[SOME]
    near = np.argsort(distances(x), axis=1)[:, : len(x) - BYZANTINE]
    mixed = jax.jit(nearest_neighbors, static_argnums=2)(UPDATES, SOME, BYZANTINE)
    np.testing.assert_allclose(flat(mixed)[SOME], x[near].mean(1), **CLOSE)
    got = made(Robust("median", BYZANTINE, mixing="nearest_neighbors"), UPDATES, SOME)
    np.testing.assert_allclose(one(got), np.median(x[near].mean(1), axis=0), **CLOSE)


ROBUST = [name for name in RULES if name != "mean"]


@pytest.mark.parametrize("size", [1e3, 1e30])
@pytest.mark.parametrize("name", ROBUST)
def test_two_that_are_far_away_move_no_rule_far(name: str, size: float) -> None:
    """Clipping lets each pull by the radius, as hard as anybody; the mean goes with them."""
    spread = np.linalg.norm(flat(UPDATES) - flat(UPDATES).mean(0), axis=1).max()
    honest = flat(UPDATES)[BYZANTINE:].mean(0)
    got = one(made(Robust(name, BYZANTINE, RADIUS), huge(size), ALL))
    assert np.linalg.norm(got - honest) < 1.5 * spread
    lost = one(made(Robust("mean"), huge(size), ALL))
    assert np.linalg.norm(lost - honest) > 10 * spread


def test_one_too_many_breaks_the_median() -> None:
    far = {
        name: np.where(np.arange(COUNT).reshape(-1, *(1,) * (x.ndim - 1)) < 7, 1e6, x)
        for name, x in UPDATES.items()
    }
    assert one(made(Robust("median"), far, ALL)).min() == 1e6


def test_too_few_that_are_left_make_nothing() -> None:
    few = np.arange(COUNT) < 2 * BYZANTINE + 2
    assert not one(made(Robust("krum", BYZANTINE), UPDATES, few)).any()
    before = Robust("centered_clipping", 4).apply(UPDATES, few, BEFORE)[1]
    jax.tree.map(np.testing.assert_array_equal, before, BEFORE)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Robust("median", 4), "2·f + 1, and 8 of them are fewer than the 9 that f = 4 asks for"),
        (Robust("krum", 3), "krum withstands f Byzantine of n ≥ 2·f + 3"),
        (Robust("bulyan", 2), "the 11 that f = 2 asks for: use -f 1, or -n 11"),
        (Robust("mean", 4, mixing="nearest_neighbors"), "nearest_neighbors withstands"),
    ],
    ids=lambda value: getattr(value, "rule", ""),
)
def test_what_a_rule_does_not_withstand_is_named(rule: Robust, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_breakdown(rule, 8, "of them", ("-f", "-n"))
    assert sentence in str(caught.value)
    check_breakdown(rule, rule.least, "of them", ("-f", "-n"))


# Attacks ------------------------------------------------------------------------------------------

BAD = np.arange(COUNT) >= COUNT - BYZANTINE


def attacked(attack: Attack, x: Any = UPDATES, alive: np.ndarray = ALL, step: int = 0) -> Any:
    return jax.jit(attack.apply)(
        x, alive, BAD, attack.init(BEFORE), jnp.int32(step), jax.random.key(0)
    )


@pytest.mark.parametrize("alive", [ALL, SOME], ids=["all", "some"])
def test_attacks_are_those_of_their_papers(alive: np.ndarray) -> None:
    x, honest = flat(UPDATES), flat(UPDATES)[alive & ~BAD]
    n, f = int(alive.sum()), BYZANTINE
    mu, sigma = honest.mean(0), honest.std(0)
    z = NormalDist().inv_cdf((n - f - (np.floor(n / 2 + 1) - f)) / (n - f))
    sent = {
        "sign_flip": -x[BAD],
        "scaling": n / f * x[BAD],
        "alie": np.tile(mu - z * sigma, (f, 1)),
        "ipm": np.tile(-0.1 * mu, (f, 1)),
    }
    for name, expected in sent.items():
        got, fine, _ = attacked(Attack(name), alive=alive)
        np.testing.assert_allclose(flat(got)[BAD], expected, **CLOSE)
        np.testing.assert_array_equal(flat(got)[~BAD], x.astype(np.float32)[~BAD])
        np.testing.assert_array_equal(fine, alive)
    got, _, _ = attacked(Attack("ipm", 2.0), alive=alive)
    np.testing.assert_allclose(flat(got)[BAD], np.tile(-2 * mu, (f, 1)), **CLOSE)


def test_noise_is_drawn_for_each() -> None:
    got = flat(attacked(Attack("gaussian"))[0])[BAD]
    assert 100 < got.std() < 400 and not np.array_equal(got[0], got[1])


def test_mimics_copy_one_honest_update_along_the_widest_direction() -> None:
    x = flat(UPDATES)
    wide = {name: leaf.copy() for name, leaf in UPDATES.items()}
    wide["w"][:, 2, 3] += 10 * np.arange(COUNT)  # the last honest one is the farthest
    wide["w"][BAD, 2, 3] = 1e3
    got, _, direction = attacked(Attack("mimic"), wide)
    last = flat(wide)[COUNT - BYZANTINE - 1]
    assert abs(np.asarray(direction["w"])[2, 3]) > 0.9
    sign = np.sign(np.asarray(direction["w"])[2, 3])
    wanted = last if sign > 0 else flat(wide)[0]
    np.testing.assert_array_equal(flat(got)[BAD], np.tile(wanted, (BYZANTINE, 1)))
    assert x.shape == flat(got).shape


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_what_is_sent_and_not_finite_is_removed_and_told() -> None:
    got, fine, _ = attacked(Attack("gaussian", 1e39))
    assert np.isfinite(flat(got)).all() and not fine[BAD].any() and fine[~BAD].all()


# Between replicas -------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2])
def test_replicas_agree_on_the_rule_of_what_the_living_remember(devices: int, seen: Any) -> None:
    """Worker momentum by hand over two steps; replica 5 is dead in the second one."""
    replicas, steps, beta = Replicas(devices, 8 // devices), 2, 0.9
    rule = Robust("trimmed_mean", 1)
    exchange = robust(rule, beta, Attack("sign_flip"), attackers=1)
    x = [{"w": draw.normal(size=(8, 4, 5)).astype(np.float32)} for _ in range(steps)]
    alive = np.ones((steps, 8), bool)
    alive[1, 5] = False

    def go(number: jax.Array, alive: jax.Array, *trees: Any) -> Any:
        state = exchange.init(jax.tree.map(jnp.zeros_like, trees[0]))
        for step, tree in enumerate(trees):
            moment = Moment(
                replicas, jnp.int32(step), number, jax.random.key(step), alive=alive[step]
            )
            result, state = exchange.apply(tree, state, moment)
        return result, state.momentum

    result, momentum = seen(go, replicas, alive.T, *x)
    m = np.zeros((8, 20))
    for step in range(steps):
        m = np.where(alive[step][:, None], beta * m + (1 - beta) * flat(x[step]), m)
    sent = np.concatenate([m[:7], -m[7:]])[alive[1]]
    expected = np.sort(sent, axis=0)[1:-1].mean(0)
    np.testing.assert_allclose(flat(result), np.tile(expected, (8, 1)), **CLOSE)
    np.testing.assert_allclose(flat(momentum), m, **CLOSE)


def test_attacks_are_all_named() -> None:
    from typing import get_args, get_type_hints

    from research.learning import AttackConfig
    from research.learning.attack_config import POISONINGS

    named = get_args(get_type_hints(AttackConfig)["name"])
    assert set(named) == {"none", *ATTACKS, *POISONINGS}
