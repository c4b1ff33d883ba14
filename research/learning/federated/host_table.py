"""The table of clients in the memory of the host, where a population is too large for the devices.

A round takes the rows of its cohort to the devices, and what its clients keep comes back: what lies
there is as large as the cohort, however many clients there are. The rows of one round have to be
back before the next one begins, so the devices wait for that (and only for that: examples are read
ahead as ever).

The table is NumPy arrays in the state, and a checkpoint holds it like any other part. `step`
changes it in place, as it does arrays on devices, which are donated to it: the state before is
gone. Where all begin with zeros, rows of clients that were in no cohort yet take no memory. The
table lies in one process.
"""

import math
import mmap
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.learning.federated.federated import Federated
from research.learning.federated.state import FederatedState
from research.learning.gradients import Batch, Tree
from research.learning.synchronous import StepMetrics

SHARE = 1 / 4
"""Of a device's memory, what a table may take unless it is asked to."""


class OnHost(Federated):
    """`Federated`, whose devices have the rows of a round alone."""

    rows_cross = False

    def __init__(self, *arguments: Any, **words: Any):
        """As `Federated`."""
        super().__init__(*arguments, **words)
        self.abstract_state = self._with_table(self.on_devices, _without_memory)
        rows = self.on_devices.clients
        self.init: Any = Around(self.init, self._begun)
        self.step: Any = Around(self.step, self._made, rows)
        self.evaluate: Any = Around(self.evaluate, self._without_table)
        self.evaluate_each: Any = Around(self.evaluate_each, self._without_table)
        self.evaluate_personal: Any = Around(self.evaluate_personal, self._with_rows, rows)

    def with_parameters(self, state: FederatedState, parameters: Tree) -> FederatedState:
        """As of `Federated`."""
        return self._begun(lambda: super(OnHost, self).with_parameters(state, parameters))

    # On the devices -----------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        return self.population.cohort

    def _kept(self, state: FederatedState, who: Batch) -> Tree:
        return state.clients

    def _table_after(self, state: FederatedState, who: Batch, rows: Tree, parameters: Tree) -> Tree:
        return rows

    # Around them --------------------------------------------------------------------------------

    def _with_table(self, state: FederatedState, made: Callable[..., np.ndarray]) -> FederatedState:
        """`state` with a table of the population for the rows that it has."""
        clients = jax.tree.map(
            lambda rows: made((self.population.clients, *rows.shape[1:]), rows.dtype), state.clients
        )
        return state._replace(clients=clients)

    def _begun(self, init: Callable[[], FederatedState]) -> FederatedState:
        """All rows are alike."""
        state = init()
        begun = self._with_table(state, zeros)
        for table, rows in zip(
            jax.tree.leaves(begun.clients), jax.tree.leaves(state.clients), strict=True
        ):
            if (first := np.asarray(rows[0])).any():
                table[:] = first
        return begun

    def _made(
        self, step: Callable[..., Any], state: FederatedState, batch: Batch
    ) -> tuple[FederatedState, StepMetrics]:
        after, metrics = self._with_rows(step, state, batch)
        members = np.asarray(batch["client"])
        for table, rows in zip(
            jax.tree.leaves(state.clients), jax.tree.leaves(after.clients), strict=True
        ):
            table[members] = rows
        return after._replace(clients=state.clients), metrics

    def _with_rows(self, function: Callable[..., Any], state: FederatedState, batch: Batch) -> Any:
        members = np.asarray(batch["client"])
        rows = jax.tree.map(lambda table: table[members], state.clients)
        placed = jax.device_put(rows, self.shardings.clients)
        return function(state._replace(clients=placed), batch)

    def _without_table(
        self, function: Callable[..., Any], state: FederatedState, batch: Batch
    ) -> Any:
        return function(state._replace(clients=()), batch)


def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """As NumPy's, in small pages: of large ones, which it would ask for, a row takes up a whole
    one."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


def fits(table: Tree) -> bool:
    """Whether a device's part of the (abstract) `table` is within SHARE of its memory, or nobody
    knows how much it has."""
    leaves = jax.tree.leaves(table)
    if not leaves:
        return True
    part = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )
    return part <= SHARE * memory_of(leaves[0].sharding.mesh.devices.flat[0])


def memory_of(device: jax.Device) -> float:
    """Bytes; without end where nobody knows, as of a CPU."""
    try:
        known = device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:  # a device that is not here
        known = {}
    return float(known.get("bytes_limit", math.inf))


def _without_memory(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype), shape)


class Around:
    """A function for devices, jitted, lowered or compiled, with what the host does around it."""

    def __init__(self, function: Any, around: Callable[..., Any], rows: Tree = ()):
        """`rows` are those of the table that are on the devices, abstract."""
        self._function, self._around, self._rows = function, around, rows

    def __call__(self, *arguments: Any) -> Any:
        return self._around(self._function, *arguments)

    def lower(self, *arguments: Any) -> "Around":
        """To be compiled for the shapes of `arguments`: a state, if there are any, and more."""
        if arguments:
            arguments = (arguments[0]._replace(clients=self._rows), *arguments[1:])
        return Around(self._function.lower(*arguments), self._around, self._rows)

    def compile(self) -> "Around":
        """What was lowered, compiled."""
        return Around(self._function.compile(), self._around, self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)
