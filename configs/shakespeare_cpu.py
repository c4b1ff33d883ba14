"""nanoGPT's documented CPU run: a character-level model of tiny Shakespeare, 0.8 M parameters.

    research train configs/shakespeare_cpu.py

nanoGPT (Karpathy 2022) documents a validation loss of 1.88 after 2,000 steps, in about 3 minutes on
a laptop. Expect 1.75 on the whole validation split here, in 2 to 3 minutes on 2 quiet cores. Model,
data, optimizer and schedule are nanoGPT's; the start is wider. With nanoGPT's own
(--model.initial-deviation 0.02) expect 1.91.
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
        layers=4,
        width=128,
        heads=4,
        activation="gelu_exact",
        dropout=0.0,
        initial_deviation=0.05,
        unroll=4,
    ),
    data=TextConfig(source="tiny_shakespeare", vocabulary="character", context=64, batch=12),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=100,
        decay_steps=2000,
        final_learning_rate=1e-4,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.99,
        clip=1.0,
    ),
    run=RunConfig(steps=2000, log_every=50, evaluate_every=500, checkpoint_every=500),
)
