"""A mixture of experts in the place of a transformer's MLP.

Shazeer et al. 2017, arXiv:1701.06538; GShard, Lepikhin et al. 2020, arXiv:2006.16668; Switch
Transformers, Fedus et al. 2021, arXiv:2101.03961; Mixtral, Jiang et al. 2024, arXiv:2401.04088.

    y = Σ_{e in T(x)} g_e(x) E_e(x),     E_e(x) = activation(x W_up,e [, x W_gate,e]) W_down,e

`routing` has T, g and the losses. In training with a capacity, every sequence seats at most C of
its tokens at an expert (`dispatch`); else nothing is dropped (`dropless`), in evaluation never.

On the mesh the batch is split over `data`, `fsdp` and `expert`, and the experts over `expert`. With
a capacity all is annotation: the seats [experts, batch, C, width] are split by sequence, then by
expert, then by sequence again, and XLA makes an all-to-all of each change. With experts over n
devices, and b sequences on a device, a layer exchanges twice forward and twice backward

    b · E · C · width numbers, of which (n-1)/n leave the device.

Neither tokens nor the weights of experts are gathered over `expert`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from research.models import dropless, routing
from research.models.activation import activate
from research.models.dispatch import capacity_of, seats, take
from research.models.expert_products import batched
from research.models.model import Extras
from research.models.routing import Routing
from research.models.transformer_config import TransformerConfig
from research.parallel.layout import constrain


class Mixture(nnx.Module):
    """Experts of the form of the dense MLP, without biases, and their router."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        experts, width, hidden = config.experts, config.width, config.hidden_units

        def matrices(inputs: int, outputs: int, names: tuple[str, str], scale: float) -> nnx.Param:
            values = scale * jax.random.normal(rngs.params(), (experts, inputs, outputs))
            return nnx.Param(values, axes=("expert", *names))

        deviation = config.initial_deviation
        self.config = config
        # Whole on every device: each routes its own tokens, to all experts.
        router = deviation * jax.random.normal(rngs.params(), (width, experts))
        self.router = nnx.Param(router, axes=("embed", None))
        self.up = matrices(width, hidden, ("embed", "mlp"), deviation)
        if config.activation == "swiglu":
            self.gate = matrices(width, hidden, ("embed", "mlp"), deviation)
        self.down = matrices(hidden, width, ("mlp", "embed"), config.residual_deviation)

    def __call__(self, x: jax.Array, training: bool) -> tuple[jax.Array, Extras]:
        """The mixed outputs for `x` [batch, sequence, width], and the router's losses."""
        config = self.config
        router = constrain(self.router[...], None, None)
        routed = routing.route(x, router, config.experts_per_token)
        names = ("up", "gate", "down") if config.activation == "swiglu" else ("up", "down")
        weights = {name: getattr(self, name)[...].astype(x.dtype) for name in names}
        function = partial(activate, config.activation)
        if training and config.capacity_factor is not None:
            mixed, dropped = with_capacity(x, routed, weights, function, config.capacity_factor)
        else:
            mixed = dropless.mix(x, routed, weights, function)
            dropped = jnp.zeros((), jnp.float32)
        return mixed, self._extras(routed, dropped)

    def _extras(self, routed: Routing, dropped: jax.Array) -> Extras:
        """Sums over the batch, each a mean of a sequence times its tokens. Losses add up over
        layers, as in Switch Transformers; statistics are means over them."""
        config, tokens = self.config, routed.logits.shape[1]
        penalties = {
            "balance_loss": config.balance_loss * routing.balance(routed),
            "router_z_loss": config.router_z_loss * routing.z(routed),
        }
        statistics = {
            "router_entropy": routing.entropy(routed),
            "expert_load_max": config.experts * jnp.max(routing.loads(routed), axis=-1),
            "dropped_share": dropped,
        }
        return Extras(
            {name: tokens * jnp.sum(each) for name, each in penalties.items()},
            {
                name: jax.lax.stop_gradient(tokens * jnp.sum(each) / config.layers)
                for name, each in statistics.items()
            },
        )


def with_capacity(
    x: jax.Array,
    routed: Routing,
    weights: dropless.Weights,
    function: dropless.Activation,
    factor: float,
) -> tuple[jax.Array, jax.Array]:
    """The mixture of `x` [batch, sequence, width], and the dropped share [batch] of every
    sequence's assignments, with C by `factor`."""
    batch, tokens, width = x.shape
    k, experts = routed.experts.shape[-1], weights["up"].shape[0]
    capacity = capacity_of(factor, tokens, k, experts)
    places = experts * capacity
    taken, assignment, seat = seats(routed.experts, experts, capacity)

    rows = take(x, taken.reshape(batch, places), seat)
    rows = _sequences(rows.reshape(batch, experts, capacity, width))
    rows = _experts(rows.swapaxes(0, 1))  # [experts, batch, capacity, width]
    up = constrain(batched(rows, weights["up"]), "expert", "group", None, "mlp")
    gate = None
    if "gate" in weights:
        gate = constrain(batched(rows, weights["gate"]), "expert", "group", None, "mlp")
    made = _experts(batched(function(up, gate), weights["down"]))
    made = _sequences(made.swapaxes(0, 1))

    back = take(
        made.reshape(batch, places, width),
        seat.reshape(batch, tokens * k),
        assignment.reshape(batch, places, 1),
    )
    back = constrain(back.reshape(batch, tokens, k, width), "batch", "sequence", None, None)
    mixed = jnp.sum(back * routed.weights[..., None].astype(x.dtype), axis=2)
    return mixed, jnp.mean((seat == places).astype(jnp.float32), axis=(1, 2))


def _sequences(rows: jax.Array) -> jax.Array:
    """Seats [batch, experts, capacity, width] where their sequences are."""
    return constrain(rows, "batch", None, None, None)


def _experts(rows: jax.Array) -> jax.Array:
    """Seats [experts, batch, capacity, width] where their experts are."""
    return constrain(rows, "expert", "group", None, None)
