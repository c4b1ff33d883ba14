"""What may differ between members beside their draws and data: a sweep is an ensemble.

All members are one program, so what differs is an array [members] of it: a learning rate and a
weight decay in the optimizer, a dropout rate in the pass, and a width. A narrow member is a wide
one with units that are 0 and stay so: without weights into and out of it, a unit of any activation
with f(0) = 0 has no gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from research.errors import UserError
from research.learning.optimizer import OptimizerConfig
from research.models import MLPConfig
from research.models.mlp import narrowed

Own = dict[str, jax.Array]
Tree = Any


def _as_drawn(own: Own, parameters: Tree) -> Tree:
    return parameters


class Traits(NamedTuple):
    """Of all members."""

    optimizer: Callable[[Own], optax.GradientTransformation]
    """That of a member, of its own values [] of what differs."""
    values: dict[str, np.ndarray]  # [members] float32 each, of what differs
    begin: Callable[[Own, Tree], Tree] = _as_drawn
    """A member's parameters at the start, of those drawn for it."""


def traits(
    given: Mapping[str, Sequence[float]], optimizer: OptimizerConfig, steps: int, model: Any
) -> Traits:
    """Of members with those values `given`, one a member, of `learning_rate`, `weight_decay`,
    `dropout` and `width` (nothing for what all have alike).

    Raises UserError for what `model` or its optimizer does not have.
    """
    values = {name: np.array(each, np.float32) for name, each in given.items() if each}
    if "dropout" in values and not hasattr(model, "dropout"):
        raise UserError(
            f"a {type(model).__name__} has no dropout: leave out --ensemble.dropouts, or use "
            "MLPConfig or TransformerConfig"
        )
    if "width" in values:
        _check_widths(given["width"], model)
    if "learning_rate" in values:  # over that of the schedule
        values["learning_rate"] /= np.float32(optimizer.learning_rate)
    schedule = optimizer.learning_rate_schedule(steps)

    def of(own: Own) -> optax.GradientTransformation:
        config, rate = optimizer, schedule
        if "weight_decay" in own:
            decay: Any = own["weight_decay"]
            config = replace(config, weight_decay=decay)
        if "learning_rate" in own:

            def rate(step: Any) -> Any:
                return own["learning_rate"] * schedule(step)

        return config.build(steps, rate)

    def begin(own: Own, parameters: Tree) -> Tree:
        return narrowed(parameters, own["width"]) if "width" in own else parameters

    return Traits(of, values, begin)


def _check_widths(widths: Sequence[float], model: Any) -> None:
    if not isinstance(model, MLPConfig):
        raise UserError(
            f"a {type(model).__name__} is not made narrower: leave out --ensemble.widths, or use "
            "MLPConfig"
        )
    narrowest = min(model.widths, default=0)
    if max(widths) > narrowest or min(widths) < 1:
        raise UserError(
            f"--ensemble.widths {' '.join(map(str, widths))} must be 1 or more units of every "
            f"hidden layer, and at most {narrowest}, as --model.widths has them"
        )
