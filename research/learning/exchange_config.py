"""Which rule replicas that differ learn by, and how many there are, by configuration."""

from dataclasses import dataclass, replace
from typing import Literal

from jax.sharding import Mesh

from research.errors import UserError
from research.exchange import Exchange, hierarchical_mean, mean
from research.learning.local_updates import diloco, easgd, every_step, local_sgd, post_local_sgd
from research.learning.rule import Rule
from research.parallel.mesh import MeshConfig


@dataclass(frozen=True)
class ExchangeConfig:
    """What replicas that differ exchange, and when."""

    rule: Literal["none", "every_step", "local_sgd", "post_local_sgd", "diloco", "easgd"] = "none"
    """every_step averages gradients; local_sgd, post_local_sgd and diloco average parameters after
    some steps; easgd pulls replicas to a center; none: there is one model."""

    replicas: int | None = None
    """Models that learn side by side, a multiple of --mesh.replica (None: as many)."""

    period: int = 50
    """H: steps from one exchange of parameters to the next (steps)."""

    learning_rate: float = 0.7
    """Outer learning rate of diloco; 1 without momentum is averaging."""

    momentum: float = 0.9
    """Outer Nesterov momentum of diloco (0: none)."""

    alpha: float | None = None
    """Elastic force of easgd: the share of its distance that a replica goes to the center (None:
    0.9 / replicas)."""

    first_local_step: int | None = None
    """Step from which post_local_sgd averages parameters, not gradients (None: half of the run)."""

    groups: int = 1
    """Groups of replicas: means are taken inside them first, then between them (1: at once)."""

    not_finite: Literal["stop", "drop"] = "stop"
    """What a gradient that is not finite does: stop the run, or leave its replica out of the
    step."""

    plan: Literal["scan", "vmap"] = "scan"
    """How several replicas of one device are computed: one after another, or side by side."""

    def check(self, mesh: MeshConfig) -> None:
        """Raises UserError for a value that no run can have."""
        if self.rule == "none":
            asked = (
                f"--exchange.replicas {self.replicas}"
                if (self.replicas or 1) > 1
                else f"--mesh.replica {mesh.replica}"
            )
            if (self.replicas or 1) > 1 or mesh.replica > 1:
                raise UserError(
                    f"{asked} asks for replicas that differ, and nothing says what they exchange: "
                    "use --exchange.rule diloco (or every_step, local_sgd, post_local_sgd, easgd), "
                    f"or --mesh.data {max(mesh.replica, self.replicas or 1)} for one model"
                )
        for name, value in (("period", self.period), ("groups", self.groups)):
            if value < 1:
                raise UserError(f"--exchange.{name} {value} must be 1 or more")
        if self.replicas is not None and self.replicas < 1:
            raise UserError(f"--exchange.replicas {self.replicas} must be 1 or more, or None")
        if self.first_local_step is not None and self.first_local_step < 0:
            raise UserError(
                f"--exchange.first-local-step {self.first_local_step} must be 0 or more, or None"
            )
        if self.learning_rate <= 0:
            raise UserError(f"--exchange.learning-rate {self.learning_rate} must be more than 0")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--exchange.momentum {self.momentum} must be 0 or more, and below 1")
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise UserError(f"--exchange.alpha {self.alpha} must lie between 0 and 1")

    def on(self, mesh: Mesh) -> "ExchangeConfig":
        """With the number of replicas, for `mesh`. Raises UserError where they do not divide."""
        if self.rule == "none":
            return self
        devices = mesh.shape["replica"]
        count = self.replicas or devices
        if excess := count % devices:
            below = f"{count - excess} or " if count > devices else ""
            raise UserError(
                f"{count} replicas do not divide over --mesh.replica {devices}: use "
                f"--exchange.replicas {below}{count - excess + devices}, or a --mesh.replica that "
                f"divides {count}"
            )
        size, seats = count // self.groups, count // devices
        if count % self.groups or (size % seats and seats % size):
            ways = [
                g
                for g in range(1, count + 1)
                if count % g == 0 and ((count // g) % seats == 0 or seats % (count // g) == 0)
            ]
            raise UserError(
                f"{count} replicas, {seats} a device, do not make {self.groups} groups of equal "
                f"size: use --exchange.groups {' or '.join(map(str, ways))}"
            )
        return replace(self, replicas=count)

    def build(self, steps: int) -> Rule:
        """The rule, for a run of `steps` steps; `replicas` are known (see `on`)."""
        average = self._average()
        if self.rule == "every_step":
            return every_step(average)
        if self.rule == "local_sgd":
            return local_sgd(self.period, average)
        if self.rule == "post_local_sgd":
            first = steps // 2 if self.first_local_step is None else self.first_local_step
            return post_local_sgd(self.period, first, average)
        if self.rule == "diloco":
            return diloco(self.period, self.learning_rate, self.momentum, average)
        alpha = 0.9 / (self.replicas or 1) if self.alpha is None else self.alpha
        return easgd(self.period, alpha)

    def _average(self) -> Exchange:
        return mean() if self.groups == 1 else hierarchical_mean(self.groups)
