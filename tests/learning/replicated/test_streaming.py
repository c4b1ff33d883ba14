"""Streaming DiLoCo against its equations in NumPy, and its limits: 4 replicas on one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.exchange import Replicas, two_shot
from research.exchange.codecs import int8
from research.exchange.exchange import Moment
from research.exchange.replicas import SEAT
from research.learning.replicated.fragments import put, take
from research.learning.replicated.local_updates import diloco
from research.learning.replicated.rule import Rule, bytes_at, bytes_before
from research.learning.replicated.streaming import streaming_diloco

COUNT = 4
LAYERS = 5
draw = np.random.default_rng(0)
START: Any = {
    "blocks": {"w": draw.normal(size=(LAYERS, 8)).astype(np.float32)},
    "table": {"w": draw.normal(size=(4, 2)).astype(np.float32)},
}
STEPS = [
    jax.tree.map(lambda leaf: draw.normal(size=(COUNT, *leaf.shape)).astype(np.float32), START)
    for _ in range(20)
]
"""What each replica adds to its parameters in each step."""

CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}  # sums of a dozen float32 near 1


def stacked(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (COUNT, *jnp.shape(leaf))), tree)


def run(rule: Rule) -> list[Any]:
    """[replicas, ...] parameters after every step, by plain SGD of rate 1 with gradients -STEPS."""

    def one(number: jax.Array, w: Any, state: Any, move: Any, step: jax.Array) -> Any:
        moment = Moment(Replicas(1, COUNT), step, number, jax.random.key(0))
        return rule.on_parameters(jax.tree.map(jnp.add, w, move), state, moment)

    update = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None), axis_name=SEAT))
    w, state = stacked(START), stacked(rule.init(jax.tree.map(jnp.asarray, START)))
    after = []
    for step, move in enumerate(STEPS):
        w, state = update(jnp.arange(COUNT), w, state, move, step)
        after.append(jax.device_get(w))
    return after


@pytest.mark.parametrize("exchange", [None, two_shot(int8(), COUNT)], ids=["mean", "int8"])
def test_one_fragment_without_overlap_or_mixing_is_diloco(exchange: Any) -> None:
    whole = run(diloco(4, 0.7, 0.9, exchange))
    for mine, its in zip(
        run(streaming_diloco(4, 1, 0, 0.0, 0.7, 0.9, exchange)), whole, strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, mine, its)


@pytest.mark.parametrize("overlap", [2, 5])
def test_every_fragment_follows_the_paper_at_its_own_steps(overlap: int) -> None:
    """Alg. 2 with H = 6, P = 2, α = 0.25: layers 0, 2, 4 after 3, 9, ... steps, the others and the
    table after 6, 12, ..., all merged τ steps later, also when the next was sent since."""
    period, mixing, rate, momentum = 6, 0.25, 0.7, 0.9
    parts = [[("blocks", i) for i in (0, 2, 4)], [("blocks", 1), ("blocks", 3), ("table", ...)]]
    w = jax.tree.map(np.array, stacked(START))
    outer = jax.tree.map(np.array, START)
    velocity = jax.tree.map(np.zeros_like, START)
    arrived: dict[int, list[Any]] = {}
    for t, (move, got) in enumerate(
        zip(STEPS, run(streaming_diloco(period, 2, overlap, mixing, rate, momentum)), strict=True),
        start=1,
    ):
        w = jax.tree.map(np.add, w, move)
        for part, offset in zip(parts, (3, 6), strict=True):
            if (t - offset) % period == 0:
                arrived[t + overlap] = []
                for name, at in part:
                    start, m = outer[name]["w"], velocity[name]["w"]
                    mean = (start[at] - w[name]["w"][:, at]).mean(0)
                    m[at] = momentum * m[at] + mean
                    start[at] = start[at] - rate * (mean + momentum * m[at])
                    arrived[t + overlap].append((name, at, np.array(start[at])))
        for name, at, new in arrived.pop(t, []):
            own = w[name]["w"]
            own[:, at] = mixing * own[:, at] + (1 - mixing) * new
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got, w)


def test_who_keeps_everything_to_itself_hears_nothing() -> None:
    (*_, last) = run(streaming_diloco(4, 2, 1, mixing=1.0))
    alone = jax.tree.map(lambda start, *moves: start + sum(moves), START, *STEPS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), last, alone)


# What is sent -----------------------------------------------------------------------------------


def shapes(layers: int) -> Any:
    return {"blocks": {"w": jax.ShapeDtypeStruct((layers, 30), jnp.float32)}}


def test_a_fragment_is_a_part_of_the_bytes_and_all_are_as_many_as_ever() -> None:
    """8 layers of 30 float32 on 4 devices: 2 · 3/4 · 960 = 1,440 bytes; a quarter of it at once."""
    whole = diloco(20).sendings(shapes(8), Replicas(COUNT))
    parts = streaming_diloco(20, 4, overlap=3).sendings(shapes(8), Replicas(COUNT))
    sent = [bytes_at(parts, step) for step in range(40)]
    assert {t: size for t, size in enumerate(sent, start=1) if size} == dict.fromkeys(
        range(5, 41, 5), 360
    )
    assert max(bytes_at(whole, step) for step in range(40)) == 4 * max(sent) == 1440
    assert bytes_before(parts, 40) == bytes_before(whole, 40) == 2880


def test_each_fragment_has_its_turn_where_they_do_not_divide_the_period() -> None:
    parts = streaming_diloco(7, 3).sendings(shapes(3), Replicas(COUNT))
    sent = [bytes_at(parts, step) for step in range(14)]
    assert [t for t, size in enumerate(sent, start=1) if size] == [2, 4, 7, 9, 11, 14]
    assert set(sent) == {0, 180}


# How parameters are cut -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fragments_are_all_there_is_once(count: int) -> None:
    parts = [take(START, number, count) for number in range(count)]
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in parts]
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(START))
    tree = jax.tree.map(jnp.zeros_like, START)
    for number, part in enumerate(parts):
        tree = put(tree, part, number, count)
    jax.tree.map(np.testing.assert_array_equal, tree, START)


def test_layers_are_dealt_and_what_is_no_layers_goes_last() -> None:
    first, last = (take(START, number, 2) for number in range(2))
    np.testing.assert_array_equal(first["blocks"]["w"], START["blocks"]["w"][[0, 2, 4]])
    np.testing.assert_array_equal(last["blocks"]["w"], START["blocks"]["w"][[1, 3]])
    assert first["table"]["w"] is None
    np.testing.assert_array_equal(last["table"]["w"], START["table"]["w"])


def test_a_model_that_stacks_no_layers_has_one_for_each_module() -> None:
    tree = {
        "hidden": {f"layer_{i}": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))} for i in (0, 1)},
        "output": {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))},
    }
    first, last = (take(tree, number, 2) for number in range(2))
    assert [leaf.size for leaf in jax.tree.leaves(first)] == [2, 4, 3, 6]  # layer_0 and output
    assert [leaf.size for leaf in jax.tree.leaves(last)] == [2, 4]
    with pytest.raises(UserError, match="4 are more than the 3 layers .*fragments 3 or fewer"):
        streaming_diloco(9, 4).init(tree)


def test_more_fragments_than_layers_are_named() -> None:
    with pytest.raises(UserError, match="--exchange.fragments 6 are more than the 5 layers"):
        streaming_diloco(6, 6).init(START)
