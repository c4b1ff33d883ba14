"""Which federated algorithm clients and server follow, and who takes part, by configuration."""

from dataclasses import dataclass, field, replace
from typing import Literal

import optax

from research.errors import UserError
from research.learning.federated.algorithm import Algorithm
from research.learning.federated.fedavg import fedavg, fedprox
from research.learning.federated.federated import Federated, Population
from research.learning.federated.fednova import fednova
from research.learning.federated.mimelite import mimelite
from research.learning.federated.scaffold import scaffold
from research.learning.optimizer import OptimizerConfig
from research.learning.synchronous import Synchronous


@dataclass(frozen=True)
class FederatedConfig:
    """Clients that keep their data, and a server. A step of the run is a round."""

    rule: Literal["none", "fedsgd", "fedavg", "fedprox", "scaffold", "fednova", "mimelite"] = "none"
    """fedsgd takes one step by all examples of each client; fedavg averages what local epochs did;
    fedprox keeps them near the server's parameters; scaffold corrects them by control variates;
    fednova divides them by their steps; mimelite takes them with the server's momentum; none: there
    are no clients."""

    cohort: int = 10
    """Clients a round, a multiple of --mesh.replica."""

    sampling: Literal["uniform", "weighted", "cyclic", "fixed"] = "uniform"
    """How a cohort is drawn: all alike, by their examples, one after the other, or always the first
    ones."""

    epochs: int = 1
    """E: how often a client goes through its examples in a round (fedsgd: once)."""

    weighting: Literal["examples", "uniform"] = "examples"
    """What a client weighs in the mean: its examples, or as much as any other."""

    server: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="sgd", learning_rate=1.0, schedule="constant", clip=None
        )
    )
    """The server's optimizer, whose gradient is the mean move: sgd with rate 1 averages, with
    beta1 it is FedAvgM, and adam, yogi or adagrad are FedAdam, FedYogi and FedAdagrad."""

    mu: float = 0.1
    """μ of fedprox (0: fedavg)."""

    failing: float = 0.0
    """Share of clients that do not answer in a round, drawn anew in each."""

    stragglers: float = 0.0
    """Share of clients that do only some of their epochs in a round, from 1 to all of them."""

    minimum: int = 1
    """Clients without whose answers a round ends the run."""

    width: int = 1
    """Clients of a device that are computed side by side (1: one after another)."""

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        for name, value, fits, wanted in (
            ("cohort", self.cohort, self.cohort >= 1, "1 or more"),
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("mu", self.mu, self.mu >= 0, "0 or more"),
            ("failing", self.failing, 0 <= self.failing < 1, "0 or more, and below 1"),
            ("stragglers", self.stragglers, 0 <= self.stragglers <= 1, "0 or more, at most 1"),
            ("minimum", self.minimum, self.minimum >= 1, "1 or more"),
            ("width", self.width, self.width >= 1, "1 or more"),
        ):
            if not fits:
                raise UserError(f"--federated.{name} {value} must be {wanted}")
        if self.minimum > self.cohort:
            raise UserError(
                f"--federated.minimum {self.minimum} clients cannot answer of a cohort of "
                f"{self.cohort}: use --federated.minimum {self.cohort} or less"
            )

    def build(
        self, one: Synchronous, local: OptimizerConfig, rounds: int, population: int
    ) -> Federated:
        """The learner for `rounds` rounds of so large a `population`, whose clients learn as `one`
        by the `local` optimizer."""
        self._check_local(local)
        server = self.server.build(rounds)
        devices = one.mesh.shape["replica"]
        here = self.cohort // devices
        if here % min(self.width, here):
            fits = [w for w in range(1, here + 1) if here % w == 0]
            raise UserError(
                f"--federated.width {self.width} does not divide the {here} clients of a device: "
                f"use one of {', '.join(map(str, fits))}"
            )
        return Federated(
            one,
            self._algorithm(server, local.beta1 or 0.0),
            server,
            replace(local.constant(), beta1=None if self.rule == "mimelite" else local.beta1).build(
                rounds
            ),
            local.learning_rate_schedule(rounds),
            local.learning_rate,
            Population(population, self.cohort, self.minimum),
            self.width,
            self.weighting == "uniform",
        )

    def _check_local(self, local: OptimizerConfig) -> None:
        """That clients take steps of the kind that the equations are about."""
        if self.rule not in ("scaffold", "fednova", "mimelite"):
            return
        if local.name != "sgd":
            raise UserError(
                f"{self.rule} is about clients that learn by sgd, and --optimizer.name is "
                f"{local.name}: use --optimizer.name sgd, or --federated.rule fedavg"
            )
        if self.rule == "scaffold" and local.beta1:
            raise UserError(
                f"scaffold takes the mean of the gradients from where a client ends, which "
                f"--optimizer.beta1 {local.beta1} would change: use --optimizer.beta1 None"
            )

    def _algorithm(self, server: optax.GradientTransformation, momentum: float) -> Algorithm:
        if self.rule == "fedprox":
            return fedprox(server, self.mu)
        if self.rule == "scaffold":
            return scaffold(server)
        if self.rule == "fednova":
            return fednova(server, momentum)
        if self.rule == "mimelite":
            return mimelite(server, momentum)
        return fedavg(server)
