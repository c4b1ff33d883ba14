"""What clients are evaluated on, client by client: examples of each, in pieces of one size."""

import numpy as np

from research.data.clients import Clients
from research.data.dataset import Example, Source, read_rows

PIECE = 128
"""Examples that are evaluated together at most."""


class HeldOut:
    """The examples of each client of a split, of `chosen` examples of it."""

    def __init__(self, source: Source, clients: Clients, chosen: np.ndarray):
        self._source = source
        kept = np.zeros(len(source), bool)
        kept[chosen] = True
        self._own = [clients[client][kept[clients[client]]] for client in range(len(clients))]
        sizes = np.array([len(own) for own in self._own])
        self.clients = np.flatnonzero(sizes)
        """int64, ascending: those that have any."""
        most = int(sizes.max(initial=1))
        self._piece = min(most, PIECE)
        self._pieces = -(-most // self._piece)

    def rows(self, clients: np.ndarray) -> Example:
        """Of each client: examples [clients, most pieces, piece, ...] and their `weights`, named
        `held_...`, and how many `pieces` hold some."""
        shape = (len(clients), self._pieces, self._piece)
        indexes, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for row, client in enumerate(clients):
            own = self._own[client]
            indexes[row].reshape(-1)[: len(own)] = own
            weights[row].reshape(-1)[: len(own)] = 1
        read = read_rows(self._source, indexes.reshape(-1)) | {"weights": weights.reshape(-1)}
        pieces = [-(-len(self._own[client]) // self._piece) for client in clients]
        return {
            **{
                f"held_{name}": leaf.reshape(*shape, *leaf.shape[1:]) for name, leaf in read.items()
            },
            "pieces": np.array(pieces, np.int32),
        }
