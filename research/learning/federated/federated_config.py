"""Which federated algorithm clients and server follow, and who takes part, by configuration."""

from dataclasses import dataclass, field, replace
from typing import Literal

import optax

from research.configuration import check_bounds
from research.data.poisson import places_for
from research.errors import UserError
from research.exchange.privacy.release import Release
from research.exchange.robust import attack_stage
from research.exchange.stages import check_chain
from research.learning.asynchronous.virtual_time import Arrivals, Distribution, Durations
from research.learning.attack_config import NOBODY, AttackConfig
from research.learning.federated.aggregation import Aggregation
from research.learning.federated.aggregation_config import AggregationConfig
from research.learning.federated.agnostic import agnostic
from research.learning.federated.algorithm import Algorithm, Tree
from research.learning.federated.ditto import ditto
from research.learning.federated.fedavg import fedavg, fedprox
from research.learning.federated.fedbuff import Buffered, fedbuff
from research.learning.federated.federated import Federated
from research.learning.federated.fednova import fednova
from research.learning.federated.fedper import fedper
from research.learning.federated.fedrep import fedrep
from research.learning.federated.host_table import OnHost, fits
from research.learning.federated.ifca import ifca
from research.learning.federated.mimelite import mimelite
from research.learning.federated.momentum import with_momentum
from research.learning.federated.parts import own_paths, part
from research.learning.federated.pfedme import pfedme
from research.learning.federated.plans import Plan, tried, width_of
from research.learning.federated.q_fedavg import q_fedavg
from research.learning.federated.scaffold import scaffold
from research.learning.federated.state import Population
from research.learning.optimizer import OptimizerConfig
from research.learning.synchronous import Synchronous
from research.parallel.processes import count

MEMORYLESS = ("fedsgd", "fedavg", "fedprox")
"""Rules whose clients send a move, and keep nothing."""
WITHOUT_TABLE = (*MEMORYLESS, "q_fedavg")
"""Rules that keep nothing of a client."""
WITH_NUMBERS = ("fednova", "q_fedavg", "agnostic", "ifca")
"""Rules whose server divides by what else clients send."""


