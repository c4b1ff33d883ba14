"""Parameters gathered for use, once a pass: what fully sharded data parallelism does.

Rajbhandari et al. 2020, *ZeRO*, arXiv:1910.02054 (stage 3); Xu et al. 2021, *GSPMD*,
arXiv:2105.04663. A parameter that is split over `fsdp` is made whole where it is used, and its
gradient is reduced and scattered back to where the parameter lies. For P bytes of parameters over n
devices a device sends P (n-1)/n for each pass that uses them, forward and backward, and as much
for the gradients.

The partitioner would find that by itself, but gathers once more in a backward pass that computes
the forward one again, and reduces some gradients whole before it cuts them.
"""

from functools import partial
from typing import Any

import jax
from flax import nnx

from research.parallel.layout import Axes, constrain, is_split

MOVES = {
    *("sharding_constraint", "convert_element_type", "reshape", "transpose", "squeeze"),
    *("broadcast_in_dim", "optimization_barrier", "copy", "copy_p"),
}
"""Primitives that compute nothing. What they give is not kept for the backward pass, but what they
were given, which is as good: so nothing that is made of a gathered parameter alone is kept."""


def keep_all_but_gathered(function: Any) -> Any:
    """`function`, whose backward pass gathers parameters again and has all else from the forward
    one: to keep them as well would undo the sharding. As it is on a mesh that does not split them.
    """
    if not is_split("embed"):
        return function

    return jax.checkpoint(function, policy=_computes, prevent_cse=False)


def _computes(primitive: Any, *_: Any, **parameters: Any) -> bool:
    inner = parameters.get("call_jaxpr")
    if primitive.name == "custom_vjp_call" and inner is not None:
        return any(_computes(each.primitive, **each.params) for each in inner.eqns)
    return primitive.name not in MOVES


def gathered(parameter: jax.Array, axes: Axes) -> jax.Array:
    """`parameter` of logical `axes`, whole over `fsdp`; its gradient is reduced and scattered."""
    if "embed" not in axes or not is_split("embed"):
        return constrain(parameter, *axes)
    return _gathered(parameter, axes)


def gathered_module(module: Any, x: jax.Array, dtype: Any) -> tuple[Any, jax.Array]:
    """`module` with its matrices gathered, in the type of the computation (half the bytes, where
    that is of half the size), and its input `x`."""
    if not is_split("embed"):
        return module, x
    graph, state = nnx.split(module)
    # Not before `x` is there: else a loop over microbatches gathers once for all of them.
    state, x = jax.lax.optimization_barrier((state, x))

    def gather(variable: Any) -> Any:
        axes = variable.get_metadata().get("axes") or ()
        if "embed" not in axes:
            return variable
        return variable.replace(gathered(variable.get_value().astype(dtype), axes))

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(gather, state, is_leaf=is_variable)), x


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(parameter: jax.Array, axes: Axes) -> jax.Array:
    return constrain(parameter, *(None if axis == "embed" else axis for axis in axes))


def _forward(parameter: jax.Array, axes: Axes) -> tuple[jax.Array, None]:
    return _gathered(parameter, axes), None


def _backward(axes: Axes, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # The gradient of `constrain` would be whole, and cut afterwards.
    return (constrain(gradient, *axes),)


_gathered.defvjp(_forward, _backward)
