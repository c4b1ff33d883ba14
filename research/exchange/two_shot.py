"""A mean of compressed numbers in two shots, with error feedback on both.

Tang et al. 2021, *1-bit Adam: Communication Efficient Large-Scale Training with Adam's Convergence
Speed*, arXiv:2102.02888, Alg. 1 and fig. 3; error feedback: Seide et al. 2014, Karimireddy et al.
2019, arXiv:1901.09847. Replica r of n keeps what compression C left of its own tree, e_r, and of
that n-th part of the mean which it makes, d_r:

    c_r = x_r + e_r          e_r ← c_r - C(c_r)        part j of C(c_r) goes to replica j
    m_j = mean_r C(c_r)_j + d_j      d_j ← m_j - C(m_j)        C(m_j) goes to all

The result is [C(m_1), ..., C(m_n)]. What crosses the wire, for B bytes of C(x): one all-to-all and
one all-gather, 2·(n-1)/n·B as an all-reduce would need, at any n; one all-gather of C(x_r) would be
(n-1)·B. An array without a dimension that divides into n parts (a few biases) is averaged as it is.
Barriers on both sides of either shot: XLA would move the decoding before it, and send float32.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.exchange.average import average
from research.exchange.exchange import Exchange, Moment, named
from research.exchange.message import Message, of_leaves
from research.exchange.parts import divides, elements_of_a_part, join, spec_of_parts, split
from research.exchange.replicas import Replicas

Tree = Any
Code = tuple[jax.Array, ...]


class Codec(NamedTuple):
    """A compression C of float32 parts [parts, lanes, ...], each for itself."""

    encode: Callable[[jax.Array, jax.Array], Code]
    """`encode(parts, key)`: arrays [parts, ...]."""
    decode: Callable[[Code], jax.Array]
    """What they say: [parts, lanes, ...]."""
    contents: Callable[[int], list[tuple[str, int]]]
    """Types and numbers of elements of the code of a part of so many elements."""
    lanes: int = 1
    feedback: bool = True
    """Whether what is lost is added the next time: not for unbiased ones."""


class Errors(NamedTuple):
    """What compression left."""

    own: Tree  # e: like the arrays
    part: dict[str, jax.Array]  # d [1, lanes, ...] of each compressed array, by name


def two_shot(codec: Codec, count: int) -> Exchange:
    """The mean over `count` replicas by `codec`."""

    def is_cut(leaf: Any) -> bool:
        return divides(tuple(leaf.shape), count, codec.lanes)

    def init(like: Tree) -> Any:
        if not codec.feedback:
            return ()
        parts = {
            name: jnp.zeros_like(split(x, count, codec.lanes)[:1])
            for name, x in named(like)
            if is_cut(x)
        }
        return Errors(jax.tree.map(jnp.zeros_like, like), parts)

    def apply(tree: Tree, state: Any, moment: Moment) -> tuple[Tree, Any]:
        leaves, structure = jax.tree.flatten(tree)
        names = [name for name, _ in named(tree)]
        own = jax.tree.leaves(state.own) if state else []
        parts = dict(state.part) if state else {}
        averages = []
        for number, (name, x) in enumerate(zip(names, leaves, strict=True)):
            if not is_cut(x):
                spec = moment.specs[number] if moment.specs else None
                averages.append(average(x, moment, spec))
                continue
            error = (own[number], parts[name]) if state else None
            result, error = _compressed(codec, x, error, moment, number)
            averages.append(result)
            if error is not None:
                own[number], parts[name] = error
        if state:
            state = Errors(jax.tree.unflatten(structure, own), parts)
        return jax.tree.unflatten(structure, averages), state

    def messages(shapes: Tree, replicas: Replicas) -> list[Message]:
        devices, seats = replicas.devices, replicas.seats
        made = []
        for leaf in jax.tree.leaves(shapes) if devices > 1 else []:
            if not is_cut(leaf):
                made += of_leaves("all-reduce", leaf, devices)
                continue
            # Every seat has a code for every replica, and a part of the mean.
            spec, sizes = _layout(leaf)
            part = elements_of_a_part(tuple(leaf.shape), spec, sizes, count, codec.lanes)
            for dtype, size in codec.contents(part):
                made.append(Message("all-to-all", dtype, size * count * seats, devices))
                made.append(Message("all-gather", dtype, size * seats, devices))
        return made

    return Exchange(init, apply, messages)


Error = tuple[jax.Array, jax.Array]
"""Of one array: e, d."""


def _compressed(
    codec: Codec, x: jax.Array, error: Error | None, moment: Moment, number: int
) -> tuple[jax.Array, Error | None]:
    """The mean of `x`, leaf `number` of its tree."""
    replicas, alive = moment.replicas, moment.alive
    count = replicas.count
    key = jax.random.fold_in(moment.own_key, number)
    placed = _placement(x, codec, moment, number)
    whole = x if alive is None else jnp.where(alive, x, 0)
    whole = whole if error is None else whole + error[0]
    (cut,) = placed.guard((split(whole, count, codec.lanes),))
    code = placed.guard(codec.encode(cut, key))
    received = codec.decode(placed.guard(tuple(replicas.trade(a, placed.of(a)) for a in code)))
    (part,) = placed.guard((_mean(received, moment),))  # [1, lanes, ...]
    part = part if error is None else part + error[1]
    its_code = placed.guard(codec.encode(part, jax.random.fold_in(key, count)))
    codes = placed.guard(
        tuple(replicas.gather(a[0], _without_first(placed.of(a))) for a in its_code)
    )
    result = join(codec.decode(codes), x.shape)
    if error is None:
        return result, None
    own = whole - join(codec.decode(code), x.shape)
    own = own if alive is None else jnp.where(alive, own, error[0])
    return result, (own, part - codec.decode(its_code))


def _mean(received: jax.Array, moment: Moment) -> jax.Array:
    """Of what the living among the replicas sent: [replicas, ...] as [1, ...]."""
    if moment.alive is None:
        return _total(received) / moment.replicas.count
    alive = moment.replicas.gather(moment.alive.astype(jnp.float32))
    return _total(jnp.where(aligned(alive, received) > 0, received, 0)) / jnp.sum(alive)


def _total(stacked: jax.Array) -> jax.Array:
    """[n, ...] added up to [1, ...], half to half.

    No reduction: XLA's CPU backend (JAX 0.10.2) fuses one with the decoding, and ends the process
    by a segmentation fault where two replicas share a device and an array has four dimensions.
    """
    while (count := len(stacked)) > 1:
        half = count // 2
        pairs = stacked[:half] + stacked[half : 2 * half]
        stacked = jnp.concatenate([pairs, stacked[2 * half :]])
    return stacked


class Placement(NamedTuple):
    """How arrays about the parts of an array lie on other axes of the mesh: as the array does."""

    spec: P | None  # of [parts, lanes, ...]; None: anyhow

    def of(self, array: jax.Array) -> P | None:
        """Of [parts, lanes, ...], of [parts, ...] where lanes are packed, or of [parts]."""
        if self.spec is None or array.ndim == 1:
            return None if self.spec is None else P(None)
        return P(None, *self.spec[len(self.spec) - array.ndim + 1 :])

    def guard(self, arrays: Code) -> Code:
        """They lie so, and XLA moves nothing past here."""
        if self.spec is not None:
            arrays = tuple(jax.lax.with_sharding_constraint(a, self.of(a)) for a in arrays)
        return jax.lax.optimization_barrier(arrays)


def _placement(x: jax.Array, codec: Codec, moment: Moment, number: int) -> Placement:
    mesh = jax.sharding.get_abstract_mesh()
    if moment.specs is None or mesh.empty:
        return Placement(None)
    spec, parts = moment.specs[number], moment.replicas.count
    return Placement(spec_of_parts(x.shape, spec, mesh.shape, parts, codec.lanes))


def _without_first(spec: P | None) -> P | None:
    return None if spec is None else P(*spec[1:])


def _layout(leaf: Any) -> tuple[P, Mapping[str, int]]:
    sharding = getattr(leaf, "sharding", None)
    return (P(), {}) if sharding is None else (sharding.spec, sharding.mesh.shape)


def over_parts(cut: jax.Array) -> tuple[int, ...]:
    """The axes of a part, for sums and maxima over it."""
    return tuple(range(1, cut.ndim))


def aligned(scale: jax.Array, like: jax.Array) -> jax.Array:
    """`scale` [parts] so that it multiplies `like` [parts, ...]."""
    return scale.reshape(-1, *[1] * (like.ndim - 1))


def elements(cut: jax.Array) -> int:
    """Elements of a part."""
    return math.prod(cut.shape[1:])
