"""Optimizers and learning-rate schedules of optax, by configuration."""

import inspect
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

import jax
import optax

from research.errors import UserError

UNSUITED = ("lbfgs", "noisy_sgd", "optimistic_adam", "rprop", "sm3")
"""Optimizers of optax that need a line search, a key, or a rate that is one number."""


@dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimizer with a schedule, clipping and gradient accumulation."""

    name: str = "adamw"
    """Any optimizer of optax with a learning rate: adamw, sgd, lion, adafactor, lamb, ..."""

    learning_rate: float = 1e-3
    """Peak learning rate."""

    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the rate falls after the warm-up, down to final_learning_rate."""

    warmup_steps: int = 0
    """Steps over which the rate rises linearly to its peak."""

    decay_steps: int | None = None
    """Step at which the final rate is reached (None: the last step of the run)."""

    final_learning_rate: float = 0.0
    """Learning rate at the end of the schedule."""

    weight_decay: float = 0.0
    """Decay of matrices (optimizers that take `weight_decay`); vectors do not decay."""

    beta1: float | None = None
    """First-moment decay, or the momentum of sgd (None: optax's default for the optimizer)."""

    beta2: float | None = None
    """Second-moment decay (None: optax's default for the optimizer)."""

    clip: float | None = 1.0
    """Largest global norm of the gradients (None: no clipping)."""

    microbatches: int = 1
    """Parts of a batch whose gradients are added up before one update (accumulation)."""

    arguments: dict[str, float] = field(default_factory=dict)
    """Further arguments of the optax optimizer, by optax's names."""

    def constant(self) -> "OptimizerConfig":
        """The same with its peak rate throughout, for who has a schedule of its own."""
        return replace(self, schedule="constant", warmup_steps=0)

    def learning_rate_schedule(self, steps: int) -> optax.Schedule:
        """The learning rate of a step, for a run of `steps` steps.

        Warm-up as in nanoGPT: step s of w has the rate peak · (s + 1) / (w + 1), never zero.
        """
        peak, warmup = self.learning_rate, self.warmup_steps
        end = steps if self.decay_steps is None else self.decay_steps
        length = max(end - warmup, 1)
        after: optax.Schedule
        if self.schedule == "constant":
            after = optax.constant_schedule(peak)
        elif self.schedule == "linear":
            after = optax.linear_schedule(peak, self.final_learning_rate, length)
        else:
            floor = self.final_learning_rate / peak if peak else 0.0
            after = optax.cosine_decay_schedule(peak, length, alpha=floor)
        if not warmup:
            return after
        rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
        return optax.join_schedules([rise, after], [warmup])

    def build(self, steps: int, rate: optax.Schedule | None = None) -> optax.GradientTransformation:
        """The optimizer for a run of `steps` steps; clipping comes first. `rate` is the learning
        rate of a step where it is not that of the schedule.

        Raises UserError for a name or an argument that optax does not have.
        """
        known = optimizer_names()
        if self.name not in known:
            near = get_close_matches(self.name, known, n=3)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}"
            )
            raise UserError(f"optax has no optimizer `{self.name}`: {hint}")
        make = getattr(optax, self.name)
        takes = inspect.signature(make).parameters
        ours: dict[str, Any] = {
            "b1": self.beta1,
            "momentum": self.beta1,
            "b2": self.beta2,
            "weight_decay": self.weight_decay,
            "mask": decayed,
        }
        arguments = {n: value for n, value in ours.items() if n in takes and value is not None}
        for name, value in self.arguments.items():
            if name not in takes:
                raise UserError(
                    f"optax.{self.name} takes no argument `{name}`: it takes {', '.join(takes)}"
                )
            arguments[name] = value
        optimizer = make(rate or self.learning_rate_schedule(steps), **arguments)
        if self.clip is None:
            return optimizer
        return optax.chain(optax.clip_by_global_norm(self.clip), optimizer)


def decayed(parameters: Any) -> Any:
    """Which parameters decay: matrices do; biases, norm scales and the like do not, stacked over
    layers or not."""

    def is_matrix(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        names = [key.key for key in path]
        return leaf.ndim >= 2 and names[-1] not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(is_matrix, parameters)


def optimizer_names() -> list[str]:
    """The optimizers of optax that need nothing but gradients and a learning rate."""

    def fits(name: str) -> bool:
        try:
            takes = list(inspect.signature(getattr(optax, name)).parameters)
        except (AttributeError, TypeError, ValueError):
            return False
        return takes[:1] == ["learning_rate"] and not name.startswith(("_", "scale_by_"))

    return [name for name in dir(optax) if name.islower() and fits(name) and name not in UNSUITED]
