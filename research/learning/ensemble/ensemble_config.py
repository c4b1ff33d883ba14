"""Whether members make an ensemble, how many, what each learns from and what is its own."""

from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal, get_args

import optax
from jax.sharding import Mesh

from research.configuration import check_bounds
from research.data.outside import Outside
from research.errors import UserError
from research.learning.ensemble.batch_ensemble import BatchEnsemble
from research.learning.ensemble.combination import Rule, combination
from research.learning.ensemble.ensemble import Ensemble
from research.learning.ensemble.snapshots import Snapshots, restarts
from research.learning.ensemble.traits import traits
from research.learning.optimizer import OptimizerConfig
from research.learning.seats import Plan, check_seats
from research.learning.synchronous import Synchronous
from research.models import CNNConfig, LinearConfig, MLPConfig, ResNetConfig
from research.parallel.mesh import MeshConfig


@dataclass(frozen=True)
class EnsembleConfig:
    """Members that learn alone and answer together."""

    rule: Literal["none", "deep", "snapshot", "batch"] = "none"
    """deep: members learn side by side, each from a start of its own and on batches of its own, of
    --data.batch examples; snapshot: they are what one run passes, at a rate that falls once for
    each; batch: they are of rank one around weights that all share; none: there is one model."""

    members: int | None = None
    """M, a multiple of --mesh.replica (None: as many)."""

    share: Literal["all", "bagging", "disjoint"] = "all"
    """What a member learns from: all training examples in an order of its own, a bootstrap sample
    of them, or a part that no other member has."""

    combination: Rule = "mean"
    """Of the members' probabilities: their mean, their geometric mean, or votes."""

    teacher: str | None = None
    """Run folder, such as an ensemble's, whose probabilities are learned in the place of labels, by
    one model or by members (None: labels are). Not for text."""

    vote_noise: float = 0.0
    """σ of PATE: members of the teacher, of --ensemble.share disjoint, vote with noise of this
    deviation (votes), and the model learns from these labels of the validation split, as of public
    examples (0: it learns from the teacher's probabilities of all training examples)."""

    vote_seed: int | None = None
    """Of that noise, and to be kept secret, as the run folder's config.json is then."""

    learning_rates: tuple[float, ...] = ()
    """Of each member, in the place of --optimizer.learning-rate (empty: the same for all)."""

    weight_decays: tuple[float, ...] = ()
    """Of each member (empty: the same for all)."""

    dropouts: tuple[float, ...] = ()
    """Of each member (empty: the same for all)."""

    widths: tuple[int, ...] = ()
    """Units of every hidden layer of each member, of an MLP (empty: the same for all)."""

    outside: Outside = "permuted"
    """What `research evaluate` takes for examples from outside, if not text: those of the test
    split with each one's inputs permuted, or CIFAR-10 in gray (beside digits and mnist)."""

    plan: Literal["scan", "unroll", "vmap", "auto"] = "scan"
    """How several members of one device are computed: one after another, in a loop or without one,
    or side by side; auto takes the fastest, by 6 steps of each before the run. (Convolutions are
    20 times slower in a loop on a CPU: there unroll, which compiles every member.)"""

    def check(self, mesh: MeshConfig, optimizer: OptimizerConfig) -> None:
        """Raises UserError for a value that no run can have."""
        count = self.members
        fits = count is None or count >= 1
        check_bounds("ensemble", [("members", count, fits, "1 or more, or None")])
        for name, each in self._given().items():
            flag = f"--ensemble.{name.replace('_', '-')}s"
            number = count or mesh.replica
            if each and number > 0 and len(each) != number:
                raise UserError(
                    f"{flag} has {len(each)} values, and there are {number} members: give one a "
                    "member, or none"
                )
            most = 1.0 if name == "dropout" else inf
            if not all(0 <= value < most for value in each):
                wanted = "0 or more, and below 1" if name == "dropout" else "0 or more, and finite"
                raise UserError(f"{flag} {' '.join(map(str, each))} must be {wanted}")
        noise, secret = self.vote_noise, self.vote_seed
        check_bounds("ensemble", [("vote-noise", noise, 0 <= noise < inf, "0 or more, and finite")])
        if noise and (self.teacher is None or secret is None or not 0 <= secret < 2**63):
            raise UserError(
                f"--ensemble.vote-noise {noise:g} needs a --ensemble.teacher who votes, and a "
                "--ensemble.vote-seed (0 or more, below 2^63) that nobody else knows"
            )
        given = [name for name, each in self._given().items() if each]
        if given and self.rule not in ("none", "deep"):
            raise UserError(
                f"members of --ensemble.rule {self.rule} share their {given[0].replace('_', ' ')}: "
                f"leave out --ensemble.{given[0].replace('_', '-')}s, or use --ensemble.rule deep"
            )
        if self.learning_rates and optimizer.learning_rate <= 0:
            raise UserError(
                "--ensemble.learning-rates follow the schedule of --optimizer.learning-rate "
                f"{optimizer.learning_rate}, which must be more than 0"
            )

    @property
    def side_by_side(self) -> bool:
        """Whether a step has a batch of every member."""
        return self.rule in ("deep", "batch")

    def plans(self) -> "dict[str, EnsembleConfig]":
        """Of plan `auto` what is tried, by name; of another one nothing."""
        if self.plan != "auto" or self.rule == "snapshot":  # of which one learns at a time
            return {}
        return {name: replace(self, plan=name) for name in get_args(Plan)}

    def on(self, mesh: Mesh) -> "EnsembleConfig":
        """With the number of members, for `mesh`. Raises UserError where they do not divide."""
        if self.rule == "none":
            return self
        count = self.members or mesh.shape["replica"]
        check_seats(count, mesh, "members", "--ensemble.members")
        return replace(self, members=count)

    def schedule(self, optimizer: OptimizerConfig, steps: int) -> optax.Schedule:
        """The learning rate of a step, for a run of `steps` steps."""
        if self.rule == "snapshot":
            return restarts(optimizer.learning_rate, steps, self.members or 1)
        return optimizer.learning_rate_schedule(steps)

    def build(
        self, one: Synchronous, optimizer: OptimizerConfig, steps: int, model: Any
    ) -> Ensemble | Snapshots | BatchEnsemble:
        """The learner around `one`, which is how a member alone learns `model` in so many `steps`;
        `members` are known (see `on`). Raises UserError for what does not fit `model`."""
        assert self.members is not None
        plan: Plan = "scan" if self.plan == "auto" else self.plan  # nothing was measured
        rule = combination(self.combination)
        if self.rule == "snapshot":
            return Snapshots(one, self.members, steps, rule)
        if self.rule == "batch":
            if not isinstance(model, MLPConfig | CNNConfig | ResNetConfig | LinearConfig):
                raise UserError(
                    "--ensemble.rule batch makes members of matrices, not of what else a "
                    f"{type(model).__name__} has: use MLPConfig, CNNConfig or ResNetConfig, or "
                    "--ensemble.rule deep"
                )
            return BatchEnsemble(one, self.members, plan, rule)
        return Ensemble(
            one,
            self.members,
            plan,
            traits(self._given(), optimizer, steps, model) if any(self._given().values()) else None,
            rule,
        )

    def _given(self) -> dict[str, tuple[float, ...]]:
        return {
            "learning_rate": self.learning_rates,
            "weight_decay": self.weight_decays,
            "dropout": self.dropouts,
            "width": self.widths,
        }
