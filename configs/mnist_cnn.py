"""The CNN of McMahan et al. 2017 (1,663,370 parameters) on MNIST, data parallel.

    research train configs/mnist_cnn.py
    research train configs/mnist_cnn.py --cpu-devices 8

1,500 steps of 64 images, under two epochs: a few minutes on 2 cores. The paper's federated runs
aim at a test accuracy of 99 %; the data comes from $RESEARCH_DATA or its publisher.
"""

from research.experiment import CNNConfig, Experiment, ImagesConfig, OptimizerConfig, RunConfig

experiment = Experiment(
    model=CNNConfig(kind="mcmahan"),
    data=ImagesConfig(name="mnist", batch=64),
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=50, weight_decay=1e-4),
    run=RunConfig(steps=1500, log_every=50, evaluate_every=500, checkpoint_every=500),
)
