"""A LeNet on scikit-learn's 8 × 8 digits: no download.

    research train configs/digits.py

Expect a validation accuracy of about 97 % in some seconds.
"""

from research.experiment import CNNConfig, Experiment, ImagesConfig, OptimizerConfig, RunConfig

experiment = Experiment(
    model=CNNConfig(kind="lenet"),
    data=ImagesConfig(name="digits", batch=64),
    optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, warmup_steps=20, weight_decay=1e-3),
    run=RunConfig(steps=400, log_every=20, evaluate_every=100, checkpoint_every=200),
)
