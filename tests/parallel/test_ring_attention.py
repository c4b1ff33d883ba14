"""Ring attention is attention: outputs, gradients; and what it costs is what its file says."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.models import TransformerConfig
from research.models.attention import Attention
from research.parallel import ring_attention as ring
from research.parallel.mesh import MeshConfig

BATCH, LENGTH, FEATURES = 4, 32, 8
Gradients = tuple[jax.Array, jax.Array, jax.Array]


def softmax_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Vaswani et al. 2017, eq. 1, all scores at once, in float32."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    scores = jnp.where(np.tri(query.shape[1], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


def inputs(heads: int = 4, key_value_heads: int = 2, dtype: Any = jnp.float32) -> list[jax.Array]:
    """Random queries, keys and values, and the gradient of the output."""
    shapes = [
        (BATCH, LENGTH, h, FEATURES) for h in (heads, key_value_heads, key_value_heads, heads)
    ]
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def with_gradients(
    attend: Callable[..., jax.Array], *arrays: jax.Array
) -> tuple[jax.Array, Gradients]:
    *arguments, gradient = arrays
    out, backward = jax.vjp(attend, *arguments)
    return out, backward(gradient.astype(out.dtype))


def on_mesh(config: MeshConfig, arrays: list[jax.Array], manual: str | None = None) -> Any:
    """The compiled ring with its gradients on the mesh; and its results, in order of position."""
    parts = config.context
    sizes = [config.data, config.fsdp, parts, config.tensor]
    mesh = config.build(jax.devices("cpu")[: np.prod(sizes)])
    sharding = NamedSharding(mesh, P(("data", "fsdp"), "context", "tensor"))
    order = ring.zigzag(LENGTH, parts)
    attend = partial(ring.ring_attention, parts=parts)
    function = partial(with_gradients, attend)
    if manual is not None:
        function = jax.shard_map(
            function,
            in_specs=P(manual),
            out_specs=P(manual),
            axis_names={manual},
            check_vma=False,
        )
    with jax.set_mesh(mesh):
        placed = [jax.device_put(np.asarray(x)[:, order], sharding) for x in arrays]
        compiled = jax.jit(function, out_shardings=sharding).lower(*placed).compile()
        made = jax.device_get(compiled(*placed))
    return compiled, jax.tree.map(lambda x: x[:, np.argsort(order)], made)


def assert_is_attention(made: Any, arrays: list[jax.Array], tolerance: float) -> None:
    expected = with_gradients(softmax_attention, *(x.astype(jnp.float32) for x in arrays))
    for leaf, other, array in zip(
        *map(jax.tree.leaves, (made, expected)), arrays[-1:] + arrays[:3], strict=True
    ):
        assert leaf.dtype == array.dtype
        np.testing.assert_allclose(leaf.astype(np.float32), other, rtol=0, atol=tolerance)


# Sums of up to 32 float32 terms of order one, in another order.
FLOAT32 = 1e-5


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
def test_outputs_and_gradients_are_those_of_a_dense_softmax(
    parts: int, heads: tuple[int, int]
) -> None:
    arrays = inputs(*heads)
    _, made = on_mesh(MeshConfig(context=parts, data=1), arrays)
    assert_is_attention(made, arrays, FLOAT32)


def test_rows_in_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "BLOCK", 2)  # of the 4 of a chunk
    arrays = inputs()
    _, made = on_mesh(MeshConfig(context=4, data=1), arrays)
    assert_is_attention(made, arrays, FLOAT32)


def test_bfloat16_adds_up_in_float32() -> None:
    """8 bits of mantissa: inputs are exact, weights and results of up to 4 are off by 2^-7."""
    arrays = inputs(dtype=jnp.bfloat16)
    _, made = on_mesh(MeshConfig(context=4, data=1), arrays)
    assert_is_attention(made, arrays, 0.03)


@pytest.mark.parametrize(
    "config",
    [MeshConfig(data=2, context=2, tensor=2), MeshConfig(data=1, fsdp=2, context=4)],
    ids=["data2-context2-tensor2", "fsdp2-context4"],
)
@pytest.mark.parametrize("manual", [None, "data"])
def test_other_dimensions_may_be_split_as_well(config: MeshConfig, manual: str | None) -> None:
    """Also inside a shard_map that is manual over another axis, as a pipeline's is."""
    arrays = inputs()
    compiled, made = on_mesh(config, arrays, manual)
    assert_is_attention(made, arrays, FLOAT32)
    assert collectives(compiled.as_text()) == {"collective-permute"}


# Balance --------------------------------------------------------------------------------------


