"""By which rule workers and a parameter server learn, and how fast they are, by configuration."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from research.configuration import check_bounds, multiples_near
from research.errors import UserError
from research.learning.asynchronous.asynchronous import Asynchronous
from research.learning.asynchronous.backup_workers import BackupWorkers
from research.learning.asynchronous.server_rules import (
    ServerRule,
    dc_asgd,
    hogwild,
    plain,
    staleness_aware,
)
from research.learning.asynchronous.virtual_time import Arrivals, Distribution, Durations, Rounds
from research.learning.seats import check_seats
from research.learning.synchronous import Synchronous


@dataclass(frozen=True)
class AsynchronousConfig:
    """Workers of given speeds around one parameter server, in virtual time."""

    rule: Literal["none", "plain", "staleness_aware", "dc_asgd", "hogwild", "backup_workers"] = (
        "none"
    )
    """plain applies every gradient as it comes; staleness_aware divides the rate by its staleness;
    dc_asgd compensates the delay; hogwild writes some entries only; backup_workers takes one
    synchronous step by those who are in time; none: there is no server."""

    workers: int = 4
    """Workers, a multiple of --mesh.replica. One update has a batch of one worker; backup_workers'
    has a batch of all."""

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

    def build(self, one: Synchronous) -> Asynchronous | BackupWorkers:
        """The learner around `one`, which is how a worker alone learns.

        Raises UserError where the workers do not divide over the mesh.
        """
        check_seats(self.workers, one.mesh, "workers", "--asynchronous.workers")
        durations = Durations(self.durations, self.seconds, self.spread, self.slow_factor)
        rule = self._rule()
        way = self._way(rule.bytes_sent(one.size))
        if self.rule == "backup_workers":
            return BackupWorkers(one, Rounds(durations, self.workers, self.backup, one.seed, way))
        return Asynchronous(one, rule, Arrivals(durations, self.workers, one.seed, way))

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
