"""One client in one round, as its algorithm sees it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.learning.federated.parts import joined, like
from research.learning.gradients import Batch, Sums, Tree
from research.learning.objective import Totals
from research.learning.synchronous import Synchronous

Correct = Callable[[Tree, Tree], Tree]
"""`correct(gradient, parameters)`: the gradient that a local step uses."""


class Local(NamedTuple):
    """How every client learns by itself."""

    one: Synchronous
    optimizer: optax.GradientTransformation  # with a rate that does not change
    rate: jax.Array  # [] float32: of this round
    share: jax.Array  # [] float32: of the optimizer's own rate, what this round has of it
    split: bool = False  # whether a client's model lies on several devices


class Descent(NamedTuple):
    """Where a client's local steps led, from where it began."""

    parameters: Tree
    buffers: Tree
    sums: Sums  # over all its steps, at the parameters before each


class Reply(NamedTuple):
    """What a client sends back, and what it keeps."""

    descent: Descent  # what is logged, and whose buffers are averaged
    move: Tree  # like the parameters; the mean over clients is the server's gradient
    more: Tree = ()  # what else is averaged over clients
    own: Tree = ()  # its row of the table of clients, from now on
    weight: Any = 1.0  # [] float32, in the mean, besides its number of examples


class Client(NamedTuple):
    """One client, what it was sent, and its data of this round."""

    local: Local
    start: Tree  # w: the server's parameters
    buffers: Tree
    shared: Tree  # what else the server sends to all; () for nothing
    own: Tree  # its row of the table of clients; () for nothing
    data: Batch  # [most steps, batch, ...], `weights` of 0 for what only fills them up
    steps: jax.Array  # [] int32, K: local steps that hold examples
    examples: jax.Array  # [] float32, n: different examples
    key: jax.Array  # of this round and client
    number: jax.Array  # [] int32: which one it is
    staleness: Any = 0  # [] int32: steps of the server's since it was sent what it has

    @property
    def epoch(self) -> jax.Array:
        """[] int32: steps that go through all its examples once."""
        batch = self.data["weights"].shape[1]
        return jnp.ceil(self.examples / batch).astype(jnp.int32)

    def descend(
        self,
        parameters: Tree,
        correct: Correct = lambda gradient, parameters: gradient,
        held: Tree = (),
        steps: jax.Array | int | None = None,
        at: Callable[[jax.Array], jax.Array] = lambda i: i,
    ) -> Descent:
        """K steps (or `steps`) of the local optimizer, which begins anew, from `parameters`, each
        by the gradient of its own batch (step i by batch `at(i)`):

        w ← w + update(correct(∇ℓ(w; batch i), w))        i = 0, ..., K - 1

        `parameters` may be a part of all, beside those `held` as they are. Steps that only fill up
        are not computed (side by side with others, they change nothing).
        """
        optimizer = self.local.optimizer

        def step(i: jax.Array, state: tuple[Tree, Tree, Tree, Sums]) -> Any:
            parameters, buffers, inside, sums = state
            whole = joined(parameters, held)
            gradient, here, buffers = self._gradient(whole, buffers, at(i), i)
            gradient = correct(like(parameters, gradient), parameters)
            updates, inside = optimizer.update(gradient, inside, parameters)
            share = self._once_there(gradient)
            updates = jax.tree.map(lambda u: share * u, updates)
            parameters = optax.apply_updates(parameters, updates)
            return parameters, buffers, inside, jax.tree.map(jnp.add, sums, here)

        sums = self.no_sums(joined(parameters, held))
        first = (parameters, self.buffers, optimizer.init(parameters), sums)
        count = self.steps if steps is None else steps
        parameters, buffers, _, sums = self.repeat(count, self.most, step, first)
        return Descent(parameters, buffers, sums)

    def _once_there(self, gradient: Tree) -> jax.Array:
        """What this round has of the optimizer's rate, once all of the `gradient` is there.

        Were an update free to come before the backward pass is through, XLA would copy each matrix
        that this pass reads, in every step: a tenth of a small model's round on a CPU. (Of a model
        that is split, to look at a number of each part would be a message.)
        """
        if self.local.split:
            return self.local.share
        return self.local.share + 0 * sum(leaf.ravel()[0] for leaf in jax.tree.leaves(gradient))

    def gradient(self, parameters: Tree) -> Tree:
        """Of the mean loss over all of this round's batches at `parameters`: with one epoch, over
        the client's data."""

        def add(i: jax.Array, state: tuple[Tree, jax.Array]) -> Any:
            total, count = state
            gradient, sums, _ = self._gradient(parameters, self.buffers, i, i)
            here = sums.totals.targets
            return jax.tree.map(lambda t, g: t + here * g, total, gradient), count + here

        zeros = jax.tree.map(jnp.zeros_like, parameters)
        total, count = self.repeat(self.steps, self.most, add, (zeros, jnp.zeros(())))
        return jax.tree.map(lambda t: t / count, total)

    def loss(self, parameters: Tree) -> jax.Array:
        """F_k: the mean loss over all its examples at `parameters`, without dropout."""
        totals = self.totals(parameters, self.data, self.epoch)
        return totals.loss / totals.targets

    def totals(self, parameters: Tree, data: Batch, batches: jax.Array) -> Totals:
        """Over the first so many `batches` of `data` [most batches, batch, ...]."""

        def add(i: jax.Array, totals: Totals) -> Totals:
            return totals.add(self.local.one.totals(parameters, self.buffers, _at(data, i)))

        zero, most = jnp.zeros(()), data["weights"].shape[0]
        return self.repeat(batches, most, add, Totals(zero, zero, zero))

    def repeat(
        self, count: jax.Array | int, most: int, step: Callable[[jax.Array, Any], Any], first: Any
    ) -> Any:
        """`step(i, state)` for i = 0, ..., `count` - 1, from `first`; of `most` at most.

        Where models are split over devices, what those send each other may be one message of the
        whole mesh. So all clients go on to the most, those that are done without effect.
        """
        if isinstance(count, int) or not self.local.split:
            return jax.lax.fori_loop(0, count, step, first)

        def kept(i: jax.Array, state: Any) -> Any:
            return jax.tree.map(
                lambda new, old: jnp.where(i < count, new, old), step(i, state), state
            )

        return jax.lax.fori_loop(0, most, kept, first)

    @property
    def most(self) -> int:
        """Steps that there is room for."""
        return self.data["weights"].shape[0]

    def no_sums(self, parameters: Tree) -> Sums:
        """Before the first step."""
        first = jnp.int32(0)
        shapes = jax.eval_shape(
            lambda w: self._gradient(w, self.buffers, first, first)[1], parameters
        )
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def _gradient(
        self, parameters: Tree, buffers: Tree, i: jax.Array, draw: jax.Array
    ) -> tuple[Tree, Sums, Tree]:
        key = jax.random.fold_in(self.key, draw)
        return self.local.one.gradients(parameters, buffers, _at(self.data, i), key)


def _at(data: Batch, i: jax.Array) -> Batch:
    return jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, i, 0, False), data)
