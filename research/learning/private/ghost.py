"""The quick way to clip: an example's norm without its gradient, for linear maps and convolutions.

Goodfellow 2015, *Efficient Per-Example Gradient Computations*, arXiv:1510.01799; Li et al. 2021,
*Large Language Models Can Be Strong Differentially Private Learners*, arXiv:2110.05679, §4; Bu et
al. 2022, arXiv:2210.00038 (Book-Keeping). A layer y = x·W + b, on T places of example i, with what
comes back to it, δ = ∂ℓ_i/∂y:

    ∂ℓ_i/∂W = x_iᵀ·δ_i                       [inputs, T]·[T, outputs]
    ‖x_iᵀ·δ_i‖² = ⟨x_i·x_iᵀ, δ_i·δ_iᵀ⟩       T = 1: ‖x_i‖²·‖δ_i‖²
    Σ_i c_i·x_iᵀ·δ_i = (x)ᵀ·(c·δ)            all examples in one product, as without clipping

One pass forward and one back, which ends at the δ: the product that a plain step takes for ∂W is
the one in the last line. A convolution is a linear map of patches. Where 2·T² exceeds the numbers
in W (the rule of Bu et al. 2022, arXiv:2205.10683), example by example is cheaper and is done.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from research.exchange.privacy import Groups, clipped, scaled_sum
from research.exchange.privacy.clipping import EXACT
from research.learning.gradients import Batch, Tree
from research.learning.objective import Totals, cross_entropies
from research.learning.private.parts import ClippedSum, Part, told
from research.models.convolution import patches
from research.models.model import Extras

Path = tuple[str, ...]


@jax.custom_vjp
def tapped(y: jax.Array, tap: jax.Array) -> jax.Array:
    """`y`, whose cotangent is that of `tap` too."""
    return y


tapped.defvjp(lambda y, tap: (y, None), lambda _, cotangent: (cotangent, cotangent))


class Tapped:
    """A layer in its place in the model: it keeps what comes in, and its output can be tapped."""

    def __init__(self, layer: Any, path: Path, taps: dict[Path, jax.Array] | None, seen: Tree):
        self.layer, self.path, self.taps, self.seen = layer, path, taps, seen

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.layer(x)
        self.seen.setdefault(self.path, []).append(x if self.taps is not None else (x, y))
        return y if self.taps is None else tapped(y, self.taps[self.path])


class Products(NamedTuple):
    """A layer's part in the gradients of all examples, [rows, T, ...]."""

    x: jax.Array  # [rows, T, inputs]
    delta: jax.Array  # [rows, T, outputs]

    @property
    def by_gram(self) -> bool:
        _, places, inputs = self.x.shape
        return 2 * places**2 <= inputs * self.delta.shape[-1]

    def gradients(self) -> jax.Array:
        """[rows, inputs, outputs]: each example's own."""
        return jnp.einsum("bti,bto->bio", self.x, self.delta, precision=EXACT)

    def squared_norms(self, gradients: jax.Array | None) -> jax.Array:
        """[rows]: of ∂ℓ_i/∂W."""
        if gradients is not None:
            return jnp.sum(jnp.square(gradients), axis=(1, 2))
        if self.x.shape[1] == 1:
            return jnp.sum(self.x**2, axis=(1, 2)) * jnp.sum(self.delta**2, axis=(1, 2))
        of_x = jnp.einsum("bti,bsi->bts", self.x, self.x, precision=EXACT)
        of_delta = jnp.einsum("bto,bso->bts", self.delta, self.delta, precision=EXACT)
        return jnp.maximum(jnp.sum(of_x * of_delta, axis=(1, 2)), 0.0)

    def scaled_sum(self, gradients: jax.Array | None, factors: jax.Array) -> jax.Array:
        """[inputs, outputs]: Σ c_i·∂ℓ_i/∂W; nothing of an example whose factor is 0."""
        if gradients is not None:
            return scaled_sum(gradients, factors)
        delta = _where(factors, self.delta) * factors[:, None, None]
        return jnp.einsum("bti,bto->io", _where(factors, self.x), delta, precision=EXACT)


