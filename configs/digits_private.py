"""DP-SGD on scikit-learn's 8 × 8 digits: of no image more is told than ε = 8 at δ = 1e-4.

research train configs/digits_private.py
"""

from research.experiment import (
    CNNConfig,
    Experiment,
    ImagesConfig,
    OptimizerConfig,
    PrivacyConfig,
    RunConfig,
)

experiment = Experiment(
    model=CNNConfig(kind="lenet"),
    data=ImagesConfig(name="digits", batch=256),
    optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, schedule="constant", clip=None),
    privacy=PrivacyConfig(unit="example", epsilon=8.0, delta=1e-4, clip=1.0),
    run=RunConfig(steps=100, log_every=20, evaluate_every=50, checkpoint_every=50),
)
