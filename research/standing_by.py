"""What a worker does until a supervisor has a place for it in a generation."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from research.experiment import Experiment
from research.parallel import supervision


def stand_by(experiment: Callable[[], Experiment], devices: int | None) -> list[str]:
    """Tells the supervisor what the run asks for, and waits; returns the command to run.

    Everything that takes seconds to import is imported before. `devices` are those of this process,
    if the command says how many.
    """
    orders = supervision.take_pipes()
    if orders is None:
        raise RuntimeError("a worker stands by for a supervisor: use `research launch --elastic`")
    from research import runs  # noqa: F401 - for the next import

    supervision.tell(declared=_declared(experiment(), devices))
    lines = os.fdopen(orders, encoding="utf-8")
    line = lines.readline()
    if not line:  # the supervisor is gone
        os._exit(1)
    place = json.loads(line)
    os.environ.update(place["environment"])
    supervision.follow(lines)
    return place["words"]


def _declared(experiment: Experiment, devices: int | None) -> dict[str, Any]:
    """What decides which meshes the run may take; see `research.deployment.elastic.layout`."""
    replicas = None
    if experiment.federated.rule != "none":
        replicas = experiment.federated.cohort
    elif experiment.asynchronous.rule != "none":
        replicas = experiment.asynchronous.workers
    elif experiment.exchange.rule != "none":
        replicas = experiment.exchange.replicas
    content = json.dumps(experiment.to_json(), sort_keys=True)
    return {
        "mesh": asdict(experiment.mesh),
        "replicas": replicas,
        "batch": experiment.data.batch if experiment.federated.rule == "none" else None,
        "microbatches": experiment.optimizer.microbatches,
        "devices": devices,
        "snapshot_every": experiment.run.snapshot_every,
        "steps": experiment.run.steps,
        "digest": hashlib.sha256(content.encode()).hexdigest()[:16],
    }
