"""nanoGPT's documented GPU run: a character-level model of tiny Shakespeare, 10.6 M parameters.

    research train configs/shakespeare_gpu.py

nanoGPT (Karpathy 2022) documents a best validation loss of 1.4697 and about 3 minutes on one A100.
The model overfits: the best loss comes before the last step.
"""

from research.experiment import (
    Experiment,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    TransformerConfig,
)

experiment = Experiment(
    model=TransformerConfig(
        layers=6, width=384, heads=6, activation="gelu_exact", dropout=0.2, dtype="bfloat16"
    ),
    data=TextConfig(source="tiny_shakespeare", vocabulary="character", context=256, batch=64),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=100,
        decay_steps=5000,
        final_learning_rate=1e-4,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.99,
        clip=1.0,
    ),
    run=RunConfig(steps=5000, log_every=10, evaluate_every=250, checkpoint_every=250),
)
