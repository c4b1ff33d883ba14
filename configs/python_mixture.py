"""A small mixture of experts on Python, from the source of the standard library: no download.

    research train configs/python_mixture.py --cpu-devices 8

2.41 M parameters over data 2 × expert 4: 8 experts in every layer, of which a byte goes to 2, so
that it meets as many as in `python_stdlib`. Expect a validation loss of 2.03 in 300 steps, about
two minutes on 2 cores.
"""

from research.experiment import (
    Experiment,
    MeshConfig,
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
        hidden=256,
        experts=8,
        experts_per_token=2,
        capacity_factor=1.25,
        initial_deviation=0.05,
    ),
    data=TextConfig(source="python_stdlib", vocabulary="byte", context=128, batch=16),
    optimizer=OptimizerConfig(
        learning_rate=2e-3, warmup_steps=20, final_learning_rate=2e-4, weight_decay=0.1, beta2=0.99
    ),
    mesh=MeshConfig(data=2, expert=4),
    run=RunConfig(
        steps=300, log_every=10, evaluate_every=100, evaluate_batches=20, checkpoint_every=100
    ),
)
