"""How replicas learn together: what a step computes, from a batch to the next state.

`Synchronous` is one model: one gradient of the whole batch a step, over any mesh. `Replicated` is
several that differ, by a `Rule` (`ExchangeConfig` names one): local SGD, DiLoCo, elastic averaging.
`Asynchronous` are workers around a server that takes their gradients as they come, `LocalWorkers`
those that take steps of their own, `BackupWorkers` those that do not wait for the slowest, all in
virtual time (`AsynchronousConfig`). `Federated` are
clients that keep their data (`FederatedConfig`). `Ensemble`, `Snapshots` and `BatchEnsemble` have
members that answer together (`EnsembleConfig`). `Private` bounds and hides what one example does
(`PrivacyConfig`). All are a `Learner`. `cross_entropy` gives every
loss as (sum, count); `OptimizerConfig` names an optax optimizer and its schedule.
"""

from research.learning.asynchronous import (
    Asynchronous,
    AsynchronousConfig,
    AsynchronousState,
    BackupWorkers,
    LocalWorkers,
    LocalWorkersState,
)
from research.learning.attack_config import AttackConfig
from research.learning.ensemble import (
    BatchEnsemble,
    BatchEnsembleState,
    Ensemble,
    EnsembleConfig,
    EnsembleState,
    Snapshots,
    SnapshotState,
)
from research.learning.federated import Federated, FederatedConfig, FederatedState
from research.learning.federated.aggregation_config import AggregationConfig
from research.learning.objective import Totals, cross_entropy
from research.learning.optimizer import OptimizerConfig
from research.learning.private import PrivacyConfig, Private, PrivateState
from research.learning.replicated import ExchangeConfig, Replicated, ReplicatedState, Rule
from research.learning.synchronous import StepMetrics, Synchronous, TrainState

Learner = (
    Synchronous
    | Replicated
    | Asynchronous
    | LocalWorkers
    | BackupWorkers
    | Federated
    | Ensemble
    | Snapshots
    | BatchEnsemble
    | Private
)
State = (
    TrainState
    | ReplicatedState
    | AsynchronousState
    | LocalWorkersState
    | FederatedState
    | EnsembleState
    | SnapshotState
    | BatchEnsembleState
    | PrivateState
)

__all__ = [
    "AggregationConfig",
    "Asynchronous",
    "AsynchronousConfig",
    "AsynchronousState",
    "AttackConfig",
    "BackupWorkers",
    "BatchEnsemble",
    "BatchEnsembleState",
    "Ensemble",
    "EnsembleConfig",
    "EnsembleState",
    "ExchangeConfig",
    "Federated",
    "FederatedConfig",
    "FederatedState",
    "Learner",
    "LocalWorkers",
    "LocalWorkersState",
    "OptimizerConfig",
    "PrivacyConfig",
    "Private",
    "PrivateState",
    "Replicated",
    "ReplicatedState",
    "Rule",
    "SnapshotState",
    "Snapshots",
    "State",
    "StepMetrics",
    "Synchronous",
    "Totals",
    "TrainState",
    "cross_entropy",
]
