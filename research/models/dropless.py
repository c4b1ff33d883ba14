"""A mixture that drops nothing: every expert takes as many tokens as choose it.

MegaBlocks, Gale et al. 2022, arXiv:2211.15841: assignments are sorted by expert, and groups of
unequal sizes are multiplied by the weights of their expert. Here for one device at a time, in a
`shard_map` over the axes that split the batch, the sequence and the experts, since a sort by
annotation would gather the tokens of all devices.

With experts over n devices of the mesh axis `expert`, a device with T tokens of width d sends

    sizes     E numbers (int32) to each other device, once a layer
    tokens    there and back, forward and backward: four exchanges a layer, each
              `ragged_all_to_all` (GPU, TPU): the rows that are chosen, about T·k·(n-1)/n · d
              numbers; `all_to_all` (CPU): what could be chosen at worst, (n-1) · T·min(k, E/n) · d

The worst case is what memory holds either way: no shape depends on the data. Both give the same
numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.models.dispatch import order, take
from research.models.expert_products import block_rows, grouped
from research.models.routing import Routing
from research.parallel.layout import axes_of_spec, partition_spec
from research.parallel.sums import summable

AXIS = "expert"

Weights = dict[str, jax.Array]  # up, perhaps gate: [expert, width, hidden]; down: the other way
Activation = Callable[[jax.Array, jax.Array | None], jax.Array]


def mix(x: jax.Array, routing: Routing, weights: Weights, activate: Activation) -> jax.Array:
    """Σ g_e(x) E_e(x) for `x` [batch, sequence, width], on the mesh in force."""
    mesh = jax.sharding.get_abstract_mesh()
    arguments = (x, routing.experts, routing.weights.astype(x.dtype), weights)
    count = weights["up"].shape[0]
    if mesh.empty or mesh.size == 1:
        return _mix(*arguments, activate=activate, count=count, devices=1, split_hidden=False)

    def spec(array: jax.Array, *axes: str | None) -> PartitionSpec:
        return partition_spec(axes, array.shape, mesh, strict=False)

    tokens = spec(x, "batch", "sequence", None)
    specs = {
        name: spec(each, "expert", *(("mlp", None) if name == "down" else (None, "mlp")))
        for name, each in weights.items()
    }
    manual = {axis for each in (tokens, *specs.values()) for axis in axes_of_spec(each)}
    if not manual:
        return _mix(*arguments, activate=activate, count=count, devices=1, split_hidden=False)
    devices = mesh.shape[AXIS] if specs["up"][0] is not None else 1
    body = partial(
        _mix,
        activate=activate,
        count=count,
        devices=devices,
        split_hidden=specs["up"][2] is not None,
    )
    # Gradients of what is whole on several devices (weights, over the axes of the batch; tokens,
    # over `tensor`) are summed over them.
    summed = jax.tree.map(summable, arguments)

    def local(*summed: Any) -> jax.Array:
        return body(*jax.tree.map(lambda some, like: some.astype(like.dtype), summed, arguments))

    return jax.shard_map(
        local,
        in_specs=(tokens, tokens, tokens, specs),
        out_specs=tokens,
        axis_names=manual,
        check_vma=False,
    )(*summed)


def _mix(
    x: jax.Array,
    experts: jax.Array,
    shares: jax.Array,
    weights: Weights,
    *,
    activate: Activation,
    count: int,
    devices: int,
    split_hidden: bool,
) -> jax.Array:
    """`mix` on one of the `devices` that share out `count` experts."""
    batch, sequence, width = x.shape
    k, here = experts.shape[-1], count // devices
    tokens = batch * sequence
    ranked = order(experts.reshape(-1), count)

    # To the devices of the experts: [devices, most, width] from each, by the sizes of its groups.
    most = tokens * min(k, here) if devices > 1 else tokens * k
    sent = jnp.sum(ranked.counts.reshape(devices, here), axis=1)
    first = jnp.cumsum(sent) - sent
    number = jnp.arange(most)
    at = jnp.minimum(first[:, None] + number, tokens * k - 1)
    holds = number < sent[:, None]
    assignment = jnp.where(holds, ranked.sorted[at], tokens * k).reshape(-1)
    owner = experts.reshape(-1) // here
    outgoing = owner * most + ranked.place - first[owner]  # [tokens · k]: where each one is put
    rows = take(x.reshape(1, tokens, width), assignment[None] // k, outgoing.reshape(1, tokens, k))[
        0
    ]
    groups = ranked.counts.reshape(devices, here)
    if devices > 1:
        groups = jax.lax.all_to_all(groups, AXIS, 0, 0)  # [devices that send, experts here]
        received = jnp.sum(groups, axis=1)
        rows = exchange(rows.reshape(devices, most, width), sent, received)

    made = _evaluate(rows.reshape(-1, width), groups, weights, activate)
    if devices > 1:
        made = exchange(made.reshape(devices, most, width), received, sent)
    back = take(made.reshape(1, -1, width), outgoing[None], assignment[None, :, None])
    chosen = back.reshape(batch, sequence, k, width)
    mixed = jnp.sum(chosen * shares[..., None], axis=2)
    if not split_hidden:
        return mixed
    return jax.lax.psum(summable(mixed), "tensor").astype(x.dtype)


def _evaluate(
    rows: jax.Array, groups: jax.Array, weights: Weights, activate: Activation
) -> jax.Array:
    """The experts of this device on `rows` [senders · most, width], of which every sender's first
    belong to expert 0 and so on, as many as `groups` [senders, experts] says."""
    senders, here = groups.shape
    most, block = rows.shape[0] // senders, block_rows()
    ends = jnp.cumsum(groups, axis=1)
    number = jnp.arange(most)
    whose = jnp.sum(number[:, None] >= ends[:, None, :], axis=-1)  # [senders, most]; here: nobody's
    ranked = order(whose.reshape(-1), here)

    sizes = -(-ranked.counts // block) * block
    starts = jnp.cumsum(sizes) - sizes
    total = -(-rows.shape[0] // block) * block + here * block * (block > 1)
    whose = whose.reshape(-1)
    shift = jnp.append(starts - ranked.starts, 0)[whose]
    seat = jnp.where(whose < here, ranked.place + shift, total)  # [rows]
    place = jnp.arange(total)
    expert = jnp.minimum(jnp.sum(place[:, None] >= (starts + sizes), axis=-1), here - 1)
    inside = place - starts[expert]
    at = jnp.clip(ranked.starts[expert] + inside, 0, rows.shape[0] - 1)
    row = jnp.where(inside < ranked.counts[expert], ranked.sorted[at], rows.shape[0])

    seated = take(rows[None], row[None], seat[None, :, None])[0]
    up = grouped(seated, weights["up"], sizes)
    gate = grouped(seated, weights["gate"], sizes) if "gate" in weights else None
    made = grouped(activate(up, gate), weights["down"], sizes)
    return take(made[None], seat[None], row[None, :, None])[0]


@jax.custom_vjp
def exchange(rows: jax.Array, sent: jax.Array, received: jax.Array) -> jax.Array:
    """`rows` [devices, most, width], of which the first `sent[i]` are for device i; returns the
    rows from every device, the first `received[i]` from device i. The gradient goes the way back.
    """
    # By the devices that run it, which need not be the default ones.
    return jax.lax.platform_dependent(rows, sent, received, cpu=_padded, default=_ragged)


def _padded(rows: jax.Array, sent: jax.Array, received: jax.Array) -> jax.Array:
    """`exchange` of all `most` rows: XLA's CPU backend has none of unequal sizes."""
    return jax.lax.all_to_all(rows, AXIS, 0, 0)


def _ragged(rows: jax.Array, sent: jax.Array, received: jax.Array) -> jax.Array:
    """`exchange` of as many rows as there are for each."""
    devices, most, width = rows.shape
    begins = jnp.arange(devices, dtype=jnp.int32) * most
    mine = jnp.full((devices,), jax.lax.axis_index(AXIS) * most, jnp.int32)
    flat = rows.reshape(devices * most, width)
    arrived = jax.lax.ragged_all_to_all(
        flat, jnp.zeros_like(flat), begins, sent, mine, received, axis_name=AXIS
    )
    return arrived.reshape(rows.shape)


def _forward(
    rows: jax.Array, sent: jax.Array, received: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return exchange(rows, sent, received), (sent, received)


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None, None]:
    sent, received = saved
    return exchange(gradient, received, sent), None, None


exchange.defvjp(_forward, _backward)
