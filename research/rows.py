"""How the rows of a step's batch lie on the mesh, and which of them a process reads."""

import math
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from research.configuration import multiples_near
from research.data import BatchesInTurn, PoissonBatches, Source
from research.errors import UserError
from research.experiment import Experiment
from research.learning.private import places
from research.parallel.layout import LAYOUT, batch_sharding, place, rows_of_this_process
from research.parallel.processes import shared

EVALUATED = 512
"""Examples that are evaluated together where `--data.batch` is a client's."""


@dataclass(frozen=True)
class Rows:
    """The rows of a batch."""

    count: int
    sharding: jax.sharding.NamedSharding  # of leaves [count, ...]
    own: np.ndarray  # int64, ascending: those that this process reads

    @classmethod
    def of(cls, sharding: jax.sharding.NamedSharding, count: int) -> "Rows":
        """So many rows that lie so."""
        return cls(count, sharding, rows_of_this_process(sharding, count))

    def place(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The batch on the devices, of the rows that each process has read."""
        return place(rows, self.sharding, self.count)

    def abstract(self, rows: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the batch that has such `rows`."""
        return {
            name: jax.ShapeDtypeStruct(
                (self.count, *leaf.shape[1:]), leaf.dtype, sharding=self.sharding
            )
            for name, leaf in rows.items()
        }


def rows_of_batch(experiment: Experiment, mesh: jax.sharding.Mesh) -> Rows:
    """As `sharding_of_batch` has them."""
    return Rows.of(sharding_of_batch(experiment, mesh), experiment.data.batch)


def rows_of_private_batch(experiment: Experiment, mesh: jax.sharding.Mesh, examples: int) -> Rows:
    """Places for what is drawn of so many `examples`."""
    plan = experiment.privacy.plan(examples, experiment.data.batch)
    count, microbatches = places(plan.most, experiment.privacy.microbatch, mesh)
    return Rows.of(batch_sharding(mesh, count // microbatches), count)


def with_budget(experiment: Experiment, units: int) -> Experiment:
    """`experiment` with the noise and the seed that its budget for `units` leaves open."""
    before = experiment.privacy
    expected = expected_units(experiment)
    privacy = before.decided(units, expected, experiment.run.steps)
    if before.seed is None:
        privacy = replace(privacy, seed=int(shared("privacy seed", str(privacy.seed))))
    return replace(experiment, privacy=privacy)


def expected_units(experiment: Experiment) -> int:
    """Of a mean step of a private run: examples, or clients."""
    of_clients = experiment.privacy.unit == "client"
    return experiment.federated.cohort if of_clients else experiment.data.batch


def poisson(experiment: Experiment, source: Source, mesh: jax.sharding.Mesh) -> PoissonBatches:
    """Batches that are drawn, or come in turn."""
    privacy = experiment.privacy
    plan = privacy.plan(len(source), experiment.data.batch)
    rows, microbatches = places(plan.most, privacy.microbatch, mesh)
    assert privacy.seed is not None
    if groups := plan.event.groups:
        return BatchesInTurn(source, groups, rows, microbatches, privacy.seed)
    probability = plan.event.sampling_probability
    return PoissonBatches(source, probability, rows, microbatches, privacy.seed)


def rows_of_cohort(experiment: Experiment, mesh: jax.sharding.Mesh, clients: int) -> Rows:
    """As `sharding_of_cohort` has them, of so many `clients`."""
    places = experiment.federated.places(clients, mesh.shape["replica"])
    return Rows.of(sharding_of_cohort(experiment, mesh), places)


def sharding_of_cohort(
    experiment: Experiment, mesh: jax.sharding.Mesh
) -> jax.sharding.NamedSharding:
    """Clients over `replica`. Raises UserError for a cohort that does not divide."""
    cohort, devices = experiment.federated.cohort, mesh.shape["replica"]
    if cohort % devices and experiment.federated.sampling != "poisson":
        raise UserError(
            f"a cohort of {cohort} clients does not divide over --mesh.replica {devices}: use "
            f"--federated.cohort {multiples_near(cohort, devices)}"
        )
    return jax.sharding.NamedSharding(mesh, P("replica"))


def rows_of_members(experiment: Experiment, mesh: jax.sharding.Mesh) -> Rows:
    """Members over `replica`, the batch of each over the other axes that split one."""
    count = experiment.ensemble.members
    assert count is not None
    return Rows.of(jax.sharding.NamedSharding(mesh, P("replica", *_axes(experiment, mesh))), count)


def rows_of_all_members(experiment: Experiment, mesh: jax.sharding.Mesh) -> Rows:
    """A batch that all members look at."""
    sharding = jax.sharding.NamedSharding(mesh, P(*_axes(experiment, mesh)))
    return Rows.of(sharding, experiment.data.batch)


def _axes(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[tuple[str, ...], ...]:
    """What splits a member's batch. Raises UserError where it does not divide."""
    batch, microbatches = experiment.data.batch, experiment.optimizer.microbatches
    axes = [a for a in LAYOUT["batch"].mesh_axes if a != "replica" and mesh.shape[a] > 1]
    parts = math.prod(mesh.shape[a] for a in axes)
    if batch % (parts * microbatches):
        product = " × ".join([*axes, *["microbatches"] * (microbatches > 1)])
        raise UserError(
            f"a member's batch {batch} does not divide over {product} = {parts * microbatches}: "
            f"use --data.batch {multiples_near(batch, parts * microbatches)}"
        )
    return (tuple(axes),) if axes else ()


def sharding_of_batch(
    experiment: Experiment, mesh: jax.sharding.Mesh
) -> jax.sharding.NamedSharding:
    """How a batch lies on the mesh: so that its microbatches do. Raises UserError for sizes that
    do not divide."""
    batch, microbatches = experiment.data.batch, experiment.optimizer.microbatches
    seats = seats_of(experiment, mesh)
    split = {axis: mesh.shape[axis] for axis in LAYOUT["batch"].mesh_axes if mesh.shape[axis] > 1}
    if seats > 1:
        split = {"replicas a device": seats} | split
    parts = math.prod(split.values())
    if seats == 1 and (microbatches == 1 or batch // microbatches % parts == 0):
        return batch_sharding(mesh, batch // microbatches)
    if batch % (parts * microbatches) == 0:
        return batch_sharding(mesh, batch)
    whole = parts * microbatches
    cut = f" / {microbatches} microbatches = {batch // microbatches}" if microbatches > 1 else ""
    fewer = ", or fewer --optimizer.microbatches" if microbatches > 1 else ""
    raise UserError(
        f"batch {batch}{cut} does not divide over {' × '.join(split)} = {parts}: use "
        f"--data.batch {-(-batch // whole) * whole}{fewer}"
    )


def seats_of(experiment: Experiment, mesh: jax.sharding.Mesh) -> int:
    """Replicas or members on a device, once their number is known (see `with_replicas`), or
    clients."""
    devices = mesh.shape["replica"]
    if experiment.federated.rule != "none":
        return experiment.federated.cohort // devices
    if experiment.ensemble.side_by_side and experiment.ensemble.members is not None:
        return experiment.ensemble.members // devices
    return (experiment.exchange.replicas or devices) // devices
