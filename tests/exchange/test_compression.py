"""Compressed means, by their limits, their papers' equations and their bytes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from research.errors import UserError
from research.exchange import (
    Message,
    Moment,
    Replicas,
    adasum,
    mean,
    powersgd,
    sent,
    top_k,
    two_shot,
)
from research.exchange.codecs import CODECS
from research.exchange.exchange import Exchange
from research.exchange.parts import divides, elements_of_a_part, join, spec_of_parts, split
from research.exchange.powersgd import approximate, matrices
from research.models import ResNetConfig, Specification

COUNT, STEPS = 8, 12
EVERYONE = Replicas(2, 4)
SHAPES = {"blocks": {"kernel": (2, 16, 24)}, "bias": (16,), "odd": (3, 5)}
TREES = [
    jax.tree.map(
        lambda shape, step=step: (
            np.random.default_rng([step, *shape]).normal(size=(COUNT, *shape)).astype(np.float32)
        ),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    for step in range(STEPS)
]
LIKE = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), TREES[0])
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}  # sums of a dozen float32 of order 1


@pytest.fixture
def run(seen: Any) -> Callable[..., Any]:
    """Results and states of every replica after every step."""

    def go(exchange: Exchange, trees: list[Any] = TREES) -> tuple[list[Any], Any]:
        def one(number: jax.Array, *trees: Any) -> Any:
            state = exchange.init(jax.tree.map(jnp.zeros_like, trees[0]))
            results = []
            for step, tree in enumerate(trees):
                key = jax.random.fold_in(jax.random.key(0), step)
                moment = Moment(EVERYONE, jnp.int32(step), number, key)
                result, state = exchange.apply(tree, state, moment)
                results.append(result)
            return results, state

        return seen(one, EVERYONE, *trees)

    return go


def means(trees: list[Any] = TREES) -> list[Any]:
    return [jax.tree.map(lambda leaf: leaf.mean(0), tree) for tree in trees]


def total(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *trees)


def assert_close(one: Any, other: Any, **tolerance: float) -> None:
    for leaf, its in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(leaf, its, **(tolerance or CLOSE))


COMPRESSED = {
    **{name: two_shot(codec(), COUNT) for name, codec in CODECS.items()},
    "top_k": top_k(0.1),
    "powersgd": powersgd(2),
}


@pytest.mark.parametrize("name", CODECS)
def test_two_replicas_of_a_device_compress_the_heads_of_stacked_layers(
    name: str, seen: Any
) -> None:
    """Seven dimensions with seats and parts, at whose sum XLA's CPU backend ended the process."""
    replicas, exchange = Replicas(1, 2), two_shot(CODECS[name](), 2)
    x = np.random.default_rng(0).normal(size=(2, 2, 16, 4, 32)).astype(np.float32)

    def one(number: jax.Array, x: jax.Array) -> jax.Array:
        moment = Moment(replicas, jnp.int32(0), number, jax.random.key(0))
        return exchange.apply({"w": x}, exchange.init({"w": x}), moment)[0]["w"]

    result, exact = seen(one, replicas, x), x.mean(0)
    # Signs lose 1 - 2/π of a normal distribution's variance in the first shot, and more later.
    share = {"bfloat16": 0.01, "int8": 0.02, "qsgd": 0.6, "sign": 1.0}[name]
    assert np.linalg.norm(result[0] - exact) < share * np.linalg.norm(exact)
    np.testing.assert_array_equal(result, np.broadcast_to(result[0], result.shape))


@pytest.mark.parametrize("name", COMPRESSED)
def test_all_replicas_get_the_same(name: str, run: Any) -> None:
    results, _ = run(COMPRESSED[name], TREES[:2])
    for leaf in jax.tree.leaves(results):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))


@pytest.mark.parametrize("name", [n for n in COMPRESSED if n != "qsgd"])
def test_nothing_is_lost_but_what_the_errors_hold(name: str, run: Any) -> None:
    """Error feedback telescopes: Σ_t results = Σ_t means - (mean_r e_r + d), whatever C is."""
    results, state = run(COMPRESSED[name])
    own = {"top_k": lambda: state.values, "powersgd": lambda: state.error}.get(
        name, lambda: state.own
    )()
    held = jax.tree.map(lambda leaf: leaf.mean(0), own)
    if name in CODECS:  # every replica holds the error of its part of the mean
        for name, key, leaves in (
            ("blocks.kernel", "kernel", held["blocks"]),
            ("bias", "bias", held),
        ):
            if name in state.part:  # [replicas, 1, lanes, ...]
                part = join(jnp.asarray(state.part[name][:, 0]), leaves[key].shape)
                leaves[key] = leaves[key] + np.asarray(part)
    expected = jax.tree.map(np.subtract, total(means()), held)
    got = jax.tree.map(lambda leaf: leaf[0], total(results))
    assert_close(got, expected)


