"""The plain way to clip: every example's gradient is made, measured and cut.

    g_i = ∇ℓ(w; x_i)        one after another in meaning, side by side in computation (`vmap`)

For any model whose examples do not see each other. A microbatch of n examples takes the memory of n
gradients.
"""

import jax

from research.exchange.privacy import Groups, clipped, scaled_sum
from research.learning.gradients import Batch, Loss, Sums, Tree
from research.learning.private.parts import ClippedSum, Part, told


def per_example(loss: Loss, buffers: Tree, groups: Groups) -> Part:
    """The clipped sum of a microbatch by the `loss` of a batch; an example's own is the mean over
    its targets."""

    def part(parameters: Tree, rows: Batch, bounds: jax.Array) -> ClippedSum:
        weights = rows["weights"]

        def mean_loss(parameters: Tree, row: Batch) -> tuple[jax.Array, Sums]:
            total, (sums, _) = loss(parameters, buffers, jax.tree.map(lambda x: x[None], row))
            return total / sums.totals.targets, sums

        def gradient(row: Batch) -> tuple[Tree, jax.Array, Sums]:
            made, sums = jax.grad(mean_loss, has_aux=True)(parameters, row)
            return made, groups.squared_norms(made), sums

        examples = {name: leaf for name, leaf in rows.items() if name != "weights"}
        gradients, norms, sums = jax.vmap(gradient)(examples)
        decided = clipped(norms, bounds)
        factors = decided.factors * weights[:, None]
        summed = jax.tree.map(
            lambda number, leaf: scaled_sum(leaf, factors[:, number]), groups.numbers, gradients
        )
        return ClippedSum(summed, **told(decided, weights, *sums))

    return part
