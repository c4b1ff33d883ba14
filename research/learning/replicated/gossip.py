"""Rules without a center: every replica learns from its own data, and hears its neighbors.

With B bytes of parameters and k neighbors a replica sends k·B every step (`dpsgd`), or B and a
scalar (`sgp` with one peer a step).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.exchange import Message, Moment, Replicas, mix
from research.exchange.mixing import shift_messages
from research.exchange.topology import spectral_gap
from research.learning.replicated.rule import Rule, Sending, alone, always

Tree = Any


def dpsgd(offsets: list[int], count: int) -> Rule:
    """Lian et al. 2017, *Can Decentralized Algorithms Outperform Centralized Algorithms?*,
    arXiv:1705.09056, Alg. 1, with any inner optimizer: in every step, after the update,

    x_r ← Σ_s W_rs · x_s

    (The paper mixes what the gradient was taken at, x ← W·x - γ·g; so mixed after the update, as
    with Adam it has to be, x ← W·(x - γ·g).)
    """
    exchange = mix(offsets, count)
    return Rule(
        init=exchange.init,
        on_gradients=alone,
        on_parameters=exchange.apply,
        sendings=lambda shapes, replicas: [Sending(always, exchange.messages(shapes, replicas))],
        facts={"spectral_gap": spectral_gap(offsets, count)},
    )


class Pushed(NamedTuple):
    """Stochastic gradient push's state."""

    mass: Tree  # x: what is pushed; parameters are x / w
    weight: jax.Array  # [] float32: w


def sgp(count: int) -> Rule:
    """Assran et al. 2019, *Stochastic Gradient Push for Distributed Deep Learning*,
    arXiv:1811.10792, Alg. 1, on the one-peer exponential graph (§3): in step t, after the update of
    z_r = x_r / w_r,

    x_r ← (x_r + x_{r-o}) / 2,  w_r ← (w_r + w_{r-o}) / 2,  o = 2^(t mod ⌈log2 n⌉),  z_r ← x_r / w_r

    Half of everything goes to one peer, which need not send back. Of n = 2^k replicas k steps
    without updates give the mean exactly.
    """
    offsets = [1 << power for power in range(max(count - 1, 0).bit_length())]

    def init(parameters: Tree) -> Pushed:
        return Pushed(parameters, jnp.ones(()))

    def push(parameters: Tree, state: Pushed, moment: Moment) -> tuple[Tree, Pushed]:
        # The update, of z, goes to x as it is (Alg. 1, line 4).
        mass = jax.tree.map(lambda x, z: x + (z - x / state.weight), state.mass, parameters)

        def by(offset: int) -> Any:
            def one(spec: PartitionSpec | None, x: jax.Array) -> jax.Array:
                return (x + moment.replicas.shift(x, offset, spec)) / 2

            return lambda pushed: Pushed(moment.each(one, pushed.mass), one(None, pushed.weight))

        if offsets:
            turn = moment.step % len(offsets)
            mass, weight = jax.lax.switch(
                turn, [by(offset) for offset in offsets], Pushed(mass, state.weight)
            )
        else:
            weight = state.weight
        return jax.tree.map(lambda x: x / weight, mass), Pushed(mass, weight)

    def sendings(shapes: Tree, replicas: Replicas) -> list[Sending]:
        return [
            Sending(_turn(number, len(offsets)), _with_weight(shapes, replicas, offset))
            for number, offset in enumerate(offsets)
        ]

    return Rule(init, alone, push, sendings)


def _turn(number: int, turns: int) -> Any:
    return lambda step: step % turns == number


def _with_weight(shapes: Tree, replicas: Replicas, offset: int) -> list[Message]:
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    return shift_messages([shapes, weight], replicas, offset)
