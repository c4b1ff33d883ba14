"""What the server sees: of two inputs with equal sums, the same."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from research.exchange.secure_aggregation import Client
from research.exchange.secure_aggregation import client as client_module
from tests.exchange.secure_aggregation.conftest import (
    SIZE,
    Play,
    a_round,
    identities,
    play,
    some_values,
)


def test_masked_inputs_are_uniform_whatever_is_in_them() -> None:
    """Of zeros and of ones everywhere: chi-squared of the 256 values of a byte, below its quantile
    of 1 - 1e-6 (378 at 255 degrees), and the two no more different from each other."""
    counts = []
    for value in (0, 2**32 - 1):
        values = np.full((3, 20_000), value, np.uint32)
        game = Play(a_round(3, 3, size=20_000), values).until(2)
        text = b"".join(message.values for message in game.answer().values())
        counts.append(np.bincount(np.frombuffer(text, np.uint8), minlength=256))
        even = len(text) / 256
        assert ((counts[-1] - even) ** 2 / even).sum() < 378
    one, other = counts
    assert ((one - other) ** 2 / (one + other)).sum() < 378


def test_values_are_read_for_the_masked_input_only() -> None:
    """So all other messages are the same for any values."""
    stages_of_reads: set[int] = set()

    class Watched(Client):
        @property
        def values(self) -> np.ndarray:
            stages_of_reads.add(now)
            return self._values

        @values.setter
        def values(self, values: np.ndarray) -> None:
            self._values = values

    game = play(5, 3)
    people = enumerate(identities(5))
    game.clients = [Watched(game.round, n, one, game.values[n]) for n, one in people]
    for now in range(5):
        game.answer()
        if now < 4:
            game.deliver()
    assert stages_of_reads == {2}
    np.testing.assert_array_equal(game.result(), some_values(5).sum(0, dtype=np.uint32))


class Tabled:
    """`Masked`, its masks out of a table that is filled by chance: a perfect generator."""

    table: dict[bytes, np.ndarray]
    used: list[bytes]

    def __init__(self, total: np.ndarray):
        self.total = total

    def _mask(self, seed: bytes) -> np.ndarray:
        self.used.append(seed)
        fresh = np.random.default_rng().integers(0, 2**32, SIZE, dtype=np.uint32)
        return self.table.setdefault(seed, fresh)

    def add(self, seed: bytes) -> None:
        self.total += self._mask(seed)

    def subtract(self, seed: bytes) -> None:
        self.total -= self._mask(seed)


def test_inputs_of_equal_sums_have_equal_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients 0 to 3 survive, 4 drops out after its shares. For other inputs of the same sum there
    are other masks between survivors, just as likely, under which they send the very same bytes;
    all masks that are revealed later (own ones, and those with client 4) stay what they were."""
    game = play(5, 3).until(2)
    monkeypatch.setattr(client_module, "Masked", Tabled)
    monkeypatch.setattr(Tabled, "table", {}, raising=False)
    monkeypatch.setattr(Tabled, "used", [], raising=False)

    seeds_of: list[set[bytes]] = []
    sent = game.answer({4})
    for client in game.clients[:4]:
        Tabled.used.clear()
        client._masked(client.values)
        seeds_of.append(set(Tabled.used))

    rng = np.random.default_rng(7)
    others = rng.integers(0, 2**32, (4, SIZE), dtype=np.uint32)
    others[3] += some_values(5)[:4].sum(0, dtype=np.uint32) - others.sum(0, dtype=np.uint32)
    moved = np.cumsum(some_values(5)[:4] - others, axis=0, dtype=np.uint32)
    before = dict(Tabled.table)
    between: set[bytes] = set()
    for u, v in pairwise(range(4)):  # u adds the mask that they share, v subtracts it
        (seed,) = seeds_of[u] & seeds_of[v]
        Tabled.table[seed] = Tabled.table[seed] + moved[u]
        between.add(seed)

    def views(values: Any) -> list[bytes]:
        return [game.clients[n]._masked(values[n]).tobytes() for n in range(4)]

    assert views(others) == [sent[n].values for n in range(4)]
    assert {s for s in before if (before[s] != Tabled.table[s]).any()} == between
    assert len(before) == 4 + 6 + 4  # own masks, between survivors, with client 4
    others[2, 0] += 1  # another sum
    assert views(others) != [sent[n].values for n in range(4)]