def ghost(graph: Any, buffers: Tree, groups: Groups) -> Part:
    """The clipped sum of a microbatch, for a model that `suits`."""

    def part(parameters: Tree, rows: Batch, bounds: jax.Array) -> ClippedSum:
        weights = rows["weights"]
        shapes = _seen(graph, parameters, buffers, rows)
        taps = {path: jnp.zeros(y.shape, y.dtype) for path, ((_, y),) in shapes.items()}

        def objective(taps: Any) -> tuple[jax.Array, tuple[Totals, Any]]:
            totals, seen = _forward(graph, parameters, buffers, rows, taps)
            return jnp.sum(totals.loss / totals.targets), (totals, seen)

        deltas, (totals, seen) = jax.grad(objective, has_aux=True)(taps)
        model = nnx.merge(graph, parameters, buffers)
        layers = {path: layer for path, _, layer in _layers(model)}
        products = {
            path: _products(layers[path], seen[path][0], delta) for path, delta in deltas.items()
        }
        own = {path: None if p.by_gram else p.gradients() for path, p in products.items()}

        norms = [jnp.zeros(weights.shape)] * groups.many
        for path, product in products.items():
            numbers = _at(groups.numbers, path)
            norms[numbers["kernel"]] += product.squared_norms(own[path])
            if "bias" in numbers:
                of_bias = jnp.sum(product.delta, axis=1)
                norms[numbers["bias"]] += jnp.sum(of_bias**2, axis=-1)
        decided = clipped(jnp.stack(norms, axis=-1), bounds)
        factors = decided.factors * weights[:, None]

        made: Tree = {}
        for path, product in products.items():
            numbers, like = _at(groups.numbers, path), _at(parameters, path)
            here = made
            for name in path:
                here = here.setdefault(name, {})
            kernel = product.scaled_sum(own[path], factors[:, numbers["kernel"]])
            here["kernel"] = kernel.reshape(like["kernel"].shape)
            if "bias" in numbers:
                of_bias = jnp.sum(product.delta, axis=1)
                here["bias"] = scaled_sum(of_bias, factors[:, numbers["bias"]])
        return ClippedSum(made, **told(decided, weights, totals, Extras({}, {})))

    return part


def suits(graph: Any, parameters: Tree, buffers: Tree, rows: Batch) -> str | None:
    """Why the gradients of a model are not found so (None: they are): something of it is no linear
    map or convolution, or is one of another kind, or is used twice. `rows` are any."""
    model = nnx.merge(graph, parameters, buffers)
    found = {path: layer for path, _, layer in _layers(model)}
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    others = {tuple(key.key for key in path)[:-1] for path, _ in leaves} - found.keys()
    if others:
        return f"{'.'.join(map(str, min(others)))} is no linear map or convolution"
    for path, layer in found.items():
        if isinstance(layer, nnx.Conv) and not _is_plain(layer):
            return f"{'.'.join(path)} is a convolution with strides, dilation or groups"
    try:
        seen = _seen(graph, parameters, buffers, rows)
    except TypeError as error:  # penalties
        return str(error)
    for path in found:
        if len(seen.get(path, ())) != 1:
            return f"{'.'.join(path)} is used {len(seen.get(path, ()))} times"
    return None


def _forward(
    graph: Any, parameters: Tree, buffers: Tree, rows: Batch, taps: Any
) -> tuple[Totals, dict[Path, list[Any]]]:
    """Totals of each example, and what every layer saw (without `taps`, also what it made)."""
    model = nnx.merge(graph, parameters, buffers)
    seen: dict[Path, list[Any]] = {}
    for path, parent, layer in list(_layers(model)):
        setattr(parent, path[-1], Tapped(layer, path, taps, seen))
    logits, extras = model.forward(rows["inputs"], train=True, keys=rows.get("keys"))
    if extras.penalties or extras.statistics:
        raise TypeError("the model adds penalties to its loss")
    return cross_entropies(logits, model.arrange(rows["targets"])), seen


def _seen(graph: Any, parameters: Tree, buffers: Tree, rows: Batch) -> dict[Path, list[Any]]:
    """The shapes of what goes into each layer and comes out, at each of its uses."""
    return jax.eval_shape(
        lambda parameters, rows: _forward(graph, parameters, buffers, rows, None)[1],
        parameters,
        rows,
    )


def _layers(model: Any) -> Iterator[tuple[Path, Any, Any]]:
    """(path, parent, layer) of every linear map and convolution."""
    nodes: dict[Any, Any] = dict(nnx.iter_graph(model))
    for path, node in nodes.items():
        if isinstance(node, nnx.Linear | nnx.Conv):
            yield path, nodes[path[:-1]], node


def _is_plain(layer: nnx.Conv) -> bool:
    def ones(value: Any) -> bool:
        return value is None or set(jax.tree.leaves(value)) == {1}

    return (
        len(layer.kernel_size) == 2
        and ones(layer.strides)
        and ones(layer.input_dilation)
        and ones(layer.kernel_dilation)
        and layer.feature_group_count == 1
        and layer.padding in ("SAME", "VALID")
    )


def _products(layer: Any, x: jax.Array, delta: jax.Array) -> Products:
    if isinstance(layer, nnx.Conv):
        x = patches(x, layer.kernel_size, str(layer.padding))
    rows = x.shape[0]
    x = x.astype(jnp.float32).reshape(rows, -1, x.shape[-1])
    return Products(x, delta.astype(jnp.float32).reshape(rows, -1, delta.shape[-1]))


def _where(factors: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.where(factors.reshape(-1, *(1,) * (rows.ndim - 1)) > 0, rows, 0.0)


def _at(tree: Tree, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree
