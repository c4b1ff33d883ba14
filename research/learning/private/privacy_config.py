"""What a run may tell about one example or client, by configuration."""

import math
import secrets
from dataclasses import dataclass, replace
from typing import Literal

from research.configuration import check_bounds
from research.errors import UserError
from research.exchange.privacy import Budget, Plan, Quantile
from research.exchange.privacy.release import Release
from research.learning.private.parts import places
from research.learning.private.private import Clipping, Method, Private
from research.learning.synchronous import Synchronous


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy: for whom, and within which budget."""

    unit: Literal["none", "example", "client"] = "none"
    """For whom: an example, by DP-SGD, in batches of --data.batch in the mean that are drawn by
    Poisson sampling; or a client with all it has, by DP-FedAvg, in cohorts of --federated.cohort in
    the mean, drawn so too; none: nothing is private."""

    mechanism: Literal["dp_sgd", "dp_ftrl"] = "dp_sgd"
    """dp_sgd: examples are drawn, noise is independent. dp_ftrl: they come in turn, in groups of
    --data.batch in the mean, and noise is correlated over --privacy.bands steps: no guarantee
    hangs on the draw, and a pass over the data costs one Gaussian release."""

    bands: int = 8
    """b of dp_ftrl: over so many steps noise takes itself back, with b - 1 models of memory, and
    each example waits for as many before it comes again."""

    epsilon: float = 8.0
    """Budget: ε for adding or removing one unit. A run stops before it is crossed."""

    delta: float = 1e-5
    """Budget: δ, below 1 / units."""

    noise_multiplier: float | None = None
    """Deviation of the noise, in units of --privacy.clip (None: the least that the budget allows
    for --run.steps)."""

    clip: float = 1.0
    """C: the largest norm with which a unit counts; where a quantile is given, the first one."""

    layers: Literal["together", "apart"] = "together"
    """Whether all arrays of a unit are clipped by their common norm, or those of each layer by C/√m
    for m layers."""

    quantile: float | None = None
    """γ: the share of units that a bound should leave as they are; bounds follow it (None: they
    stay)."""

    quantile_rate: float = 0.2
    """η_C: how fast bounds follow."""

    quantile_noise: float = 0.05
    """σ_b: deviation of the count of units within a bound, as a share of a mean step's units."""

    method: Method = "auto"
    """How an example's norm is found: ghost does not make its gradient, for models of linear maps
    and convolutions; per_example does, for all; auto: ghost where it is possible."""

    microbatch: int = 32
    """Examples of a device whose gradients are had at once (fewer need less memory)."""

    canaries: int = 0
    """Training examples that canaries take the place of, each there by a coin's fall: research
    evaluate guesses which, and so bounds ε from below. For runs that are not private, too."""

    seed: int | None = None
    """Of noise and sampling, and to be kept secret, as the run folder's config.json is then (None:
    64 bits of the operating system's)."""

    @property
    def budget(self) -> Budget:
        """What may be spent. Raises UserError where nothing is private."""
        if self.unit == "none":
            raise UserError("nothing is private in this run: use --privacy.unit example")
        return Budget(self.epsilon, self.delta, self.unit)

    def check(self) -> None:
        """Raises UserError for a value that no private run can have."""
        canaries = self.canaries
        check_bounds("privacy", (("canaries", canaries, canaries >= 0, "0 or more"),))
        if self.unit == "none":
            return
        noise, quantile, seed = self.noise_multiplier, self.quantile, self.seed
        bounds = (
            ("epsilon", self.epsilon, 0 < self.epsilon < math.inf, "more than 0, and finite"),
            ("delta", self.delta, 0 < self.delta < 1, "more than 0, and below 1"),
            (
                "noise-multiplier",
                noise,
                noise is None or 0 < noise < math.inf,
                "more than 0: without noise nothing is private (or None, for what the budget asks)",
            ),
            (
                "clip",
                self.clip,
                0 < self.clip < math.inf,
                "more than 0, and finite: noise hides nobody whose part has no bound",
            ),
            ("bands", self.bands, self.bands >= 1, "1 or more"),
            ("quantile", quantile, quantile is None or 0 < quantile < 1, "more than 0, below 1"),
            ("quantile-rate", self.quantile_rate, self.quantile_rate > 0, "more than 0"),
            ("quantile-noise", self.quantile_noise, self.quantile_noise > 0, "more than 0"),
            ("microbatch", self.microbatch, self.microbatch >= 1, "1 or more"),
            ("seed", seed, seed is None or 0 <= seed < 2**64, "0 or more, and below 2^64"),
        )
        check_bounds("privacy", bounds)
        if self.mechanism == "dp_ftrl" and self.unit == "client":
            raise UserError(
                "--privacy.mechanism dp_ftrl is for examples, and clients are drawn: use dp_sgd"
            )
        if self.mechanism == "dp_ftrl" and quantile is not None:
            raise UserError(
                "counts for --privacy.quantile are released with noise that is independent, and "
                "that of --privacy.mechanism dp_ftrl is not: use --privacy.quantile None"
            )

    def decided(self, units: int, expected: int, steps: int) -> "PrivacyConfig":
        """With all that was left open: the noise for `steps` steps that draw `expected` of `units`,
        and a seed. Raises UserError where the budget does not allow it."""
        in_turn = self.mechanism == "dp_ftrl"
        plan = self.budget.plan(units, expected, steps, self.noise_multiplier, in_turn)
        if in_turn and plan.event.groups < self.bands:
            raise UserError(
                f"{units:,} examples in batches of {expected:,} come again after "
                f"{plan.event.groups} steps, and noise of --privacy.bands {self.bands} is "
                f"accounted for {self.bands} or more: use --privacy.bands {plan.event.groups}, or "
                f"--data.batch {units // self.bands}"
            )
        seed = secrets.randbits(64) if self.seed is None else self.seed
        given = self.noise_multiplier
        noise = plan.event.noise_multiplier if given is None else given
        return replace(self, noise_multiplier=noise, seed=seed)

    def plan(self, units: int, expected: int) -> Plan:
        """Of a config that is `decided`."""
        assert self.noise_multiplier is not None
        in_turn = self.mechanism == "dp_ftrl"
        return self.budget.plan(units, expected, 0, self.noise_multiplier, in_turn)

    def release(self, clients: int, cohort: int) -> Release | None:
        """What a round of a mean `cohort` of so many `clients` tells of them, where they are
        private; of a config that is `decided`."""
        if self.unit != "client":
            return None
        plan = self.plan(clients, cohort)
        return Release(self.clip, plan.event, plan.expected)

    def build(self, one: Synchronous, examples: int, batch: int) -> Private:
        """The learner of a config that is `decided`, for so many `examples` and so many of them in
        a mean `batch`."""
        plan = self.plan(examples, batch)
        _, microbatches = places(plan.most, self.microbatch, one.mesh)
        return Private(
            one,
            plan.event,
            plan.expected,
            microbatches,
            Clipping(self.clip, self.layers == "apart", self.quantile_of(plan.expected)),
            self.method,
            self.seed or 0,
            self.bands if self.mechanism == "dp_ftrl" else 1,
        )

    def quantile_of(self, expected: float) -> Quantile | None:
        """How bounds follow the norms of steps with `expected` units in the mean."""
        if self.quantile is None:
            return None
        return Quantile(self.quantile, self.quantile_rate, self.quantile_noise * expected)
