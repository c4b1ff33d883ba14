"""DP-SGD: what one example does to a step is bounded, and noise hides the rest.

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang 2016, *Deep Learning with Differential
Privacy*, arXiv:1607.00133, Alg. 1, with a batch B drawn by Poisson sampling (each of N examples
with probability q):

    g_i = ∇ℓ(w_t; x_i)                      i ∈ B, ℓ: the mean over the targets of an example
    ḡ_i = g_i · min(1, C / ‖g_i‖₂)
    g̃ = 1/(q·N) · (Σ_{i ∈ B} ḡ_i + N(0, (z·C)²·I))
    w_{t+1} = w_t + update(g̃)               by any optax optimizer: all after g̃ costs nothing more

The denominator is the *expected* size of a batch: the drawn one is private. Bounds by layer or by
quantile are in `research.exchange.privacy.clipping`, noise in `.noise`, what it costs in
`.accounting`. DP-FTRL is the same step with noise that is correlated over steps, as `.correlated`
has it, and batches that come in turn.

What is private is the state: parameters, optimizer, bounds, and what is made of them (samples,
exports, `parameter_norm`, `gradient_norm`, `bound`); but not `past`, the noise that DP-FTRL will
take back. **Not private are the metrics of examples**:
`loss`, `accuracy`, `examples_drawn`, `examples_dropped`, `share_cut`, every evaluation, and the
names of examples in an error: keep metrics.jsonl to yourself, or count it as published data.

The wire carries what the plain step's does: one all-reduce of summed gradients over `data`.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.errors import UserError
from research.exchange.privacy import (
    Event,
    Groups,
    Ledger,
    Quantile,
    adapted,
    correlated,
    gaussian,
    ledger,
    no_past,
    noise_of_sum,
)
from research.exchange.privacy.noise import COUNTS, KEY, SUM, key_at, words_of
from research.learning.gradients import Batch, Tree
from research.learning.private.ghost import ghost, suits
from research.learning.private.parts import ClippedSum, Part, over_microbatches
from research.learning.private.per_example import per_example
from research.learning.synchronous import StepMetrics, Synchronous
from research.models.specification import Specification
from research.parallel.layout import abstract, constrain

Method = Literal["auto", "ghost", "per_example"]
"""How an example's norm is found."""


class Clipping(NamedTuple):
    """How much of an example counts."""

    bound: float  # C, of all layers together; the first one, where it follows a quantile
    by_layer: bool = False
    quantile: Quantile | None = None


class PrivateState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # [] int32
    parameters: Tree
    buffers: Tree
    optimizer: Tree
    bounds: jax.Array  # [groups] float32: C of each
    dropped: jax.Array  # [] int32: examples whose gradient was not finite, so far
    ledger: Ledger
    past: Tree  # [bands - 1, ...] like the parameters: noise of the steps before; or nothing


