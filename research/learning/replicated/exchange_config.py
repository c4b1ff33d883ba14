"""Which rule replicas that differ learn by, and how many there are, by configuration."""

from dataclasses import dataclass, replace
from typing import Literal

from jax.sharding import Mesh

from research.configuration import check_bounds
from research.errors import UserError
from research.exchange import Exchange, adasum, hierarchical_mean, mean, powersgd, top_k, two_shot
from research.exchange.codecs import CODECS
from research.exchange.robust import Robust, RobustRule, check_breakdown, robust
from research.exchange.topology import offsets
from research.learning.attack_config import NOBODY, POISONINGS, AttackConfig
from research.learning.replicated.gossip import dpsgd, sgp
from research.learning.replicated.local_updates import (
    diloco,
    easgd,
    every_step,
    local_sgd,
    post_local_sgd,
)
from research.learning.replicated.rule import Rule
from research.learning.replicated.streaming import streaming_diloco
from research.learning.seats import check_seats
from research.parallel.mesh import MeshConfig

ROBUST = ("every_step", "local_sgd", "diloco")
"""Rules in which a robust rule may take the place of the mean."""
COMPRESSED = ("every_step", "local_sgd", "diloco", "streaming_diloco")
"""Rules whose exchange is a mean of gradients or moves."""