@pytest.mark.parametrize(("name", "error"), [("bfloat16", 2**-7), ("int8", 0.02), ("qsgd", 0.2)])
def test_a_compressed_mean_is_near_the_mean(name: str, error: float, run: Any) -> None:
    """Relative to the largest: bfloat16 rounds twice by 2^-9, int8 by 1/254, QSGD draws one of
    127 levels of a norm."""
    results, _ = run(COMPRESSED[name], TREES[:1])
    for leaf, exact in zip(*map(jax.tree.leaves, (results[0], means(TREES[:1])[0])), strict=True):
        scale = np.abs(exact).max()
        assert np.abs(leaf[0] - exact).max() <= error * max(scale, 1.0)


def test_qsgd_has_no_bias() -> None:
    cut = jnp.asarray(TREES[0]["odd"][:1])[:, None]  # [parts, lanes, ...]
    codec = CODECS["qsgd"]()
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: codec.decode(codec.encode(cut, key)))(keys))
    level = float(jnp.sqrt(jnp.sum(cut**2))) / 127
    assert 0.2 * level < drawn.std(0).max() <= 0.51 * level  # a draw between two levels
    # Of 15 means of 4000 draws one in a million is off by more than 5 deviations.
    assert np.abs(drawn.mean(0) - cut).max() < 5 * 0.5 * level / np.sqrt(len(keys))


def test_signs_of_one_size_are_exact(run: Any) -> None:
    """‖x‖₁/d is that size, and no error is left: where all agree."""
    signs = np.sign(TREES[0]["blocks"]["kernel"][:1])
    tree = {"kernel": np.broadcast_to(0.25 * signs, (COUNT, 2, 16, 24))}
    results, state = run(two_shot(CODECS["sign"](), COUNT), [tree])
    assert_close(results[0], tree, rtol=1e-6)
    assert_close(state.own, jax.tree.map(np.zeros_like, tree), atol=1e-6)


# Top-k --------------------------------------------------------------------------------------------


def test_top_k_of_all_entries_is_the_mean(run: Any) -> None:
    results, _ = run(top_k(1.0), TREES[:3])
    for result, exact in zip(results, means(TREES[:3]), strict=True):
        assert_close(jax.tree.map(lambda leaf: leaf[0], result), exact, rtol=1e-5, atol=1e-6)


def test_top_k_is_algorithm_1_of_the_paper(run: Any) -> None:
    """In NumPy, for one array: momentum correction and factor masking."""
    ratio, momentum = 0.1, 0.9
    trees = [{"w": tree["blocks"]["kernel"]} for tree in TREES]
    results, _ = run(top_k(ratio, momentum), trees)
    size = trees[0]["w"][0].size
    u, v = np.zeros((COUNT, size)), np.zeros((COUNT, size))
    for result, tree in zip(results, trees, strict=True):
        u = momentum * u + tree["w"].reshape(COUNT, size)
        v = v + u
        sparse = np.zeros_like(v)
        for r in range(COUNT):
            places = np.argsort(-np.abs(v[r]))[: round(ratio * size)]
            sparse[r, places] = v[r, places]
            u[r, places] = v[r, places] = 0
        np.testing.assert_allclose(result["w"][0].reshape(-1), sparse.mean(0), **CLOSE)


# PowerSGD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (12, 12)])
def test_full_rank_powersgd_is_the_mean(shape: tuple[int, int], seen: Any) -> None:
    rank = min(shape)
    stacked = np.random.default_rng(0).normal(size=(COUNT, 1, *shape)).astype(np.float32)
    right = np.random.default_rng(1).normal(size=(1, shape[1], rank)).astype(np.float32)

    def one(number: jax.Array, whole: jax.Array) -> jax.Array:
        moment = Moment(EVERYONE, jnp.int32(0), number, jax.random.key(0))
        return approximate(whole, jnp.asarray(right), moment)[0]

    got = seen(one, EVERYONE, stacked)
    # Gram-Schmidt of a random square matrix: its smallest direction is found to some 1e-4.
    np.testing.assert_allclose(got[0], stacked.mean(0), rtol=1e-3, atol=1e-3)


def test_warm_start_finds_the_best_approximation(run: Any) -> None:
    """The same gradient again and again, without feedback: Q converges to the leading singular
    vectors (Vogels et al. §3), so the error to that of the truncated SVD."""
    matrix = np.random.default_rng(2).normal(size=(16, 24)) @ np.diag(0.5 ** np.arange(24))
    matrix = matrix.astype(np.float32)
    right = jnp.asarray(np.random.default_rng(3).normal(size=(1, 24, 2)), jnp.float32)
    moment = Moment(Replicas(1), jnp.int32(0), jnp.int32(0), jax.random.key(0))
    for _ in range(20):
        result, right = approximate(jnp.asarray(matrix)[None], right, moment)
    u, s, v = np.linalg.svd(matrix)
    best = (u[:, :2] * s[:2]) @ v[:2]
    np.testing.assert_allclose(result[0], best, atol=1e-3 * s[0])


