"""20 LeNets on 8 × 8 digits that never talk, and answer together.

    research train configs/digits_ensemble.py
    research evaluate RUN

800 steps, 4 minutes on a shared core. Their geometric mean, which validation prefers, has a test
NLL of 0.005, a calibration error of 0.004 and, beside permuted pixels, an AUROC of 0.992 (180
digits); a member in the mean 0.036, 0.012 and 0.954.
"""

from research.experiment import (
    CNNConfig,
    EnsembleConfig,
    Experiment,
    ImagesConfig,
    OptimizerConfig,
    RunConfig,
)

experiment = Experiment(
    model=CNNConfig(kind="lenet"),
    data=ImagesConfig(name="digits", batch=64),
    optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, warmup_steps=20, weight_decay=1e-3),
    ensemble=EnsembleConfig("deep", members=20, combination="product"),
    run=RunConfig(steps=800, log_every=40, evaluate_every=400, checkpoint_every=400),
)