def test_zigzag_pairs_the_first_chunk_with_the_last() -> None:
    assert ring.zigzag(16, 2).tolist() == [0, 1, 2, 3, 12, 13, 14, 15, *range(4, 12)]
    assert ring.zigzag(4, 1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_every_device_has_the_same_work_at_every_step(parts: int) -> None:
    """The blocks that the file says are computed whole are seen whole, and the others not at all;
    so no device computes more than another, nor anything for nothing."""
    chunks = ring.zigzag(LENGTH, parts).reshape(parts, 2, -1)  # [device, half, rows]

    def seen(i: int, its: int, j: int, whose: int) -> set[bool]:
        pairs = chunks[i, its][:, None] >= chunks[j, whose]
        return set(pairs.ravel().tolist())

    low, high = ring.LOW, ring.HIGH
    for i in range(parts):
        for s in range(1, parts):
            j = (i - s) % parts
            first, second = (low, high) if i > j else (high, low)
            assert seen(i, high, j, low) == {True}
            assert seen(i, first, j, first) == {True}
            assert seen(i, second, j, second) == {False}
            assert seen(i, low, j, high) == {False}
    keys_seen = (chunks + 1).sum(axis=(1, 2))
    assert set(keys_seen.tolist()) == {LENGTH * (LENGTH + 1) // 2 // parts}


# On the wire ----------------------------------------------------------------------------------


def collectives(program: str) -> set[str]:
    return set(
        re.findall(r" (all-\w+(?:-\w+)*?|reduce-scatter|collective-[a-z]+)(?:-start)?\(", program)
    )


def permuted(program: str, trips: int) -> tuple[int, int]:
    """How many collective-permutes a device takes part in, and the bytes that it sends in them;
    those of a loop's body, which is any computation but the entry, counted `trips` times."""
    calls = sent = 0
    for computation in re.split(r"\n(?=\S)", program):
        times = 1 if computation.startswith("ENTRY") else trips
        for shape in re.findall(r"= f32\[([\d,]+)\]\S* collective-permute\(", computation):
            calls += times
            sent += times * 4 * int(np.prod([int(size) for size in shape.split(",")]))
    return calls, sent


@pytest.mark.parametrize("parts", [4, 8])
def test_only_keys_values_and_their_gradients_go_round(parts: int) -> None:
    arrays = inputs()
    compiled, _ = on_mesh(MeshConfig(context=parts, data=1), arrays)
    program = compiled.as_text()
    assert collectives(program) == {"collective-permute"}
    one_step = {f"{{{i},{(i + 1) % parts}}}" for i in range(parts)}
    for pairs in re.findall(r"source_target_pairs=\{(\S+)\}", program):
        assert set(re.findall(r"\{\d+,\d+\}", pairs)) == one_step
    keys = arrays[1].nbytes // parts
    calls, sent = permuted(program, trips=parts - 2)
    assert calls == 2 * (2 * (parts - 1) + parts)
    assert sent == (parts - 1) * 2 * keys + (parts - 1) * 2 * keys + parts * 2 * keys


# In memory ------------------------------------------------------------------------------------


def layer(form: Any, length: int, parts: int) -> Any:
    """A layer's attention and its gradients, compiled."""
    config = TransformerConfig(
        width=64, heads=4, key_value_heads=2, positions="rotary", context_parallelism=form
    )
    mesh = MeshConfig(data=1, context=parts).build(jax.devices("cpu")[:parts])
    split = NamedSharding(mesh, P(None, "context"))
    with jax.set_mesh(mesh):
        module = nnx.eval_shape(lambda: Attention(config, nnx.Rngs(0)))
        graph, parameters = nnx.split(module)

        def loss(parameters: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(nnx.merge(graph, parameters)(x) ** 2)

        x = jax.ShapeDtypeStruct((1, length, config.width), jnp.float32, sharding=split)
        gradient = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(None, split))
        return gradient.lower(parameters, x).compile()


def temporaries(form: Any, length: int, parts: int) -> int:
    """Bytes a device of it, besides arguments and results."""
    analysis = layer(form, length, parts).memory_analysis()
    return int(analysis.temp_size_in_bytes)


def test_gathering_moves_keys_and_values_once_and_adds_up_their_gradients() -> None:
    """On a CPU a reduce-scatter is an all-reduce, of which every device keeps its part."""
    program = layer("gather", 96, 4).as_text()
    assert collectives(program) == {"all-gather", "all-reduce"}
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", program)
    assert gathered == ["1,96,2,16"] * 2  # keys and values
    reduced = " ".join(re.findall(r"= (.*?) all-reduce\(", program))
    shapes = re.findall(r"f32\[([\d,]+)\]", reduced)
    assert len([shape for shape in shapes if "96" in shape.split(",")]) == 2, shapes


def test_memory_falls_with_the_number_of_devices() -> None:
    ring_2, ring_4, ring_8 = (temporaries("ring", 8192, parts) for parts in (2, 4, 8))
    assert ring_4 < 0.6 * ring_2 and ring_8 < 0.6 * ring_4
    gather_4, gather_8 = (temporaries("gather", 8192, parts) for parts in (4, 8))
    assert gather_8 < 0.6 * gather_4  # rows of scores are split, keys and values whole
    assert ring_8 < gather_8 / 20
    # As the paper has it: with the devices grows the context, at the same memory for each.
    assert temporaries("ring", 4096, 4) == pytest.approx(ring_8, rel=0.1)