def test_bytes_an_epoch_are_those_of_the_paper() -> None:
    """Vogels et al. 2019, tables 3 and 4: ResNet-18 on CIFAR-10, 16 workers of 128 images, 24 steps
    an epoch: 1,023 MB for SGD, and 4.2, 7.5 and 14.2 for rank 1, 2 and 4."""
    model = nnx.eval_shape(
        lambda: ResNetConfig().build(Specification((32, 32, 3), 10), jax.random.key(0))
    )
    parameters = nnx.to_pure_dict(nnx.state(model, nnx.Param))

    def epoch(exchange: Exchange) -> float:
        messages = exchange.messages(parameters, Replicas(16))
        return sum(message.payload for message in messages) * 24 / 2**20

    assert round(epoch(mean())) == 1023
    assert [round(epoch(powersgd(rank)), 1) for rank in (1, 2, 4)] == [4.2, 7.5, 14.2]


def test_what_is_a_matrix() -> None:
    assert matrices("conv.kernel", (3, 3, 64, 128), 2) == (1, 576, 128)
    assert matrices("blocks.attention.query.kernel", (4, 128, 4, 32), 2) == (4, 128, 128)
    assert matrices("blocks.attention.out.kernel", (4, 4, 32, 128), 2) == (4, 128, 128)
    assert matrices("blocks.mlp.bias", (4, 512), 2) is None
    assert matrices("head", (16, 3), 4) is None  # 4 · 19 > 48


def test_a_rank_that_helps_no_array_is_refused() -> None:
    with pytest.raises(UserError, match="rank 40 makes no array of this model smaller"):
        powersgd(40).init(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), LIKE))


# Adasum -----------------------------------------------------------------------------------------


def test_adasum_averages_the_parallel_and_adds_the_orthogonal(run: Any) -> None:
    same = {"w": np.broadcast_to(TREES[0]["odd"][:1], (COUNT, 3, 5))}
    results, _ = run(adasum(COUNT), [same])
    assert_close(results[0], same, rtol=1e-5, atol=1e-6)
    apart = {"w": 3 * np.eye(COUNT, dtype=np.float32)}
    results, _ = run(adasum(COUNT), [apart])
    assert_close(results[0]["w"][0], np.full(COUNT, 3.0), rtol=1e-6)


def test_adasum_is_the_papers_tree(run: Any) -> None:
    def two(g: np.ndarray, h: np.ndarray) -> np.ndarray:
        dot = (g * h).sum()
        return (1 - dot / (2 * (g * g).sum())) * g + (1 - dot / (2 * (h * h).sum())) * h

    level = [g.astype(np.float64) for g in TREES[0]["odd"]]
    while len(level) > 1:
        level = [two(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    results, _ = run(adasum(COUNT), [{"w": TREES[0]["odd"]}])
    assert_close(results[0]["w"][0], level[0], rtol=1e-4, atol=1e-5)


def test_adasum_wants_a_power_of_two() -> None:
    with pytest.raises(UserError, match="6 is no power of two: use --exchange.replicas 4 or 8"):
        adasum(6)


# Bytes and parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "share"),
    [("bfloat16", 1 / 2), ("int8", 1 / 4), ("qsgd", 1 / 4), ("sign", 1 / 32)],
)
def test_two_shots_send_their_share_of_an_all_reduce(name: str, share: float) -> None:
    """At any number of replicas, but for the scales: 4 bytes a part."""
    for count in (4, 16, 64):
        like = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
        bytes_of = sent(two_shot(CODECS[name](), count).messages(like, Replicas(count)))
        assert bytes_of == pytest.approx(
            share * sent(mean().messages(like, Replicas(count))), rel=0.01
        )


def test_top_k_sends_a_value_and_a_place_to_each() -> None:
    messages = top_k(0.01).messages({"w": jax.ShapeDtypeStruct((100, 20), jnp.float32)}, EVERYONE)
    assert messages == [
        Message("all-gather", "float32", 20 * 4, 2),
        Message("all-gather", "int32", 20 * 4, 2),
    ]


@pytest.mark.parametrize("shape", [(2, 16, 24), (64,), (8, 8), (72, 3), (1, 128)])
@pytest.mark.parametrize("lanes", [1, 8])
def test_parts_are_the_array_in_another_order(shape: tuple[int, ...], lanes: int) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    if not divides(shape, 8, lanes):
        assert all(size % (8 * lanes) for size in shape)
        return
    cut = split(jnp.asarray(x), 8, lanes)
    assert cut.shape[:2] == (8, lanes) and cut.size == x.size
    np.testing.assert_array_equal(join(cut, shape), x)


def test_parts_lie_as_the_array_does_where_they_are_large_enough() -> None:
    sizes = {"tensor": 4, "fsdp": 2}
    spec = P(None, "fsdp", "tensor")
    # 24 is dealt to 8: 3 are left, which 4 devices cannot share.
    assert spec_of_parts((2, 16, 24), spec, sizes, 8) == P(None, None, None, "fsdp", None)
    assert elements_of_a_part((2, 16, 24), spec, sizes, 8) == 2 * 16 * 24 // 8 // 2
    assert spec_of_parts((2, 16, 64), spec, sizes, 8) == P(None, None, None, "fsdp", "tensor")
