"""How the updates of a round become one: a chain of stages (see `research.exchange.stages`).

    x_k = (Δ_k, ...)                          all that client k sends
    x̄ = stage_s(... stage_1(x_1, ..., x_n))

What sees one is computed with the client. If nothing then sees all, updates are added up as they
come; else they are kept side by side, [cohort, ...], a device its own clients', until the last has
come, and then laid on every device.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.exchange.privacy.noise import SUM, key_at
from research.exchange.stages import Round, Several, Stage, mean, size_of

Tree = Any
GROUPING = ("groups", "secure sum")
APART = 2
"""Tells these draws from those of the model and of the clients' steps."""


class Made(NamedTuple):
    """Of the updates of a round."""

    update: Tree  # x̄
    stages: dict[str, Tree]  # what the stages keep
    seen: jax.Array  # [] float32: how many updates, or groups, were seen by all; inf if none was


class Aggregation(NamedTuple):
    """The stages of a round, which `check_chain` has passed."""

    stages: tuple[Stage, ...] = (mean(),)
    seed: int = 0

    @property
    def plain(self) -> bool:
        """Whether it is the mean of updates as they are."""
        return len(self.stages) == 1 and self.stages[0].name == "mean"

    @property
    def alone(self) -> int:
        """How many stages are done to each update with its client."""
        done = (stage.sees != "one" or stage.gathers for stage in self.stages)
        return next((number for number, other in enumerate(done) if other), len(self.stages))

    @property
    def stacks(self) -> bool:
        """Whether updates have to be side by side."""
        return any(stage.sees == "all" or stage.gathers for stage in self.stages)

    @property
    def grouped(self) -> bool:
        """Whether what sees all sees groups of updates."""
        return any(stage.name in GROUPING for stage in self.stages)

    @property
    def least(self) -> int:
        """The fewest updates, or groups of them, that all stages are for."""
        return 0 if self.private else max(stage.least for stage in self.stages)

    @property
    def private(self) -> bool:
        """Whether a privacy budget is charged: then how many answered may decide nothing."""
        return any(stage.charges for stage in self.stages)

    def init(self, like: Tree) -> dict[str, Tree]:
        """What the stages keep at the start, by name, for updates like this."""
        return {stage.name: stage.init(like) for stage in self.stages}

    def one(self, x: Tree, states: dict[str, Tree], step: jax.Array, client: jax.Array) -> Tree:
        """The update of one `client`, as it leaves it."""
        for number, stage in enumerate(self.stages[: self.alone]):
            key = jax.random.fold_in(self._key(step, number), client)
            x, _ = stage.apply(x, states[stage.name], Round(step, key))
        return x

    def together(
        self,
        x: Tree,
        states: dict[str, Tree],
        step: jax.Array,
        weight: jax.Array,
        who: jax.Array,
        secret: jax.Array | None = None,
    ) -> Made:
        """x̄, and what the stages keep after it, of `Several` updates if it `stacks`, those of the
        clients `who` [cohort], else of their sum, with weights of `weight` in all. What charges a
        privacy budget draws by the `secret` words of a key."""
        after, seen = dict(states), jnp.asarray(jnp.inf)
        for number, stage in enumerate(self.stages[self.alone :], self.alone):
            key = self._key(step, number)
            if stage.charges:
                assert secret is not None
                key = key_at(secret, step, SUM)
            if stage.sees == "all":
                seen = jnp.minimum(seen, jnp.sum(x.alive))
            if stage.sees == "sum" and isinstance(x, Several):
                x, weight = x.total, jnp.sum(x.weight)
            round = Round(step, key, weight, who)
            x, after[stage.name] = stage.apply(x, after[stage.name], round)
        return Made(x, after, seen)

    def sent(self, like: Tree) -> int:
        """Bytes of an update like this, as it leaves a client."""
        told = [stage.sent for stage in self.stages if stage.sent is not None]
        return told[-1](like) if told else size_of(like)

    def _key(self, step: jax.Array, number: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self.seed), APART)
        return jax.random.fold_in(jax.random.fold_in(key, step), number)
