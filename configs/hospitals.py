"""Four hospitals learn to tell heart disease together, and no record leaves any of them.

    research train configs/hospitals.py
    research train configs/hospitals.py --federated.rule scaffold

UCI's patients of Cleveland, Hungary, Switzerland and VA Long Beach (found in $RESEARCH_DATA, or
downloaded). Every hospital takes part in every round.
"""

from research.experiment import (
    Experiment,
    FederatedConfig,
    LinearConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
    TableConfig,
)

experiment = Experiment(
    model=LinearConfig(),
    data=TableConfig(name="heart_disease", batch=16),
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.05, schedule="constant", clip=None),
    federated=FederatedConfig("fedavg", cohort=4, epochs=2),
    partition=PartitionConfig("natural"),
    run=RunConfig(steps=40, log_every=5, evaluate_every=10, checkpoint_every=20),
)