@dataclass(frozen=True)
class ExchangeConfig:
    """What replicas that differ exchange, and when."""

    rule: Literal[
        "none",
        "every_step",
        "adasum",
        "local_sgd",
        "post_local_sgd",
        "diloco",
        "streaming_diloco",
        "easgd",
        "dpsgd",
        "sgp",
    ] = "none"
    """every_step averages gradients, adasum adds up what is orthogonal in them; local_sgd,
    post_local_sgd and diloco average parameters after some steps, streaming_diloco one fragment
    after the other; easgd pulls replicas to a center; dpsgd and sgp mix parameters with neighbors,
    every step; none: there is one model."""

    replicas: int | None = None
    """Models that learn side by side, a multiple of --mesh.replica (None: as many)."""

    period: int = 50
    """H: steps from one exchange of parameters (of a fragment) to the next (steps)."""

    outer_learning_rate: float = 0.7
    """Outer learning rate of diloco and streaming_diloco; 1 without momentum is averaging."""

    outer_momentum: float = 0.9
    """Outer Nesterov momentum of diloco and streaming_diloco (0: none)."""

    fragments: int = 2
    """P: fragments of streaming_diloco, of layers i, i + P, ...; each has its own steps to meet."""

    overlap: int = 1
    """τ: steps of streaming_diloco from sending a fragment to its use, below period."""

    mixing: float = 0.5
    """α: share of its own parameters that a replica of streaming_diloco keeps when a fragment has
    met (0: none)."""

    alpha: float | None = None
    """Elastic force of easgd: the share of its distance that a replica goes to the center (None:
    0.9 / replicas)."""

    first_local_step: int | None = None
    """Step from which post_local_sgd and diloco average parameters, not gradients (None: half of
    the run for post_local_sgd, the first for diloco)."""

    groups: int = 1
    """Groups of replicas: means are taken inside them first, then between them (1: at once)."""

    graph: Literal["ring", "torus", "exponential", "complete"] = "ring"
    """Whose neighbor a replica of dpsgd is (sgp has one peer a step, on the exponential graph)."""

    compression: Literal["none", "bfloat16", "int8", "sign", "qsgd", "top_k", "powersgd"] = "none"
    """What becomes of gradients (every_step), or of what the steps since the last exchange did
    (local_sgd, diloco, streaming_diloco), on the wire."""

    rank: int = 4
    """Columns of powersgd's factors."""

    ratio: float = 0.01
    """Share of the entries that top_k sends."""

    correction: float = 0.0
    """Momentum inside of top_k (the optimizer's own is then best 0)."""

    robust: Literal["none", RobustRule] = "none"
    """What takes the place of the mean, to withstand some replicas that send anything; who sends
    what is not finite is left out. Every replica then hears all others."""

    byzantine: int = 0
    """f: how many replicas a robust rule is to withstand."""

    radius: float = 1.0
    """τ of norm_clipping and centered_clipping."""

    nearest_neighbors: bool = False
    """Whether each gradient becomes the mean of those near to it before a robust rule."""

    worker_momentum: float = 0.0
    """β: momentum at every replica before a robust rule (every_step; the optimizer's own is then
    best 0)."""

    not_finite: Literal["stop", "drop"] = "stop"
    """What a gradient that is not finite does: stop the run, or leave its replica out of the
    step."""

    plan: Literal["scan", "vmap", "auto"] = "scan"
    """How several replicas of one device are computed: one after another, or side by side; auto
    takes the faster, by 6 steps of each before the run. (It is not the default: what is faster may
    change with the load of a machine, and with the plan the last digits of a run.)"""

    def plans(self) -> "dict[str, ExchangeConfig]":
        """Of plan `auto` what is tried, by name; of another one nothing."""
        if self.plan != "auto":
            return {}
        return {"scan": replace(self, plan="scan"), "vmap": replace(self, plan="vmap")}

    def check(self, mesh: MeshConfig) -> None:
        """Raises UserError for a value that no run can have."""
        many = max(self.replicas or 1, mesh.replica)
        if self.rule == "none" and many > 1:
            flag = "--mesh.replica" if mesh.replica == many else "--exchange.replicas"
            raise UserError(
                f"{flag} {many} asks for replicas that differ, and nothing says what they "
                "exchange: use --exchange.rule diloco (--help lists the others), or --mesh.data "
                f"{many} for one model"
            )
        count, first, alpha = self.replicas, self.first_local_step, self.alpha
        rate, momentum = self.outer_learning_rate, self.outer_momentum
        worker = self.worker_momentum
        bounds = (
            ("period", self.period, self.period >= 1, "1 or more"),
            ("groups", self.groups, self.groups >= 1, "1 or more"),
            ("replicas", count, count is None or count >= 1, "1 or more, or None"),
            ("first-local-step", first, first is None or first >= 0, "0 or more, or None"),
            ("outer-learning-rate", rate, rate > 0, "more than 0"),
            ("outer-momentum", momentum, 0 <= momentum < 1, "0 or more, and below 1"),
            ("rank", self.rank, self.rank >= 1, "1 or more"),
            ("ratio", self.ratio, 0 < self.ratio <= 1, "more than 0, at most 1"),
            ("correction", self.correction, 0 <= self.correction < 1, "0 or more, and below 1"),
            ("alpha", alpha, alpha is None or 0 < alpha < 1, "more than 0, and below 1"),
            ("fragments", self.fragments, self.fragments >= 1, "1 or more"),
            ("overlap", self.overlap, self.overlap >= 0, "0 or more"),
            ("byzantine", self.byzantine, self.byzantine >= 0, "0 or more"),
            ("radius", self.radius, self.radius > 0, "more than 0"),
            ("worker-momentum", worker, 0 <= worker < 1, "0 or more, and below 1"),
            ("mixing", self.mixing, 0 <= self.mixing <= 1, "0 or more, at most 1"),
        )
        check_bounds("exchange", bounds)
        if self.rule == "streaming_diloco":
            self._check_fragments()
        self._check_robust()
        if self.compression != "none" and self.rule not in COMPRESSED:
            raise UserError(
                f"--exchange.compression {self.compression} is not for --exchange.rule "
                f"{self.rule}: use {', '.join(COMPRESSED)}"
            )
        grouped = ("none", "post_local_sgd", *COMPRESSED)
        if self.groups > 1 and (self.compression != "none" or self.rule not in grouped):
            raise UserError(
                f"--exchange.groups {self.groups} is for plain means: use --exchange.groups 1 with "
                f"--exchange.rule {self.rule} and --exchange.compression {self.compression}"
            )

    def _check_robust(self) -> None:
        if self.robust == "none":
            given = {
                "byzantine": self.byzantine > 0,
                "worker-momentum": self.worker_momentum > 0,
                "nearest-neighbors": self.nearest_neighbors,
            }
            for name in (name for name, value in given.items() if value):
                raise UserError(
                    f"--exchange.{name} is for a robust rule, and --exchange.robust is none: use "
                    "--exchange.robust median (--help lists the others)"
                )
            return
        if self.rule not in ROBUST or self.compression != "none" or self.groups > 1:
            raise UserError(
                f"--exchange.robust {self.robust} takes the place of a mean of whole gradients or "
                f"moves: use it with --exchange.rule {' or '.join(ROBUST)}, --exchange.compression "
                "none and --exchange.groups 1"
            )
        if self.worker_momentum and self.rule != "every_step":
            raise UserError(
                f"--exchange.worker-momentum is of gradients, and {self.rule} sends moves: use 0, "
                "or --exchange.rule every_step"
            )

    def _check_fragments(self) -> None:
        period, fragments = self.period, self.fragments
        if fragments > period:
            raise UserError(
                f"--exchange.fragments {fragments} do not fit into --exchange.period {period}, one "
                f"a step: use --exchange.fragments {period} or fewer, or --exchange.period "
                f"{fragments} or more"
            )
        if self.overlap >= period:
            raise UserError(
                f"--exchange.overlap {self.overlap} must be below --exchange.period {period}, "
                "after which a fragment is sent again"
            )

    def on(self, mesh: Mesh) -> "ExchangeConfig":
        """With the number of replicas, for `mesh`. Raises UserError where they do not divide."""
        if self.rule == "none":
            return self
        devices = mesh.shape["replica"]
        count = self.replicas or devices
        check_seats(count, mesh, "replicas", "--exchange.replicas")
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
        if self.robust != "none":
            flags = "--exchange.byzantine", "--exchange.replicas"
            check_breakdown(self._robust, count, "replicas", flags)
        return replace(self, replicas=count)

    def build(self, steps: int, attack: AttackConfig = NOBODY) -> Rule:
        """The rule, for a run of `steps` steps; `replicas` are known (see `on`). Raises UserError
        for an `attack` where no one hears all others."""
        average, count = self._average(attack), self.replicas or 1
        if self.rule == "every_step":
            return every_step(average)
        if self.rule == "adasum":
            return every_step(adasum(count))
        if self.rule == "local_sgd" and (self.compression != "none" or self.hears_all(attack)):
            # Moves are exchanged, not parameters: an outer rate of 1 adds up their mean.
            return diloco(self.period, learning_rate=1.0, momentum=0.0, exchange=average)
        if self.rule == "local_sgd":
            return local_sgd(self.period, average)
        if self.rule == "post_local_sgd":
            first = steps // 2 if self.first_local_step is None else self.first_local_step
            return post_local_sgd(self.period, first, average)
        if self.rule == "diloco":
            return diloco(
                self.period,
                self.outer_learning_rate,
                self.outer_momentum,
                average,
                self.first_local_step or 0,
            )
        if self.rule == "streaming_diloco":
            return streaming_diloco(
                self.period,
                self.fragments,
                self.overlap,
                self.mixing,
                self.outer_learning_rate,
                self.outer_momentum,
                average,
            )
        if self.rule == "dpsgd":
            return dpsgd(offsets(self.graph, count), count)
        if self.rule == "sgp":
            return sgp(count)
        alpha = 0.9 / count if self.alpha is None else self.alpha
        return easgd(self.period, alpha)

    @property
    def drops(self) -> bool:
        """Whether who sends what is not finite is left out."""
        return self.not_finite == "drop" or self.robust != "none"

    def hears_all(self, attack: AttackConfig) -> bool:
        """Whether every replica hears all others: for a robust rule, or since some `attack`."""
        return self.robust != "none" or attack.name != "none"

    @property
    def _robust(self) -> Robust:
        rule = "mean" if self.robust == "none" else self.robust
        mixing = "nearest_neighbors" if self.nearest_neighbors else "none"
        return Robust(rule, self.byzantine, self.radius, mixing)

    def _average(self, attack: AttackConfig) -> Exchange:
        if self.hears_all(attack):
            if self.rule not in ROBUST or self.compression != "none" or self.groups > 1:
                raise UserError(
                    f"--attack.name {attack.name} is on what all replicas hear of each: use it "
                    f"with --exchange.rule {' or '.join(ROBUST)}, --exchange.compression none and "
                    "--exchange.groups 1"
                )
            if attack.name in POISONINGS:
                raise UserError(
                    f"--attack.name {attack.name} is on what clients learn from, and replicas "
                    "share their data: use --federated.rule fedavg"
                )
            attackers = attack.number(self.replicas or 1)
            return robust(self._robust, self.worker_momentum, attack.on_updates(), attackers)
        if self.groups > 1:
            return hierarchical_mean(self.groups)
        if self.compression == "top_k":
            return top_k(self.ratio, self.correction)
        if self.compression == "powersgd":
            return powersgd(self.rank)
        if self.compression in CODECS:
            return two_shot(CODECS[self.compression](), self.replicas or 1)
        return mean()