class Private:
    """The functions of DP-SGD, compiled for one mesh; the interface is that of `Synchronous`.

    `one` is what learns, each step releases the `event` of a plan that expects `expected` examples
    of a batch, which comes in `microbatches` parts.
    """

    def __init__(
        self,
        one: Synchronous,
        event: Event,
        expected: float,
        microbatches: int,
        clipping: "Clipping",
        method: Method = "auto",
        seed: int = 0,
        bands: int = 1,
    ):
        """Raises UserError for models and meshes whose examples cannot be told apart."""
        check(one)
        self.one = one
        self.mesh = one.mesh
        self.specification = one.specification
        self.graph = one.graph
        self.event, self.expected = event, expected
        self.microbatches = microbatches
        self._seed, self._bands = seed, bands

        parameters = one.abstract_state.parameters
        self.groups = Groups.of(parameters, clipping.by_layer)
        self._first_bound = clipping.bound / self.groups.many**0.5
        self._quantile = clipping.quantile
        self._noise = noise_of_sum(event.noise_multiplier, self._quantile, self.groups.many)
        self._part = self._chosen(method)

        whole = NamedSharding(one.mesh, P())
        shapes = jax.eval_shape(self._initial)
        self.shardings: Any = PrivateState(
            **one.shardings._asdict(),
            bounds=whole,  # type: ignore[arg-type]
            dropped=whole,  # type: ignore[arg-type]
            ledger=jax.tree.map(lambda _: whole, shapes.ledger),
            past=() if bands == 1 else jax.tree.map(_stacked, one.shardings.parameters),
        )
        self.init: jax.stages.Wrapped = jax.jit(self._initial, out_shardings=self.shardings)
        self.abstract_state: PrivateState = abstract(shapes, self.shardings)
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, whole))
        self.evaluate, self.evaluate_each = one.evaluate, one.evaluate_each

    # The interface of `Synchronous` ---------------------------------------------------------------

    def model(self, state: PrivateState) -> Any:
        """The Flax module with the state's parameters."""
        return self.one.model(state)  # type: ignore[arg-type]

    def parameters(self, state: PrivateState) -> Tree:
        """The state's parameters as the model has them."""
        return self.one.parameters(state)  # type: ignore[arg-type]

    def in_rounds(self, parameters: Tree) -> Tree:
        """The model's parameters as the state has them."""
        return self.one.in_rounds(parameters)

    def with_parameters(self, state: PrivateState, parameters: Tree) -> PrivateState:
        """The initial `state` with other parameters."""
        return state._replace(parameters=parameters)

    def ledger(self, state: PrivateState) -> Ledger:
        """What was released so far."""
        return state.ledger

    def events(self, step: int) -> dict[str, np.ndarray]:
        """The key of the noise."""
        return {KEY: words_of(self._seed)}

    def observe(self, step: int, state: PrivateState) -> dict[str, Any]:
        """None but what is in the ledger."""
        return {}

    def complaint(self, metrics: dict[str, float]) -> str | None:
        """None."""
        return None

    # A step -------------------------------------------------------------------------------------

    def _initial(self) -> PrivateState:
        one = self.one.init()
        bounds = jnp.full((self.groups.many,), self._first_bound, jnp.float32)
        zero = jnp.zeros((), jnp.int32)
        past = no_past(one.parameters, self._bands)
        return PrivateState(
            **one._asdict(), bounds=bounds, dropped=zero, ledger=ledger.empty(), past=past
        )

    def _step(self, state: PrivateState, batch: Batch) -> tuple[PrivateState, StepMetrics]:
        batch = dict(batch)
        words = batch.pop(KEY)
        summed = self.clipped_sum(state.parameters, state.bounds, batch, state.step)

        bound = jnp.sqrt(jnp.sum(state.bounds**2))
        key = key_at(words, state.step, SUM)
        noise = gaussian(summed.gradients, key, self.shardings.parameters)
        noise, past = correlated(noise, state.past, self._bands)
        gradients = jax.tree.map(
            lambda s, n: (s + self._noise * bound * n) / self.expected, summed.gradients, noise
        )
        bounds = state.bounds
        if self._quantile is not None:
            counts = key_at(words, state.step, COUNTS)
            bounds = adapted(bounds, summed.within, counts, self._quantile, self.expected)

        gradients = jax.lax.optimization_barrier(gradients)
        updates, optimizer = self.one.optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        parameters = jax.lax.optimization_barrier(parameters)
        dropped = state.dropped + summed.dropped.astype(jnp.int32)
        after = PrivateState(
            state.step + 1,
            parameters,
            state.buffers,
            optimizer,
            bounds,
            dropped,
            ledger.after(state.ledger, self.event),
            past,
        )
        # A batch may be empty.
        totals = summed.sums.totals
        totals = totals._replace(targets=jnp.maximum(totals.targets, 1))
        norms = optax.tree.norm(gradients), optax.tree.norm(parameters)
        metrics = self.one.metrics(state.step, summed.sums._replace(totals=totals), *norms)
        return after, metrics | {
            "bound": bound,
            "examples_drawn": summed.examples,
            "examples_dropped": dropped.astype(jnp.float32),
            "share_cut": summed.cut / jnp.maximum(summed.examples, 1),
        }

    def clipped_sum(
        self, parameters: Tree, bounds: jax.Array, batch: Batch, step: jax.Array
    ) -> ClippedSum:
        """Of a `batch` with `weights`: what noise is added to. Adding, removing or replacing one of
        its rows moves the gradients by at most the norm of `bounds`, or twice that."""
        key = self.one.key(step)
        # An example draws its dropout by its place among those of the step, which is in row i of
        # microbatch i mod m: on another mesh there may be other microbatches.
        rows = jnp.arange(batch["targets"].shape[0])
        number, place = jnp.divmod(rows, self.microbatches)
        order = place * (len(rows) // self.microbatches) + number
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(order)
        batch = batch | {"keys": constrain(keys, "batch")}
        return over_microbatches(
            self._part, parameters, batch, bounds, self.microbatches, self.mesh
        )

    def _chosen(self, method: Method) -> Part:
        """The way to clip."""
        parameters, buffers = self.one.abstract_state.parameters, self.one.abstract_state.buffers
        if method != "per_example":
            reason = suits(self.graph, parameters, buffers, _rows_for(self.specification))
            if reason is None:
                return ghost(self.graph, buffers, self.groups)
            if method == "ghost":
                raise UserError(
                    f"norms cannot be had without gradients: {reason}; use --privacy.method auto"
                )
        return per_example(self.one.loss, buffers, self.groups)


def check(one: Synchronous) -> None:
    """Raises UserError where the examples of a batch cannot be told apart."""
    if jax.tree.leaves(one.abstract_state.buffers):
        raise UserError(
            "BatchNorm mixes the examples of a batch, so that no bound on the gradient of one is a "
            "bound on what it does: use --model.normalization group"
        )
    for axis, others in (("stage", "data"), ("expert", "data"), ("context", "tensor")):
        size = one.mesh.shape[axis]
        if size > 1:
            raise UserError(
                f"gradients are clipped example by example, which --mesh.{axis} {size} cannot: use "
                f"--mesh.{axis} 1, and --mesh.{others} {size}"
            )


def _stacked(sharding: NamedSharding) -> NamedSharding:
    """Of arrays with one more axis, the first."""
    return NamedSharding(sharding.mesh, P(None, *sharding.spec))


def _rows_for(specification: Specification) -> Batch:
    """The shapes of two examples, for a model that takes numbers."""
    inputs = jax.ShapeDtypeStruct((2, *specification.shape), jnp.float32)
    return {"inputs": inputs, "targets": jax.ShapeDtypeStruct((2,), jnp.int32)}  # type: ignore[dict-item]
