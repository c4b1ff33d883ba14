"""`research inspect`: an experiment's step compiled for its mesh, and read, without running it."""

import os
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from research.data import TextConfig
from research.errors import UserError
from research.experiment import Experiment
from research.learning import Federated
from research.planning.inspection import Inspection, inspect
from research.planning.step import Step
from research.prepared import abstract_events, learner, with_replicas
from research.rows import seats_of, sharding_of_batch

UNMEASURED = "--exchange.plan auto measures, and nothing is run here: this is the step by scan"


def inspect_experiment(experiment: Experiment, topology: str | None = None) -> Inspection:
    """The cost of a step of `experiment` on the devices that are here, or on those of a TPU
    `topology` such as v5e:2x4, of which none has to be here.

    Raises UserError for what cannot be compiled.
    """
    experiment.check()
    if experiment.federated.rule != "none":
        raise UserError(
            "how many steps the clients of a round take is in their data, not in the compiled "
            "round: inspect how one of them learns, with --federated.rule none"
        )
    devices = jax.devices() if topology is None else _devices_of(topology)
    mesh = experiment.mesh.build(devices)
    experiment = with_replicas(experiment, mesh)
    specification = experiment.data.specification()
    batch = experiment.data.batch
    sharding = sharding_of_batch(experiment, mesh)
    made = learner(experiment, specification, mesh)
    assert not isinstance(made, Federated)
    is_text = isinstance(experiment.data, TextConfig)
    shapes = {
        "inputs": ((batch, *specification.shape), jnp.int32 if is_text else jnp.float32),
        "targets": ((batch, *specification.shape) if is_text else (batch,), jnp.int32),
    }
    rows = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }
    rows |= abstract_events(made)
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        lowered = made.step.lower(made.abstract_state, rows)
        middle = time.perf_counter()
        compiled = _compile(lowered)
    seconds = (middle - began, time.perf_counter() - middle)
    step = Step.of(made, experiment.model, batch, experiment.pipeline)
    inspection = inspect(compiled, step, "tokens" if is_text else "examples", seconds)
    if experiment.exchange.plan == "auto" and seats_of(experiment, mesh) > 1:
        return replace(inspection, warnings=(*inspection.warnings, UNMEASURED))
    return inspection


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
