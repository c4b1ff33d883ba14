"""How replicas learn together: what a step computes, from a batch to the next state.

`Synchronous` is plain data-, fully-sharded- and tensor-parallel training: one gradient of the whole
batch a step. `cross_entropy` gives every loss as (sum, count); `OptimizerConfig` names an optax
optimizer and its schedule.
"""

from research.learning.objective import Totals, cross_entropy
from research.learning.optimizer import OptimizerConfig
from research.learning.synchronous import StepMetrics, Synchronous, TrainState

__all__ = [
    "OptimizerConfig",
    "StepMetrics",
    "Synchronous",
    "Totals",
    "TrainState",
    "cross_entropy",
]
