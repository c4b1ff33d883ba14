"""Law 4 on another target: what XLA for TPUs makes of each rule, compiled where there is no TPU.

It has its own ways to undo what a rule saves; those of the CPU backend are in the other modules.
Numbers of one replica, such as the scale of an array, it gathers as a sum with zeros: 4 bytes.
"""

import pytest

from research.data import TextConfig
from research.experiment import Experiment
from research.inspection import inspect_experiment
from research.models import TransformerConfig
from research.parallel.mesh import MeshConfig
from tests.laws.conftest import RULES

pytest.importorskip("libtpu", reason="compiles for TPUs with jax[tpu], which is not installed")

REPLICAS = 8
MODEL = TransformerConfig(layers=2, width=256, heads=4)
A_FEW_NUMBERS = 2048
"""Of the 11 arrays of this model and the metrics, a number for each replica (bytes)."""


@pytest.mark.parametrize("rule", RULES)
def test_the_step_compiled_for_tpus_sends_what_is_stated(rule: str) -> None:
    data, mesh = TextConfig(batch=REPLICAS), MeshConfig(replica=REPLICAS, data=1)
    experiment = Experiment(MODEL, data, mesh=mesh, exchange=RULES[rule])
    rows = [row for row in inspect_experiment(experiment, "v5e:2x4").traffic if row.axes]
    assert sum(row.wire for row in rows) > 50 * A_FEW_NUMBERS
    for row in rows:
        assert row.wire == pytest.approx(row.expected or 0, abs=A_FEW_NUMBERS), row
