"""`research inspect`: an experiment's step compiled for its mesh, and read, without running it."""

import math
import os
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from research.data import TextConfig, federate
from research.errors import UserError
from research.experiment import Experiment
from research.learners import abstract_events, learner, with_replicas
from research.planning.inspection import Inspection, Load, inspect
from research.planning.step import Step
from research.prepared import cohorts
from research.rows import rows_of_members, seats_of, sharding_of_batch, sharding_of_cohort

UNMEASURED = "plan auto measures, and nothing is run here: this is the step by scan"

Rows = dict[str, jax.ShapeDtypeStruct]


def inspect_experiment(experiment: Experiment, topology: str | None = None) -> Inspection:
    """The cost of a step of `experiment` on the devices that are here, or on those of a TPU
    `topology` such as v5e:2x4, of which none has to be here.

    The data of clients is loaded: their sizes are those of a round. Raises UserError for what
    cannot be compiled.
    """
    experiment.check()
    if experiment.privacy.unit != "none":
        raise UserError(
            "a private step is as long as its batch or cohort is drawn, which "
            "no compiled program says: inspect the plain one, with --privacy.unit none"
        )
    devices = jax.devices() if topology is None else _devices_of(topology)
    mesh = experiment.mesh.build(devices)
    experiment = with_replicas(experiment, mesh)
    specification = experiment.data.specification()
    is_round = experiment.federated.rule != "none"
    rows, load, clients = (round_of if is_round else batch_of)(experiment, mesh)
    made = learner(experiment, specification, mesh, clients)
    rows |= abstract_events(made)
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        lowered = made.step.lower(made.abstract_state, rows)
        middle = time.perf_counter()
        compiled = _compile(lowered)
    seconds = (middle - began, time.perf_counter() - middle)
    step = Step.of(made, experiment.model, experiment.data.batch, experiment.pipeline)
    unit = "tokens" if isinstance(experiment.data, TextConfig) else "examples"
    inspection = inspect(compiled, step, unit, load, seconds)
    plans = (getattr(experiment, way).plan for way in ("exchange", "federated", "ensemble"))
    if "auto" in plans and seats_of(experiment, mesh) > 1:
        return replace(inspection, warnings=(*inspection.warnings, UNMEASURED))
    return inspection


def batch_of(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[Rows, Load, int]:
    """The batch of a step, what is computed for it, and that it has no clients."""
    specification, batch = experiment.data.specification(), experiment.data.batch
    shape: tuple[int, ...]
    if experiment.ensemble.side_by_side:
        members = rows_of_members(experiment, mesh)
        shape, sharding = (members.count, batch), members.sharding
    else:
        shape, sharding = (batch,), sharding_of_batch(experiment, mesh)
    is_text = isinstance(experiment.data, TextConfig)
    shapes = {
        "inputs": ((*shape, *specification.shape), jnp.int32 if is_text else jnp.float32),
        "targets": ((*shape, *(specification.shape if is_text else ())), jnp.int32),
    }
    rows = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }
    return rows, Load(math.prod(shape)), 0


def round_of(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[Rows, Load, int]:
    """The cohort of a round, what is computed for a mean one, and of how many clients it is."""
    sharding = sharding_of_cohort(experiment, mesh)
    federation = federate(experiment.data.load(), experiment.partition)
    batches = cohorts(experiment, federation, mesh)
    rows = {
        name: jax.ShapeDtypeStruct((batches.cohort, *leaf.shape[1:]), leaf.dtype, sharding=sharding)
        for name, leaf in batches.rows(0, [0]).items()
    }
    return rows, Load(batches.examples, batches.mean_steps), len(federation.train)


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split(":", 1)[1].split())[:300]
        raise UserError(
            f"the step does not fit the memory of these devices: {reason}; split it over more of "
            "them, or use a smaller --data.batch, more --optimizer.microbatches or --model.remat"
        ) from error


def _devices_of(topology: str) -> list[Any]:
    from jax.experimental import topologies

    # The plugin would look for TPUs of this machine, and complain about each thing it misses.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", topology)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except Exception as error:  # whatever the plugin raises, or its absence
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--topology {topology} cannot be compiled for ({reason}): install the TPU compiler "
            "with `make setup EXTRA=tpu`, and name a topology that it knows, such as v5e:2x4"
        ) from error