@dataclass(frozen=True)
class FederatedConfig:
    """Clients that keep their data, and a server. A step of the run is a round."""

    rule: Literal[
        "none",
        "fedsgd",
        "fedavg",
        "fedprox",
        "scaffold",
        "fednova",
        "mimelite",
        "fedper",
        "fedrep",
        "ditto",
        "pfedme",
        "ifca",
        "q_fedavg",
        "agnostic",
        "fedbuff",
    ] = "none"
    """fedsgd takes one step by all examples of each client; fedavg averages what local epochs did;
    fedprox keeps them near the server's parameters; scaffold corrects them by control variates;
    fednova divides them by their steps; mimelite takes them with the server's momentum; fedper and
    fedrep leave each client a head of its own; ditto and pfedme a whole model; ifca has several
    models, of which a client takes the best; q_fedavg gives clients with a high loss more weight;
    agnostic learns for the worst mixture of them; fedbuff waits for no one: its rounds are the
    first clients to be done; none: there are no clients."""

    cohort: int = 10
    """Clients a round, a multiple of --mesh.replica."""

    sampling: Literal["uniform", "weighted", "cyclic", "fixed", "poisson"] = "uniform"
    """How a cohort is drawn: all alike, by their examples, one after the other, always the first
    ones, or each client by a draw of its own (poisson: the cohort is what is expected)."""

    epochs: int = 1
    """E: how often a client goes through its examples in a round (fedsgd: once)."""

    steps: int | None = None
    """Local steps after which a client stops in a round, by batches of another shuffle in each
    (None: after its epochs)."""

    weighting: Literal["examples", "uniform"] = "examples"
    """What a client weighs in the mean: its examples, or as much as any other."""

    aggregation: AggregationConfig = AggregationConfig()
    """What becomes of clients' updates on their way to the server."""

    server: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="sgd", learning_rate=1.0, schedule="constant", clip=None
        )
    )
    """The server's optimizer, whose gradient is the mean move: sgd with rate 1 averages, with
    beta1 it is FedAvgM, and adam, yogi or adagrad are FedAdam, FedYogi and FedAdagrad."""

    mu: float = 0.1
    """μ of fedprox (0: fedavg)."""

    own: tuple[str, ...] = ("head",)
    """What clients of fedper and fedrep keep of the parameters, by the beginnings of their names,
    such as hidden/layer_1 (head: the last layer)."""

    pull: float = 1.0
    """λ of ditto and pfedme: how hard a client's own model is pulled to the server's."""

    search: int = 5
    """Steps by each batch in which a client of pfedme looks for its own model."""

    share: float = 0.1
    """η·λ of pfedme: how much of the way to its own model a client goes after each batch."""

    clusters: int = 2
    """Models of ifca."""

    q: float = 1.0
    """q of q_fedavg (0: all clients alike)."""

    ascent: float = 0.01
    """γ of agnostic: how fast the mixture goes to clients with a high loss (0: all stay alike)."""

    concurrency: int = 20
    """Clients of fedbuff that learn at any moment, of whom the first --federated.cohort to be done
    make a round."""

    durations: Distribution = "exponential"
    """How the time that a client of fedbuff takes is distributed, with mean 1 (virtual seconds)."""

    fine_tuning: int = 0
    """Local steps that each client takes before it is evaluated by itself (0: none). With them, as
    with ifca, an evaluation also reads what clients learn from."""

    failing: float = 0.0
    """Share of clients that do not answer in a round, drawn anew in each."""

    stragglers: float = 0.0
    """Share of a round's clients, rounded, that do only some of their epochs, from 1 to all of
    them."""

    straggling: Literal["partial", "drop"] = "partial"
    """What becomes of stragglers: the server takes what they have done (Li 2020), or drops them, as
    fedavg did."""

    minimum: int = 1
    """Clients without whose answers a round ends the run."""

    plan: Plan = "scan"
    """How the clients of one device are computed: one after another, side by side, or so many of
    them side by side at a time (--federated.width); auto takes the fastest, by a few rounds of each
    before the run."""

    width: int | None = None
    """Clients that are side by side by plan chunk (None: about 10)."""

    table: Literal["device", "host", "auto"] = "auto"
    """Where that lies which clients keep from round to round (of scaffold, fedper, fedrep, ditto
    and pfedme; momentum): over --mesh.replica, or in the memory of the host, from which a cohort's
    rows are taken to the devices and back; auto: where it is above a quarter of a device's memory,
    on the host."""

    def check(self) -> None:
        """Raises UserError for a value that no run can have."""
        bounds = (
            ("cohort", self.cohort, self.cohort >= 1, "1 or more"),
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("steps", self.steps, self.steps is None or self.steps >= 1, "1 or more, or None"),
            ("mu", self.mu, self.mu >= 0, "0 or more"),
            ("pull", self.pull, self.pull >= 0, "0 or more"),
            ("search", self.search, self.search >= 1, "1 or more"),
            ("share", self.share, 0 < self.share <= 1, "above 0, at most 1"),
            ("clusters", self.clusters, self.clusters >= 1, "1 or more"),
            ("q", self.q, self.q >= 0, "0 or more"),
            ("ascent", self.ascent, self.ascent >= 0, "0 or more"),
            ("concurrency", self.concurrency, self.concurrency >= 1, "1 or more"),
            ("fine-tuning", self.fine_tuning, self.fine_tuning >= 0, "0 or more"),
            ("failing", self.failing, 0 <= self.failing < 1, "0 or more, and below 1"),
            ("stragglers", self.stragglers, 0 <= self.stragglers <= 1, "0 or more, at most 1"),
            ("minimum", self.minimum, self.minimum >= 1, "1 or more"),
            ("width", self.width, self.width is None or self.width >= 1, "1 or more"),
        )
        check_bounds("federated", bounds)
        if self.width is not None and self.plan in ("scan", "vmap"):
            raise UserError(
                f"--federated.width {self.width} is of another plan than {self.plan}: use "
                "--federated.plan chunk, or --federated.width None"
            )
        if self.table == "host" and self.rule == "fedbuff":
            raise UserError(
                "fedbuff keeps what --federated.concurrency places have fetched, on the devices, "
                "and nothing of a client: use --federated.table device"
            )
        dropped = round(self.stragglers * self.cohort) if self.straggling == "drop" else 0
        if self.minimum > self.cohort - dropped:
            without = f" without its {dropped} stragglers" if dropped else ""
            most = self.cohort - dropped
            way_out = f"--federated.minimum {most} or less" if most else "fewer stragglers"
            raise UserError(
                f"--federated.minimum {self.minimum} clients cannot answer of a cohort of "
                f"{self.cohort}{without}: use {way_out}"
            )
        if self.steps is not None and self.rule in ("ifca", "q_fedavg", "agnostic"):
            raise UserError(
                f"clients of {self.rule} tell their loss over all they have, of which --federated."
                f"steps {self.steps} leaves some out: use --federated.steps None"
            )
        if self.sampling == "poisson" and self.rule not in WITHOUT_TABLE:
            raise UserError(
                f"--federated.sampling poisson has empty places in a cohort, for which "
                f"{self.rule} keeps no row: use {', '.join(WITHOUT_TABLE)}, or another sampling"
            )
        momentum, drawn = self.aggregation.momentum, self.sampling == "poisson"
        if momentum and (self.rule not in MEMORYLESS or drawn):
            raise UserError(
                f"--federated.aggregation.momentum {momentum} is a client's row of the table, and "
                f"--federated.rule {self.rule} by {self.sampling} sampling has none for it: use "
                f"{', '.join(MEMORYLESS)}, and a sampling other than poisson"
            )
        self.aggregation.check(self.cohort)
        check_chain(self.aggregation.stages(), self.sampling, self.weighting)
        if self.rule in WITH_NUMBERS and self.aggregation != AggregationConfig():
            raise UserError(
                f"clients of {self.rule} send numbers beside their moves that only a mean of both "
                "makes sense of: leave --federated.aggregation as it was, or use "
                "--federated.rule fedavg"
            )

    def places(self, population: int, devices: int) -> int:
        """Rows of a round: the cohort, or as many as a drawn one of so large a `population` needs,
        a multiple of `devices`."""
        if self.sampling != "poisson":
            return self.cohort
        most = places_for(population, min(self.cohort / population, 1.0))
        return -(-most // devices) * devices

    def plans(self, here: int) -> "dict[str, FederatedConfig]":
        """Of plan `auto` what is tried for the clients of a device, `here` of them, by name; of
        another one nothing."""
        if self.plan != "auto":
            return {}
        return {
            name: replace(self, plan=plan, width=width)
            for name, (plan, width) in tried(self.width, here).items()
        }

    def build(
        self,
        one: Synchronous,
        local: OptimizerConfig,
        rounds: int,
        population: int,
        attack: AttackConfig = NOBODY,
        release: Release | None = None,
        secret: int = 0,
    ) -> Federated:
        """The learner for `rounds` rounds of so large a `population`, whose clients learn as `one`
        by the `local` optimizer, and some `attack`. A private round may `release` no more than
        that, with noise of the `secret` seed."""
        self._check_local(local)
        server = self.server.build(rounds)
        byzantine, on_updates = attack.members(population, one.seed), attack.on_updates()
        hostile = None if on_updates is None else attack_stage(on_updates, byzantine)
        devices = one.mesh.shape["replica"]
        places = self.places(population, devices)
        parameters = one.abstract_state.parameters
        algorithm = self._algorithm(server, local.beta1 or 0.0, parameters, population)
        if self.aggregation.momentum:
            algorithm = with_momentum(algorithm, self.aggregation.momentum)
        arguments = (
            one,
            algorithm,
            server,
            replace(local.constant(), beta1=None if self.rule == "mimelite" else local.beta1).build(
                rounds
            ),
            local.learning_rate_schedule(rounds),
            local.learning_rate,
            Population(population, places, 0 if release else self.minimum),
            width_of(self.plan, self.width, places // devices),
            self.weighting == "uniform",
            self.fine_tuning,
            Aggregation(tuple(self.aggregation.stages(hostile, release)), one.seed),
            None if attack.name == "none" else byzantine,
            release.event if release else None,
            secret,
        )
        if self.rule == "fedbuff":
            durations = Durations(self.durations)
            return Buffered(*arguments, arrivals=Arrivals(durations, self.concurrency, one.seed))
        made = Federated(*arguments)
        if self.table == "device" or (self.table == "auto" and fits(made.abstract_state.clients)):
            return made
        if count() > 1:
            raise UserError(
                f"--federated.table {self.table} keeps what clients have in the memory of one "
                f"process, and there are {count()}: use --federated.table device, which splits it "
                "over --mesh.replica, or launch one process"
            )
        return OnHost(*arguments)

    def _check_local(self, local: OptimizerConfig) -> None:
        """That clients take steps of the kind that the equations are about."""
        if self.rule not in ("scaffold", "fednova", "mimelite", "q_fedavg"):
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

    def _algorithm(
        self,
        server: optax.GradientTransformation,
        momentum: float,
        parameters: Tree,
        population: int,
    ) -> Algorithm:
        if self.rule == "fedprox":
            return fedprox(server, self.mu)
        if self.rule == "scaffold":
            return scaffold(server)
        if self.rule == "fednova":
            return fednova(server, momentum)
        if self.rule == "mimelite":
            return mimelite(server, momentum)
        if self.rule in ("fedper", "fedrep"):
            head, body = part(own_paths(self.own, parameters))
            return (fedper if self.rule == "fedper" else fedrep)(server, head, body)
        if self.rule == "ditto":
            return ditto(server, self.pull)
        if self.rule == "pfedme":
            return pfedme(server, self.pull, self.share, self.search)
        if self.rule == "ifca":
            return ifca(server, self.clusters)
        if self.rule == "fedbuff":
            return fedbuff(server)
        if self.rule == "q_fedavg":
            return q_fedavg(server, self.q)
        if self.rule == "agnostic":
            return agnostic(server, self.ascent, population)
        return fedavg(server)
