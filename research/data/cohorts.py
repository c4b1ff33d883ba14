"""Who takes part in a round, and with which batches: a pure function of (seed, round).

A round is read like a batch, with a client in each row: [cohort, steps, batch, ...] examples, in as
many steps as the largest client of the population needs, `weights` of 0 for what fills them up. A
client's shuffles and its draws depend on (seed, round, client) alone, never on who else is there.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import Literal

import numpy as np

from research.data.batches import read_ahead
from research.data.clients import Clients
from research.data.dataset import Example, Source, read_rows
from research.errors import UserError

Sampling = Literal["uniform", "weighted", "cyclic", "fixed", "poisson"]
EMPTY = -1
"""The client of a place that is not taken."""
COHORT, SHUFFLE, FAILING, STRAGGLING, ONCE = range(5)
"""What is drawn."""
ROUNDS_AHEAD = 2


class Cohorts:
    """The cohorts and local batches of all rounds; the interface is that of `Batches`."""

    def __init__(
        self,
        source: Source,
        clients: Clients,
        cohort: int,
        batch: int | None,
        epochs: int,
        seed: int,
        sampling: Sampling = "uniform",
        failing: float = 0.0,
        stragglers: float = 0.0,
        devices: int = 1,
        waiting: bool = True,
        most: int | None = None,
        places: int | None = None,
        secret: int | None = None,
    ):
        """`cohort` clients a round, who go `epochs` times through their examples in batches of
        `batch` (None: of all they have), and stop after `most` steps (None: never). The share
        `failing` of them does not answer. The share `stragglers` of a round, rounded, does only a
        part of its epochs, drawn from 1 to all, and without `waiting` does not answer either.
        Clients lie on `devices` so that each has about as much to do. A drawn cohort (`poisson`)
        has `cohort` clients in the mean and room for as many as there are `places`; it is drawn by
        a `secret` seed, if there is one.

        Raises UserError for a cohort that the population cannot make; `devices` divide it.
        """
        population = len(clients)
        if not 1 <= cohort <= population:
            raise UserError(
                f"--federated.cohort {cohort} is not possible with {population} clients: use 1 to "
                f"{population}"
            )
        self.source, self.clients = source, clients
        self.epochs, self.seed = epochs, seed
        self.cohort = cohort if places is None else places
        self._expected = cohort
        self._probability = float(np.float32(cohort / population))
        self._secret = seed if secret is None else secret
        self.batch = int(clients.sizes.max()) if batch is None else batch
        self._sampling, self._failing, self._stragglers = sampling, failing, stragglers
        self._devices, self._waiting = devices, waiting
        self._per_epoch = -(-clients.sizes // self.batch)  # [population] steps
        self._taken = np.minimum(self._per_epoch * epochs, most or np.inf).astype(np.int64)
        self.steps = int(self._taken.max())  # of a round

    @property
    def examples(self) -> int:
        """That a mean round goes through."""
        each = np.minimum(self.clients.sizes * self.epochs, self._taken * self.batch)
        return round(self._expected * each.mean())

    @property
    def mean_steps(self) -> float:
        """That a client takes in a round, in the mean over the population."""
        return float(self._taken.mean())

    def members(self, step: int) -> np.ndarray:
        """int64 [cohort]: the clients of a round (from 0), in the order of rows: those of a device
        follow one another, the devices about equally busy. A drawn cohort has EMPTY places."""
        return self._balanced(self._chosen(step))

    def indexes(self, step: int) -> np.ndarray:
        """int64 [examples]: those that the clients of a round learn from."""
        members = self.members(step)
        return np.concatenate(
            [np.zeros(0, np.int64), *(self.clients[client] for client in members if client >= 0)]
        )

    def rows(self, step: int, rows: Sequence[int] | np.ndarray) -> Example:
        """Reads those rows of a round: examples [rows, steps, batch, ...] and their `weights`; of
        each row the `client`, its `steps` and `examples`, and whether it is `present`."""
        members = self.members(step)[np.asarray(rows, np.int64)]
        draws = Draws(self.seed)
        slow = self._straggling(draws, step)
        taken, members = members != EMPTY, np.maximum(members, 0)
        epochs = [
            slow.get(client, self.epochs) if here else 0
            for client, here in zip(members, taken, strict=True)
        ]
        present = [
            not self._fails(draws, step, client) and (self._waiting or client not in slow)
            for client in members
        ]
        shuffles = (draws.at(SHUFFLE, step, client) for client in members)
        read = self._read(members, epochs, shuffles, self.steps)
        read["present"] = taken & np.array(present)
        return read | {"drawn": taken} if self._sampling == "poisson" else read

    def once(self, clients: np.ndarray) -> Example:
        """As `rows`, those `clients` in their order, with all their examples once."""
        draws = Draws(self.seed)
        shuffles = (draws.at(ONCE, 0, client) for client in clients)
        read = self._read(clients, [1] * len(clients), shuffles, int(self._per_epoch.max()))
        return read | {"present": np.ones(len(clients), bool)}

    def _read(
        self,
        members: np.ndarray,
        epochs: Sequence[int],
        shuffles: Iterable[np.random.Generator],
        most: int,
    ) -> Example:
        """[members, most steps, batch, ...], with so many `epochs` of each, or their first steps,
        shuffled by its own of `shuffles`, which are taken one after another."""
        whole = max(most, int(self._per_epoch.max()) * max(epochs))
        shape = (len(members), whole, self.batch)
        indexes, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        steps = np.zeros(len(members), np.int32)
        for row, (client, draw) in enumerate(zip(members, shuffles, strict=True)):
            own = self.clients[client]
            each = int(self._per_epoch[client])
            for epoch in range(epochs[row]):
                first = epoch * each * self.batch
                indexes[row].reshape(-1)[first : first + len(own)] = draw.permutation(own)
                weights[row].reshape(-1)[first : first + len(own)] = 1
            steps[row] = min(epochs[row] * each, most)
        indexes, weights = indexes[:, :most], weights[:, :most]
        examples = read_rows(self.source, indexes.reshape(-1))
        shape = indexes.shape
        read = {name: leaf.reshape(*shape, *leaf.shape[1:]) for name, leaf in examples.items()}
        return {
            **read,
            "weights": weights,
            "client": members.astype(np.int32),
            "steps": steps,
            "examples": self.clients.sizes[members].astype(np.float32),
        }

    def iterate(
        self, start: int, rows: Sequence[int] | np.ndarray
    ) -> Generator[Example, None, None]:
        """The given rows of the rounds from `start` on, read ahead by a thread."""
        rows = np.asarray(rows, np.int64)
        return read_ahead(lambda step: self.rows(step, rows), start, ROUNDS_AHEAD)

    @property
    def filling(self) -> float:
        """The share of all places for examples that only fills up, over the population."""
        used = np.minimum(self.clients.sizes * self.epochs, self._taken * self.batch).sum()
        return float(1 - used / (len(self.clients) * self.steps * self.batch))

    def imbalance(self, step: int) -> float:
        """Local steps of the busiest device in a round, over those of the mean device."""
        members = self.members(step)
        each = np.where(members == EMPTY, 0, self._taken[members])
        steps = each.reshape(self._devices, -1).sum(axis=1)
        return float(steps.max() / max(steps.mean(), 1e-9))

    def in_words(self) -> str:
        """Who the clients are, and what their unequal sizes cost, in a line."""
        sizes = self.clients.sizes
        return (
            f"{len(sizes)} clients of {sizes.min()} to {sizes.max()} examples, heterogeneity "
            f"{self.clients.heterogeneity:.2f}; {self.filling:.0%} of the places of a round only "
            f"fill up; the busiest device has {self.imbalance(0):.2f} times the mean work"
        )

    # --------------------------------------------------------------------------------------------

    def _chosen(self, step: int) -> np.ndarray:
        population, cohort = len(self.clients), self.cohort
        if self._sampling == "poisson":
            draw = Draws(self._secret).at(COHORT, step)
            drawn = np.flatnonzero(draw.random(population) < self._probability)
            return drawn if len(drawn) <= cohort else draw.permutation(drawn)[:cohort]
        if self._sampling == "fixed":
            return np.arange(cohort)
        if self._sampling == "cyclic":
            return (step * cohort + np.arange(cohort)) % population
        draw = Draws(self.seed).at(COHORT, step)
        if self._sampling == "uniform":
            return draw.choice(population, cohort, replace=False, shuffle=False)
        weights = self.clients.sizes / self.clients.sizes.sum()
        return draw.choice(population, cohort, replace=False, p=weights, shuffle=False)

    def _balanced(self, chosen: np.ndarray) -> np.ndarray:
        """Longest first, each to the device that has the least to do and a place left (Graham 1969,
        *Bounds on Multiprocessing Timing Anomalies*, with places)."""
        chosen = np.sort(chosen)
        if self._devices == 1:
            return np.pad(chosen, (0, self.cohort - len(chosen)), constant_values=EMPTY)
        places = self.cohort // self._devices
        devices: list[list[int]] = [[] for _ in range(self._devices)]
        busy = np.zeros(self._devices)
        for client in chosen[np.argsort(-self._taken[chosen], kind="stable")]:
            free = [d for d, members in enumerate(devices) if len(members) < places]
            device = min(free, key=lambda d: busy[d])
            devices[device].append(int(client))
            busy[device] += self._taken[client]
        full = [members + (places - len(members)) * [EMPTY] for members in devices]
        return np.array([client for members in full for client in members])

    def _fails(self, draws: "Draws", step: int, client: int) -> bool:
        return bool(self._failing) and draws.at(FAILING, step, client).random() < self._failing

    def _straggling(self, draws: "Draws", step: int) -> dict[int, int]:
        """The stragglers of a round, with their epochs: a rounded share of its cohort, so that it
        is known how many are left."""
        members = self._chosen(step) if self._stragglers else ()
        count = round(self._stragglers * len(members))
        if not count:
            return {}
        drawn = {client: draws.at(STRAGGLING, step, client).random(2) for client in members}
        slow = sorted(members, key=lambda client: drawn[client][0])[:count]
        return {client: 1 + int(drawn[client][1] * self.epochs) for client in slow}


class Draws:
    """Random numbers by (seed, purpose, round, client): one generator, set to where they begin.

    To make a generator for each takes longer than the shuffle of a small client.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._bits = np.random.Philox(0)
        self._state = self._bits.state

    def at(self, purpose: int, step: int, client: int = 0) -> np.random.Generator:
        """Those of one purpose, round and client; ends what was had before."""
        self._state["state"] = {
            "key": np.array([self._seed, purpose], np.uint64),
            "counter": np.array([0, 0, client, step], np.uint64),
        }
        self._bits.state = self._state
        return np.random.Generator(self._bits)
