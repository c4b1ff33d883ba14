"""One client in one round, as its algorithm sees it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.learning.gradients import Batch, Sums, Tree
from research.learning.synchronous import Synchronous

Correct = Callable[[Tree, Tree], Tree]
"""`correct(gradient, parameters)`: the gradient that a local step uses."""


class Local(NamedTuple):
    """How every client learns by itself."""

    one: Synchronous
    optimizer: optax.GradientTransformation  # with a rate that does not change
    rate: jax.Array  # [] float32: of this round
    share: jax.Array  # [] float32: of the optimizer's own rate, what this round has of it


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

    def descend(self, parameters: Tree, correct: Correct = lambda g, w: g) -> Descent:
        """K steps of the local optimizer, anew in every round, from `parameters`, each by the
        gradient of its own batch:

        w ← w + update(correct(∇ℓ(w; batch i), w))        i = 1, ..., K

        Steps that only fill up are not computed (side by side with others, they change nothing).
        """
        optimizer, share = self.local.optimizer, self.local.share

        def step(i: jax.Array, state: tuple[Tree, Tree, Tree, Sums]) -> Any:
            parameters, buffers, inside, sums = state
            gradient, here, buffers = self._gradient(parameters, buffers, i)
            updates, inside = optimizer.update(correct(gradient, parameters), inside, parameters)
            updates = jax.tree.map(lambda u: share * u, updates)
            parameters = optax.apply_updates(parameters, updates)
            return parameters, buffers, inside, jax.tree.map(jnp.add, sums, here)

        first = (parameters, self.buffers, optimizer.init(parameters), self._no_sums(parameters))
        parameters, buffers, _, sums = jax.lax.fori_loop(0, self.steps, step, first)
        return Descent(parameters, buffers, sums)

    def gradient(self, parameters: Tree) -> Tree:
        """Of the mean loss over all of this round's batches at `parameters`: with one epoch, over
        the client's data."""

        def add(i: jax.Array, state: tuple[Tree, jax.Array]) -> Any:
            total, count = state
            gradient, sums, _ = self._gradient(parameters, self.buffers, i)
            here = sums.totals.targets
            return jax.tree.map(lambda t, g: t + here * g, total, gradient), count + here

        zeros = jax.tree.map(jnp.zeros_like, parameters)
        total, count = jax.lax.fori_loop(0, self.steps, add, (zeros, jnp.zeros(())))
        return jax.tree.map(lambda t: t / count, total)

    def _gradient(self, parameters: Tree, buffers: Tree, i: jax.Array) -> tuple[Tree, Sums, Tree]:
        batch = jax.tree.map(
            lambda rows: jax.lax.dynamic_index_in_dim(rows, i, 0, False), self.data
        )
        return self.local.one.gradients(parameters, buffers, batch, jax.random.fold_in(self.key, i))

    def _no_sums(self, parameters: Tree) -> Sums:
        shapes = jax.eval_shape(
            lambda w: self._gradient(w, self.buffers, jnp.int32(0))[1], parameters
        )
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
