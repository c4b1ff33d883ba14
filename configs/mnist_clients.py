"""McMahan et al. 2017, arXiv:1602.05629: 100 clients of 600 digits, most of two kinds only.

    research train configs/mnist_clients.py                          FedAvg, E = 1, B = 10, C = 0.1
    research train configs/mnist_clients.py --partition.kind iid
    research train configs/mnist_clients.py --federated.rule scaffold --federated.weighting uniform

The model is the paper's 2NN, of 199,210 parameters. Needs MNIST (found in $RESEARCH_DATA, or
downloaded); validation is on its test set.
"""

from research.experiment import (
    Experiment,
    FederatedConfig,
    ImagesConfig,
    MLPConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
)

experiment = Experiment(
    model=MLPConfig(widths=(200, 200)),
    data=ImagesConfig(name="mnist", batch=10, hold_out=False),
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.05, schedule="constant", clip=None),
    federated=FederatedConfig("fedavg", cohort=10, epochs=1),
    partition=PartitionConfig("shards", clients=100),
    run=RunConfig(steps=100, log_every=10, evaluate_every=10, checkpoint_every=50),
)
