"""By which rule workers and a parameter server learn, and how fast they are, by configuration."""

from dataclasses import dataclass
from math import inf
from typing import Literal

import optax

from research.configuration import check_bounds, multiples_near
from research.errors import UserError
from research.learning.asynchronous.asynchronous import Asynchronous
from research.learning.asynchronous.backup_workers import BackupWorkers
from research.learning.asynchronous.local_workers import LocalWorkers
from research.learning.asynchronous.move_rules import MoveRule, buffered, diloco, easgd
from research.learning.asynchronous.server_rules import (
    ServerRule,
    dc_asgd,
    hogwild,
    plain,
    staleness_aware,
)
from research.learning.asynchronous.turns import Meeting, Turns
from research.learning.asynchronous.virtual_time import Arrivals, Distribution, Durations, Rounds
from research.learning.seats import check_seats
from research.learning.synchronous import Synchronous

LOCAL = ("easgd", "buffered", "diloco")
"""Rules by which workers take steps of their own, and send what came of them."""


@dataclass(frozen=True)
class AsynchronousConfig:
    """Workers of given speeds around one parameter server, in virtual time."""

    rule: Literal[
        "none",
        "plain",
        "staleness_aware",
        "dc_asgd",
        "hogwild",
        "easgd",
        "buffered",
        "diloco",
        "backup_workers",
    ] = "none"
    """plain applies every gradient as it comes; staleness_aware divides the rate by its staleness;
    dc_asgd compensates the delay; hogwild writes some entries only; of workers that take steps of
    their own, easgd pulls each to a center, buffered (FedBuff) averages some moves, diloco those of
    a quorum; backup_workers takes one synchronous step by those who are in time; none: there is no
    server."""

    workers: int = 4
    """Workers, a multiple of --mesh.replica. A gradient has a batch of one worker; the step of
    backup_workers has a batch of all."""

    durations: Distribution = "constant"
    """How the time that a gradient takes is distributed."""

    seconds: float = 1.0
    """Mean time of a gradient (virtual seconds)."""

    spread: float = 0.5
    """uniform: from 1 - spread to 1 + spread times the mean; log_normal: standard deviation of the
    logarithm."""

    slow_factor: float = 1.0
    """The last worker takes so many times as long as the others."""

    bandwidth: float | None = None
    """Of every worker's own link to the server (Gbit/s; None: sending takes no time)."""

    latency: float = 0.0
    """From worker to server, and from server to worker (virtual seconds)."""

    compensation: float = 0.04
    """λ of dc_asgd (the default is MXNet's; where it adapts, 2 is usual)."""

    compensation_decay: float | None = None
    """m of the mean square that dc_asgd's λ adapts to, such as 0.95 (None: λ is constant)."""

    share: float = 0.1
    """Share of the entries that an update of hogwild writes."""

    maximum_staleness: int | None = None
    """Staleness beyond which what a worker sends is refused; it then fetches anew (None: none)."""

    period: int = 10
    """H: gradients of a worker from one push to the next (easgd, buffered, diloco)."""

    alpha: float | None = None
    """Elastic force of easgd: the share of its distance that a worker goes to the center (None:
    0.9 / workers)."""

    buffer: int = 2
    """K: moves that buffered averages."""

    quorum: int | None = None
    """Q: moves that diloco waits for (None: of all workers but one)."""

    grace: float = 0.0
    """How long diloco then waits for the others (seconds; virtual, unless workers are real)."""

    outer_learning_rate: float | None = None
    """Of diloco and buffered (None: 0.7, and 1)."""

    outer_momentum: float | None = None
    """Nesterov's, of diloco and buffered (None: 0.9, and 0)."""

    backup: int = 1
    """Of the workers, those that backup_workers does not wait for."""

    def check(self, batch: int) -> None:
        """Raises UserError for a value that no run of so large a `batch` can have."""
        width, decay, latency = self.bandwidth, self.compensation_decay, self.latency
        widest = 1 if self.durations == "uniform" else 10
        bounds = f"0 or more, at most {widest} for {self.durations} durations"
        fields = (
            ("workers", self.workers, self.workers >= 1, "1 or more"),
            ("seconds", self.seconds, 0 < self.seconds < inf, "more than 0, and finite"),
            ("spread", self.spread, 0 <= self.spread <= widest, bounds),
            ("slow-factor", self.slow_factor, 1 <= self.slow_factor < inf, "1 or more, and finite"),
            ("bandwidth", width, width is None or width > 0, "more than 0 Gbit/s, or None"),
            ("latency", latency, 0 <= latency < inf, "0 or more, and finite"),
            ("compensation", self.compensation, self.compensation >= 0, "0 or more"),
            ("compensation-decay", decay, decay is None or 0 <= decay < 1, "in [0, 1), or None"),
            ("share", self.share, 0 < self.share <= 1, "more than 0, at most 1"),
        )
        check_bounds("asynchronous", fields)
        self._check_moves()
        if self.rule != "backup_workers":
            return
        if not 0 <= self.backup < self.workers:
            raise UserError(
                f"--asynchronous.backup {self.backup} of {self.workers} workers leaves none to "
                f"wait for, or is negative: use 0 to {self.workers - 1}"
            )
        if batch % self.workers:
            raise UserError(
                f"batch {batch} does not divide over {self.workers} workers: use --data.batch "
                f"{multiples_near(batch, self.workers)}, or other --asynchronous.workers"
            )

    def _check_moves(self) -> None:
        bound, alpha, quorum = self.maximum_staleness, self.alpha, self.quorum
        rate, momentum = self.outer_learning_rate, self.outer_momentum
        inside, workers = "more than 0, and below 1, or None", self.workers
        fields = (
            ("maximum-staleness", bound, bound is None or bound >= 0, "0 or more, or None"),
            ("period", self.period, self.period >= 1, "1 or more"),
            ("alpha", alpha, alpha is None or 0 < alpha < 1, inside),
            ("buffer", self.buffer, self.buffer >= 1, "1 or more"),
            (
                "quorum",
                quorum,
                quorum is None or 1 <= quorum <= workers,
                f"1 to {workers}, or None",
            ),
            ("grace", self.grace, 0 <= self.grace < inf, "0 or more, and finite"),
            ("outer-learning-rate", rate, rate is None or rate > 0, "more than 0, or None"),
            (
                "outer-momentum",
                momentum,
                momentum is None or 0 <= momentum < 1,
                "0 or more, and below 1, or None",
            ),
        )
        check_bounds("asynchronous", fields)

    @property
    def local(self) -> bool:
        """Whether workers take steps of their own."""
        return self.rule in LOCAL

    def build(
        self, one: Synchronous, rate: optax.Schedule | None = None
    ) -> Asynchronous | LocalWorkers | BackupWorkers:
        """The learner around `one`, which is how a worker alone learns. `rate` is the learning rate
        of a step where workers take steps of their own, whose optimizer then has a rate of 1.

        Raises UserError where the workers do not divide over the mesh.
        """
        check_seats(self.workers, one.mesh, "workers", "--asynchronous.workers")
        durations = Durations(self.durations, self.seconds, self.spread, self.slow_factor)
        if self.local:
            turns = Turns(
                durations,
                self.workers,
                one.seed,
                self.period,
                self.meeting,
                self._way(2 * one.size),
                self.maximum_staleness,
            )
            return LocalWorkers(one, self._moves(), turns, rate or optax.constant_schedule(1.0))
        rule = self._rule()
        way = self._way(rule.bytes_sent(one.size))
        if self.rule == "backup_workers":
            return BackupWorkers(one, Rounds(durations, self.workers, self.backup, one.seed, way))
        arrivals = Arrivals(durations, self.workers, one.seed, way, self.maximum_staleness)
        return Asynchronous(one, rule, arrivals)

    @property
    def meeting(self) -> Meeting:
        """When moves become a change of the server."""
        if self.rule == "buffered":
            return Meeting("buffer", self.buffer)
        if self.rule == "diloco":
            return Meeting("quorum", self.quorum or max(self.workers - 1, 1), self.grace)
        return Meeting("each")

    def _moves(self) -> MoveRule:
        if self.rule == "easgd":
            return easgd(0.9 / self.workers if self.alpha is None else self.alpha)
        build, rate, momentum = (
            (buffered, 1.0, 0.0) if self.rule == "buffered" else (diloco, 0.7, 0.9)
        )
        return build(
            rate if self.outer_learning_rate is None else self.outer_learning_rate,
            momentum if self.outer_momentum is None else self.outer_momentum,
        )

    def _rule(self) -> ServerRule:
        if self.rule == "staleness_aware":
            return staleness_aware()
        if self.rule == "dc_asgd":
            return dc_asgd(self.compensation, self.compensation_decay)
        if self.rule == "hogwild":
            return hogwild(self.share)
        return plain()

    def _way(self, size: int) -> float:
        """There and back, with `size` bytes in all (virtual seconds)."""
        sending = 0.0 if self.bandwidth is None else size * 8 / (self.bandwidth * 1e9)
        return 2 * self.latency + sending
