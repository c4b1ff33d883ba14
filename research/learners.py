"""How an experiment learns: its algorithm, out of its config, for a mesh and data."""

from dataclasses import replace

import jax
import optax

from research.data import cache_folder
from research.experiment import Experiment
from research.learning import Learner, Replicated, Synchronous
from research.models import Specification
from research.parallel.compilation import keep_programs
from research.parallel.host_memory import keep_freed_memory
from research.parallel.layout import abstract

ONE = optax.constant_schedule(1.0)
"""The rate of an optimizer whose updates are multiplied by that of the step."""


def learner(
    experiment: Experiment,
    specification: Specification,
    mesh: jax.sharding.Mesh,
    clients: int = 0,
    examples: int = 0,
) -> Learner:
    """The algorithm of `experiment` on `mesh`, for so many training `examples` of `specification`,
    of so many `clients` if they keep them."""
    steps, exchange = experiment.run.steps, experiment.exchange
    asynchronous, federated = experiment.asynchronous, experiment.federated
    ensemble = experiment.ensemble
    schedule = ensemble.on(mesh).schedule(experiment.optimizer, steps)
    alone = exchange.rule == asynchronous.rule == federated.rule == ensemble.rule == "none"
    one = Synchronous(
        experiment.model,
        specification,
        experiment.optimizer.build(steps, ONE if asynchronous.local else schedule),
        schedule,
        mesh,
        experiment.run.seed,
        experiment.optimizer.microbatches,
        experiment.pipeline,
        outside=() if alone else ("replica",),
    )
    if experiment.privacy.unit == "example":
        return experiment.privacy.build(one, examples, experiment.data.batch)
    if alone:
        return one
    if asynchronous.rule != "none":
        return asynchronous.build(one, schedule)
    if federated.rule != "none":
        return federated.build(
            one,
            experiment.optimizer,
            steps,
            clients,
            experiment.attack,
            experiment.privacy.release(clients, federated.cohort),
            experiment.privacy.seed or 0,
        )
    if ensemble.rule != "none":
        return ensemble.on(mesh).build(one, experiment.optimizer, steps, experiment.model)
    exchange = exchange.on(mesh)
    assert exchange.replicas is not None
    return Replicated(
        one,
        exchange.build(steps, experiment.attack),
        exchange.replicas,
        "scan" if exchange.plan == "auto" else exchange.plan,  # nothing was measured
        drop=exchange.drops,
    )


def with_replicas(experiment: Experiment, mesh: jax.sharding.Mesh) -> Experiment:
    """`experiment` with the number of replicas, so that other meshes will have as many."""
    exchange, ensemble = experiment.exchange.on(mesh), experiment.ensemble.on(mesh)
    return replace(experiment, exchange=exchange, ensemble=ensemble)


def abstract_events(learner: Learner) -> dict[str, jax.ShapeDtypeStruct]:
    """What a step is told beside its batch, whole on every device."""
    events = learner.events(0)
    whole = jax.sharding.NamedSharding(learner.mesh, jax.sharding.PartitionSpec())
    return abstract(events, dict.fromkeys(events, whole))


def tune_process(experiment: Experiment) -> None:
    """Keeps compiled programs for the next start, and freed memory for the next step."""
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    if not experiment.run.compilation_cache:
        return
    keep_programs(cache_folder() / "xla")
