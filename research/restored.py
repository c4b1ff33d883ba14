"""What a run has come to: its newest checkpoint, ready to be asked."""

import contextlib
from collections.abc import Callable

import jax

from research.errors import UserError
from research.experiment import Experiment
from research.learners import learner, tune_process
from research.models import Specification
from research.parallel.mesh import MeshConfig
from research.parallel.saying import warn
from research.training.checkpoints import Checkpoints
from research.training.folder import RunFolder


class Restored:
    """The newest checkpoint of a run, on the run's mesh if it fits this machine, else on 1 device.

    Needs none of the run's data.
    """

    def __init__(self, folder: RunFolder, change: Callable[[Experiment], Experiment] = lambda e: e):
        before = Experiment.from_json(folder.read("config"))
        self.experiment = change(before)
        self.data = folder.read("data")
        self.specification = Specification(tuple(self.data["shape"]), self.data["classes"])
        try:
            self.mesh = self.experiment.mesh.build()
        except UserError:
            if self.experiment.mesh != before.mesh:  # asked for
                raise
            self.mesh = MeshConfig().build(jax.devices()[:1])
        tune_process(self.experiment)
        self.learner = learner(
            self.experiment,
            self.specification,
            self.mesh,
            self.data.get("clients", 0),
            self.data["examples"]["train"],
        )
        checkpoints = Checkpoints(folder.checkpoints)
        with contextlib.closing(checkpoints), jax.set_mesh(self.mesh):
            self.step, self.state = checkpoints.restore(self.learner.abstract_state, warn)
