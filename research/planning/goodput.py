"""What failures leave of a machine's work: a simulation in virtual time, of three ways to train.

N devices in hosts of g fail, each at random with a mean time M between its failures, so that some
device fails every M/N. Goodput is the work that is kept, as a share of what N devices do that never
fail. A host that failed is away for R.

**Synchronous.** All stop. Everything since the last checkpoint is lost, and the run is placed again
on a spare host, for which all wait C_restart. Saving takes C_save, every τ = √(2·C_save·M/N)
(Young 1974, "A first order approximation to the optimum checkpoint interval", eq. 3; at most an
hour), so that with rare failures 1 - goodput ≈ √(2·C_save·N/M) + C_restart·N/M.

**Elastic.** All stop for C_again, and do again what came since the last snapshot, s/2 in the mean.
Then they go on without the host, and stop for C_again once more when it is back.

**DiLoCo with a quorum** (Douillard et al. 2023, arXiv 2311.08105; decoupled: arXiv 2604.21428). The
devices are W islands, each elastic. A failure stops one island only, which also loses what it did
since it last met the others, if all of its hosts are away; the others do not wait for it.

Assumed: failures are independent and do not hit what is away; spares are there at once; an island's
work counts alike whether few or many others join in; no failure of networks or of a controller.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Assumptions:
    """Times in seconds. The defaults are of a large run: 419 unexpected interruptions in 54 days on
    16,384 GPUs (Llama 3, arXiv 2407.21783, section 3.3.4)."""

    between_failures: float = 54 * 86400 * 16384 / 419
    """M: of one device."""

    host: int = 8
    """g: devices that are away together."""

    away: float = 3600.0
    """R: until a failed host is back."""

    restart: float = 300.0
    """C_restart: to place a synchronous run again."""

    save: float = 30.0
    """C_save: that training stands still for a checkpoint."""

    again: float = 15.0
    """C_again: to the next step of an elastic run."""

    snapshot_every: float = 10.0
    """s: from one snapshot in memory to the next."""

    islands: int = 64
    """W: of DiLoCo, but never more than hosts."""

    meet_every: float = 600.0
    """From one exchange of the islands to the next."""

    longest_interval: float = 3600.0
    """Between checkpoints."""


WAYS = ("synchronous", "elastic", "diloco")


def goodput(way: str, devices: int, assumed: Assumptions, days: float, seed: int) -> float:
    """Share of the work of `devices` that is kept in so many days of virtual time."""
    random = np.random.default_rng([seed, devices, WAYS.index(way)])
    if way == "synchronous":
        return _synchronous(devices, assumed, days * 86400, random)
    if way == "elastic":
        return _elastic(devices, assumed, days * 86400, random)
    islands = max(min(assumed.islands, devices // assumed.host), 1)
    each = [
        _elastic(devices // islands, assumed, days * 86400, random, assumed.meet_every)
        for _ in range(islands)
    ]
    return float(np.mean(each))


def interval(devices: int, assumed: Assumptions) -> float:
    """τ: seconds of work from one checkpoint to the next."""
    mean = assumed.between_failures / devices
    return min(math.sqrt(2 * assumed.save * mean), assumed.longest_interval)


def _synchronous(
    devices: int, assumed: Assumptions, horizon: float, random: np.random.Generator
) -> float:
    """Time goes from failure to failure; what lies after the last checkpoint before one is lost."""
    mean = assumed.between_failures / devices
    work, cycle = interval(devices, assumed), interval(devices, assumed) + assumed.save
    now = kept = 0.0
    while now < horizon:
        until = random.exponential(mean)
        kept += work * math.floor(min(until, horizon - now) / cycle)
        if now + until >= horizon:  # the end is no failure: what is begun counts
            kept += min(work, (horizon - now) % cycle)
            break
        now += until + assumed.restart
        while random.exponential(mean) < assumed.restart:  # another one while it restarts
            now += assumed.restart
    return kept / horizon


def _elastic(
    devices: int,
    assumed: Assumptions,
    horizon: float,
    random: np.random.Generator,
    meet_every: float = 0.0,
) -> float:
    """Time goes from one change of members to the next: hosts fail, and come back."""
    hosts = max(devices // assumed.host, 1)
    mean = assumed.between_failures * hosts / devices  # of one host
    there, now, kept = hosts, 0.0, 0.0
    back: list[float] = []  # when those that are away come back, in order
    while now < horizon:
        failure = now + (random.exponential(mean / there) if there else math.inf)
        change = min(failure, back[0] if back else math.inf, horizon)
        kept += there / hosts * (change - now)
        now = change
        if now >= horizon:
            break
        if change == failure:
            lost = min(random.uniform(0, assumed.snapshot_every), kept)
            kept -= there / hosts * lost
            there -= 1
            back.append(now + assumed.away)
            if there == 0:  # nobody is left who remembers
                kept -= min(random.uniform(0, meet_every), kept) / hosts
        else:
            back.pop(0)
            there += 1
        now += min(assumed.again, horizon - now) if there else 0.0
    return kept / horizon
